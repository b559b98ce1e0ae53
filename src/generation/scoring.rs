//! One scoring request in a slot: its passages are measured a few a turn, so that others are not stalled.

use super::{decoder::Decoder, error::GenerateError, job::Event};
use crate::{
    model::{Passage, measure::TargetScore},
    telemetry::Metrics,
};

/// Passages that are being scored, and what is known of them.
pub(super) struct Scoring {
    passages: Vec<Passage>,
    scores: Vec<TargetScore>,
}

impl Scoring {
    pub fn new(passages: Vec<Passage>) -> Self {
        Self { scores: Vec::with_capacity(passages.len()), passages }
    }

    /// The passages of the next turn: as many as fit into `chunk` tokens, at least one.
    fn next_passages(&self, chunk: usize) -> &[Passage] {
        let rest = &self.passages[self.scores.len()..];
        let mut tokens = 0;
        let fitting = rest.iter().take_while(|passage| {
            tokens += passage.ids.len();
            tokens <= chunk
        });
        &rest[..fitting.count().max(1).min(rest.len())]
    }

    /// How many tokens the next turn reads.
    pub fn next_chunk(&self, chunk: usize) -> usize {
        self.next_passages(chunk).iter().map(|passage| passage.ids.len()).sum()
    }

    /// One turn. Gives the last event when all passages are scored.
    pub fn advance<D: Decoder>(
        &mut self,
        decoder: &D,
        weights: &D::Lease,
        chunk: usize,
        metrics: &Metrics,
    ) -> Result<Option<Event>, GenerateError> {
        let passages = self.next_passages(chunk);
        let scores = decoder.score(passages, weights)?;
        if scores.len() != passages.len() {
            let message = format!("{} passages gave {} scores", passages.len(), scores.len());
            return Err(GenerateError::Internal(message));
        }
        metrics.tokens.with_label_values(&["prompt"]).inc_by(self.next_chunk(chunk) as u64);
        self.scores.extend(scores);
        let done = self.scores.len() == self.passages.len();
        Ok(done.then(|| Event::Scored(std::mem::take(&mut self.scores))))
    }
}
