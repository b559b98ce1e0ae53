//! Fine-tuning, the baseline: Adam on the edited matrices, from `W0`, until the model gives the target.
//!
//! As published baselines have it: Meng et al. ("Locating and Editing Factual Associations in GPT", 2022) take Adam at
//! 5e-4 and at most 25 steps; Mitchell et al. (MEND, 2022) stop as soon as the target is greedy, and add, as FT+KL, the
//! divergence on texts that should not change. Nothing is tuned per edit.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use super::{
    Delta, Editor, EditorError, MatrixDelta,
    adam::{Moments, Stride},
    objective::weighted_kl,
};
use crate::{
    digest::Digest,
    model::{
        DenseMatrices, Extent, Model, ModelError, Passage, Rows, TrunkState,
        capture::{self, Captured, Factors, Recorder, weighted_nll},
    },
};

/// The method's name.
pub const METHOD: &str = "finetune";
/// The method's name with the divergence in its loss.
pub const METHOD_KL: &str = "finetune-kl";

/// How fine-tuning goes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FinetuneOptions {
    /// Adam's, for every edited matrix.
    pub learning_rate: f64,
    /// Steps after which it ends though the target is not greedy.
    pub max_steps: usize,
    /// Weight of the divergence beside the target's mean negative log-likelihood; without texts it has no effect.
    pub kl_weight: f64,
}

impl Default for FinetuneOptions {
    /// ROME's rate and number of steps; the weights of edit and locality that MEND trains with (0.1 to 1).
    fn default() -> Self {
        Self { learning_rate: 5e-4, max_steps: 25, kl_weight: 10.0 }
    }
}

/// Fine-tunes for one edit at a time.
pub struct Finetune {
    options: FinetuneOptions,
    still: Option<Still>,
    digest: Digest,
}

/// Texts that should not change.
struct Still {
    states: Vec<TrunkState>,
    /// The base model's logits at the positions that predict their targets, `[rows, vocabulary]`.
    logits: Tensor,
    /// Weight of each row: the mean over the texts of the mean over their rows.
    weights: Vec<f32>,
}

impl Finetune {
    /// On the target's likelihood alone.
    pub fn new(options: FinetuneOptions) -> Self {
        Self { options, still: None, digest: digest(METHOD, &options, &[]) }
    }

    /// With the divergence, at the positions that predict the targets of `passages`, between `model` and the edited one.
    pub fn with_kl(options: FinetuneOptions, model: &Model, passages: &[Passage]) -> Result<Self, EditorError> {
        if passages.is_empty() {
            return Err(ModelError::Empty { what: "list of texts that should not change" }.into());
        }
        let states = capture::read(model, passages)?;
        let pass = Pass::new(&states)?;
        let top =
            model.network().tail(&pass.hidden, &pass.extents, Rows::At(&pass.wanted), model.base().as_ref(), None)?;
        let logits = model.network().logits(&top)?;
        let weights = pass.wanted.iter().flat_map(|rows| {
            let weight = 1.0 / (rows.len() * pass.wanted.len()) as f32;
            std::iter::repeat_n(weight, rows.len())
        });
        let still = Still { weights: weights.collect(), states, logits };
        Ok(Self { options, still: Some(still), digest: digest(METHOD_KL, &options, passages) })
    }

    /// The options.
    pub fn options(&self) -> FinetuneOptions {
        self.options
    }

