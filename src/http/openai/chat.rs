//! `POST /v1/chat/completions`.

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
    logprobs::ChatLogprobs,
    run,
};
use crate::{
    generation::{FinishReason, GenerateRequest, Message, TokenLogprob},
    http::{
        error::{Problem, problems},
        extract,
        headers::AMEND_VERSION,
        readiness::Admitted,
        sse,
        state::AppState,
    },
};

/// Parameters of this route alone.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Own {
    messages: Vec<ChatMessage>,
    /// Most tokens to generate; default as many as fit. `max_tokens` is the same.
    #[serde(default)]
    max_completion_tokens: Option<usize>,
    /// Whether to report log-probabilities.
    #[serde(default)]
    logprobs: Option<bool>,
    /// How many alternatives with each; needs `logprobs`.
    #[serde(default)]
    top_logprobs: Option<usize>,
    /// Text alone: `{"type": "text"}` or null.
    #[serde(default)]
    response_format: Option<Value>,
    /// Text alone: `["text"]` or null.
    #[serde(default)]
    modalities: Option<Vec<String>>,
    /// Not supported: empty or null, as are the following.
    #[serde(default)]
    tools: Option<Value>,
    #[serde(default)]
    tool_choice: Option<Value>,
    #[serde(default)]
    functions: Option<Value>,
    #[serde(default)]
    function_call: Option<Value>,
    #[serde(default)]
    audio: Option<Value>,
    #[serde(default)]
    web_search_options: Option<Value>,
    /// Left aside, as are the following.
    #[serde(default, rename = "parallel_tool_calls")]
    _parallel_tool_calls: Option<Value>,
    #[serde(default, rename = "reasoning_effort")]
    _reasoning_effort: Option<Value>,
    #[serde(default, rename = "prediction")]
    _prediction: Option<Value>,
    #[serde(default, rename = "verbosity")]
    _verbosity: Option<Value>,
}

/// A message; members that do not change its text, such as `name` and `refusal`, are left aside.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct ChatMessage {
    /// `developer` is taken as `system`.
    #[schema(example = "user")]
    role: String,
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    tool_calls: Option<Value>,
}

/// A text, or parts of one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "must be a string or a list of parts")]
pub(in crate::http) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of a text.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::http) struct Part {
    /// `text`.
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
}

/// A body of this route.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what `split` reads; the schema is all that is used")]
pub(in crate::http) struct ChatRequest {
    #[schema(inline)]
    #[serde(flatten)]
    common: Common,
    #[schema(inline)]
    #[serde(flatten)]
    own: Own,
}

/// An answer of this route.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ChatCompletion {
    #[serde(flatten)]
    head: Head,
    choices: Vec<ChatChoice>,
    usage: OpenAiUsage,
}

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ChatChoice {
    index: usize,
    message: Reply,
    logprobs: Option<ChatLogprobs>,
    finish_reason: FinishReason,
}

/// What the assistant says.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Reply {
    role: &'static str,
    content: String,
    /// Always null.
    refusal: Option<String>,
}

/// A piece of an answer.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ChatPiece {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<FinishReason>,
}

/// What is new.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(in crate::http) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

problems!(openai ChatRefusals: MalformedJson, MalformedBody, UnknownModel, UnknownVersion, ContributionDropped, RequestTimeout, VersionNotReached, ModelIsClassifier, PayloadTooLarge,
    UnsupportedMediaType, InvalidRequest, ContextExceeded, CacheExceeded, QueueFull, TooManyStreams, NotReady, ReplicaDiverged, Draining);

