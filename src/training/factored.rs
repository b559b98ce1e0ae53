//! The tail with several sets of edits in factored form: `y = W0 x + X^T (U x)`, each sequence under its own set.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{Result, Tensor, Var, backprop::GradStore};

use crate::{
    editor::{gate::Gate, mend::PseudoFactors},
    model::{DenseMatrices, Projection},
};

/// The low-rank changes of one matrix, of all sets of a batch, one after another.
#[derive(Clone)]
pub struct Side {
    /// `[rows, d_in]`
    pub u: Tensor,
    /// `[rows, d_out]`, the learning rate applied.
    pub delta: Tensor,
    pub owners: Owners,
}

/// Which edit each of some rows belongs to, and which set; neither ever falls.
#[derive(Clone)]
pub struct Owners {
    pub edits: Vec<u32>,
    pub sets: Vec<u32>,
}

impl Owners {
    /// Where the rows of these sets stand.
    fn range(&self, sets: &Range<u32>) -> Range<usize> {
        self.sets.partition_point(|set| *set < sets.start)..self.sets.partition_point(|set| *set < sets.end)
    }

    fn of(&self, rows: Range<usize>) -> Self {
        Self { edits: self.edits[rows.clone()].to_vec(), sets: self.sets[rows].to_vec() }
    }
}

impl Side {
    /// Pseudo-factors with their learning rate `[1]`, of these owners.
    pub fn new(pseudo: &PseudoFactors, learning_rate: &Tensor, owners: Owners) -> Result<Self> {
        Ok(Self { u: pseudo.u.clone(), delta: pseudo.delta.broadcast_mul(learning_rate)?, owners })
    }

    /// The rows of these sets.
    fn of_sets(&self, sets: &Range<u32>) -> Result<Self> {
        let own = self.owners.range(sets);
        let rows = |tensor: &Tensor| tensor.narrow(0, own.start, own.len());
        Ok(Self { u: rows(&self.u)?, delta: rows(&self.delta)?, owners: self.owners.of(own.clone()) })
    }
}

/// The gate that the edits of a batch stand behind. It is no function of the editor's variables.
#[derive(Clone)]
pub struct Gating {
    pub gate: Arc<Gate>,
    /// The edits' keys as the gate reads them, `[keys, r]`.
    pub readings: Tensor,
    /// Of the keys.
    pub owners: Owners,
}

impl Gating {
    fn of_sets(&self, sets: &Range<u32>) -> Result<Self> {
        let own = self.owners.range(sets);
        let readings = self.readings.narrow(0, own.start, own.len())?;
        Ok(Self { gate: Arc::clone(&self.gate), readings, owners: self.owners.of(own) })
    }

    /// The first of the edits; those after it have the numbers after it.
    fn first(&self) -> u32 {
        self.owners.edits.first().copied().unwrap_or(0)
    }

    /// The share with which each edit speaks at each row of `x`, `[n, edits]`; `sets` says which set a row is under.
    fn shares(&self, x: &Tensor, sets: &[u32]) -> Result<Tensor> {
        let similar = self.gate.read(x)?.matmul(&self.readings.t()?)?.to_vec2::<f32>()?;
        let edits = self.owners.edits.last().map_or(0, |last| (last - self.first()) as usize + 1);
        let mut shares = vec![0f32; sets.len() * edits];
        for ((similar, shares), set) in similar.iter().zip(shares.chunks_exact_mut(edits.max(1))).zip(sets) {
            let keys = self.owners.range(&(*set..set + 1));
            let own = &self.owners.edits[keys.clone()];
            let counts: Vec<usize> = own.chunk_by(|a, b| a == b).map(<[u32]>::len).collect();
            let first = own.first().map_or(0, |edit| (edit - self.first()) as usize);
            for (edit, share) in self.gate.speakers(&similar[keys], &counts) {
                shares[first + edit] = share;
            }
        }
        Tensor::from_vec(shares, (sets.len(), edits), x.device())
    }
}

/// What changes each matrix, and the gate before it, if there is one.
#[derive(Clone)]
pub struct Sides {
    pub matrices: Vec<Side>,
    pub gating: Option<Gating>,
}

