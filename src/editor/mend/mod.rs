//! MEND (Mitchell et al., "Fast Model Editing at Scale", ICLR 2022): a small network per weight shape turns the factors of
//! an answer's gradient into the factors of an update.
//!
//! `W <- W + lr_W * sum_t delta~_t u~_t^T`, with `(u~, delta~)` the network's output on the normalised factors and one
//! learned `lr_W` per matrix. The sign is plus, as in the reference implementation (algs/mend.py): the network learns it.
//!
//! Three things go beyond the paper, and an editor has them only if it was trained with them. Whitening multiplies each `u~`
//! by a fixed matrix, so that it speaks little on the inputs that a matrix commonly sees. Ridges make the editor one of
//! the joint composition ([`super::joint`]), a gate one whose edits stand beside the base weights ([`super::gate`]): either
//! way its edits are the rows at the positions that predict the target.

mod network;
mod statistics;

use std::{collections::HashMap, path::Path, sync::Arc};

use candle_core::{DType, Tensor};

pub use network::{LAYERS, Layer, LayerNames, Network};
pub use statistics::{Normal, Statistics};

use super::{Composition, Delta, Editor, EditorError, Manifest, MatrixDelta, gate::Gate};
use crate::{
    digest::Digest,
    model::{
        EditableMatrix, Kind, Model, TrunkState,
        capture::{Captured, Factors},
        layers::linear::frozen_matmul,
    },
};

/// The method's name.
pub const METHOD: &str = "mend";

/// Name of the tensor of learning rates, one per matrix.
pub const LEARNING_RATES: &str = "edit_lrs";

/// Name of the tensor of the joint solve's ridges, one per matrix, as natural logarithms.
pub const LOG_RIDGES: &str = "joint.log_ridges";

/// Name of a matrix's whitening.
pub fn whitening_name(matrix: &EditableMatrix) -> String {
    format!("whitening.{}", matrix.name)
}

/// Which network serves a matrix, and as which mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Index among the distinct shapes, in order of first appearance.
    pub network: usize,
    /// Index among the matrices of that shape.
    pub mode: usize,
}

/// The slot of each matrix, and the distinct shapes `(d_in, d_out)`.
pub fn slots(matrices: &[EditableMatrix]) -> (Vec<Slot>, Vec<(usize, usize)>) {
    let mut shapes: Vec<(usize, usize)> = Vec::new();
    let mut counts: Vec<usize> = Vec::new();
    let slots = matrices
        .iter()
        .map(|matrix| {
            let shape = (matrix.d_in, matrix.d_out);
            let network = shapes.iter().position(|&known| known == shape).unwrap_or_else(|| {
                shapes.push(shape);
                counts.push(0);
                shapes.len() - 1
            });
            counts[network] += 1;
            Slot { network, mode: counts[network] - 1 }
        })
        .collect();
    (slots, shapes)
}

/// The editor's networks, statistics and learning rates.
#[derive(Clone)]
pub struct Mend {
    pub networks: Vec<Network>,
    /// `[matrices]`
    pub learning_rates: Tensor,
    /// `[matrices]`, natural logarithms; none for an editor whose edits are not solved for.
    pub log_ridges: Option<Tensor>,
    composition: Composition,
    /// By matrix, `[d_in, d_in]`: `u~ <- whitening u~`; none where the network's output is taken as it is.
    pub whitening: Option<Vec<Tensor>>,
    matrices: Vec<EditableMatrix>,
    slots: Vec<Slot>,
    digest: Digest,
}

/// Pseudo-factors of one matrix: what the network makes of its factors.
#[derive(Debug, Clone)]
pub struct PseudoFactors {
    /// `[n, d_in]`
    pub u: Tensor,
    /// `[n, d_out]`, the learning rate not yet applied.
    pub delta: Tensor,
}

impl Mend {
    /// Reads an editor's tensors by name and checks their shapes.
    pub fn from_checkpoint(
        manifest: &Manifest,
        tensors: &HashMap<String, Tensor>,
        model: &Model,
        folder: &Path,
    ) -> Result<Self, EditorError> {
        let malformed = |why: String| EditorError::Malformed { folder: folder.display().to_string(), why };
        let names: Vec<&str> = model.editable().iter().map(|matrix| matrix.name.as_str()).collect();
        if manifest.matrices != names {
            let why = format!("it edits {:?}, but the model was loaded with {names:?} editable", manifest.matrices);
            return Err(malformed(why));
        }
        let mend = Self::from_tensors(model.editable(), tensors, manifest.tensors_digest, model.device());
        let mend = mend.map_err(malformed)?;
        match mend.gate().is_some() && model.kind() != Kind::Causal {
            true => Err(malformed(format!("its edits stand behind a gate, which {} can not ask", model.kind()))),
            false => Ok(mend),
        }
    }

