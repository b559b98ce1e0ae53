//! The editable matrices: their names and shapes, and how the tail multiplies by them.

use candle_core::{Device, Result, Tensor};

use super::layers::linear::frozen_matmul;

/// A matrix that edits may change: `y = W x`, `W [d_out, d_in]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EditableMatrix {
    /// The name that Hugging Face's implementation gives it.
    pub name: String,
    pub d_out: usize,
    pub d_in: usize,
}

/// How the tail multiplies by an editable matrix: a version's own weights, the base's, a recording, a factored delta.
pub trait Projection: Send + Sync {
    /// `x [n, d_in]` -> `[n, d_out]`; `matrix` indexes [`super::Model::editable`].
    fn project(&self, matrix: usize, x: &Tensor) -> Result<Tensor>;

    /// What one pass of a decoder's tail multiplies by, if it has something to remember from the first matrix to the last;
    /// none if it is this.
    fn begin_pass(&self) -> Option<Box<dyn Projection + '_>> {
        None
    }

    /// From here on the pass computes only some of its rows: the indices `[q]`, u32, of these among those before.
    fn keep_rows(&self, _rows: &Tensor) -> Result<()> {
        Ok(())
    }
}

/// What the trunk and the head multiply by: they have no editable matrix.
pub(super) struct NoEditable;

impl Projection for NoEditable {
    fn project(&self, matrix: usize, _: &Tensor) -> Result<Tensor> {
        candle_core::bail!("editable matrix {matrix} below the tail")
    }
}

/// f32 weights of every editable matrix: the base model's, or a version's.
#[derive(Debug, Clone)]
pub struct DenseMatrices {
    tensors: Vec<Tensor>,
}

impl DenseMatrices {
    /// Takes over tensors `[d_out, d_in]`, f32 and contiguous, in the order of the editable matrices.
    pub fn new(tensors: Vec<Tensor>) -> Self {
        Self { tensors }
    }

    /// From row-major values, one vector per matrix.
    pub fn from_vecs(shapes: &[EditableMatrix], values: Vec<Vec<f32>>, device: &Device) -> Result<Self> {
        let tensors = shapes
            .iter()
            .zip(values)
            .map(|(shape, values)| Tensor::from_vec(values, (shape.d_out, shape.d_in), device))
            .collect::<Result<_>>()?;
        Ok(Self { tensors })
    }

    /// The tensors, in the order of the editable matrices.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Row-major values of each matrix.
    pub fn to_vecs(&self) -> Result<Vec<Vec<f32>>> {
        self.tensors.iter().map(|tensor| tensor.flatten_all()?.to_vec1()).collect()
    }
}

impl Projection for DenseMatrices {
    fn project(&self, matrix: usize, x: &Tensor) -> Result<Tensor> {
        frozen_matmul(x, &self.tensors[matrix])
    }
}
