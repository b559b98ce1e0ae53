//! One record: its edit, and what the model gives on its texts, as it is and under edits.

use std::time::Instant;

use candle_core::Tensor;

use super::{
    free_running::begins_with,
    texts::{Role, Texts},
};
use crate::{
    editor::{Delta, Editor, EditorError},
    model::{
        Kind, Model, ModelError, Passage, Projection, TrunkState,
        capture::{self, Captured},
        measure::{Divergence, TargetScore, divergence, score_target, target_log_probs},
    },
    training::TrainingError,
};

/// What was measured under one edit.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Outcome {
    /// Teacher-forced exact match: prompt, paraphrase.
    pub forced: [bool; 2],
    /// Free-running: prompt, paraphrase.
    pub free: [bool; 2],
    /// CounterFact: prompt, paraphrase, neighbour; none without an old answer.
    pub comparisons: Option<[bool; 3]>,
    pub neighbour: Vec<Divergence>,
    pub unrelated: Vec<Divergence>,
    /// Sum over a window's tokens, nats, and their number.
    pub running: Option<(f64, usize)>,
    /// From the edit's token ids to its delta.
    pub milliseconds: Option<f64>,
    /// The editor gave no delta; the weights are those of the model.
    pub failed: bool,
}

/// A record's edit, captured once for all editors.
pub(super) struct Request<'a> {
    model: &'a Model,
    edit: TrunkState,
    captured: Captured,
    /// How long the trunk and the capture took.
    capture_ms: f64,
}

impl<'a> Request<'a> {
    pub fn new(model: &'a Model, edit: &Passage) -> Result<Self, TrainingError> {
        let started = Instant::now();
        let edit = one(model, edit)?;
        let captured = capture::capture(model, std::slice::from_ref(&edit))?.pop();
        let captured = captured.ok_or(ModelError::Empty { what: "target" })?;
        Ok(Self { model, edit, captured, capture_ms: milliseconds(started) })
    }

    /// The editor's change, and the milliseconds from the edit's token ids to it.
    pub fn delta(&self, editor: &dyn Editor) -> (Result<Delta, EditorError>, f64) {
        let started = Instant::now();
        let delta = editor.edit(self.model, &self.edit, &self.captured);
        (delta, self.capture_ms + milliseconds(started))
    }
}

/// A record's texts with all that the editors share.
pub(super) struct Subject<'a> {
    model: &'a Model,
    texts: Texts,
    max_new_tokens: usize,
    /// The texts with answers, and their distributions before the edit.
    states: Vec<TrunkState>,
    before: Vec<Tensor>,
    window: Option<TrunkState>,
}

impl<'a> Subject<'a> {
    pub fn new(model: &'a Model, texts: Texts, max_new_tokens: usize) -> Result<Self, TrainingError> {
        let passages: Vec<Passage> = texts.answered.iter().map(|(_, passage)| passage.clone()).collect();
        let states = capture::read(model, &passages)?;
        let before = target_log_probs(model, &states, model.base().as_ref())?;
        let window = texts.window.as_ref().map(|window| one(model, window)).transpose()?;
        Ok(Self { model, texts, max_new_tokens, states, before, window })
    }

    /// Measures under given weights.
    pub fn measure(&self, weights: &dyn Projection) -> Result<Outcome, TrainingError> {
        let after = target_log_probs(self.model, &self.states, weights)?;
        let mut scores = Vec::with_capacity(after.len());
        let mut outcome = Outcome::default();
        for (((role, passage), before), after) in self.texts.answered.iter().zip(&self.before).zip(&after) {
            scores.push((*role, score_target(after, passage.target_ids())?));
            match role {
                Role::Neighbour => outcome.neighbour.push(divergence(before, after)?),
                Role::Unrelated => outcome.unrelated.push(divergence(before, after)?),
                _ => {}
            }
        }
        let score = |role: Role| scores.iter().find(|(other, _)| *other == role).map(|(_, score)| *score);
        outcome.forced = [Role::Prompt, Role::Paraphrase].map(|role| score(role).is_some_and(|score| score.greedy));
        outcome.comparisons = compare(&score);
        // A classifier's answer is its label, whoever asks.
        outcome.free = outcome.forced;
        if self.model.kind() != Kind::Classifier {
            for (free, prompt) in outcome.free.iter_mut().zip(&self.texts.open) {
                *free = begins_with(self.model, prompt, &self.texts.target, self.max_new_tokens, weights)?;
            }
        }
        outcome.running = self.running_text(weights)?;
        Ok(outcome)
    }

    fn running_text(&self, weights: &dyn Projection) -> Result<Option<(f64, usize)>, TrainingError> {
        let Some(window) = &self.window else { return Ok(None) };
        let log_probs = target_log_probs(self.model, std::slice::from_ref(window), weights)?;
        let score = score_target(&log_probs[0], window.passage.target_ids())?;
        Ok(Some((-f64::from(score.logprob), score.tokens)))
    }
}

/// CounterFact's three comparisons.
fn compare(score: &impl Fn(Role) -> Option<TargetScore>) -> Option<[bool; 3]> {
    let above = |role, other| Some(score(role)?.probability() > score(other)?.probability());
    Some([
        above(Role::Prompt, Role::OldOnPrompt)?,
        above(Role::Paraphrase, Role::OldOnParaphrase)?,
        above(Role::Neighbour, Role::NewOnNeighbour)?,
    ])
}

fn one(model: &Model, passage: &Passage) -> Result<TrunkState, ModelError> {
    let state = capture::read(model, std::slice::from_ref(passage))?.pop();
    state.ok_or(ModelError::Empty { what: "text" })
}

fn milliseconds(started: Instant) -> f64 {
    started.elapsed().as_secs_f64() * 1e3
}
