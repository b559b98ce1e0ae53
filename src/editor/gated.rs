//! The base weights with edits behind a gate ([`super::gate`]).

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Result, Tensor};

use super::{
    Delta, EditorError, MatrixDelta,
    gate::{Gate, Speakers},
};
use crate::model::{DenseMatrices, Projection, layers::linear::frozen_matmul};

/// One edit: where it was captured, as the gate reads it, and what it adds to each matrix when it speaks.
#[derive(Debug, Clone, PartialEq)]
pub struct GatedEdit {
    /// `[keys, r]`
    readings: Vec<f32>,
    keys: usize,
    parts: Vec<Terms>,
}

/// What an edit adds to a matrix: `sum_i left_i (right_i . x)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    /// `[n, d_out]`
    pub left: Vec<f32>,
    /// `[n, d_in]`
    pub right: Vec<f32>,
}

impl GatedEdit {
    /// From the keys `[n, d_in]` at the first editable matrix, and the terms of every matrix. An edit without a key (its answer
    /// had no gradient) is never heard.
    pub fn new(gate: &Gate, keys: &Tensor, parts: Vec<Terms>) -> Result<Self> {
        let readings = match keys.dim(0)? {
            0 => Vec::new(),
            _ => gate.read(keys)?.flatten_all()?.to_vec1()?,
        };
        Ok(Self { readings, keys: keys.dim(0)?, parts })
    }

    /// From an edit's delta.
    pub fn from_delta(gate: &Gate, delta: &Delta) -> std::result::Result<Self, EditorError> {
        let mut first = None;
        let mut parts = Vec::with_capacity(delta.0.len());
        for matrix in &delta.0 {
            let MatrixDelta::Joint { keys, left, right } = matrix else {
                return Err(EditorError::Composition("an edit behind a gate has keys; this one has none".to_owned()));
            };
            first.get_or_insert(keys);
            parts.push(Terms { left: host(left)?, right: host(right)? });
        }
        let keys = first.ok_or_else(|| EditorError::Composition("an edit of no matrices".to_owned()))?;
        let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
        let edit = Self::new(gate, keys, parts)?;
        match finite(&edit.readings) && edit.parts.iter().all(|terms| finite(&terms.left) && finite(&terms.right)) {
            true => Ok(edit),
            false => Err(EditorError::NonFinite { what: "the delta of an edit".to_owned() }),
        }
    }

    /// Adds what it says at `x [d_in]` with a share of its voice to `y [d_out]`.
    fn add(&self, matrix: usize, share: f32, x: &[f32], y: &mut [f32]) {
        let Terms { left, right } = &self.parts[matrix];
        for (left, right) in left.chunks_exact(y.len()).zip(right.chunks_exact(x.len())) {
            let said = share * right.iter().zip(x).map(|(a, b)| a * b).sum::<f32>();
            y.iter_mut().zip(left).for_each(|(y, left)| *y += said * left);
        }
    }
}

fn host(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// A set of edits over the base weights, which all sets share.
///
/// A row's bits do not depend on the rows that are computed with it: each is added to by itself, in the edits' order.
pub struct GatedEdits {
    base: Arc<DenseMatrices>,
    gate: Arc<Gate>,
    edits: Vec<Arc<GatedEdit>>,
    /// Keys of each edit.
    counts: Vec<usize>,
    /// `[keys of all edits, r]`; none of no edits.
    readings: Option<Tensor>,
}

impl GatedEdits {
    /// Edits in an order that the set fixes.
    pub fn new(base: Arc<DenseMatrices>, gate: Arc<Gate>, edits: Vec<Arc<GatedEdit>>) -> Result<Self> {
        let counts: Vec<usize> = edits.iter().map(|edit| edit.keys).collect();
        let (keys, rank) = (counts.iter().sum::<usize>(), gate.map.dim(0)?);
        let readings = match keys {
            0 => None,
            _ => {
                let readings: Vec<f32> = edits.iter().flat_map(|edit| edit.readings.iter().copied()).collect();
                Some(Tensor::from_vec(readings, (keys, rank), gate.map.device())?)
            }
        };
        Ok(Self { base, gate, edits, counts, readings })
    }

    /// Who speaks at each row of what enters the first editable matrix, `[n, d_in]`.
    fn speakers(&self, x: &Tensor) -> Result<Vec<Speakers>> {
        let Some(readings) = &self.readings else { return Ok(vec![Vec::new(); x.dim(0)?]) };
        let similar = frozen_matmul(&self.gate.read(x)?, readings)?;
        let similar = similar.to_vec2::<f32>()?;
        Ok(similar.iter().map(|row| self.gate.speakers(row, &self.counts)).collect())
    }

    /// `y [n, d_out]` with what the speakers of each row say at `x [n, d_in]`.
    fn spoken(&self, matrix: usize, x: &Tensor, y: Tensor, speakers: &[Speakers]) -> Result<Tensor> {
        if speakers.len() != x.dim(0)? {
            candle_core::bail!("{} rows at editable matrix {matrix}, {} behind the gate", x.dim(0)?, speakers.len());
        }
        let rows: Vec<u32> = (0u32..).zip(speakers).filter(|(_, own)| !own.is_empty()).map(|(row, _)| row).collect();
        if rows.is_empty() {
            return Ok(y);
        }
        let (count, d_out) = (rows.len(), y.dim(1)?);
        let index = Tensor::from_vec(rows.clone(), count, x.device())?;
        let inputs = x.index_select(&index, 0)?.to_vec2::<f32>()?;
        let mut added = vec![0f32; count * d_out];
        for ((row, x), y) in rows.iter().zip(&inputs).zip(added.chunks_exact_mut(d_out)) {
            for (edit, share) in &speakers[*row as usize] {
                self.edits[*edit].add(matrix, *share, x, y);
            }
        }
        y.index_add(&index, &Tensor::from_vec(added, (count, d_out), x.device())?, 0)
    }
}

impl Projection for GatedEdits {
    fn project(&self, matrix: usize, _: &Tensor) -> Result<Tensor> {
        candle_core::bail!("editable matrix {matrix} outside of a decoder's pass: a gate has not been asked")
    }

    fn begin_pass(&self) -> Option<Box<dyn Projection + '_>> {
        Some(Box::new(GatedPass { set: self, speakers: Mutex::new(None) }))
    }
}

/// One pass through the tail: the gate is asked at its first matrix.
struct GatedPass<'a> {
    set: &'a GatedEdits,
    speakers: Mutex<Option<Vec<Speakers>>>,
}

impl Projection for GatedPass<'_> {
    fn project(&self, matrix: usize, x: &Tensor) -> Result<Tensor> {
        let mut speakers = self.speakers.lock().unwrap_or_else(PoisonError::into_inner);
        if matrix == 0 {
            *speakers = Some(self.set.speakers(x)?);
        }
        let y = self.set.base.project(matrix, x)?;
        match &*speakers {
            Some(speakers) => self.set.spoken(matrix, x, y, speakers),
            None => candle_core::bail!("editable matrix {matrix} came before the first"),
        }
    }

    fn keep_rows(&self, rows: &Tensor) -> Result<()> {
        let mut speakers = self.speakers.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the first matrix there is nothing to keep.
        if let Some(all) = speakers.take() {
            let kept = rows.to_vec1::<u32>()?;
            *speakers = Some(kept.into_iter().map(|row| all[row as usize].clone()).collect());
        }
        Ok(())
    }
}
