//! A MEND editor whose tensors are variables.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::TrainingError;
use crate::{
    digest::Digest,
    editor::mend::{LAYERS, LEARNING_RATES, LayerNames, Mend, Statistics, slots},
    model::{EditableMatrix, capture::Captured},
};

/// What `lr_W` starts at (config/alg/mend.yaml).
const INITIAL_LEARNING_RATE: f64 = 1e-4;
/// Name of the variable that scales the learning rates around it.
const SCALES: &str = "edit_lr_scales";

/// Variables and statistics of an editor in training.
///
/// A matrix's learning rate is `1e-4 * scale`, with the scale trained: the gradient of the rate itself would be ten
/// thousand times that of the scale and swamp the clip.
pub struct Trainable {
    matrices: Vec<EditableMatrix>,
    variables: BTreeMap<String, Var>,
    statistics: Vec<Statistics>,
}

impl Trainable {
    /// A fresh editor: the identity on the normalised factors (`U = 0`, `V` Xavier-uniform as in the paper).
    pub fn new(matrices: &[EditableMatrix], rank: usize, seed: u64) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let device = Device::Cpu;
        let mut variables = BTreeMap::new();
        let (slots, shapes) = slots(matrices);
        for (index, &shape) in shapes.iter().enumerate() {
            let width = shape.0 + shape.1;
            let rank = rank.min(width);
            let modes = slots.iter().filter(|slot| slot.network == index).count();
            for layer in 0..LAYERS {
                let names = LayerNames::new(shape, layer);
                let bound = (6.0 / (rank + width) as f64).sqrt() as f32;
                let v: Vec<f32> = (0..rank * width).map(|_| rng.random_range(-bound..bound)).collect();
                variables.insert(names.u, Var::zeros((width, rank), DType::F32, &device)?);
                variables.insert(names.v, Var::from_tensor(&Tensor::from_vec(v, (rank, width), &device)?)?);
                variables.insert(names.bias, Var::zeros(width, DType::F32, &device)?);
                variables.insert(names.scale, Var::ones((modes, width), DType::F32, &device)?);
                variables.insert(names.shift, Var::zeros((modes, width), DType::F32, &device)?);
            }
        }
        variables.insert(SCALES.to_owned(), Var::ones(matrices.len(), DType::F32, &device)?);
        let statistics = shapes.into_iter().map(Statistics::new).collect();
        Ok(Self { matrices: matrices.to_vec(), variables, statistics })
    }

    /// The variables by name, each with its learning rate.
    pub fn variables(&self, rate: f64, scale_rate: f64) -> Vec<(String, Var, f64)> {
        self.variables
            .iter()
            .map(|(name, variable)| (name.clone(), variable.clone(), if name == SCALES { scale_rate } else { rate }))
            .collect()
    }

    /// Takes the rows of a batch into the running statistics.
    pub fn observe(&mut self, captured: &[Captured]) -> Result<()> {
        let (slots, _) = slots(&self.matrices);
        for captured in captured {
            for (slot, factors) in slots.iter().zip(&captured.factors) {
                self.statistics[slot.network].update(&factors.u, &factors.delta)?;
            }
        }
        Ok(())
    }

    /// The editor as it is now; gradients of what it computes reach the variables.
    pub fn mend(&self) -> std::result::Result<Mend, TrainingError> {
        let mut tensors: HashMap<String, Tensor> =
            self.variables.iter().map(|(name, variable)| (name.clone(), variable.as_tensor().clone())).collect();
        let rates = (self.variables[SCALES].as_tensor() * INITIAL_LEARNING_RATE)?;
        tensors.insert(LEARNING_RATES.to_owned(), rates);
        for (statistics, shape) in self.statistics.iter().zip(slots(&self.matrices).1) {
            statistics.insert_tensors(shape, &mut tensors)?;
        }
        Mend::from_tensors(&self.matrices, &tensors, Digest::of(b"in training"), &Device::Cpu)
            .map_err(TrainingError::Refused)
    }

    /// Everything that is needed to go on from here.
    pub fn state(&self) -> Result<HashMap<String, Tensor>> {
        let mut state: HashMap<String, Tensor> =
            self.variables.iter().map(|(name, variable)| (name.clone(), variable.as_tensor().detach())).collect();
        for (statistics, shape) in self.statistics.iter().zip(slots(&self.matrices).1) {
            statistics.insert_tensors(shape, &mut state)?;
        }
        Ok(state)
    }

    /// Takes back what [`Trainable::state`] gave.
    pub fn restore(&mut self, state: &HashMap<String, Tensor>) -> std::result::Result<(), TrainingError> {
        for (name, variable) in &self.variables {
            let saved = state.get(name).filter(|saved| saved.dims() == variable.dims()).ok_or_else(|| {
                TrainingError::Refused(format!("the saved run has no {name} of this shape; was it another recipe?"))
            })?;
            variable.set(&saved.copy()?)?;
        }
        let rates = Tensor::zeros(self.matrices.len(), DType::F32, &Device::Cpu)?;
        let mut tensors = state.clone();
        tensors.insert(LEARNING_RATES.to_owned(), rates);
        let mend = Mend::from_tensors(&self.matrices, &tensors, Digest::of(b"in training"), &Device::Cpu)
            .map_err(TrainingError::Refused)?;
        self.statistics = mend.networks.into_iter().map(|network| network.statistics).collect();
        Ok(())
    }
}
