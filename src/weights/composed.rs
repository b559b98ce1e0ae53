//! What a set of edits makes of the editable matrices.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::{WeightsError, digest::weights_digest};
use crate::{
    digest::Digest,
    editor::gated::GatedEdits,
    model::{DenseMatrices, EditableMatrix, Projection},
};

/// The weights of a set as they were composed.
pub enum Composed {
    /// Row-major values, one vector per editable matrix.
    Dense(Vec<Vec<f32>>),
    /// Edits beside the base weights, and the digest that names both.
    Gated(GatedEdits, Digest),
}

impl Composed {
    /// Names these weights.
    pub fn digest(&self, shapes: &[EditableMatrix]) -> Digest {
        match self {
            Self::Dense(weights) => weights_digest(shapes, weights),
            Self::Gated(_, digest) => *digest,
        }
    }

    /// As a version holds them.
    pub fn into_matrices(self, shapes: &[EditableMatrix], device: &Device) -> Result<Matrices, WeightsError> {
        Ok(match self {
            Self::Dense(weights) => Matrices::Dense(Arc::new(DenseMatrices::from_vecs(shapes, weights, device)?)),
            Self::Gated(edits, _) => Matrices::Gated(Arc::new(edits)),
        })
    }
}

/// The editable matrices of a version.
#[derive(Clone)]
pub enum Matrices {
    /// `[d_out, d_in]` each.
    Dense(Arc<DenseMatrices>),
    /// The base's, and edits beside them.
    Gated(Arc<GatedEdits>),
}

impl Matrices {
    /// The matrices themselves; none behind a gate.
    pub fn dense(&self) -> Option<&Arc<DenseMatrices>> {
        match self {
            Self::Dense(matrices) => Some(matrices),
            Self::Gated(_) => None,
        }
    }
}

impl From<Arc<DenseMatrices>> for Matrices {
    fn from(matrices: Arc<DenseMatrices>) -> Self {
        Self::Dense(matrices)
    }
}

impl Projection for Matrices {
    fn project(&self, matrix: usize, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Dense(matrices) => matrices.project(matrix, x),
            Self::Gated(edits) => edits.project(matrix, x),
        }
    }

    fn begin_pass(&self) -> Option<Box<dyn Projection + '_>> {
        match self {
            Self::Dense(matrices) => matrices.begin_pass(),
            Self::Gated(edits) => edits.begin_pass(),
        }
    }
}
