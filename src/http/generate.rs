//! `POST /generate`.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};

use super::{
    error::{Code, Problem, problems},
    extract, reach,
    readiness::Admitted,
    sse::{self, DoneEvent, EndEvent, TokenEvent},
    state::AppState,
};
use crate::generation::{GenerateRequest, GenerateResponse};

problems!(GenerateProblems: MalformedJson, MalformedBody, UnknownVersion, ContributionDropped, RequestTimeout, VersionNotReached, ModelIsClassifier, PayloadTooLarge,
    UnsupportedMediaType, InvalidRequest, ContextExceeded, CacheExceeded, QueueFull, TooManyStreams, NotReady, ReplicaDiverged, Draining);

/// Continue a text, or answer one
///
/// Where an encoder reads the prompt, the text is the decoder's answer to it. A classifier answers 409.
///
/// One version answers, from the first token to the last, and the answer says which. With `stream: true` the answer is
/// server-sent events: `token` (see TokenEvent) for each piece of text, of several texts an `end` (see EndEvent) each,
/// `done` (see DoneEvent) at the end, or `error` with a problem document if it fails after it began.
#[utoipa::path(
    post, path = "/generate", operation_id = "generate", tag = "generation",
    request_body(content = GenerateRequest, examples(
        ("greedy" = (value = json!({"prompt": "The mother tongue of Danielle Darrieux is", "max_tokens": 8}))),
        ("compared with the base model" = (value = json!({"prompt": "The mother tongue of Danielle Darrieux is", "max_tokens": 8, "compare_to": 0}))),
        ("a conversation, streamed" = (value = json!({"messages": [{"role": "user", "content": "What is the mother tongue of Danielle Darrieux?"}],
            "max_tokens": 64, "temperature": 0.7, "top_p": 0.9, "seed": 1, "stream": true}))),
    )),
    responses(
        (status = 200, description = "The text, or its events.", content(
            (GenerateResponse = "application/json", example = json!({"text": " English", "version": 1, "finish_reason": "length",
                "usage": {"prompt_tokens": 9, "completion_tokens": 1}, "compared": null})),
            (String = "text/event-stream", example = "event: token\ndata: {\"text\":\" English\"}\n\nevent: done\ndata: {\"version\":1,\"finish_reason\":\"length\",\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":1}}\n\n"),
        )),
        GenerateProblems,
    )
)]
pub(super) async fn generate(
    _: Admitted,
    State(app): State<AppState>,
    extract::Json(request): extract::Json<GenerateRequest>,
) -> Result<Response, Problem> {
    reach::at_least(&app, request.min_version).await?;
    reach::named(&app, [request.version, request.compare_to]).await?;
    if !request.stream {
        let response: GenerateResponse = app.generates.generate(request).await?;
        return Ok(Json(response).into_response());
    }
    if request.compare_to.is_some() {
        let detail = "compare_to: can not be streamed; ask without stream, or once for each version";
        return Err(Problem::new(Code::InvalidRequest, detail).with("field", "compare_to"));
    }
    let n = request.n.unwrap_or(1);
    let place = app.streams.take()?;
    Ok(sse::response(place, app.generates.stream(request).await?, n))
}

/// The schemas that only events have.
#[derive(utoipa::OpenApi)]
#[openapi(components(schemas(TokenEvent, EndEvent, DoneEvent)))]
pub(super) struct EventSchemas;
