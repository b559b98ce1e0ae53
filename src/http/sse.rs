//! Server-sent events of a generation: `token`, of several texts an `end` each, then `done`; or `error` with the problem
//! document, since the status is sent by then.

use std::{convert::Infallible, time::Duration};

use axum::{
    http::{HeaderName, HeaderValue, header},
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{error::Problem, headers::AMEND_VERSION, state::Streaming, streams::StreamPlace};
use crate::generation::{FinishReason, GenerateError, GenerateEvent, TokenLogprob, Usage};

/// How long a stream may be silent before a comment keeps proxies from closing it.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Tells nginx not to hold events back.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Data of a `token` event.
#[derive(Serialize, ToSchema)]
pub(super) struct TokenEvent {
    /// Which text, if there are several; counts from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    choice: Option<usize>,
    /// Whole characters, no part of a stop string.
    text: String,
    /// Of its tokens, if they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    logprobs: Vec<TokenLogprob>,
}

/// Data of an `end` event: one of several texts has ended.
#[derive(Serialize, ToSchema)]
pub(super) struct EndEvent {
    choice: usize,
    finish_reason: FinishReason,
}

/// Data of the `done` event.
#[derive(Serialize, ToSchema)]
pub(super) struct DoneEvent {
    version: u64,
    /// Of the text, if there is one; the `end` events say it of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    finish_reason: Option<FinishReason>,
    usage: Usage,
}

/// A generation of `n` texts as a response that ends with it.
pub(super) fn response(place: StreamPlace, streaming: Streaming, n: usize) -> Response {
    let relay = Relay { source: streaming.events, several: n > 1, finish_reason: None };
    respond(place, streaming.version, events(relay))
}

/// A stream of events as a response, which has its place until it ends.
pub(super) fn respond(
    place: StreamPlace,
    version: u64,
    events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
) -> Response {
    let headers = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (ACCEL_BUFFERING, HeaderValue::from_static("no")),
        (AMEND_VERSION, version.into()),
    ];
    let events = events.map(move |event| {
        let _until_the_last = &place;
        event
    });
    (headers, Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))).into_response()
}

/// A generation on its way out.
struct Relay {
    source: BoxStream<'static, Result<GenerateEvent, GenerateError>>,
    several: bool,
    /// Of a single text, kept for the last event.
    finish_reason: Option<FinishReason>,
}

/// Every stream ends with exactly one `done` or `error`.
fn events(relay: Relay) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    stream::unfold(Some(relay), |relay| async move {
        let mut relay = relay?;
        let (event, last) = relay.next().await;
        Some((Ok(event), (!last).then_some(relay)))
    })
}

impl Relay {
    /// The next event, and whether it is the last.
    async fn next(&mut self) -> (Event, bool) {
        loop {
            return match self.source.next().await {
                Some(Ok(GenerateEvent::Text { choice, text, logprobs })) => {
                    let choice = self.several.then_some(choice);
                    (event("token", &TokenEvent { choice, text, logprobs }), false)
                }
                Some(Ok(GenerateEvent::Ended { choice, finish_reason })) if self.several => {
                    (event("end", &EndEvent { choice, finish_reason }), false)
                }
                Some(Ok(GenerateEvent::Ended { finish_reason, .. })) => {
                    self.finish_reason = Some(finish_reason);
                    continue;
                }
                Some(Ok(GenerateEvent::Done { version, usage })) => {
                    let finish_reason = self.finish_reason;
                    (event("done", &DoneEvent { version, finish_reason, usage }), true)
                }
                Some(Err(error)) => (failure(&error.into()), true),
                None => (failure(&Problem::internal("a generation ended without saying why")), true),
            };
        }
    }
}

fn event(name: &str, data: &impl Serialize) -> Event {
    // Fails only for maps whose keys are not strings; these types have none.
    Event::default().event(name).json_data(data).unwrap_or_else(|error| failure(&Problem::internal(error)))
}

fn failure(problem: &Problem) -> Event {
    Event::default().event("error").data(problem.body().to_string())
}
