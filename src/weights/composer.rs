//! The active set, composed as its editor wants it.

use super::{Accumulator, Contribution, WeightsError, joint::JointSet};
use crate::{
    digest::Digest,
    editor::Composition,
    model::{DenseMatrices, EditableMatrix},
};

/// The active contributions, and the weights that they make together.
///
/// Law 2 (a version is a set of active edits) is kept by what is inside: [`Accumulator`] for the sum, [`JointSet`] for the
/// joint solve.
#[derive(Debug, Clone)]
pub enum Composer {
    /// `W0 + sum of the deltas`.
    Sum(Accumulator),
    /// `W0` and a joint solve, or least squares.
    Joint(JointSet),
}

impl Composer {
    /// The empty set over these base weights.
    pub fn new(
        shapes: &[EditableMatrix],
        base: &DenseMatrices,
        composition: &Composition,
    ) -> Result<Self, WeightsError> {
        Ok(match composition {
            Composition::Sum => Self::Sum(Accumulator::new(shapes, base)?),
            Composition::Joint { .. } | Composition::LeastSquares { .. } => {
                let rules = (0..shapes.len()).filter_map(|matrix| composition.rule(matrix)).collect();
                Self::Joint(JointSet::new(shapes, base, rules)?)
            }
        })
    }

    /// The editable matrices.
    pub fn shapes(&self) -> &[EditableMatrix] {
        match self {
            Self::Sum(sums) => sums.shapes(),
            Self::Joint(set) => set.shapes(),
        }
    }

    /// Takes some contributions out and puts others in. On an error nothing has changed.
    pub fn change(&mut self, removed: &[&Contribution], added: &[&Contribution]) -> Result<(), WeightsError> {
        match self {
            Self::Sum(sums) => sums.change(removed, added),
            Self::Joint(set) => set.change(removed, added),
        }
    }

    /// [`Composer::change`], and the weights after it. On an error nothing has changed.
    pub fn change_to_weights(
        &mut self,
        removed: &[&Contribution],
        added: &[&Contribution],
    ) -> Result<Vec<Vec<f32>>, WeightsError> {
        match self {
            Self::Sum(sums) => sums.change_to_weights(removed, added),
            Self::Joint(set) => {
                let before = set.clone();
                set.change(removed, added)?;
                set.weights().inspect_err(|_| *set = before)
            }
        }
    }

    /// The weights of the set, row-major, one vector per editable matrix.
    pub fn weights(&self) -> Result<Vec<Vec<f32>>, WeightsError> {
        match self {
            Self::Sum(sums) => Ok(sums.weights()),
            Self::Joint(set) => set.weights(),
        }
    }

    /// Digest of [`Composer::weights`].
    pub fn digest(&self) -> Result<Digest, WeightsError> {
        match self {
            Self::Sum(sums) => Ok(sums.digest()),
            Self::Joint(set) => set.digest(),
        }
    }
}
