//! The active set, composed as its editor wants it.

use std::sync::Arc;

use super::{Accumulator, Composed, Contribution, WeightsError, gated::GatedSet, joint::JointSet};
use crate::{
    digest::Digest,
    editor::Composition,
    model::{DenseMatrices, EditableMatrix},
};

/// The active contributions, and the weights that they make together.
///
/// Law 2 (a version is a set of active edits) is kept by what is inside: [`Accumulator`] for the sum, [`JointSet`] for the
/// joint solve, [`GatedSet`] for edits behind a gate.
#[derive(Debug, Clone)]
pub enum Composer {
    /// `W0 + sum of the deltas`.
    Sum(Accumulator),
    /// `W0` and a joint solve, or least squares.
    Joint(JointSet),
    /// `W0`, and edits behind a gate.
    Gated(GatedSet),
}

impl Composer {
    /// The empty set over these base weights.
    pub fn new(
        shapes: &[EditableMatrix],
        base: &Arc<DenseMatrices>,
        composition: &Composition,
    ) -> Result<Self, WeightsError> {
        Ok(match composition {
            Composition::Sum => Self::Sum(Accumulator::new(shapes, base)?),
            Composition::Joint { .. } | Composition::LeastSquares { .. } => {
                let rules = (0..shapes.len()).filter_map(|matrix| composition.rule(matrix)).collect();
                Self::Joint(JointSet::new(shapes, base, rules)?)
            }
            Composition::Gated(gate) => Self::Gated(GatedSet::new(shapes, base, Arc::clone(gate))?),
        })
    }

    /// The editable matrices.
    pub fn shapes(&self) -> &[EditableMatrix] {
        match self {
            Self::Sum(sums) => sums.shapes(),
            Self::Joint(set) => set.shapes(),
            Self::Gated(set) => set.shapes(),
        }
    }

    /// Takes some contributions out and puts others in. On an error nothing has changed.
    pub fn change(&mut self, removed: &[&Contribution], added: &[&Contribution]) -> Result<(), WeightsError> {
        match self {
            Self::Sum(sums) => sums.change(removed, added),
            Self::Joint(set) => set.change(removed, added),
            Self::Gated(set) => set.change(removed, added),
        }
    }

    /// [`Composer::change`], and the weights after it. On an error nothing has changed.
    pub fn change_to_weights(
        &mut self,
        removed: &[&Contribution],
        added: &[&Contribution],
    ) -> Result<Composed, WeightsError> {
        match self {
            Self::Sum(sums) => Ok(Composed::Dense(sums.change_to_weights(removed, added)?)),
            Self::Joint(_) | Self::Gated(_) => {
                let before = self.clone();
                self.change(removed, added)?;
                self.weights().inspect_err(|_| *self = before)
            }
        }
    }

    /// The weights of the set.
    pub fn weights(&self) -> Result<Composed, WeightsError> {
        Ok(match self {
            Self::Sum(sums) => Composed::Dense(sums.weights()),
            Self::Joint(set) => Composed::Dense(set.weights()?),
            Self::Gated(set) => Composed::Gated(set.edits()?, set.digest()),
        })
    }

    /// Digest of [`Composer::weights`].
    pub fn digest(&self) -> Result<Digest, WeightsError> {
        match self {
            Self::Sum(sums) => Ok(sums.digest()),
            Self::Joint(set) => set.digest(),
            Self::Gated(set) => Ok(set.digest()),
        }
    }
}
