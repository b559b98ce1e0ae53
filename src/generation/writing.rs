//! One text that is being written: it grows by one token a turn until it ends.

use std::{sync::Arc, time::Instant};

use super::{
    decoder::{Decoder, Feed},
    error::GenerateError,
    job::{Event, Events},
    plan::Plan,
    request::{Alternative, FinishReason, TokenLogprob},
    sampler::{Sampler, log_probs},
    stop::StopMatcher,
    text_out::{Piece, TextOut},
};
use crate::telemetry::Metrics;

/// A text's state between two turns.
pub(super) struct Writing<'d, D: Decoder> {
    decoder: &'d D,
    plan: Arc<Plan>,
    /// Which of the request's texts it is.
    choice: usize,
    state: D::State,
    /// The tokens chosen so far, of which the last was not fed.
    chosen: Vec<u32>,
    sampler: Sampler,
    out: TextOut<'d>,
    chosen_at: Option<Instant>,
    ended: Option<FinishReason>,
}

impl<'d, D: Decoder> Writing<'d, D> {
    /// `state` has read the prompt.
    pub fn new(decoder: &'d D, plan: &Arc<Plan>, choice: usize, state: D::State) -> Self {
        Self {
            decoder,
            choice,
            state,
            chosen: Vec::new(),
            sampler: Sampler::new(&plan.sampler, &plan.ids, choice),
            out: TextOut::new(decoder.detokenizer(), StopMatcher::new(plan.stop.clone())),
            chosen_at: None,
            ended: None,
            plan: Arc::clone(plan),
        }
    }

    pub fn choice(&self) -> usize {
        self.choice
    }

    /// Tokens generated so far.
    pub fn generated(&self) -> usize {
        self.chosen.len()
    }

    /// Why it ended, if it has.
    pub fn ended(&self) -> Option<FinishReason> {
        self.ended
    }

    /// What its next turn feeds.
    pub fn feed<'a>(&'a mut self, weights: &'a D::Lease) -> Feed<'a, D> {
        let last = self.chosen.len().saturating_sub(1);
        Feed { state: &mut self.state, ids: &self.chosen[last..], weights, logits: true }
    }

    /// Hands over what it has read, for texts that begin the same: a conversation goes on from what was answered.
    pub fn keep(&self, weights: &D::Lease) {
        let mut ids = [&self.plan.ids[..], &self.chosen].concat();
        ids.truncate(self.decoder.read(&self.state));
        self.decoder.keep(&self.state, &ids, weights);
    }

    /// Chooses the next token from the logits after the last one.
    pub fn choose(&mut self, logits: &[f32], metrics: &Metrics, events: &Events) -> Result<(), GenerateError> {
        let id = self.sampler.sample(logits)?;
        self.time_token(metrics);
        if self.decoder.is_end(id) {
            self.end(FinishReason::Stop, events);
            return Ok(());
        }
        metrics.tokens.with_label_values(&["generated"]).inc();
        self.chosen.push(id);
        let logprob = self.plan.logprobs.map(|n| self.token_logprob(logits, id, n));
        let (piece, stopped) = self.out.push(id, logprob)?;
        self.show(piece, events);
        if stopped {
            self.ended = Some(FinishReason::Stop);
        } else if self.chosen.len() == self.plan.max_tokens {
            self.end(FinishReason::Length, events);
        }
        Ok(())
    }

    fn time_token(&mut self, metrics: &Metrics) {
        let now = Instant::now();
        if let Some(before) = self.chosen_at.replace(now) {
            metrics.inter_token.observe((now - before).as_secs_f64());
        }
    }

    fn token_logprob(&self, logits: &[f32], id: u32, n: usize) -> TokenLogprob {
        let (logprob, top) = log_probs(logits, id, n);
        let text = |id: u32| {
            let bytes = self.decoder.token_bytes(id);
            (String::from_utf8_lossy(&bytes).into_owned(), bytes)
        };
        let alternative = |(id, logprob): (u32, f32)| {
            let (token, bytes) = text(id);
            Alternative { token, logprob, bytes }
        };
        let (token, bytes) = text(id);
        TokenLogprob { token, logprob, bytes, top: top.into_iter().map(alternative).collect() }
    }

    /// Shows what was held back and ends.
    fn end(&mut self, finish_reason: FinishReason, events: &Events) {
        let piece = self.out.finish();
        self.show(piece, events);
        self.ended = Some(finish_reason);
    }

    fn show(&self, piece: Piece, events: &Events) {
        if !piece.is_empty() {
            // A client that has left is noticed at the next turn.
            let _ = events.send(Ok(Event::Text { choice: self.choice, piece }));
        }
    }
}

/// Notes how long a request waited for its first token.
pub(super) fn time_to_first_token(metrics: &Metrics, admitted: Instant) {
    metrics.time_to_first_token.observe(admitted.elapsed().as_secs_f64());
}
