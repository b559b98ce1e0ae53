//! What a client holds while its text is made. Dropping it cancels: the engine frees the slot at the next turn.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{Stream, StreamExt};

use super::{
    error::GenerateError,
    job::{Event, EventsOut, Outcome},
    request::{FinishReason, GenerateEvent, GenerateResponse, Usage},
};

/// Text as it is made: any number of [`GenerateEvent::Text`], then one [`GenerateEvent::Done`], or an error in place
/// of what is missing; nothing after either. Dropping it cancels the sequence.
pub struct GenerateStream {
    output: Output,
    outcome: Outcome,
}

impl GenerateStream {
    pub(super) fn new(output: Output, outcome: Outcome) -> Self {
        Self { output, outcome }
    }

    /// The version that answers.
    pub fn version(&self) -> u64 {
        self.output.version
    }
}

impl Stream for GenerateStream {
    type Item = Result<GenerateEvent, GenerateError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = ready!(self.output.poll_next_unpin(cx));
        if let Some(Ok(GenerateEvent::Done { .. }) | Err(_)) = &item {
            let this = &mut *self;
            item.iter().for_each(|last| this.outcome.settle(last));
        }
        Poll::Ready(item)
    }
}

/// The events of one sequence, uncounted.
pub(super) struct Output {
    version: u64,
    events: EventsOut,
    ended: bool,
}

impl Output {
    /// Waits until the sequence has its slot and its version.
    pub async fn open(mut events: EventsOut) -> Result<Self, GenerateError> {
        let version = started(&mut events).await?;
        Ok(Self { version, events, ended: false })
    }

    /// All of the text at once.
    pub async fn collect(mut self, with_logprobs: bool) -> Result<GenerateResponse, GenerateError> {
        let mut response = GenerateResponse {
            text: String::new(),
            version: self.version,
            finish_reason: FinishReason::Length,
            usage: Usage::default(),
            logprobs: with_logprobs.then(Vec::new),
            compared: None,
        };
        while let Some(event) = self.next().await {
            match event? {
                GenerateEvent::Text { text, logprobs } => {
                    response.text += &text;
                    response.logprobs.iter_mut().for_each(|all| all.extend_from_slice(&logprobs));
                }
                GenerateEvent::Done { finish_reason, usage, .. } => {
                    (response.finish_reason, response.usage) = (finish_reason, usage);
                }
            }
        }
        Ok(response)
    }
}

impl Stream for Output {
    type Item = Result<GenerateEvent, GenerateError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = match expect_event(ready!(self.events.poll_recv(cx))) {
            Ok(Event::Text(piece)) => Ok(GenerateEvent::Text { text: piece.text, logprobs: piece.logprobs }),
            Ok(Event::Finished { finish_reason, usage }) => {
                Ok(GenerateEvent::Done { version: self.version, finish_reason, usage })
            }
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(error),
        };
        self.ended = !matches!(item, Ok(GenerateEvent::Text { .. }));
        Poll::Ready(Some(item))
    }
}

/// Waits for the first event: the version.
pub(super) async fn started(events: &mut EventsOut) -> Result<u64, GenerateError> {
    match expect_event(events.recv().await)? {
        Event::Started { version } => Ok(version),
        other => Err(unexpected(&other)),
    }
}

/// An event, where one has to come: the engine answers every task before it lets go of it.
pub(super) fn expect_event(event: Option<Result<Event, GenerateError>>) -> Result<Event, GenerateError> {
    event.unwrap_or_else(|| Err(GenerateError::Internal("the engine ended without an answer".into())))
}

/// A defect of the engine: an event out of order.
pub(super) fn unexpected(event: &Event) -> GenerateError {
    GenerateError::Internal(format!("unexpected event: {event:?}"))
}