impl Sides {
    /// The same where every edit of a set is heard everywhere.
    pub fn ungated(self) -> Self {
        Self { gating: None, ..self }
    }
}

/// The sides of a batch, cut off from the graph that made them: the parts of the batch, each on a thread of its own, stop
/// their backward passes here, and one pass goes on from the sum of what arrived.
pub struct CutSides {
    whole: Sides,
    leaves: Vec<[Var; 2]>,
}

/// Gradients at the cut: of `u` and of `delta`, by matrix.
pub type CutGradients = Vec<[Option<Tensor>; 2]>;

impl CutSides {
    /// Cuts.
    pub fn new(whole: Sides) -> Result<Self> {
        let leaf = |tensor: &Tensor| Var::from_tensor(&tensor.detach().contiguous()?);
        let sides = whole.matrices.iter();
        let leaves = sides.map(|side| Ok([leaf(&side.u)?, leaf(&side.delta)?])).collect::<Result<_>>()?;
        Ok(Self { whole, leaves })
    }

    /// The sides of these sets, behind the cut.
    pub fn of_sets(&self, sets: &Range<u32>) -> Result<Sides> {
        let sides = self.whole.matrices.iter().zip(&self.leaves).map(|(side, [u, delta])| {
            let leaf = Side { u: u.as_tensor().clone(), delta: delta.as_tensor().clone(), owners: side.owners.clone() };
            leaf.of_sets(sets)
        });
        let gating = self.whole.gating.as_ref().map(|gating| gating.of_sets(sets)).transpose()?;
        Ok(Sides { matrices: sides.collect::<Result<_>>()?, gating })
    }

    /// What a backward pass brought to the cut.
    pub fn gradients(&self, store: &GradStore) -> CutGradients {
        self.leaves.iter().map(|leaves| leaves.each_ref().map(|leaf| store.get(leaf).cloned())).collect()
    }

