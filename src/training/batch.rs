//! One batch of edits: which they are, and the tail under them.

use std::ops::Range;

use candle_core::{D, Tensor};

use super::{
    TrainingError,
    cache::HiddenStates,
    corpus::Corpus,
    factored::{Factored, Sides},
};
use crate::{
    editor::objective::weighted_kl,
    model::{Extent, Model, Rows, TrunkState, capture::weighted_nll},
};

/// Which records a batch edits, which of them are active together, and what must not change under which.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BatchPlan {
    /// Records whose edits are measured.
    pub edits: Vec<usize>,
    /// Records that are edited beside them, in the last set.
    pub companions: Vec<usize>,
    /// The set of each measured edit; sets begin at 0, follow each other and never fall.
    pub sets: Vec<u32>,
    /// Number of the measured edit, and the text to measure under its set.
    pub locality: Vec<(u32, usize)>,
}

impl BatchPlan {
    /// Measured edits in sets of `size`, the last as large as what is left.
    pub fn new(edits: Vec<usize>, size: usize, locality: Vec<(u32, usize)>) -> Self {
        let sets = (0..edits.len()).map(|edit| (edit / size.max(1)) as u32).collect();
        Self { edits, companions: Vec::new(), sets, locality }
    }

    /// All records that are edited, and the set of each: the measured ones first.
    pub fn edited(&self) -> (Vec<usize>, Vec<u32>) {
        let last = self.sets.last().copied().unwrap_or(0);
        let records = self.edits.iter().chain(&self.companions).copied().collect();
        let sets = self.sets.iter().copied().chain(self.companions.iter().map(|_| last)).collect();
        (records, sets)
    }

    /// What is measured, in as few parts of at most `size` edits as there can be, each about as large as the others: they
    /// are shared out among threads.
    pub fn parts(&self, size: usize) -> Vec<Part> {
        let count = self.edits.len().div_ceil(size.max(1)).max(1);
        let size = self.edits.len().div_ceil(count).max(1);
        let starts = (0..self.edits.len()).step_by(size);
        starts
            .map(|start| {
                let own = start..(start + size).min(self.edits.len());
                let inside = |owner: u32| own.contains(&(owner as usize));
                let locality = self.locality.iter().filter(|(owner, _)| inside(*owner));
                Part {
                    edits: self.edits[own.clone()].to_vec(),
                    sets: self.sets[own.clone()].to_vec(),
                    locality: locality.map(|&(owner, text)| (self.sets[owner as usize], text)).collect(),
                }
            })
            .collect()
    }
}

/// A part of what a batch measures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Records.
    pub edits: Vec<usize>,
    /// The set that each is in.
    pub sets: Vec<u32>,
    /// A set, and a text to measure under it.
    pub locality: Vec<(u32, usize)>,
}

impl Part {
    /// The sets that it measures.
    pub fn range(&self) -> Range<u32> {
        self.sets.first().copied().unwrap_or(0)..self.sets.last().map_or(0, |last| last + 1)
    }
}

/// Weights of the objective.
#[derive(Debug, Clone, Copy)]
pub struct Weights {
    /// `c_edit`
    pub edit: f64,
    /// `c_loc`
    pub locality: f64,
}

/// A target under its edit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TargetOutcome {
    /// Mean over its tokens, nats.
    pub nll: f32,
    /// Whether every token is the most probable one.
    pub exact: bool,
}

/// A text that should not change, under an edit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LocalityOutcome {
    /// Mean over the positions that predict its answer (all watched ones for running text), nats.
    pub kl: f32,
    /// Whether the most probable token is still the same at each of them.
    pub unchanged: bool,
}

/// What a part gave.
pub struct PartOutcome {
    /// `c_edit * NLL + c_loc * KL`, means over the part, as a function of the sides.
    pub loss: Tensor,
    /// On each edit's own prompt.
    pub prompts: Vec<TargetOutcome>,
    /// On each edit's paraphrase.
    pub paraphrases: Vec<TargetOutcome>,
    /// In the part's order.
    pub locality: Vec<LocalityOutcome>,
}

