//! One sequence being generated: its prompt is read in chunks, then it grows by one token a turn.

use std::{sync::Arc, time::Instant};

use super::{
    decoder::Decoder,
    error::GenerateError,
    job::{Event, Events},
    plan::Plan,
    request::{Alternative, FinishReason, TokenLogprob, Usage},
    sampler::{Sampler, log_probs},
    stop::StopMatcher,
    text_out::{Piece, TextOut},
};
use crate::telemetry::Metrics;

/// A sequence's state between two turns.
pub(super) struct Sequence<'d, D: Decoder> {
    decoder: &'d D,
    plan: Arc<Plan>,
    state: D::State,
    /// Prompt tokens read so far.
    read: usize,
    /// The token chosen last, not yet fed; none while the prompt is being read.
    last: Option<u32>,
    generated: usize,
    sampler: Sampler,
    out: TextOut<'d>,
    admitted: Instant,
    last_token: Option<Instant>,
}

impl<'d, D: Decoder> Sequence<'d, D> {
    pub fn new(decoder: &'d D, plan: Arc<Plan>, admitted: Instant) -> Self {
        Self {
            state: decoder.start(),
            read: 0,
            last: None,
            generated: 0,
            sampler: Sampler::new(&plan.sampler),
            out: TextOut::new(decoder.detokenizer(), StopMatcher::new(plan.stop.clone())),
            admitted,
            last_token: None,
            decoder,
            plan,
        }
    }

    /// How many prompt tokens the next turn reads; 0 once the prompt is read. The borders of the chunks are the
    /// prompt's own, whatever else runs, because they may show in the last bits of the logits.
    pub fn next_chunk(&self, chunk: usize) -> usize {
        chunk.min(self.plan.ids.len() - self.read)
    }

    /// One turn: reads a chunk of the prompt or feeds the last token; after the prompt's end, chooses the next token.
    /// Gives the last event when the sequence has ended.
    pub fn advance(
        &mut self,
        weights: &D::Lease,
        chunk: usize,
        metrics: &Metrics,
        events: &Events,
    ) -> Result<Option<Event>, GenerateError> {
        let logits = match self.last {
            Some(id) => self.decoder.forward(&mut self.state, &[id], weights)?,
            None => {
                let end = self.read + self.next_chunk(chunk);
                let ids = &self.plan.ids[self.read..end];
                let logits = self.decoder.forward(&mut self.state, ids, weights)?;
                metrics.tokens.with_label_values(&["prompt"]).inc_by(ids.len() as u64);
                self.read = end;
                logits
            }
        };
        if self.read < self.plan.ids.len() {
            return Ok(None);
        }
        self.choose(&logits, metrics, events)
    }

    fn choose(&mut self, logits: &[f32], metrics: &Metrics, events: &Events) -> Result<Option<Event>, GenerateError> {
        let id = self.sampler.sample(logits)?;
        self.time_token(metrics);
        if self.decoder.is_end(id) {
            return Ok(Some(self.end(FinishReason::Stop, events)));
        }
        metrics.tokens.with_label_values(&["generated"]).inc();
        self.generated += 1;
        self.last = Some(id);
        let logprob = self.plan.logprobs.map(|n| self.token_logprob(logits, id, n));
        let (piece, stopped) = self.out.push(id, logprob)?;
        show(piece, events);
        if stopped {
            return Ok(Some(self.done(FinishReason::Stop)));
        }
        Ok((self.generated == self.plan.max_tokens).then(|| self.end(FinishReason::Length, events)))
    }

    fn time_token(&mut self, metrics: &Metrics) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            Some(before) => metrics.inter_token.observe((now - before).as_secs_f64()),
            None => metrics.time_to_first_token.observe((now - self.admitted).as_secs_f64()),
        }
    }

    fn token_logprob(&self, logits: &[f32], id: u32, n: usize) -> TokenLogprob {
        let (logprob, top) = log_probs(logits, id, n);
        let top = top.into_iter().map(|(id, logprob)| Alternative { token: self.decoder.token_text(id), logprob });
        TokenLogprob { token: self.decoder.token_text(id), logprob, top: top.collect() }
    }

    /// Shows what was held back and ends.
    fn end(&mut self, finish_reason: FinishReason, events: &Events) -> Event {
        show(self.out.finish(), events);
        self.done(finish_reason)
    }

    fn done(&self, finish_reason: FinishReason) -> Event {
        let usage = Usage { prompt_tokens: self.plan.ids.len(), completion_tokens: self.generated };
        Event::Finished { finish_reason, usage }
    }
}

fn show(piece: Piece, events: &Events) {
    if !piece.is_empty() {
        // A client that has left is noticed at the next turn.
        let _ = events.send(Ok(Event::Text(piece)));
    }
}
