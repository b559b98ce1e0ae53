//! The tail with several sets of edits in factored form: `y = W0 x + X^T (U x)`, each sequence under its own set.

use std::ops::Range;

use candle_core::{Result, Tensor, Var, backprop::GradStore};

use crate::{
    editor::mend::PseudoFactors,
    model::{DenseMatrices, Projection},
};

/// The low-rank changes of one matrix, of all sets of a batch, one after another.
#[derive(Clone)]
pub struct Side {
    /// `[rows, d_in]`
    pub u: Tensor,
    /// `[rows, d_out]`, the learning rate applied.
    pub delta: Tensor,
    /// Which set each row belongs to; they never fall.
    pub sets: Vec<u32>,
}

impl Side {
    /// Pseudo-factors with their learning rate `[1]`; `sets` says which set each row belongs to.
    pub fn new(pseudo: &PseudoFactors, learning_rate: &Tensor, sets: Vec<u32>) -> Result<Self> {
        Ok(Self { u: pseudo.u.clone(), delta: pseudo.delta.broadcast_mul(learning_rate)?, sets })
    }

    /// The rows of these sets.
    fn of_sets(&self, sets: &Range<u32>) -> Result<Self> {
        let start = self.sets.partition_point(|set| *set < sets.start);
        let end = self.sets.partition_point(|set| *set < sets.end);
        let rows = |tensor: &Tensor| tensor.narrow(0, start, end - start);
        Ok(Self { u: rows(&self.u)?, delta: rows(&self.delta)?, sets: self.sets[start..end].to_vec() })
    }
}

/// The sides of a batch, cut off from the graph that made them: the parts of the batch, each on a thread of its own, stop
/// their backward passes here, and one pass goes on from the sum of what arrived.
pub struct CutSides {
    whole: Vec<Side>,
    leaves: Vec<[Var; 2]>,
}

/// Gradients at the cut: of `u` and of `delta`, by matrix.
pub type CutGradients = Vec<[Option<Tensor>; 2]>;

impl CutSides {
    /// Cuts.
    pub fn new(whole: Vec<Side>) -> Result<Self> {
        let leaf = |tensor: &Tensor| Var::from_tensor(&tensor.detach().contiguous()?);
        let leaves = whole.iter().map(|side| Ok([leaf(&side.u)?, leaf(&side.delta)?])).collect::<Result<_>>()?;
        Ok(Self { whole, leaves })
    }

    /// The sides of these sets, behind the cut.
    pub fn of_sets(&self, sets: &Range<u32>) -> Result<Vec<Side>> {
        let sides = self.whole.iter().zip(&self.leaves).map(|(side, [u, delta])| {
            let leaf = Side { u: u.as_tensor().clone(), delta: delta.as_tensor().clone(), sets: side.sets.clone() };
            leaf.of_sets(sets)
        });
        sides.collect()
    }

    /// What a backward pass brought to the cut.
    pub fn gradients(&self, store: &GradStore) -> CutGradients {
        self.leaves.iter().map(|leaves| leaves.each_ref().map(|leaf| store.get(leaf).cloned())).collect()
    }

    /// A scalar whose gradient, before the cut, is that of the losses whose gradients at the cut are `parts`.
    pub fn resume(&self, parts: &[CutGradients]) -> Result<Option<Tensor>> {
        let mut total: Option<Tensor> = None;
        for (matrix, side) in self.whole.iter().enumerate() {
            for (which, tensor) in [&side.u, &side.delta].into_iter().enumerate() {
                for gradient in parts.iter().filter_map(|part| part[matrix][which].as_ref()) {
                    let share = (tensor * gradient)?.sum_all()?;
                    total = Some(match total {
                        None => share,
                        Some(total) => (total + share)?,
                    });
                }
            }
        }
        Ok(total)
    }
}

/// Multiplies by the base weights and adds, for every row, the change by the set that the row's sequence is under.
pub struct Factored<'a> {
    base: &'a DenseMatrices,
    sides: &'a [Side],
    /// The set of each row that a matrix is multiplied by, matrix by matrix.
    rows: Vec<Vec<u32>>,
}

impl<'a> Factored<'a> {
    /// Sequences under these sets; `counts` says how many rows of each a matrix is multiplied by.
    pub fn new(base: &'a DenseMatrices, sides: &'a [Side], sets: &[u32], counts: impl Fn(usize) -> Vec<usize>) -> Self {
        let spread = |matrix| {
            let rows = sets.iter().zip(counts(matrix));
            rows.flat_map(|(&set, count)| std::iter::repeat_n(set, count)).collect()
        };
        Self { base, sides, rows: (0..sides.len()).map(spread).collect() }
    }

    /// 1 where a row of `x` and a row of the matrix's change belong to the same set, `[n, rows]`; none if all do.
    fn mask(&self, matrix: usize, x: &Tensor) -> Result<Option<Tensor>> {
        let (own, side) = (&self.rows[matrix], &self.sides[matrix]);
        let mask: Vec<f32> = own
            .iter()
            .flat_map(|set| side.sets.iter().map(move |other| if set == other { 1.0 } else { 0.0 }))
            .collect();
        if mask.iter().all(|same| *same == 1.0) {
            return Ok(None);
        }
        Tensor::from_vec(mask, (own.len(), side.sets.len()), x.device()).map(Some)
    }
}

impl Projection for Factored<'_> {
    fn project(&self, matrix: usize, x: &Tensor) -> Result<Tensor> {
        let side = &self.sides[matrix];
        let y = self.base.project(matrix, x)?;
        if side.sets.is_empty() {
            return Ok(y);
        }
        // One product over the rows of all sets, of which the mask keeps each row's own: for the few rows that an edit
        // has, a plain product beats many small ones.
        let spoken = x.matmul(&side.u.t()?)?;
        let spoken = match self.mask(matrix, x)? {
            Some(mask) => (spoken * mask)?,
            None => spoken,
        };
        y + spoken.matmul(&side.delta)?
    }
}