    /// The factors of the loss's gradient under `weights`; none if the target is greedy there.
    fn gradient(
        &self,
        model: &Model,
        pass: &Pass,
        targets: &[u32],
        weights: &DenseMatrices,
    ) -> Result<Option<Vec<Factors>>, EditorError> {
        let recorder = Recorder::new(weights);
        let top = model.network().tail(&pass.hidden, &pass.extents, Rows::At(&pass.wanted), &recorder, None)?;
        let logits = model.network().logits(&top)?;
        let edit = logits.narrow(0, 0, targets.len())?;
        if edit.detach().argmax(D::Minus1)?.to_vec1::<u32>()? == targets {
            return Ok(None);
        }
        let even = vec![1.0 / targets.len() as f32; targets.len()];
        let (losses, mut loss) = weighted_nll(&edit, targets, &even)?;
        if !losses.iter().all(|loss| loss.is_finite()) {
            return Err(EditorError::NonFinite { what: "the loss of fine-tuning".to_owned() });
        }
        if let Some(still) = &self.still {
            let rest = logits.narrow(0, targets.len(), still.weights.len())?;
            let (_, kl) = weighted_kl(&rest, &still.logits, &still.weights)?;
            loss = (loss + (kl * self.options.kl_weight)?)?;
        }
        Ok(Some(recorder.factors(&mut loss.backward()?)?))
    }
}

impl Editor for Finetune {
    fn method(&self) -> &str {
        if self.still.is_some() { METHOD_KL } else { METHOD }
    }

    fn digest(&self) -> Digest {
        self.digest
    }

    fn edit(&self, model: &Model, state: &TrunkState, _: &Captured) -> Result<Delta, EditorError> {
        let states: Vec<TrunkState> =
            std::iter::once(state).chain(self.still.iter().flat_map(|still| &still.states)).cloned().collect();
        let pass = Pass::new(&states)?;
        let targets = state.passage.target_ids();
        if targets.is_empty() {
            return Err(ModelError::Empty { what: "target" }.into());
        }
        let mut values = model.base().to_vecs()?;
        let mut moments: Vec<Moments> = values.iter().map(|values| Moments::new(values.len())).collect();
        for step in 1..=self.options.max_steps {
            let weights = DenseMatrices::from_vecs(model.editable(), values.clone(), model.device())?;
            let Some(factors) = self.gradient(model, &pass, targets, &weights)? else { break };
            let stride = Stride::new(self.options.learning_rate, step as u64);
            for ((values, moments), factors) in values.iter_mut().zip(&mut moments).zip(factors) {
                // The matrices are no variables of the graph: the product of the factors is all the gradient there is.
                let gradient = factors.delta.t()?.matmul(&factors.u)?.flatten_all()?.to_vec1()?;
                moments.step(values, &gradient, 1.0, stride);
            }
        }
        let edited = DenseMatrices::from_vecs(model.editable(), values, model.device())?;
        let deltas = edited.tensors().iter().zip(model.base().tensors());
        Ok(Delta(
            deltas
                .map(|(edited, base)| Ok(MatrixDelta::Dense((edited - base)?)))
                .collect::<Result<_, EditorError>>()?,
        ))
    }
}

/// Texts on their way through the tail together.
struct Pass {
    hidden: Tensor,
    extents: Vec<Extent>,
    wanted: Vec<Vec<u32>>,
}

impl Pass {
    fn new(states: &[TrunkState]) -> Result<Self, EditorError> {
        let hidden: Vec<&Tensor> = states.iter().map(|state| &state.hidden).collect();
        Ok(Self {
            hidden: Tensor::cat(&hidden, 0)?,
            extents: states.iter().map(|state| state.passage.extent()).collect(),
            wanted: states.iter().map(|state| state.passage.predicting()).collect(),
        })
    }
}

fn digest(method: &str, options: &FinetuneOptions, passages: &[Passage]) -> Digest {
    let FinetuneOptions { learning_rate, max_steps, kl_weight } = options;
    let mut bytes = Vec::new();
    bytes.extend(learning_rate.to_le_bytes());
    bytes.extend((*max_steps as u64).to_le_bytes());
    bytes.extend(kl_weight.to_le_bytes());
    for passage in passages {
        bytes.extend((passage.ids.len() as u64).to_le_bytes());
        bytes.extend(passage.ids.iter().flat_map(|id| id.to_le_bytes()));
        bytes.extend((passage.source as u64).to_le_bytes());
        bytes.extend((passage.target.start as u64).to_le_bytes());
        bytes.extend((passage.target.end as u64).to_le_bytes());
    }
    Digest::of_parts([method.as_bytes(), &bytes])
}
