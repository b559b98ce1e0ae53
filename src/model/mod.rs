//! The editable matrices of a model and how its tail multiplies by them.

use std::ops::Range;

use candle_core::{Device, Result, Tensor};

/// A matrix of the tail that edits may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EditableMatrix {
    pub name: String,
    pub d_out: usize,
    pub d_in: usize,
}

/// How the tail multiplies by an editable matrix: a version's own weights, the base's, a capture.
pub trait Projection: Send + Sync {
    /// `x [.., d_in]` -> `[.., d_out]`; `matrix` indexes the editable matrices.
    fn project(&self, matrix: usize, x: &Tensor) -> Result<Tensor>;
}

/// Dense f32 matrices `[d_out, d_in]`, one per editable matrix.
#[derive(Debug, Clone)]
pub struct DenseMatrices {
    tensors: Vec<Tensor>,
}

impl DenseMatrices {
    /// From row-major values, one vector per matrix.
    pub fn from_vecs(shapes: &[EditableMatrix], values: Vec<Vec<f32>>, device: &Device) -> Result<Self> {
        let tensors = shapes
            .iter()
            .zip(values)
            .map(|(shape, values)| Tensor::from_vec(values, (shape.d_out, shape.d_in), device))
            .collect::<Result<_>>()?;
        Ok(Self { tensors })
    }

    /// The matrices, in order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Row-major values of each matrix.
    pub fn to_vecs(&self) -> Result<Vec<Vec<f32>>> {
        self.tensors.iter().map(|t| t.flatten_all()?.to_vec1()).collect()
    }
}

impl Projection for DenseMatrices {
    fn project(&self, matrix: usize, x: &Tensor) -> Result<Tensor> {
        x.broadcast_matmul(&self.tensors[matrix].t()?)
    }
}

/// Token ids of a prompt followed by a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    pub ids: Vec<u32>,
    pub target: Range<usize>,
}
