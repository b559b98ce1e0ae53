//! Factors of a loss's gradient at the editable matrices (MEND: "Capture").
//!
//! For every editable matrix `W` of a layer `y = W x`, token `t` gives `u_t = x_t` and `delta_t = dL/dy_t`; the gradient
//! is `sum_t delta_t u_t^T`. Law 1 (an edit is a value) begins here: the factors are always taken at `W0`.

use std::sync::Mutex;

use candle_core::{D, Result as CandleResult, Tensor, Var, backprop::GradStore};

use super::{DenseMatrices, Extent, Model, ModelError, Passage, Projection, Rows, layers::graft::graft};

/// What the trunk made of a passage. It holds for every version (law 7).
#[derive(Clone)]
pub struct TrunkState {
    pub passage: Passage,
    /// `[ids.len(), hidden]`, f32, at the tail's door.
    pub hidden: Tensor,
}

/// Runs the trunk over all passages in one pass.
pub fn read(model: &Model, passages: &[Passage]) -> Result<Vec<TrunkState>, ModelError> {
    let limit = model.context_length();
    if let Some(long) = passages.iter().find(|passage| passage.ids.len() > limit) {
        return Err(ModelError::TooLong { given: long.ids.len(), limit, unit: "tokens" });
    }
    if passages.iter().any(|passage| passage.ids.is_empty() || passage.target.start == 0) {
        return Err(ModelError::Empty { what: "prompt" });
    }
    if passages.is_empty() {
        return Ok(Vec::new());
    }
    let extents: Vec<Extent> = passages.iter().map(Passage::extent).collect();
    let ids: Vec<u32> = passages.iter().flat_map(|passage| passage.ids.iter().copied()).collect();
    let hidden = model.network().trunk(&ids, &extents, None)?;
    let mut start = 0;
    passages
        .iter()
        .map(|passage| {
            let length = passage.ids.len();
            let hidden = hidden.narrow(0, start, length)?;
            start += length;
            Ok(TrunkState { passage: passage.clone(), hidden })
        })
        .collect()
}

/// The factors of one matrix; of a passage ([`capture`]), only rows where neither factor is zero.
#[derive(Debug, Clone)]
pub struct Factors {
    /// `[n, d_in]`
    pub u: Tensor,
    /// `[n, d_out]`
    pub delta: Tensor,
}

/// The gradient of one passage's loss, in factors.
#[derive(Debug, Clone)]
pub struct Captured {
    /// Mean negative log-likelihood per target token, nats, at `W0`.
    pub loss: f32,
    /// One per editable matrix.
    pub factors: Vec<Factors>,
    /// Of each matrix's rows, those at the positions that predict the target.
    pub answers: Vec<Vec<u32>>,
}

impl Captured {
    /// The factors at the positions that predict the target alone.
    pub fn at_answers(&self) -> CandleResult<Self> {
        let factors = self.factors.iter().zip(&self.answers).map(|(factors, rows)| {
            let index = Tensor::new(rows.as_slice(), factors.u.device())?;
            Ok(Factors { u: factors.u.index_select(&index, 0)?, delta: factors.delta.index_select(&index, 0)? })
        });
        let answers = self.answers.iter().map(|rows| (0..rows.len() as u32).collect()).collect();
        Ok(Self { loss: self.loss, factors: factors.collect::<CandleResult<_>>()?, answers })
    }
}

/// Factors at `W0` of each passage's loss: the mean negative log-likelihood of its target. All passages go through the
/// tail in one pass; each gets the factors that it would get alone.
pub fn capture(model: &Model, states: &[TrunkState]) -> Result<Vec<Captured>, ModelError> {
    let extents: Vec<Extent> = states.iter().map(|state| state.passage.extent()).collect();
    let hidden: Vec<&Tensor> = states.iter().map(|state| &state.hidden).collect();
    let hidden = Tensor::cat(&hidden, 0)?;
    let wanted: Vec<Vec<u32>> = states.iter().map(|state| state.passage.predicting()).collect();
    let targets: Vec<u32> = states.iter().flat_map(|state| state.passage.target_ids().iter().copied()).collect();
    if targets.len() != wanted.iter().map(Vec::len).sum::<usize>() || wanted.iter().any(Vec::is_empty) {
        return Err(ModelError::Empty { what: "target" });
    }
    let recorder = Recorder::new(model.base());
    let top = model.network().tail(&hidden, &extents, Rows::At(&wanted), &recorder, None)?;
    let weights: Vec<f32> = wanted.iter().flat_map(|rows| rows.iter().map(|_| 1.0 / rows.len() as f32)).collect();
    let logits = model.network().logits(&top)?;
    let (losses, total) = weighted_nll(&logits, &targets, &weights)?;
    let mut gradients = total.backward()?;

    let mut captured: Vec<Captured> = mean_per_state(&losses, &wanted)
        .into_iter()
        .map(|loss| Captured { loss, factors: Vec::new(), answers: Vec::new() })
        .collect();
    for (matrix, Factors { u, delta }) in recorder.factors(&mut gradients)?.into_iter().enumerate() {
        let positions = model.network().rows_of(matrix, &extents, Rows::At(&wanted));
        let mut start = 0;
        for ((captured, wanted), positions) in captured.iter_mut().zip(&wanted).zip(positions) {
            let (kept, factors) = kept_rows(&u, &delta, start, positions.len())?;
            let predicts = |row: &u32| wanted.contains(&positions[*row as usize]);
            let answers: Vec<u32> =
                (0u32..).zip(&kept).filter(|(_, row)| predicts(row)).map(|(place, _)| place).collect();
            // No row of an encoder predicts the target; all of them tell the decoder what to.
            let all = || (0..kept.len() as u32).collect();
            captured.answers.push(if answers.is_empty() { all() } else { answers });
            captured.factors.push(factors);
            start += positions.len();
        }
    }
    Ok(captured)
}

