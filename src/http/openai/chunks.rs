//! A generation as server-sent chunks: `data: {...}` for each, `data: [DONE]` at the end, or an error in its place, since
//! the status is sent by then.

use std::{collections::VecDeque, convert::Infallible};

use axum::response::sse::Event;
use futures::{Stream, StreamExt, stream};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    answer::{Head, OpenAiUsage},
    envelope,
    run::Events,
};
use crate::{
    generation::{FinishReason, GenerateEvent, TokenLogprob},
    http::error::Problem,
};

/// How one route writes the pieces of a text.
pub(super) trait Pieces: Send + 'static {
    /// A choice of a chunk.
    type Choice: Serialize;

    /// What comes before the first piece of a text, if anything.
    fn open(&mut self, index: usize) -> Option<Self::Choice>;

    /// A piece of a text.
    fn piece(&mut self, index: usize, text: String, logprobs: Vec<TokenLogprob>) -> Self::Choice;

    /// The end of a text.
    fn end(&mut self, index: usize, finish_reason: FinishReason) -> Self::Choice;
}

/// One chunk.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Chunk<C> {
    #[serde(flatten)]
    head: Head,
    choices: Vec<C>,
    /// Only where `stream_options` asks for it; then null in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<OpenAiUsage>>,
}

/// A request's stream on its way out.
struct Relay<P> {
    head: Head,
    pieces: P,
    include_usage: bool,
    events: Events,
    /// Texts for each prompt.
    n: usize,
    /// Whether a text was opened, by index.
    opened: Vec<bool>,
    /// Prompts that have not ended.
    left: usize,
    usage: OpenAiUsage,
    ready: VecDeque<Event>,
}

/// The chunks of `prompts` prompts with `n` texts each.
pub(super) fn chunks<P: Pieces>(
    head: Head,
    pieces: P,
    include_usage: bool,
    events: Events,
    (prompts, n): (usize, usize),
) -> impl Stream<Item = Result<Event, Infallible>> + Send + 'static {
    let (opened, usage, ready) = (vec![false; prompts * n], OpenAiUsage::default(), VecDeque::new());
    let relay = Relay { head, pieces, include_usage, events, n, opened, left: prompts, usage, ready };
    stream::unfold(relay, |mut relay| async move {
        let event = relay.next().await?;
        Some((Ok(event), relay))
    })
}

impl<P: Pieces> Relay<P> {
    async fn next(&mut self) -> Option<Event> {
        while self.ready.is_empty() && self.left > 0 {
            match self.events.next().await {
                Some(Ok((prompt, event))) => self.take(prompt, event),
                Some(Err(error)) => self.fail(&error.into()),
                None => self.fail(&Problem::internal("a generation ended without saying why")),
            }
        }
        self.ready.pop_front()
    }

    fn take(&mut self, prompt: usize, event: GenerateEvent) {
        match event {
            GenerateEvent::Text { choice, text, logprobs } => {
                let index = self.open(prompt, choice);
                let piece = self.pieces.piece(index, text, logprobs);
                self.send(vec![piece], None);
            }
            GenerateEvent::Ended { choice, finish_reason } => {
                let index = self.open(prompt, choice);
                let end = self.pieces.end(index, finish_reason);
                self.send(vec![end], None);
            }
            GenerateEvent::Done { usage, .. } => {
                self.usage.add(usage);
                self.left -= 1;
                if self.left == 0 {
                    self.finish();
                }
            }
        }
    }

    fn open(&mut self, prompt: usize, choice: usize) -> usize {
        let index = prompt * self.n + choice;
        if !std::mem::replace(&mut self.opened[index], true)
            && let Some(opening) = self.pieces.open(index)
        {
            self.send(vec![opening], None);
        }
        index
    }

    fn send(&mut self, choices: Vec<P::Choice>, usage: Option<OpenAiUsage>) {
        let usage = self.include_usage.then_some(usage);
        let chunk = Chunk { head: self.head.clone(), choices, usage };
        // Fails only for maps whose keys are not strings; chunks have none.
        match Event::default().json_data(chunk) {
            Ok(event) => self.ready.push_back(event),
            Err(error) => self.fail(&Problem::internal(error)),
        }
    }

    fn finish(&mut self) {
        if self.include_usage {
            self.send(Vec::new(), Some(self.usage));
        }
        self.ready.push_back(Event::default().data("[DONE]"));
    }

    fn fail(&mut self, problem: &Problem) {
        self.left = 0;
        self.ready.push_back(Event::default().data(envelope::body(problem).to_string()));
    }
}
