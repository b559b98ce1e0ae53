//! What the writer needs of a model and its editor: the one place where it touches a network. [`super::workbench`] is
//! the real one; tests put a small one in its place.

use std::sync::Arc;

use candle_core::Device;

use super::TargetFigures;
use crate::{
    digest::Digest,
    editor::{Composition, Delta, spectrum::Spectrum},
    model::{DenseMatrices, EditableMatrix, ModelError, Passage, Projection},
};

/// What admission needs: token counts. Used from many threads at once.
pub trait Texts: Send + Sync {
    /// The editor's method, which is its name in requests.
    fn method(&self) -> &str;

    /// Most positions of a sequence.
    fn context_length(&self) -> usize;

    /// A prompt and its target as token ids; without a target, the passage is open: its target is whatever comes next.
    fn passage(&self, prompt: &str, target: Option<&str>) -> Result<Passage, ModelError>;
}

/// What sets of edits are built on: the base weights, and the digests that a log is pinned to.
#[derive(Clone)]
pub struct Foundation {
    /// Digest of the model's files.
    pub model: Digest,
    /// Digest of the editor's folder.
    pub editor: Digest,
    /// How this editor's edits become one change.
    pub composition: Composition,
    pub shapes: Vec<EditableMatrix>,
    /// The weights of these matrices before any edit.
    pub base: Arc<DenseMatrices>,
    /// Where a version's tensors live.
    pub device: Device,
}

/// By matrix, what entered it, `[d_in]`.
pub type Keys = Vec<Vec<f32>>;

/// Reads, captures, edits and measures. Errors are texts for people.
pub trait Bench: Texts + 'static {
    /// What the trunk made of a passage: read once, used for capture and for every measurement (law 7).
    type Text: Clone + Send + Sync;
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

    /// Whether every number of the factors is finite; the error names the matrix. An editor may make something of one that
    /// is not.
    fn check(&self, factors: &Self::Factors) -> Result<(), String>;

    /// How the gradient of each matrix is spread.
    fn spectra(&self, factors: &Self::Factors) -> Result<Vec<Spectrum>, String>;

    /// The inputs of each matrix at the position that predicts the target's first token, at the base weights: they depend
    /// on the prompt alone.
    fn keys(&self, text: &Self::Text, factors: &Self::Factors) -> Result<Keys, String>;

    /// The editor's delta for one edit.
    fn edit(&self, text: &Self::Text, factors: &Self::Factors) -> Result<Delta, String>;

    /// The tail's pass over some texts under these weights.
    fn measure(&self, texts: &[Self::Text], weights: &dyn Projection) -> Result<Vec<Self::Reading>, String>;

    /// The same under several weights, each with texts of its own; what does not depend on the weights may be shared.
    fn measure_each(&self, sets: &[(&[Self::Text], &dyn Projection)]) -> Result<Vec<Vec<Self::Reading>>, String> {
        sets.iter().map(|(texts, weights)| self.measure(texts, *weights)).collect()
    }

    /// How a reading likes its text's target.
    fn figures(&self, text: &Self::Text, reading: &Self::Reading) -> Result<TargetFigures, String>;

    /// The most probable token at a reading's first position.
    fn leading(&self, reading: &Self::Reading) -> Result<u32, String>;

    /// The first token of a passage's target, as [`Bench::leading`] names it.
    fn first_token(&self, passage: &Passage) -> u32 {
        passage.ids[passage.target.start]
    }

    /// Mean KL divergence (nats) from one reading of a text to another, and whether the most probable token stayed the
    /// same at every position.
    fn divergence(&self, before: &Self::Reading, after: &Self::Reading) -> Result<(f32, bool), String>;
}

/// The trunk's passes over any number of passages, as few as the budget of tokens allows.
pub fn read_all<B: Bench>(bench: &B, passages: &[Passage], budget: usize) -> Result<Vec<B::Text>, String> {
    let mut read = Vec::with_capacity(passages.len());
    for run in passes(passages.iter(), budget) {
        read.extend(bench.read(&passages[run])?);
    }
    match read.len() == passages.len() {
        true => Ok(read),
        false => Err(format!("{} passages gave {} texts", passages.len(), read.len())),
    }
}

/// Longest text for which a pass may spend its whole budget of tokens: attention weighs `tokens x longest` pairs, so
/// longer texts share a pass with fewer others.
const FULL_WIDTH: usize = 512;

/// Rows of logits (one per target position, as wide as the vocabulary) in one pass. Where texts are measured before and
/// after in one go, there are twice as many.
const PASS_TARGETS: usize = 128;

/// Splits texts into runs that fit one pass each, in order. Attention pads every text of a pass to the longest, so a run
/// of `n` texts costs `n x longest` tokens (at most `budget`), `n x longest^2` pairs (at most `budget` times
/// [`FULL_WIDTH`]) and a row of logits per target position (at most [`PASS_TARGETS`]); or the run is a single text.
pub fn passes<'a>(passages: impl Iterator<Item = &'a Passage>, budget: usize) -> Vec<std::ops::Range<usize>> {
    let mut runs = Vec::new();
    let (mut start, mut end, mut longest, mut targets) = (0, 0, 0, 0);
    for passage in passages {
        let (wider, more) = (passage.ids.len().max(longest), targets + passage.target.len());
        if end > start && !fits(end - start + 1, wider, more, budget) {
            runs.push(start..end);
            (start, longest, targets) = (end, passage.ids.len(), passage.target.len());
        } else {
            (longest, targets) = (wider, more);
        }
        end += 1;
    }
    if end > start {
        runs.push(start..end);
    }
    runs
}

fn fits(texts: usize, longest: usize, targets: usize, budget: usize) -> bool {
    let tokens = texts.saturating_mul(longest);
    let pairs = tokens.saturating_mul(longest);
    tokens <= budget && pairs <= budget.saturating_mul(FULL_WIDTH) && targets <= PASS_TARGETS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(sizes: &[(usize, usize)]) -> Vec<Passage> {
        let text =
            |&(prompt, target): &(usize, usize)| Passage::text(vec![0; prompt + target], prompt..prompt + target);
        sizes.iter().map(text).collect()
    }

    #[test]
    fn a_long_text_takes_few_short_ones_along() {
        assert_eq!(passes(texts(&[(3, 1), (3, 1), (20, 1), (1, 1), (1, 1)]).iter(), 10), [0..2, 2..3, 3..5]);
        let mut sizes = vec![(511, 1)];
        sizes.extend([(1, 1); 500]);
        let runs = passes(texts(&sizes).iter(), 2048);
        assert_eq!(runs[..2], [0..4, 4..132], "four of the longest's width, then as many as have targets");
        assert!(passes([].iter(), 10).is_empty());
    }

    proptest! {
        #[test]
        fn every_pass_is_within_the_budget_or_a_single_text(
            sizes in proptest::collection::vec((1_usize..1500, 1_usize..65), 0..80), budget in 1_usize..5000,
        ) {
            let texts = texts(&sizes);
            let runs = passes(texts.iter(), budget);
            let mut next = 0;
            for run in runs {
                prop_assert!(run.start == next && run.end > next, "every text is in one run, in order");
                next = run.end;
                let run = &texts[run];
                let longest = run.iter().map(|text| text.ids.len()).max().unwrap_or(0);
                let targets: usize = run.iter().map(|text| text.target.len()).sum();
                let padded = run.len() * longest;
                prop_assert!(
                    run.len() == 1 || (padded <= budget && padded * longest <= budget * 512 && targets <= 128)
                );
            }
            prop_assert_eq!(next, texts.len());
        }
    }
}