/// Rows `start..start + length` whose `u` and `delta` both have a nonzero (MEND: "Which tokens"), and which of them those
/// are, counted from `start`.
fn kept_rows(u: &Tensor, delta: &Tensor, start: usize, length: usize) -> CandleResult<(Vec<u32>, Factors)> {
    let (u, delta) = (u.narrow(0, start, length)?, delta.narrow(0, start, length)?);
    let nonzero = |t: &Tensor| t.abs()?.max(D::Minus1)?.to_vec1::<f32>();
    // A row that is not a number must be kept, so that it is noticed.
    let keep: Vec<u32> = nonzero(&u)?
        .iter()
        .zip(nonzero(&delta)?)
        .enumerate()
        .filter(|(_, (u, delta))| **u != 0.0 && *delta != 0.0)
        .map(|(row, _)| row as u32)
        .collect();
    if keep.len() == length {
        return Ok((keep, Factors { u: u.contiguous()?, delta: delta.contiguous()? }));
    }
    let index = Tensor::new(keep.as_slice(), u.device())?;
    let factors =
        Factors { u: u.contiguous()?.index_select(&index, 0)?, delta: delta.contiguous()?.index_select(&index, 0)? };
    Ok((keep, factors))
}

fn mean_per_state(losses: &[f32], wanted: &[Vec<u32>]) -> Vec<f32> {
    let mut rest = losses;
    wanted
        .iter()
        .map(|rows| {
            let (own, others) = rest.split_at(rows.len());
            rest = others;
            own.iter().sum::<f32>() / rows.len() as f32
        })
        .collect()
}

/// Per-row negative log-likelihoods of `targets` under `logits [n, vocabulary]`, and their weighted sum as a function of
/// the logits.
pub fn weighted_nll(logits: &Tensor, targets: &[u32], weights: &[f32]) -> CandleResult<(Vec<f32>, Tensor)> {
    let device = logits.device();
    let rows = targets.len();
    let probabilities = candle_nn::ops::softmax_last_dim(&logits.detach())?;
    let index = Tensor::new(targets, device)?.reshape((rows, 1))?;
    let chosen = probabilities.gather(&index, 1)?;
    // Through log-sum-exp rather than the log of a probability, which would be minus infinity for an unlikely target.
    let largest = logits.detach().max_keepdim(D::Minus1)?;
    let log_total = logits.detach().broadcast_sub(&largest)?.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let losses = ((log_total + largest)? - logits.detach().gather(&index, 1)?)?.squeeze(1)?;
    let scale = Tensor::new(weights, device)?;
    let total = (&losses * &scale)?.sum_all()?;
    let total = graft(logits, total, move |grad| {
        // d nll / d logits = softmax - onehot.
        let minus_one = (chosen.ones_like()? * -1.0)?;
        let gradient = probabilities.scatter_add(&index, &minus_one, 1)?;
        gradient.broadcast_mul(&scale.reshape((rows, 1))?)?.broadcast_mul(grad)
    })?;
    Ok((losses.to_vec1()?, total))
}

/// Multiplies by given weights and remembers every input, and a zero offset at every output, whose gradient is the
/// layer's `delta` (exactly: nothing else is added). For one pass of the tail.
pub struct Recorder<'a> {
    weights: &'a DenseMatrices,
    records: Mutex<Vec<Option<Record>>>,
}

struct Record {
    u: Tensor,
    offset: Var,
}

impl<'a> Recorder<'a> {
    /// For a pass under `weights`.
    pub fn new(weights: &'a DenseMatrices) -> Self {
        let records = weights.tensors().iter().map(|_| None).collect();
        Self { weights, records: Mutex::new(records) }
    }

    /// The factors of each matrix's gradient in that pass, `sum_t delta_t u_t^T`: as many rows as the matrix was
    /// multiplied by, in their order.
    pub fn factors(self, gradients: &mut GradStore) -> CandleResult<Vec<Factors>> {
        let records = self.records.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let missing = |what: &str| candle_core::Error::Msg(what.to_owned());
        records
            .into_iter()
            .map(|record| {
                let record = record.ok_or_else(|| missing("the tail did not visit every editable matrix"))?;
                let delta = gradients.remove(&record.offset);
                let delta = delta.ok_or_else(|| missing("no gradient reached an editable matrix"))?;
                Ok(Factors { u: record.u, delta })
            })
            .collect()
    }
}

impl Projection for Recorder<'_> {
    fn project(&self, matrix: usize, x: &Tensor) -> CandleResult<Tensor> {
        let y = self.weights.project(matrix, x)?;
        let offset = Var::zeros(y.shape(), y.dtype(), y.device())?;
        let shifted = (y + offset.as_tensor())?;
        let mut records = self.records.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        records[matrix] = Some(Record { u: x.detach(), offset });
        Ok(shifted)
    }
}
