//! What a training run is started with.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::batch::Weights;
use crate::editor::CompositionKind;

/// How often each kind of text is what must not change, as weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LocalityMix {
    /// The record's own locality question.
    pub neighbour: f64,
    /// Another record's.
    pub other: f64,
    /// Running text.
    pub text: f64,
}

/// The network, the objective and the schedule: what the result depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    pub rank: usize,
    /// How the edits of a set become one change.
    pub composition: CompositionKind,
    /// Ridge of the whitening as a share of the mean second moment; none for an editor without whitening.
    pub whitening: Option<f64>,
    /// Weight in the whitening of what tells a record's prompt and paraphrase apart; 0 leaves it out.
    #[serde(default)]
    pub whitening_paraphrases: f64,
    /// What every matrix's own learning rate starts at. Below zero it goes down the gradient from the first step on; the
    /// reference starts at 1e-4 and leaves the sign to the network (config/alg/mend.yaml).
    pub initial_step_size: f64,
    /// Edits that are measured in a step.
    pub edits_per_step: usize,
    /// Numbers of edits that are active together; each step draws one. Behind a gate, where each is trained alone, validation
    /// takes them.
    pub simultaneous: Vec<usize>,
    /// Adam, networks.
    pub learning_rate: f64,
    /// Adam, scales of the matrices' step sizes.
    pub lr_scale_rate: f64,
    /// Most global norm of the gradient.
    pub clip: f64,
    pub edit_weight: f64,
    pub locality_weight: f64,
    pub locality_mix: LocalityMix,
    /// Steps after which the cosine has come down.
    pub steps: u64,
    pub warmup: u64,
    pub seed: u64,
}

impl Default for Recipe {
    /// What `amend train` takes where nothing is said.
    fn default() -> Self {
        Self {
            rank: 128,
            composition: CompositionKind::Joint,
            whitening: Some(0.001),
            whitening_paraphrases: 0.0,
            initial_step_size: -1e-3,
            edits_per_step: 32,
            simultaneous: vec![1, 1, 4, 16, 64, 256],
            learning_rate: 1e-3,
            lr_scale_rate: 1e-2,
            clip: 1.0,
            edit_weight: 0.3,
            locality_weight: 1.0,
            locality_mix: LocalityMix { neighbour: 0.5, other: 0.3, text: 0.2 },
            steps: 1800,
            warmup: 50,
            seed: 0,
        }
    }
}

impl Recipe {
    /// The objective's weights.
    pub fn weights(&self) -> Weights {
        Weights { edit: self.edit_weight, locality: self.locality_weight }
    }

    /// Learning rate at `step` relative to its highest: linear up, cosine down to a twentieth.
    pub fn schedule(&self, step: u64) -> f64 {
        const FLOOR: f64 = 0.05;
        if step < self.warmup {
            return (step + 1) as f64 / self.warmup as f64;
        }
        let span = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let progress = ((step - self.warmup) as f64 / span).min(1.0);
        FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
    }
}

/// How a run goes and where it keeps its files: what the result does not depend on, save for when it stops.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Folder of the editor, the state and the plot.
    pub out: PathBuf,
    /// Folder of the hidden states.
    pub cache: PathBuf,
    pub validate_every: u64,
    pub validation_records: usize,
    /// Validations without a better one before stopping.
    pub patience: usize,
    pub resume: bool,
    /// Folders of the editors whose mean it begins with; none for a fresh one.
    pub from: Vec<PathBuf>,
    pub max_minutes: Option<f64>,
    /// Threads that compute, on parts of a batch.
    pub threads: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_then_falls() {
        let recipe = Recipe { steps: 100, warmup: 10, ..Recipe::default() };
        assert!((recipe.schedule(0) - 0.1).abs() < 1e-12);
        assert!((recipe.schedule(10) - 1.0).abs() < 1e-12);
        assert!((recipe.schedule(100) - 0.05).abs() < 1e-12);
        assert!(recipe.schedule(55) < recipe.schedule(54));
    }
}
