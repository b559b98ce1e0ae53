//! What a model under given weights thinks of a target: log-probabilities, greedy match, divergence.

use candle_core::{D, Tensor};

use super::{Extent, Model, ModelError, Projection, Rows, TrunkState};

/// Log-probabilities `[targets, vocabulary]` at the positions that predict each state's target (or, for an open passage,
/// what comes next), all states in one pass of the tail.
pub fn target_log_probs(
    model: &Model,
    states: &[TrunkState],
    weights: &dyn Projection,
) -> Result<Vec<Tensor>, ModelError> {
    Ok(target_log_probs_each(model, &[(states, weights)])?.pop().unwrap_or_default())
}

/// [`target_log_probs`] under several weights, each with states of its own. The output head, the largest matrix of a small
/// model, is the same under all of them, and is read once.
pub fn target_log_probs_each(
    model: &Model,
    sets: &[(&[TrunkState], &dyn Projection)],
) -> Result<Vec<Vec<Tensor>>, ModelError> {
    let tops = sets.iter().filter(|(states, _)| !states.is_empty()).map(|(states, weights)| {
        let extents: Vec<Extent> = states.iter().map(|state| state.passage.extent()).collect();
        let hidden: Vec<&Tensor> = states.iter().map(|state| &state.hidden).collect();
        let wanted: Vec<Vec<u32>> = states.iter().map(|state| state.passage.predicting()).collect();
        model.network().tail(&Tensor::cat(&hidden, 0)?, &extents, Rows::At(&wanted), *weights, None)
    });
    let tops = tops.collect::<candle_core::Result<Vec<_>>>()?;
    if tops.is_empty() {
        return Ok(vec![Vec::new(); sets.len()]);
    }
    let log_probs = log_softmax(&model.network().logits(&Tensor::cat(&tops, 0)?)?)?;
    let mut start = 0;
    let mut own = |state: &TrunkState| {
        let rows = state.passage.predicting().len();
        start += rows;
        Ok(log_probs.narrow(0, start - rows, rows)?)
    };
    sets.iter().map(|(states, _)| states.iter().map(&mut own).collect()).collect()
}

/// Log-softmax over the last dimension, without a graph.
pub fn log_softmax(logits: &Tensor) -> candle_core::Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    let log_total = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    shifted.broadcast_sub(&log_total)
}

/// How a model likes a target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TargetScore {
    /// Sum of the tokens' log-probabilities, nats.
    pub logprob: f32,
    pub tokens: usize,
    /// Whether each of its tokens is the most probable one.
    pub greedy: bool,
}

impl TargetScore {
    /// `exp` of the mean log-probability per token.
    pub fn probability(&self) -> f32 {
        (self.logprob / self.tokens.max(1) as f32).exp()
    }
}

/// Scores `target_ids` by their rows of [`target_log_probs`].
pub fn score_target(log_probs: &Tensor, target_ids: &[u32]) -> Result<TargetScore, ModelError> {
    if target_ids.is_empty() {
        return Err(ModelError::Empty { what: "target" });
    }
    let index = Tensor::new(target_ids, log_probs.device())?.unsqueeze(1)?;
    let chosen: Vec<f32> = log_probs.contiguous()?.gather(&index, 1)?.squeeze(1)?.to_vec1()?;
    let best: Vec<u32> = log_probs.argmax(D::Minus1)?.to_vec1()?;
    Ok(TargetScore { logprob: chosen.iter().sum(), tokens: target_ids.len(), greedy: best == target_ids })
}

/// How far one distribution went from another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Divergence {
    /// KL(before || after), nats, mean over positions.
    pub kl: f32,
    /// Whether the most probable token stayed the same at every position.
    pub greedy_unchanged: bool,
}

/// Divergence between two [`target_log_probs`] of the same state, before and after.
pub fn divergence(before: &Tensor, after: &Tensor) -> Result<Divergence, ModelError> {
    let kl: f32 = (before.exp()? * (before - after)?)?.sum(D::Minus1)?.mean_all()?.to_scalar()?;
    let best = |rows: &Tensor| rows.argmax(D::Minus1)?.to_vec1::<u32>();
    // Rounding can make it a little negative.
    Ok(Divergence { kl: kl.max(0.0), greedy_unchanged: best(before)? == best(after)? })
}
