//! A MEND editor whose tensors are variables.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{TrainingError, options::Recipe};
use crate::{
    digest::Digest,
    editor::{
        CompositionKind,
        gate::{self, Gate},
        mend::{LAYERS, LEARNING_RATES, LOG_RIDGES, LayerNames, Mend, Statistics, slots, whitening_name},
    },
    model::{EditableMatrix, capture::Captured},
};

/// Name of the variable that scales the learning rates around it.
const SCALES: &str = "edit_lr_scales";
/// What the ridges of a joint solve start at.
const INITIAL_RIDGE: f64 = 0.1;

/// Variables and statistics of an editor in training.
///
/// A matrix's learning rate is the initial one times a scale, and the scale is trained: the gradient of the rate itself
/// would be thousands of times that of the scale and swamp the clip.
pub struct Trainable {
    initial_step_size: f64,
    matrices: Vec<EditableMatrix>,
    variables: BTreeMap<String, Var>,
    statistics: Vec<Statistics>,
    /// By matrix; empty without whitening.
    whitening: Vec<Tensor>,
    gate: Option<Gate>,
    composition: CompositionKind,
}

impl Trainable {
    /// A fresh editor: the identity on the normalised factors (`U = 0`, `V` Xavier-uniform as in the paper).
    pub fn new(matrices: &[EditableMatrix], recipe: &Recipe) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(recipe.seed);
        let device = Device::Cpu;
        let mut variables = BTreeMap::new();
        let (slots, shapes) = slots(matrices);
        for (index, &shape) in shapes.iter().enumerate() {
            let width = shape.0 + shape.1;
            let rank = recipe.rank.min(width);
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
        if recipe.composition == CompositionKind::Joint {
            let ridges = Tensor::full(INITIAL_RIDGE.ln() as f32, matrices.len(), &device)?;
            variables.insert(LOG_RIDGES.to_owned(), Var::from_tensor(&ridges)?);
        }
        let statistics = shapes.into_iter().map(Statistics::new).collect();
        Ok(Self {
            initial_step_size: recipe.initial_step_size,
            matrices: matrices.to_vec(),
            variables,
            statistics,
            whitening: Vec::new(),
            gate: None,
            composition: recipe.composition,
        })
    }

    /// Sets the whitening of every matrix ([`super::whitening`]).
    pub fn whiten(&mut self, whitening: Vec<Tensor>) {
        self.whitening = whitening;
    }

    /// Sets the gate that the edits stand behind, as a run trains it before its first step.
    pub fn stand_behind(&mut self, gate: Gate) {
        self.gate = Some(gate);
    }

    /// The gate that the edits stand behind, if they do and it is known.
    pub fn gate(&self) -> Option<&Gate> {
        self.gate.as_ref()
    }

    /// The variables by name, each with its learning rate: that of the networks, or that of the scalars per matrix.
    pub fn variables(&self, rate: f64, scale_rate: f64) -> Vec<(String, Var, f64)> {
        let rate_of = |name: &str| if [SCALES, LOG_RIDGES].contains(&name) { scale_rate } else { rate };
        let variables = self.variables.iter();
        variables.map(|(name, variable)| (name.clone(), variable.clone(), rate_of(name))).collect()
    }

    /// Takes the rows of a batch into the running statistics.
    pub fn observe(&mut self, captured: &[Arc<Captured>]) -> Result<()> {
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
        let rates = (self.variables[SCALES].as_tensor() * self.initial_step_size)?;
        tensors.insert(LEARNING_RATES.to_owned(), rates);
        for (statistics, shape) in self.statistics.iter().zip(slots(&self.matrices).1) {
            statistics.insert_tensors(shape, &mut tensors)?;
        }
        self.insert_fixed(&mut tensors)?;
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
        self.insert_fixed(&mut state)?;
        Ok(state)
    }

    /// What steps do not change: the whitening and the gate.
    fn insert_fixed(&self, tensors: &mut HashMap<String, Tensor>) -> Result<()> {
        for (matrix, whitening) in self.matrices.iter().zip(&self.whitening) {
            tensors.insert(whitening_name(matrix), whitening.clone());
        }
        match &self.gate {
            Some(gate) => gate.insert_tensors(tensors),
            None => Ok(()),
        }
    }

    /// Takes the weights, statistics, whitening and gate of an editor, by the names that its folder has. What belongs to another
    /// composition than this one's is left.
    pub fn begin_with(&mut self, editor: &HashMap<String, Tensor>) -> std::result::Result<(), TrainingError> {
        let mut state = editor.clone();
        if let Some(rates) = editor.get(LEARNING_RATES) {
            state.insert(SCALES.to_owned(), (rates.to_dtype(DType::F32)? / self.initial_step_size)?);
        }
        self.restore(&state)
    }

    /// Takes back what [`Trainable::state`] gave.
    pub fn restore(&mut self, state: &HashMap<String, Tensor>) -> std::result::Result<(), TrainingError> {
        for (name, variable) in &self.variables {
            let saved = state.get(name).filter(|saved| saved.dims() == variable.dims()).ok_or_else(|| {
                TrainingError::Refused(format!(
                    "there is no {name} of shape {:?} in it; has it another rank or composition, or other blocks?",
                    variable.dims()
                ))
            })?;
            variable.set(&saved.to_dtype(DType::F32)?.copy()?)?;
        }
        let rates = Tensor::zeros(self.matrices.len(), DType::F32, &Device::Cpu)?;
        let mut tensors = state.clone();
        tensors.insert(LEARNING_RATES.to_owned(), rates);
        tensors.retain(|name, _| match name.as_str() {
            LOG_RIDGES => self.composition == CompositionKind::Joint,
            gate::MAP | gate::MEAN | gate::SCALARS => self.composition == CompositionKind::Gated,
            _ => true,
        });
        let mend = Mend::from_tensors(&self.matrices, &tensors, Digest::of(b"in training"), &Device::Cpu)
            .map_err(TrainingError::Refused)?;
        self.gate = mend.gate().map(|gate| gate.as_ref().clone());
        self.whitening = mend.whitening.unwrap_or_default();
        self.statistics = mend.networks.into_iter().map(|network| network.statistics).collect();
        Ok(())
    }
}