/// Answer a conversation, as OpenAI's clients ask for it
///
/// `system_fingerprint` names the version that answered: `v17`. A model `name@17` asks for version 17. Errors have OpenAI's
/// envelope. With `stream: true` the answer is server-sent chunks (see ChatPiece) and `[DONE]`.
#[utoipa::path(
    post, path = "/v1/chat/completions", operation_id = "createChatCompletion", tag = "openai",
    request_body(content = ChatRequest,
        example = json!({"model": "SmolLM2-135M-Instruct", "messages": [{"role": "user", "content": "What is the mother tongue of Danielle Darrieux?"}]})),
    responses(
        (status = 200, description = "The answers, or their chunks.", content(
            (ChatCompletion = "application/json"),
            (Chunk<ChatPiece> = "text/event-stream"),
        )),
        ChatRefusals,
    )
)]
pub(in crate::http) async fn chat(
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
        let head = Head::new("chatcmpl", "chat.completion.chunk", &asked, version);
        return Ok(sse::respond(place, version, chunks(head, ChatPieces, asked.include_usage, events, shape)));
    }
    let responses = run::whole(&app, asked.requests.clone()).await?;
    let version = responses.first().map_or(0, |response| response.version);
    let (texts, usage) = texts(responses);
    let head = Head::new("chatcmpl", "chat.completion", &asked, version);
    let choice = |Text { index, text, finish_reason, logprobs }| ChatChoice {
        index,
        message: Reply { role: "assistant", content: text, refusal: None },
        logprobs: logprobs.map(Into::into),
        finish_reason,
    };
    let completion = ChatCompletion { head, choices: texts.into_iter().map(choice).collect(), usage };
    Ok(([(AMEND_VERSION, version.to_string())], Json(completion)).into_response())
}

fn read(app: &AppState, body: Value) -> Result<Asked, Problem> {
    let (mut common, own) = split::<Own>(body)?;
    for (field, value) in [
        ("tools", &own.tools),
        ("tool_choice", &own.tool_choice),
        ("functions", &own.functions),
        ("function_call", &own.function_call),
        ("audio", &own.audio),
        ("web_search_options", &own.web_search_options),
    ] {
        must_be_empty(field, value.as_ref())?;
    }
    if own.response_format.as_ref().is_some_and(|format| format["type"] != "text" && !format.is_null()) {
        return Err(refused("response_format", "only text is supported"));
    }
    if own.modalities.is_some_and(|modalities| modalities != ["text"]) {
        return Err(refused("modalities", "only text is supported"));
    }
    if common.max_tokens.is_some() && own.max_completion_tokens.is_some_and(|most| Some(most) != common.max_tokens) {
        return Err(refused("max_completion_tokens", "differs from max_tokens, which is the same"));
    }
    common.max_tokens = common.max_tokens.or(own.max_completion_tokens);
    let logprobs = match (own.logprobs.unwrap_or(false), own.top_logprobs) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, None | Some(0)) => None,
        (false, Some(_)) => return Err(refused("top_logprobs", "needs logprobs to be true")),
    };
    let messages = own.messages.into_iter().enumerate().map(|(i, message)| plain(i, message));
    let prompt = GenerateRequest {
        messages: Some(messages.collect::<Result<_, _>>()?),
        logprobs,
        open_ended: true,
        ..GenerateRequest::default()
    };
    Asked::new(app, common, vec![prompt])
}

/// A message as the model's template takes it.
fn plain(i: usize, message: ChatMessage) -> Result<Message, Problem> {
    must_be_empty(&format!("messages[{i}].tool_calls"), message.tool_calls.as_ref())?;
    let content = match message.content {
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let part = |(j, part): (usize, Part)| match (part.kind.as_str(), part.text) {
                ("text", Some(text)) => Ok(text),
                _ => Err(refused(&format!("messages[{i}].content[{j}]"), "only parts of type text are supported")),
            };
            parts.into_iter().enumerate().map(part).collect::<Result<String, _>>()?
        }
    };
    let role = if message.role == "developer" { "system".to_owned() } else { message.role };
    Ok(Message { role, content })
}

/// Pieces of chat answers: the role comes first.
struct ChatPieces;

impl Pieces for ChatPieces {
    type Choice = ChatPiece;

    fn open(&mut self, index: usize) -> Option<ChatPiece> {
        let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
        Some(ChatPiece { index, delta, logprobs: None, finish_reason: None })
    }

    fn piece(&mut self, index: usize, text: String, logprobs: Vec<TokenLogprob>) -> ChatPiece {
        let logprobs = (!logprobs.is_empty()).then(|| logprobs.into());
        ChatPiece { index, delta: Delta { role: None, content: Some(text) }, logprobs, finish_reason: None }
    }

    fn end(&mut self, index: usize, finish_reason: FinishReason) -> ChatPiece {
        ChatPiece { index, delta: Delta::default(), logprobs: None, finish_reason: Some(finish_reason) }
    }
}