    /// A scalar whose gradient, before the cut, is that of the losses whose gradients at the cut are `parts`.
    pub fn resume(&self, parts: &[CutGradients]) -> Result<Option<Tensor>> {
        let mut total: Option<Tensor> = None;
        for (matrix, side) in self.whole.matrices.iter().enumerate() {
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

/// Multiplies by the base weights and adds, for every row, the change by the set that the row's sequence is under. For one
/// pass of the tail.
pub struct Factored<'a> {
    base: &'a DenseMatrices,
    sides: &'a Sides,
    /// The set of each row that a matrix is multiplied by, matrix by matrix.
    rows: Vec<Vec<u32>>,
    /// Behind a gate, what [`Gating::shares`] gave at the first matrix, for the rows that are left.
    shares: Mutex<Option<Tensor>>,
}

impl<'a> Factored<'a> {
    /// Sequences under these sets; `counts` says how many rows of each a matrix is multiplied by.
    pub fn new(base: &'a DenseMatrices, sides: &'a Sides, sets: &[u32], counts: impl Fn(usize) -> Vec<usize>) -> Self {
        let spread = |matrix| {
            let rows = sets.iter().zip(counts(matrix));
            rows.flat_map(|(&set, count)| std::iter::repeat_n(set, count)).collect()
        };
        Self { base, sides, rows: (0..sides.matrices.len()).map(spread).collect(), shares: Mutex::new(None) }
    }

    /// How much of a matrix's change each row of `x` takes, `[n, rows]`; none if it is all of it.
    fn mask(&self, matrix: usize, x: &Tensor) -> Result<Option<Tensor>> {
        let (own, owners) = (&self.rows[matrix], &self.sides.matrices[matrix].owners);
        let Some(gating) = &self.sides.gating else { return same_set(own, &owners.sets, x) };
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if matrix == 0 {
            *shares = Some(gating.shares(x, own)?);
        }
        let Some(shares) = &*shares else { candle_core::bail!("editable matrix {matrix} came before the first") };
        let edits: Vec<u32> = owners.edits.iter().map(|edit| edit - gating.first()).collect();
        shares.index_select(&Tensor::new(edits, x.device())?, 1).map(Some)
    }
}

/// 1 where a row of `x` and a row of a change belong to the same set; none if all do.
fn same_set(own: &[u32], sets: &[u32], x: &Tensor) -> Result<Option<Tensor>> {
    let same = |set: &u32, other: &u32| if set == other { 1.0 } else { 0.0 };
    let mask: Vec<f32> = own.iter().flat_map(|set| sets.iter().map(move |other| same(set, other))).collect();
    if mask.iter().all(|same| *same == 1.0) {
        return Ok(None);
    }
    Tensor::from_vec(mask, (own.len(), sets.len()), x.device()).map(Some)
}

impl Projection for Factored<'_> {
    fn project(&self, matrix: usize, x: &Tensor) -> Result<Tensor> {
        let side = &self.sides.matrices[matrix];
        let y = self.base.project(matrix, x)?;
        if side.owners.sets.is_empty() {
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

    fn keep_rows(&self, rows: &Tensor) -> Result<()> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(all) = shares.take() {
            *shares = Some(all.index_select(rows, 0)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        editor::{
            gate::Scalars,
            gated::{GatedEdit, GatedEdits, Terms},
        },
        model::testing::{assert_close, random},
    };

    /// What is validated in training is what is served: two edits behind a gate, of two keys and of one, in one set.
    #[test]
    fn behind_a_gate_a_set_in_training_answers_as_it_does_in_service() {
        const SHAPES: [(usize, usize); 2] = [(7, 5), (5, 7)];
        let scalars = Scalars { sharpness: 8.0, threshold: 0.5, growth: 0.1 };
        let mean = random(&[5], 2);
        let gate = Arc::new(Gate { map: random(&[5, 5], 1), mean, scalars });
        let base = Arc::new(DenseMatrices::new(vec![random(&[7, 5], 3), random(&[5, 7], 4)]));
        let keys = random(&[3, 5], 5);
        let owners = Owners { edits: vec![0, 0, 1], sets: vec![0; 3] };
        let side = |(seed, (d_out, d_in)): (u64, (usize, usize))| Side {
            u: random(&[3, d_in], 10 + seed),
            delta: random(&[3, d_out], 20 + seed),
            owners: owners.clone(),
        };
        let matrices: Vec<Side> = (0..).zip(SHAPES).map(side).collect();
        let edit = |start: usize, rows: usize| {
            let host =
                |tensor: &Tensor| tensor.narrow(0, start, rows).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let terms = matrices.iter().map(|side| Terms { left: host(&side.delta), right: host(&side.u) });
            Arc::new(GatedEdit::new(&gate, &keys.narrow(0, start, rows).unwrap(), terms.collect()).unwrap())
        };
        let served = GatedEdits::new(Arc::clone(&base), Arc::clone(&gate), vec![edit(0, 2), edit(2, 1)]).unwrap();
        let served = served.begin_pass().unwrap();
        let readings = gate.read(&keys).unwrap();
        let sides = Sides { matrices, gating: Some(Gating { gate: Arc::clone(&gate), readings, owners }) };
        let x = Tensor::cat(&[&keys, &random(&[4, 5], 6)], 0).unwrap();
        let trained = Factored::new(&base, &sides, &[0], |_| vec![7]);

        let [in_service, in_training] =
            [served.as_ref(), &trained as &dyn Projection].map(|pass| pass.project(0, &x).unwrap());
        assert_close(&in_training, &in_service, 1e-5);
        let kept = Tensor::new(&[2u32, 6], x.device()).unwrap();
        let [in_service, in_training] = [served.as_ref(), &trained as &dyn Projection].map(|pass| {
            pass.keep_rows(&kept).unwrap();
            pass.project(1, &in_service.index_select(&kept, 0).unwrap()).unwrap()
        });
        assert_close(&in_training, &in_service, 1e-5);
        let silent = base.project(0, &x).unwrap();
        let unlike = (trained.project(0, &x).unwrap() - silent).unwrap().abs().unwrap().sum_all().unwrap();
        assert!(unlike.to_scalar::<f32>().unwrap() > 1e-2, "nobody spoke");
    }
}