/// Runs a part; `sides` are those of its sets, one per matrix.
pub fn run(
    model: &Model,
    states: &HiddenStates,
    sides: &Sides,
    part: &Part,
    weights: Weights,
) -> Result<PartOutcome, TrainingError> {
    let edits = part.edits.len();
    let texts: Vec<usize> = (part.edits.iter().map(|&record| Corpus::prompt(record)))
        .chain(part.edits.iter().map(|&record| Corpus::paraphrase(record)))
        .chain(part.locality.iter().map(|&(_, text)| text))
        .collect();
    let sets: Vec<u32> =
        part.sets.iter().chain(&part.sets).copied().chain(part.locality.iter().map(|&(set, _)| set)).collect();
    let read = texts.iter().map(|&text| states.state(text)).collect::<Result<Vec<TrunkState>, _>>()?;
    let rows: Vec<Vec<u32>> = texts
        .iter()
        .enumerate()
        .map(|(i, &text)| match i < 2 * edits {
            true => read[i].passage.predicting(),
            false => states.text(text).watched.clone(),
        })
        .collect();

    let extents: Vec<Extent> = read.iter().map(|state| state.passage.extent()).collect();
    let selected: Vec<usize> = rows.iter().map(Vec::len).collect();
    let hidden: Vec<&Tensor> = read.iter().map(|state| &state.hidden).collect();
    let counts = |matrix| model.network().rows_of(matrix, &extents, Rows::At(&rows)).iter().map(Vec::len).collect();
    let factored = Factored::new(model.base(), sides, &sets, counts);
    let top = model.network().tail(&Tensor::cat(&hidden, 0)?, &extents, Rows::At(&rows), &factored, None)?;
    let logits = model.network().logits(&top)?;

    let target_rows: usize = selected[..2 * edits].iter().sum();
    let (nll, targets) = target_loss(&logits.narrow(0, 0, target_rows)?, &read[..2 * edits])?;
    let mut loss = (nll * weights.edit)?;
    let mut locality = Vec::new();
    if !part.locality.is_empty() {
        let rest = logits.dim(0)? - target_rows;
        let (kl, outcomes) = locality_loss(model, states, part, &logits.narrow(0, target_rows, rest)?)?;
        loss = (loss + (kl * weights.locality)?)?;
        locality = outcomes;
    }
    let paraphrases = targets[edits..].to_vec();
    Ok(PartOutcome { loss, prompts: targets[..edits].to_vec(), paraphrases, locality })
}

/// Mean over the texts of their mean target NLL, and each text's outcome.
fn target_loss(logits: &Tensor, read: &[TrunkState]) -> Result<(Tensor, Vec<TargetOutcome>), TrainingError> {
    let targets: Vec<u32> = read.iter().flat_map(|state| state.passage.target_ids().iter().copied()).collect();
    let counts: Vec<usize> = read.iter().map(|state| state.passage.target.len()).collect();
    let weights: Vec<f32> =
        counts.iter().flat_map(|&count| std::iter::repeat_n(1.0 / (count * read.len()) as f32, count)).collect();
    let (losses, total) = weighted_nll(logits, &targets, &weights)?;
    let best: Vec<u32> = logits.detach().argmax(D::Minus1)?.to_vec1()?;
    let mut start = 0;
    let outcomes = counts
        .iter()
        .map(|&count| {
            let own = start..start + count;
            start += count;
            TargetOutcome {
                nll: losses[own.clone()].iter().sum::<f32>() / count as f32,
                exact: best[own.clone()] == targets[own],
            }
        })
        .collect();
    Ok((total, outcomes))
}

/// Mean over the locality texts of their mean KL, and each text's outcome.
fn locality_loss(
    model: &Model,
    states: &HiddenStates,
    part: &Part,
    logits: &Tensor,
) -> Result<(Tensor, Vec<LocalityOutcome>), TrainingError> {
    let tops = part.locality.iter().map(|&(_, text)| states.tops(text)).collect::<Result<Vec<_>, _>>()?;
    let base = model.network().logits(&Tensor::cat(&tops, 0)?)?;
    let texts = part.locality.iter().map(|&(_, text)| states.text(text));
    let counts: Vec<usize> = texts.clone().map(|text| text.watched.len()).collect();
    let weights: Vec<f32> =
        counts.iter().flat_map(|&count| std::iter::repeat_n(1.0 / (count * counts.len()) as f32, count)).collect();
    let (divergences, total) = weighted_kl(logits, &base, &weights)?;
    let before: Vec<u32> = base.argmax(D::Minus1)?.to_vec1()?;
    let after: Vec<u32> = logits.detach().argmax(D::Minus1)?.to_vec1()?;
    let mut end = 0;
    let outcomes = texts
        .zip(&counts)
        .map(|(text, &count)| {
            end += count;
            // The positions that predict the answer come last.
            let measured = if text.passage.target_ids().is_empty() { count } else { text.passage.target.len() };
            let own = end - measured..end;
            LocalityOutcome {
                kl: divergences[own.clone()].iter().sum::<f32>().max(0.0) / measured as f32,
                unchanged: before[own.clone()] == after[own],
            }
        })
        .collect();
    Ok((total, outcomes))
}
