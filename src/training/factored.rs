//! The tail with a batch of different edits in factored form: `y = W0 x + delta~ (u~^T x)`, each sequence under its own
//! edit.

use candle_core::{Result, Tensor};

use crate::{
    editor::mend::PseudoFactors,
    model::{DenseMatrices, Projection},
};

/// The low-rank updates of one matrix, of all edits of a batch, one after another.
pub struct Side {
    /// `[rows, d_in]`
    u: Tensor,
    /// `[rows, d_out]`, the learning rate applied.
    delta: Tensor,
    /// Which edit each row belongs to.
    owners: Vec<u32>,
}

impl Side {
    /// Pseudo-factors with their learning rate `[1]`; `owners` says which edit each row belongs to.
    pub fn new(pseudo: &PseudoFactors, learning_rate: &Tensor, owners: Vec<u32>) -> Result<Self> {
        Ok(Self { u: pseudo.u.clone(), delta: pseudo.delta.broadcast_mul(learning_rate)?, owners })
    }
}

/// Multiplies by the base weights and adds, for every row, the update of the edit that the row's sequence is under.
pub struct Factored<'a> {
    base: &'a DenseMatrices,
    sides: &'a [Side],
    /// The edit of each row that a matrix is multiplied by, matrix by matrix.
    owners: Vec<Vec<u32>>,
}

impl<'a> Factored<'a> {
    /// Sequences under the edits `owners`; `counts` says how many rows of each a matrix is multiplied by.
    pub fn new(
        base: &'a DenseMatrices,
        sides: &'a [Side],
        owners: &[u32],
        counts: impl Fn(usize) -> Vec<usize>,
    ) -> Self {
        let spread = |matrix| {
            let rows = owners.iter().zip(counts(matrix));
            rows.flat_map(|(&owner, count)| std::iter::repeat_n(owner, count)).collect()
        };
        Self { base, sides, owners: (0..sides.len()).map(spread).collect() }
    }

    /// 1 where a row of `x` and a row of the matrix's update belong to the same edit, `[n, rows]`.
    fn mask(&self, matrix: usize, x: &Tensor) -> Result<Tensor> {
        let (own, side) = (&self.owners[matrix], &self.sides[matrix]);
        let mask: Vec<f32> = own
            .iter()
            .flat_map(|owner| side.owners.iter().map(move |other| if owner == other { 1.0 } else { 0.0 }))
            .collect();
        Tensor::from_vec(mask, (own.len(), side.owners.len()), x.device())
    }
}

impl Projection for Factored<'_> {
    fn project(&self, matrix: usize, x: &Tensor) -> Result<Tensor> {
        let side = &self.sides[matrix];
        let y = self.base.project(matrix, x)?;
        // One product over the rows of all edits, of which the mask keeps each row's own: for the few rows that an edit
        // has, a plain product beats many small ones.
        let spoken = (x.matmul(&side.u.t()?)? * self.mask(matrix, x)?)?;
        y + spoken.matmul(&side.delta)?
    }
}
