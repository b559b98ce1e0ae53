//! `POST /v1/completions`.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    answer::{Head, OpenAiUsage, Text, texts},
    asked::Asked,
    body::{Common, must_be_empty, refused, split},
    chunks::{Chunk, Pieces, chunks},
    logprobs::TextLogprobs,
    run,
};
use crate::{
    generation::{FinishReason, GenerateRequest, TokenLogprob},
    http::{
        error::{Problem, problems},
        extract,
        headers::AMEND_VERSION,
        readiness::Admitted,
        sse,
        state::AppState,
    },
};

/// OpenAI's default.
const MAX_TOKENS: usize = 16;
/// The most prompts of one request.
const MAX_PROMPTS: usize = 256;

/// Parameters of this route alone.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Own {
    prompt: Prompts,
    /// How many alternatives to report with the log-probability of each token.
    #[serde(default)]
    logprobs: Option<usize>,
    /// Not supported: false or null.
    #[serde(default)]
    echo: Option<Value>,
    /// Not supported: empty or null.
    #[serde(default)]
    suffix: Option<Value>,
    /// Not supported beyond `n`.
    #[serde(default)]
    best_of: Option<usize>,
}

/// What to continue: a text, several, or token ids of either.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be a string, a list of strings, token ids, or a list of lists of token ids")]
pub(in crate::http) enum Prompts {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    ManyIds(Vec<Vec<u32>>),
}

/// A body of this route.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what `split` reads; the schema is all that is used")]
pub(in crate::http) struct CompletionRequest {
    #[schema(inline)]
    #[serde(flatten)]
    common: Common,
    #[schema(inline)]
    #[serde(flatten)]
    own: Own,
}

/// An answer of this route.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Completion {
    #[serde(flatten)]
    head: Head,
    choices: Vec<CompletionChoice>,
    usage: OpenAiUsage,
}

/// One text, or in a stream a piece of one.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<FinishReason>,
}

problems!(openai CompletionRefusals: MalformedJson, MalformedBody, UnknownModel, UnknownVersion, ContributionDropped, RequestTimeout, VersionNotReached, ModelIsClassifier,
    PayloadTooLarge, UnsupportedMediaType, InvalidRequest, ContextExceeded, CacheExceeded, QueueFull, TooManyStreams, NotReady, ReplicaDiverged, Draining);

/// Continue texts, as OpenAI's clients ask for it
///
/// `system_fingerprint` names the version that answered: `v17`. A model `name@17` asks for version 17. Errors have OpenAI's
/// envelope. With `stream: true` the answer is server-sent chunks (see CompletionChunk) and `[DONE]`.
#[utoipa::path(
    post, path = "/v1/completions", operation_id = "createCompletion", tag = "openai",
    request_body(content = CompletionRequest,
        example = json!({"model": "SmolLM2-135M-Instruct", "prompt": "The mother tongue of Danielle Darrieux is", "max_tokens": 8, "temperature": 0})),
    responses(
        (status = 200, description = "The texts, or their chunks.", content(
            (Completion = "application/json"),
            (Chunk<CompletionChoice> = "text/event-stream"),
        )),
        CompletionRefusals,
    )
)]
pub(in crate::http) async fn complete(
    _: Admitted,
    State(app): State<AppState>,
    extract::JsonValue(body): extract::JsonValue,
) -> Result<Response, Problem> {
    let asked = read(&app, body)?;
    asked.reached(&app).await?;
    if asked.stream {
        let place = app.streams.take()?;
        let shape = (asked.requests.len(), asked.n);
        let (version, events) = run::streamed(&app, asked.requests.clone()).await?;
        let head = Head::new("cmpl", "text_completion", &asked, version);
        let pieces = TextPieces { offsets: vec![0; shape.0 * shape.1] };
        return Ok(sse::respond(place, version, chunks(head, pieces, asked.include_usage, events, shape)));
    }
    let responses = run::whole(&app, asked.requests.clone()).await?;
    let version = responses.first().map_or(0, |response| response.version);
    let (texts, usage) = texts(responses);
    let head = Head::new("cmpl", "text_completion", &asked, version);
    let choice = |Text { index, text, finish_reason, logprobs }| CompletionChoice {
        index,
        text,
        logprobs: logprobs.map(|tokens| TextLogprobs::new(tokens, &mut 0)),
        finish_reason: Some(finish_reason),
    };
    let completion = Completion { head, choices: texts.into_iter().map(choice).collect(), usage };
    Ok(([(AMEND_VERSION, version.to_string())], Json(completion)).into_response())
}

fn read(app: &AppState, body: Value) -> Result<Asked, Problem> {
    let (common, own) = split::<Own>(body)?;
    must_be_empty("echo", own.echo.as_ref())?;
    must_be_empty("suffix", own.suffix.as_ref())?;
    if own.best_of.is_some_and(|best_of| best_of != common.n.unwrap_or(1)) {
        return Err(refused("best_of", "is not supported beyond n"));
    }
    let text = |text| GenerateRequest { prompt: Some(text), ..GenerateRequest::default() };
    let ids = |ids| GenerateRequest { prompt_ids: Some(ids), ..GenerateRequest::default() };
    let prompts: Vec<GenerateRequest> = match own.prompt {
        Prompts::Text(prompt) => vec![text(prompt)],
        // An empty list is one of texts as much as one of ids.
        Prompts::Ids(prompt) => Some(prompt).filter(|prompt| !prompt.is_empty()).map(ids).into_iter().collect(),
        Prompts::Texts(prompts) => prompts.into_iter().map(text).collect(),
        Prompts::ManyIds(prompts) => prompts.into_iter().map(ids).collect(),
    };
    if prompts.is_empty() {
        return Err(refused("prompt", "must not be empty"));
    }
    if prompts.len() > MAX_PROMPTS {
        let message = format!("must be at most {MAX_PROMPTS} texts. Given: {}", prompts.len());
        return Err(refused("prompt", &message).with("limit", MAX_PROMPTS).with("given", prompts.len()));
    }
    let defaults = |prompt| GenerateRequest { max_tokens: Some(MAX_TOKENS), logprobs: own.logprobs, ..prompt };
    Asked::new(app, common, prompts.into_iter().map(defaults).collect())
}

/// Pieces of completions.
struct TextPieces {
    /// Characters sent of each text's tokens.
    offsets: Vec<usize>,
}

impl Pieces for TextPieces {
    type Choice = CompletionChoice;

    fn open(&mut self, _: usize) -> Option<CompletionChoice> {
        None
    }

    fn piece(&mut self, index: usize, text: String, logprobs: Vec<TokenLogprob>) -> CompletionChoice {
        let logprobs = (!logprobs.is_empty()).then(|| TextLogprobs::new(logprobs, &mut self.offsets[index]));
        CompletionChoice { index, text, logprobs, finish_reason: None }
    }

    fn end(&mut self, index: usize, finish_reason: FinishReason) -> CompletionChoice {
        CompletionChoice { index, text: String::new(), logprobs: None, finish_reason: Some(finish_reason) }
    }
}
