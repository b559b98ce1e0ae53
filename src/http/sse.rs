//! Server-sent events of a generation: `token`, then `done`; or `error` with the problem document, since the status is
//! sent by then.

use std::{convert::Infallible, time::Duration};

use axum::{
    http::{HeaderName, HeaderValue, header},
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::{Stream, StreamExt, stream};
use serde::Serialize;
use utoipa::ToSchema;

use super::{error::Problem, headers::AMEND_VERSION, state::Streaming};
use crate::generation::{FinishReason, GenerateError, GenerateEvent, TokenLogprob, Usage};

/// How long a stream may be silent before a comment keeps proxies from closing it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Tells nginx not to hold events back.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Data of a `token` event.
#[derive(Serialize, ToSchema)]
pub(super) struct TokenEvent {
    /// Whole characters, no part of a stop string.
    text: String,
    /// Of its tokens, if they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    logprobs: Vec<TokenLogprob>,
}

/// Data of the `done` event.
#[derive(Serialize, ToSchema)]
pub(super) struct DoneEvent {
    version: u64,
    finish_reason: FinishReason,
    usage: Usage,
}

/// A generation as a response that ends with it.
pub(super) fn response(streaming: Streaming) -> Response {
    let headers = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (ACCEL_BUFFERING, HeaderValue::from_static("no")),
        (AMEND_VERSION, streaming.version.into()),
    ];
    let events = events(streaming.events);
    (headers, Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))).into_response()
}

/// Every stream ends with exactly one `done` or `error`.
fn events(
    source: impl Stream<Item = Result<GenerateEvent, GenerateError>> + Send + Unpin + 'static,
) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    stream::unfold(Some(source), |source| async move {
        let mut source = source?;
        let (event, last) = match source.next().await {
            Some(Ok(GenerateEvent::Text { text, logprobs })) => (event("token", &TokenEvent { text, logprobs }), false),
            Some(Ok(GenerateEvent::Done { version, finish_reason, usage })) => {
                (event("done", &DoneEvent { version, finish_reason, usage }), true)
            }
            Some(Err(error)) => (failure(&error.into()), true),
            None => (failure(&Problem::internal("a generation ended without saying why")), true),
        };
        Some((Ok(event), (!last).then_some(source)))
    })
}

fn event(name: &str, data: &impl Serialize) -> Event {
    // Fails only for maps whose keys are not strings; these types have none.
    Event::default().event(name).json_data(data).unwrap_or_else(|error| failure(&Problem::internal(error)))
}

fn failure(problem: &Problem) -> Event {
    Event::default().event("error").data(problem.body().to_string())
}
