//! Weights by a joint solve over the active edits ([`crate::editor::joint`]).

use std::sync::Arc;

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

use super::{
    Contribution, WeightsError,
    active::Active,
    contribution::{Part, Values},
    digest::weights_digest,
};
use crate::{
    digest::Digest,
    editor::joint::{JointRows, Rule, Solved},
    model::{DenseMatrices, EditableMatrix},
};

/// Rows of a matrix that one task of the thread pool adds to. Fixed, so that the bits do not depend on the threads.
const TASK_ROWS: usize = 64;

/// The active contributions, each a bundle of rows.
///
/// Law 2 (a version is a set of active edits; its weights are a function of that set alone, bit for bit): the solve runs
/// over the edits in the order of their digests, always from the base weights and the whole set, in one fixed order of
/// operations. Nothing of an earlier set is left in it. Across kinds of machines the bits of `digest` may differ, because
/// their vector units add in different orders; `set_digest` does not.
#[derive(Debug, Clone)]
pub struct JointSet {
    shapes: Arc<[EditableMatrix]>,
    base: Arc<Vec<Vec<f32>>>,
    rules: Arc<[Rule]>,
    edits: Active<Contribution>,
}

impl JointSet {
    /// The empty set over these base weights, with what is solved for each matrix.
    pub fn new(shapes: &[EditableMatrix], base: &DenseMatrices, rules: Vec<Rule>) -> Result<Self, WeightsError> {
        let base = base.to_vecs()?;
        let sizes = shapes.iter().map(|shape| shape.d_out * shape.d_in);
        if !base.iter().map(Vec::len).eq(sizes) || rules.len() != shapes.len() {
            return Err(WeightsError::Malformed("base weights or rules do not fit the editable matrices".into()));
        }
        Ok(Self { shapes: shapes.into(), base: Arc::new(base), rules: rules.into(), edits: Active::default() })
    }

    /// The matrices that are solved for.
    pub fn shapes(&self) -> &[EditableMatrix] {
        &self.shapes
    }

    /// Takes some contributions out and puts others in. On an error nothing has changed.
    pub fn change(&mut self, removed: &[&Contribution], added: &[&Contribution]) -> Result<(), WeightsError> {
        self.edits = self.edits.changed(&self.shapes, removed, added, |contribution| Ok(contribution.clone()))?;
        Ok(())
    }

    /// The weights of the set, row-major, one vector per editable matrix.
    pub fn weights(&self) -> Result<Vec<Vec<f32>>, WeightsError> {
        (0..self.shapes.len()).into_par_iter().with_max_len(1).map(|matrix| self.solve(matrix)).collect()
    }

    /// Digest of [`JointSet::weights`].
    pub fn digest(&self) -> Result<Digest, WeightsError> {
        Ok(weights_digest(&self.shapes, &self.weights()?))
    }

    fn solve(&self, matrix: usize) -> Result<Vec<f32>, WeightsError> {
        let EditableMatrix { name, d_out, d_in } = &self.shapes[matrix];
        let (d_out, d_in) = (*d_out, *d_in);
        let mut weights = self.base[matrix].clone();
        let (mut left, mut right, mut keys, mut edits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (n, values) in self.parts(matrix) {
            edits.push(n);
            left.extend_from_slice(values[0]);
            right.extend_from_slice(values[1]);
            keys.extend_from_slice(values[2]);
        }
        let rows = JointRows { keys: &keys, right: &right, left: &left, edits: &edits, d_in, d_out };
        let solved = rows.solve(self.rules[matrix]);
        let Solved { left, right } = solved.map_err(|_| WeightsError::NonFinite { matrix: name.clone() })?;
        if !left.is_empty() {
            add_product(&mut weights, &left, &right, d_out, d_in);
        }
        Ok(weights)
    }

    /// Rows of each edit at a matrix, and its left, right and key rows, in the order of the edits' digests.
    fn parts(&self, matrix: usize) -> impl Iterator<Item = (usize, [&[f32]; 3])> {
        self.edits.iter().map(move |(_, contribution)| {
            let Part { n, values, .. } = &contribution.parts()[matrix];
            let Values::Joint { left, right, keys } = values else {
                unreachable!("only contributions of the joint composition enter the set")
            };
            (*n, [left.as_slice(), right.as_slice(), keys.as_slice()])
        })
    }
}

/// `weights [d_out, d_in] += left^T right`, of `left [n, d_out]` and `right [n, d_in]`.
fn add_product(weights: &mut [f32], left: &[f32], right: &[f32], d_out: usize, d_in: usize) {
    let n = left.len() / d_out;
    let left = MatRef::from_row_major_slice(left, n, d_out).transpose();
    let right = MatRef::from_row_major_slice(right, n, d_in);
    weights.par_chunks_mut(TASK_ROWS * d_in).enumerate().for_each(|(task, weights)| {
        let rows = weights.len() / d_in;
        let own = left.subrows(task * TASK_ROWS, rows);
        let weights = MatMut::from_row_major_slice_mut(weights, rows, d_in);
        matmul(weights, Accum::Add, own, right, 1.0, Par::Seq);
    });
}

#[cfg(test)]
#[path = "joint_tests.rs"]
mod tests;