    /// Reads the networks from tensors named as the reference names them; says what does not fit.
    pub fn from_tensors(
        matrices: &[EditableMatrix],
        tensors: &HashMap<String, Tensor>,
        digest: Digest,
        device: &candle_core::Device,
    ) -> Result<Self, String> {
        let take = |name: &str, shape: &[usize], dtype: DType| {
            let tensor = tensors.get(name).ok_or_else(|| format!("tensor {name:?} is missing"))?;
            if tensor.dims() != shape {
                return Err(format!("tensor {name:?} has shape {:?}, expected {shape:?}", tensor.dims()));
            }
            tensor.to_dtype(dtype).and_then(|tensor| tensor.to_device(device)).map_err(|error| error.to_string())
        };
        let (slots, shapes) = slots(matrices);
        let networks = shapes
            .iter()
            .enumerate()
            .map(|(index, &shape)| {
                let modes = slots.iter().filter(|slot| slot.network == index).count();
                Network::from_tensors(shape, modes, tensors, &take)
            })
            .collect::<Result<_, _>>()?;
        let learning_rates = take(LEARNING_RATES, &[matrices.len()], DType::F32)?;
        let log_ridges = match tensors.contains_key(LOG_RIDGES) {
            true => Some(take(LOG_RIDGES, &[matrices.len()], DType::F32)?),
            false => None,
        };
        let gate = Gate::from_tensors(tensors, matrices.first().map_or(0, |matrix| matrix.d_in), device)?;
        let composition = match (gate, &log_ridges) {
            (Some(gate), None) => Composition::Gated(Arc::new(gate)),
            (None, None) => Composition::Sum,
            (None, Some(logs)) => {
                let logs = logs.to_vec1::<f32>().map_err(|error| error.to_string())?;
                Composition::Joint { ridges: logs.into_iter().map(f32::exp).collect() }
            }
            (Some(_), Some(_)) => return Err(format!("it has both a gate and {LOG_RIDGES:?}")),
        };
        let whitening = match matrices.iter().any(|matrix| tensors.contains_key(&whitening_name(matrix))) {
            true => Some(
                matrices
                    .iter()
                    .map(|matrix| take(&whitening_name(matrix), &[matrix.d_in, matrix.d_in], DType::F32))
                    .collect::<Result<_, _>>()?,
            ),
            false => None,
        };
        let matrices = matrices.to_vec();
        Ok(Self { networks, learning_rates, log_ridges, composition, whitening, matrices, slots, digest })
    }

    /// All tensors by the reference's names, f32.
    pub fn to_tensors(&self) -> Result<HashMap<String, Tensor>, EditorError> {
        let mut tensors = HashMap::from([(LEARNING_RATES.to_owned(), self.learning_rates.detach())]);
        for network in &self.networks {
            network.insert_tensors(&mut tensors)?;
        }
        if let Some(ridges) = &self.log_ridges {
            tensors.insert(LOG_RIDGES.to_owned(), ridges.detach());
        }
        if let Composition::Gated(gate) = &self.composition {
            gate.insert_tensors(&mut tensors)?;
        }
        for (matrix, whitening) in self.matrices.iter().zip(self.whitening.iter().flatten()) {
            tensors.insert(whitening_name(matrix), whitening.clone());
        }
        Ok(tensors)
    }

    /// The networks on the factors of every matrix; one pass per shape. `factors` may hold the rows of many edits, one
    /// after another.
    pub fn transform(&self, factors: &[Factors]) -> Result<Vec<PseudoFactors>, EditorError> {
        let mut pseudo: Vec<Option<PseudoFactors>> = vec![None; factors.len()];
        for (index, network) in self.networks.iter().enumerate() {
            let own: Vec<usize> = (0..factors.len()).filter(|&matrix| self.slots[matrix].network == index).collect();
            let us: Vec<&Tensor> = own.iter().map(|&matrix| &factors[matrix].u).collect();
            let deltas: Vec<&Tensor> = own.iter().map(|&matrix| &factors[matrix].delta).collect();
            let counts = us.iter().map(|u| u.dim(0)).collect::<candle_core::Result<Vec<_>>>()?;
            let modes: Vec<u32> = own
                .iter()
                .zip(&counts)
                .flat_map(|(&matrix, &rows)| std::iter::repeat_n(self.slots[matrix].mode as u32, rows))
                .collect();
            let (u, delta) = network.forward(&Tensor::cat(&us, 0)?, &Tensor::cat(&deltas, 0)?, &modes)?;
            let mut start = 0;
            for (&matrix, &rows) in own.iter().zip(&counts) {
                let part = |t: &Tensor| t.narrow(0, start, rows);
                let u = match &self.whitening {
                    Some(whitening) => frozen_matmul(&part(&u)?, &whitening[matrix])?,
                    None => part(&u)?,
                };
                pseudo[matrix] = Some(PseudoFactors { u, delta: part(&delta)? });
                start += rows;
            }
        }
        Ok(pseudo.into_iter().map(|pseudo| pseudo.expect("every matrix has a network")).collect())
    }

    /// The gate that its edits stand behind, if they do.
    pub fn gate(&self) -> Option<&Arc<Gate>> {
        match &self.composition {
            Composition::Gated(gate) => Some(gate),
            _ => None,
        }
    }

    /// The learning rate of one matrix, `[1]`, as part of the graph.
    pub fn learning_rate(&self, matrix: usize) -> candle_core::Result<Tensor> {
        self.learning_rates.narrow(0, matrix, 1)
    }
}

impl Editor for Mend {
    fn method(&self) -> &str {
        METHOD
    }

    fn digest(&self) -> Digest {
        self.digest
    }

    fn composition(&self) -> Composition {
        self.composition.clone()
    }

    fn edit(&self, _: &Model, _: &TrunkState, captured: &Captured) -> Result<Delta, EditorError> {
        let sum = matches!(self.composition, Composition::Sum);
        let captured = &if sum { captured.clone() } else { captured.at_answers()? };
        let pseudo = self.transform(&captured.factors)?;
        let deltas = pseudo.into_iter().zip(&captured.factors).enumerate().map(|(matrix, (pseudo, factors))| {
            let left = pseudo.delta.broadcast_mul(&self.learning_rate(matrix)?)?;
            let right = pseudo.u.contiguous()?;
            Ok(match sum {
                true => MatrixDelta::LowRank { left, right },
                false => MatrixDelta::Joint { keys: factors.u.clone(), left, right },
            })
        });
        Ok(Delta(deltas.collect::<Result<_, EditorError>>()?))
    }
}
