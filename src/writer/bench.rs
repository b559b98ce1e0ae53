//! What the writer needs of a model and its editor: the one place where it touches a network. [`super::workbench`] is
//! the real one; tests put a small one in its place.

use std::sync::Arc;

use candle_core::Device;

use super::TargetFigures;
use crate::{
    digest::Digest,
    editor::Delta,
    model::{DenseMatrices, EditableMatrix, Passage, Projection},
};

/// What admission needs: token counts. Used from many threads at once.
pub trait Texts: Send + Sync {
    /// The editor's method, which is its name in requests.
    fn method(&self) -> &str;

    /// Most positions of a sequence.
    fn context_length(&self) -> usize;

    /// A prompt and its target as token ids; without a target, the passage is open: its target is whatever comes next.
    fn passage(&self, prompt: &str, target: Option<&str>) -> Result<Passage, String>;
}

/// What sets of edits are built on: the base weights, and the digests that a log is pinned to.
#[derive(Clone)]
pub struct Foundation {
    /// Digest of the model's files.
    pub model: Digest,
    /// Digest of the editor's folder.
    pub editor: Digest,
    pub shapes: Vec<EditableMatrix>,
    /// The weights of these matrices before any edit.
    pub base: Arc<DenseMatrices>,
    /// Where a version's tensors live.
    pub device: Device,
}

/// Reads, captures, edits and measures. Errors are texts for people.
pub trait Bench: Texts + 'static {
    /// What the trunk made of a passage: read once, used for capture and for every measurement (law 7).
    type Text: Clone + Send;
    /// What capture leaves for the editor.
    type Factors: Send;
    /// What a measurement found at a passage's target positions.
    type Reading;

    /// What sets of edits are built on.
    fn foundation(&self) -> Foundation;

    /// The trunk's pass over some passages.
    fn read(&self, passages: &[Passage]) -> Result<Vec<Self::Text>, String>;

    /// Loss and factors of each text's target, at the base weights (law 1).
    fn capture(&self, texts: &[Self::Text]) -> Result<Vec<(f32, Self::Factors)>, String>;

    /// The editor's delta for one edit.
    fn edit(&self, text: &Self::Text, factors: &Self::Factors) -> Result<Delta, String>;

    /// The tail's pass over some texts under these weights.
    fn measure(&self, texts: &[Self::Text], weights: &dyn Projection) -> Result<Vec<Self::Reading>, String>;

    /// How a reading likes its text's target.
    fn figures(&self, text: &Self::Text, reading: &Self::Reading) -> Result<TargetFigures, String>;

    /// Mean KL divergence (nats) from one reading of a text to another, and whether the most probable token stayed the
    /// same at every position.
    fn divergence(&self, before: &Self::Reading, after: &Self::Reading) -> Result<(f32, bool), String>;
}

/// Splits texts into runs that fit one pass each: a run's passages have `budget` tokens together, targets counted
/// twice (their logits weigh as much as their activations), or the run is a single passage.
pub fn passes<'a>(passages: impl Iterator<Item = &'a Passage>, budget: usize) -> Vec<std::ops::Range<usize>> {
    let mut runs = Vec::new();
    let (mut start, mut end, mut spent) = (0, 0, 0);
    for passage in passages {
        let cost = passage.ids.len() + passage.target.len();
        if end > start && spent + cost > budget {
            runs.push(start..end);
            (start, spent) = (end, 0);
        }
        spent += cost;
        end += 1;
    }
    if end > start {
        runs.push(start..end);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_everything_within_the_budget() {
        let passages: Vec<Passage> =
            [3, 3, 20, 1, 1].iter().map(|&n| Passage { ids: vec![0; n + 1], target: n..n + 1 }).collect();
        assert_eq!(passes(passages.iter(), 10), [0..2, 2..3, 3..5]);
        assert!(passes([].iter(), 10).is_empty());
    }
}
