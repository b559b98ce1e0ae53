//! What a client holds while its text is made. Dropping it cancels: the engine frees the slot at the next turn.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{Stream, StreamExt};

use super::{
    error::GenerateError,
    job::{Event, EventsOut, Outcome},
    request::{Choice, FinishReason, GenerateEvent, GenerateResponse, Usage},
    text_out::Piece,
};

/// Text as it is made: for each of the request's texts any number of [`GenerateEvent::Text`] and then one
/// [`GenerateEvent::Ended`]; after all of them one [`GenerateEvent::Done`], or an error in place of what is missing;
/// nothing after either. Dropping it cancels the sequence.
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
    /// Waits until the sequence has its place and its version.
    pub async fn open(mut events: EventsOut) -> Result<Self, GenerateError> {
        let version = started(&mut events).await?;
        Ok(Self { version, events, ended: false })
    }

    /// All of the texts at once; `n` of them.
    pub async fn collect(mut self, n: usize, with_logprobs: bool) -> Result<GenerateResponse, GenerateError> {
        let empty =
            Choice { text: String::new(), finish_reason: FinishReason::Length, logprobs: with_logprobs.then(Vec::new) };
        let (mut choices, mut all) = (vec![empty; n], Usage::default());
        while let Some(event) = self.next().await {
            match event? {
                GenerateEvent::Text { choice, text, logprobs } => {
                    choices[choice].text += &text;
                    choices[choice].logprobs.iter_mut().for_each(|all| all.extend_from_slice(&logprobs));
                }
                GenerateEvent::Ended { choice, finish_reason } => choices[choice].finish_reason = finish_reason,
                GenerateEvent::Done { usage, .. } => all = usage,
            }
        }
        let Choice { text, finish_reason, logprobs } = choices[0].clone();
        let choices = if n == 1 { Vec::new() } else { choices };
        Ok(GenerateResponse {
            text,
            version: self.version,
            finish_reason,
            usage: all,
            logprobs,
            choices,
            compared: None,
        })
    }
}

impl Stream for Output {
    type Item = Result<GenerateEvent, GenerateError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = match expect_event(ready!(self.events.poll_recv(cx))) {
            Ok(Event::Text { choice, piece: Piece { text, logprobs } }) => {
                Ok(GenerateEvent::Text { choice, text, logprobs })
            }
            Ok(Event::Ended { choice, finish_reason }) => Ok(GenerateEvent::Ended { choice, finish_reason }),
            Ok(Event::Finished { usage }) => Ok(GenerateEvent::Done { version: self.version, usage }),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(error),
        };
        self.ended = matches!(item, Ok(GenerateEvent::Done { .. }) | Err(_));
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
