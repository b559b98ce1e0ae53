//! The tail under one edit, or under several that were composed.

use std::sync::Arc;

use candle_core::Tensor;

use crate::{
    editor::{
        Composition, Delta, EditorError, MatrixDelta,
        gated::{GatedEdit, GatedEdits},
    },
    model::{DenseMatrices, Projection, layers::linear::frozen_matmul},
};

/// What a model multiplies by under edits whose composition this is, in their order.
pub(super) fn under<'a>(
    base: &'a Arc<DenseMatrices>,
    composition: &Composition,
    edits: &[&Delta],
) -> Result<Box<dyn Projection + 'a>, EditorError> {
    let Composition::Gated(gate) = composition else {
        return Ok(Box::new(Edited::new(base, &composition.compose(edits)?)?));
    };
    let edits = edits.iter().map(|delta| Ok(Arc::new(GatedEdit::from_delta(gate, delta)?)));
    let edits = edits.collect::<Result<Vec<_>, EditorError>>()?;
    Ok(Box::new(GatedEdits::new(Arc::clone(base), Arc::clone(gate), edits)?))
}

/// Rows from which a low-rank change is added to the base: beside it, each token would pay for all of them.
const DENSE_ROWS: usize = 48;

/// `W0` with a delta. One of low rank stays beside the base, `y = W0 x + left^T (right x)`; any other is added to it.
pub struct Edited<'a> {
    base: &'a DenseMatrices,
    matrices: Vec<Matrix>,
}

enum Matrix {
    Unchanged,
    /// `right [n, d_in]` and `left` transposed, `[d_out, n]`.
    LowRank {
        right: Tensor,
        left: Tensor,
    },
    /// `[d_out, d_in]`, the base included.
    Dense(Tensor),
}

impl<'a> Edited<'a> {
    /// Puts `delta` on `base`; [`EditorError::NonFinite`] if there is a number in it that is not one.
    pub fn new(base: &'a DenseMatrices, delta: &Delta) -> Result<Self, EditorError> {
        // Of no edits at all, the change is empty.
        let matrices = base.tensors().iter().enumerate().map(|(matrix, base)| match delta.0.get(matrix) {
            Some(delta) => Matrix::new(base, delta),
            None => Ok(Matrix::Unchanged),
        });
        let matrices = matrices.collect::<Result<_, _>>()?;
        Ok(Self { base, matrices })
    }
}

impl Matrix {
    fn new(base: &Tensor, delta: &MatrixDelta) -> Result<Self, EditorError> {
        match delta {
            MatrixDelta::LowRank { left, .. } if left.dim(0)? == 0 => Ok(Self::Unchanged),
            MatrixDelta::LowRank { left, right } => {
                check(left)?;
                check(right)?;
                if left.dim(0)? >= DENSE_ROWS {
                    return Ok(Self::Dense((base + left.t()?.matmul(right)?)?));
                }
                Ok(Self::LowRank { right: right.contiguous()?, left: left.t()?.contiguous()? })
            }
            MatrixDelta::Dense(dense) => {
                check(dense)?;
                Ok(Self::Dense((base + dense)?))
            }
            MatrixDelta::Joint { .. } => {
                Err(EditorError::Composition("rows of a joint solve are no change before it is solved".to_owned()))
            }
        }
    }
}

/// A sum of magnitudes is finite only if all of them are, and not absurdly large.
fn check(values: &Tensor) -> Result<(), EditorError> {
    let sum: f32 = values.abs()?.sum_all()?.to_scalar()?;
    if sum.is_finite() { Ok(()) } else { Err(EditorError::NonFinite { what: "the delta of an edit".to_owned() }) }
}

impl Projection for Edited<'_> {
    fn project(&self, matrix: usize, x: &Tensor) -> candle_core::Result<Tensor> {
        match &self.matrices[matrix] {
            Matrix::Unchanged => self.base.project(matrix, x),
            Matrix::LowRank { right, left } => {
                self.base.project(matrix, x)? + frozen_matmul(&frozen_matmul(x, right)?, left)?
            }
            Matrix::Dense(weight) => frozen_matmul(x, weight),
        }
    }
}
