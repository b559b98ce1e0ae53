//! One request being generated: its prompt is read once, in chunks; then each of its texts grows by one token a turn.

use std::{sync::Arc, time::Instant};

use super::{
    decoder::{Decoder, Feed},
    error::GenerateError,
    job::{Event, Events},
    plan::Plan,
    request::Usage,
    writing::{Writing, time_to_first_token},
};
use crate::{model::Kind, telemetry::Metrics};

/// A request's state between two turns.
pub(super) struct Sequence<'d, D: Decoder> {
    decoder: &'d D,
    plan: Arc<Plan>,
    stage: Stage<'d, D>,
    admitted: Instant,
    /// Tokens of the texts that have ended.
    generated: usize,
}

enum Stage<'d, D: Decoder> {
    /// The first `read` tokens of the prompt are in `state`, and `now` more are being read in this turn.
    Reading { state: D::State, read: usize, now: usize },
    /// The texts that have not ended.
    Writing(Vec<Writing<'d, D>>),
}

impl<'d, D: Decoder> Sequence<'d, D> {
    pub fn new(decoder: &'d D, plan: Arc<Plan>, admitted: Instant, weights: &D::Lease, metrics: &Metrics) -> Self {
        let state = decoder.start(&plan.ids, weights);
        let read = decoder.read(&state);
        metrics.tokens.with_label_values(&["cached"]).inc_by(read as u64);
        let stage = Stage::Reading { state, read, now: 0 };
        Self { decoder, plan, stage, admitted, generated: 0 }
    }

    /// How many prompt tokens are left to read; 0 while the texts are written.
    pub fn unread(&self) -> usize {
        match &self.stage {
            Stage::Reading { read, .. } => self.plan.ids.len() - read,
            Stage::Writing(_) => 0,
        }
    }

    /// Whether its prompt is read in one turn: an encoder reads it as a whole.
    pub fn reads_whole(&self) -> bool {
        self.decoder.kind() != Kind::Causal
    }

    /// What this turn feeds: `chunk` tokens of the prompt, or of each text the token chosen last.
    pub fn feed<'a>(&'a mut self, chunk: usize, weights: &'a D::Lease, feeds: &mut Vec<Feed<'a, D>>) {
        let plan = &self.plan;
        match &mut self.stage {
            Stage::Reading { state, read, now } => {
                *now = chunk.min(plan.ids.len() - *read);
                if *now > 0 {
                    let end = *read + *now;
                    let logits = end == plan.ids.len();
                    feeds.push(Feed { state, ids: &plan.ids[*read..end], weights, logits });
                }
            }
            Stage::Writing(texts) => feeds.extend(texts.iter_mut().map(|text| text.feed(weights))),
        }
    }

    /// Takes what the network answered to [`feed`](Self::feed), in order. Gives the last event when all texts have ended.
    pub fn take(
        &mut self,
        answers: Vec<Option<Vec<f32>>>,
        weights: &D::Lease,
        metrics: &Metrics,
        events: &Events,
    ) -> Result<Option<Event>, GenerateError> {
        match &mut self.stage {
            Stage::Reading { read, now, .. } => {
                *read += *now;
                metrics.tokens.with_label_values(&["prompt"]).inc_by(*now as u64);
                match answers.into_iter().next().flatten() {
                    Some(logits) => self.begin(&logits, weights, metrics, events)?,
                    None => return Ok(None),
                }
            }
            Stage::Writing(texts) => {
                if answers.len() != texts.len() {
                    let message = format!("{} texts got {} answers", texts.len(), answers.len());
                    return Err(GenerateError::Internal(message));
                }
                for (text, logits) in texts.iter_mut().zip(answers) {
                    let logits = logits.ok_or_else(|| GenerateError::Internal("no logits came".into()))?;
                    text.choose(&logits, metrics, events)?;
                }
            }
        }
        Ok(self.settle(weights, events))
    }

    /// The prompt is read: every text begins with a choice from the same logits.
    fn begin(
        &mut self,
        logits: &[f32],
        weights: &D::Lease,
        metrics: &Metrics,
        events: &Events,
    ) -> Result<(), GenerateError> {
        let n = self.plan.n;
        let empty = Stage::Writing(Vec::with_capacity(n));
        let Stage::Reading { state, .. } = std::mem::replace(&mut self.stage, empty) else { return Ok(()) };
        time_to_first_token(metrics, self.admitted);
        self.decoder.keep(&state, &self.plan.ids, weights);
        let mut states = (1..n).map(|_| self.decoder.fork(&state)).collect::<Result<Vec<_>, _>>()?;
        states.push(state);
        let mut texts = Vec::with_capacity(n);
        for (choice, state) in states.into_iter().enumerate() {
            let mut text = Writing::new(self.decoder, &self.plan, choice, state);
            text.choose(logits, metrics, events)?;
            texts.push(text);
        }
        self.stage = Stage::Writing(texts);
        Ok(())
    }

    /// Lets go of the texts that have ended.
    fn settle(&mut self, weights: &D::Lease, events: &Events) -> Option<Event> {
        let Stage::Writing(texts) = &mut self.stage else { return None };
        for text in texts.iter() {
            if let Some(finish_reason) = text.ended() {
                self.generated += text.generated();
                text.keep(weights);
                // A client that has left is noticed at the next turn.
                let _ = events.send(Ok(Event::Ended { choice: text.choice(), finish_reason }));
            }
        }
        texts.retain(|text| text.ended().is_none());
        let usage = Usage { prompt_tokens: self.plan.ids.len(), completion_tokens: self.generated };
        texts.is_empty().then_some(Event::Finished { usage })
    }
}
