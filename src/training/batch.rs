//! One batch of edits: capture, transform, and the tail under each edit.

use candle_core::{D, Tensor};

use super::{
    TrainingError,
    cache::HiddenStates,
    corpus::Corpus,
    factored::{Factored, Side},
};
use crate::{
    editor::{mend::Mend, objective::weighted_kl},
    model::{
        Extent, Model, Rows, TrunkState,
        capture::{self, Captured, Factors, weighted_nll},
    },
};

/// Which records a batch edits, and what must not change under which of its edits.
#[derive(Debug, Clone, Default)]
pub struct BatchPlan {
    /// Records; an edit's number is its place here.
    pub edits: Vec<usize>,
    /// Number of the edit, and the text to measure under it.
    pub locality: Vec<(u32, usize)>,
}

impl BatchPlan {
    /// The same work in parts of at most `size` edits.
    pub fn parts(&self, size: usize) -> Vec<Self> {
        let starts = (0..self.edits.len()).step_by(size.max(1));
        starts
            .map(|start| {
                let own = start..(start + size).min(self.edits.len());
                let inside = |owner: u32| own.contains(&(owner as usize));
                let locality = self.locality.iter().filter(|(owner, _)| inside(*owner));
                Self {
                    edits: self.edits[own.clone()].to_vec(),
                    locality: locality.map(|&(owner, text)| (owner - start as u32, text)).collect(),
                }
            })
            .collect()
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

/// What a batch gave.
pub struct BatchOutcome {
    /// `c_edit * NLL + c_loc * KL`, means over the batch, as a function of the editor's variables.
    pub loss: Tensor,
    /// On each edit's own prompt.
    pub prompts: Vec<TargetOutcome>,
    /// On each edit's paraphrase.
    pub paraphrases: Vec<TargetOutcome>,
    /// In the plan's order.
    pub locality: Vec<LocalityOutcome>,
}

/// The factors at `W0` of the batch's edits.
pub fn capture_edits(model: &Model, states: &HiddenStates, edits: &[usize]) -> Result<Vec<Captured>, TrainingError> {
    let read = edits.iter().map(|&record| states.state(Corpus::prompt(record))).collect::<Result<Vec<_>, _>>()?;
    Ok(capture::capture(model, &read)?)
}

/// Runs the batch under `mend`'s edits.
pub fn run(
    model: &Model,
    states: &HiddenStates,
    mend: &Mend,
    plan: &BatchPlan,
    captured: &[Captured],
    weights: Weights,
) -> Result<BatchOutcome, TrainingError> {
    let sides = sides(mend, captured)?;
    let edits = plan.edits.len();
    let numbers = || 0..edits as u32;
    let texts: Vec<usize> = (plan.edits.iter().map(|&record| Corpus::prompt(record)))
        .chain(plan.edits.iter().map(|&record| Corpus::paraphrase(record)))
        .chain(plan.locality.iter().map(|&(_, text)| text))
        .collect();
    let owners: Vec<u32> = numbers().chain(numbers()).chain(plan.locality.iter().map(|&(owner, _)| owner)).collect();
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
    let counts = |matrix| model.network().rows_of(matrix, &extents, Rows::At(&rows));
    let factored = Factored::new(model.base(), &sides, &owners, counts);
    let top = model.network().tail(&Tensor::cat(&hidden, 0)?, &extents, Rows::At(&rows), &factored, None)?;
    let logits = model.network().logits(&top)?;

    let target_rows: usize = selected[..2 * edits].iter().sum();
    let (nll, targets) = target_loss(&logits.narrow(0, 0, target_rows)?, &read[..2 * edits])?;
    let mut loss = (nll * weights.edit)?;
    let mut locality = Vec::new();
    if !plan.locality.is_empty() {
        let rest = logits.dim(0)? - target_rows;
        let (kl, outcomes) = locality_loss(model, states, plan, &logits.narrow(0, target_rows, rest)?)?;
        loss = (loss + (kl * weights.locality)?)?;
        locality = outcomes;
    }
    let paraphrases = targets[edits..].to_vec();
    Ok(BatchOutcome { loss, prompts: targets[..edits].to_vec(), paraphrases, locality })
}

/// The network's updates of every matrix, all edits one after another.
fn sides(mend: &Mend, captured: &[Captured]) -> Result<Vec<Side>, TrainingError> {
    let matrices = captured.first().map_or(0, |captured| captured.factors.len());
    let mut factors = Vec::with_capacity(matrices);
    let mut owners = Vec::with_capacity(matrices);
    for matrix in 0..matrices {
        let own: Vec<&Factors> = captured.iter().map(|captured| &captured.factors[matrix]).collect();
        let us: Vec<&Tensor> = own.iter().map(|factors| &factors.u).collect();
        let deltas: Vec<&Tensor> = own.iter().map(|factors| &factors.delta).collect();
        factors.push(Factors { u: Tensor::cat(&us, 0)?, delta: Tensor::cat(&deltas, 0)? });
        let counts = us.iter().map(|u| u.dim(0)).collect::<candle_core::Result<Vec<_>>>()?;
        let owner = counts.iter().zip(0u32..).flat_map(|(&rows, edit)| std::iter::repeat_n(edit, rows)).collect();
        owners.push(owner);
    }
    let pseudo = mend.transform(&factors)?;
    pseudo
        .iter()
        .zip(owners)
        .enumerate()
        .map(|(matrix, (pseudo, owners))| Ok(Side::new(pseudo, &mend.learning_rate(matrix)?, owners)?))
        .collect()
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
    plan: &BatchPlan,
    logits: &Tensor,
) -> Result<(Tensor, Vec<LocalityOutcome>), TrainingError> {
    let tops = plan.locality.iter().map(|&(_, text)| states.tops(text)).collect::<Result<Vec<_>, _>>()?;
    let base = model.network().logits(&Tensor::cat(&tops, 0)?)?;
    let texts = plan.locality.iter().map(|&(_, text)| states.text(text));
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
