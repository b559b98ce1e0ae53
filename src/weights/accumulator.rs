//! The exact sum of the active edits' contributions.

use std::sync::Arc;

use rayon::prelude::*;

use super::{
    Contribution, WeightsError,
    contribution::{Part, Values, row},
    digest::digest_of,
    fixed,
    kernel::{self, Conversion, Direction, Moves, Rows},
};
use crate::{
    digest::Digest,
    model::{DenseMatrices, EditableMatrix},
};

/// Elements of a matrix handled by one task of the thread pool.
const TASK_ELEMENTS: usize = 64 * 1024;

/// Bounds saturate here, so that the sum of very many can not overflow 128 bits.
const BOUND_CEILING: f64 = (1_u128 << 100) as f64;

/// For every element of every editable matrix, the sum of the active contributions in 64-bit fixed point.
///
/// Law 2 (a version is a set of active edits; its weights are a function of that set alone, bit for bit): each
/// contribution's value at an element is rounded to a step once, by a rule that depends on the contribution alone;
/// integers add exactly and in any order, and subtracting undoes adding. What can not be held is refused before
/// anything changes; nothing ever wraps.
#[derive(Debug, Clone)]
pub struct Accumulator {
    shapes: Arc<[EditableMatrix]>,
    base: Arc<Vec<Vec<f32>>>,
    sums: Vec<Vec<i64>>,
    /// Per matrix, in steps: no element's sum is larger, because each contribution's largest element is at most its
    /// share of this. Exact integers, so that a share is taken out again without a trace.
    bounds: Vec<u128>,
}

impl Accumulator {
    /// The empty set over these base weights.
    pub fn new(shapes: &[EditableMatrix], base: &DenseMatrices) -> Result<Self, WeightsError> {
        let base = base.to_vecs()?;
        let sizes: Vec<usize> = shapes.iter().map(|shape| shape.d_out * shape.d_in).collect();
        if !base.iter().map(Vec::len).eq(sizes.iter().copied()) {
            return Err(WeightsError::Malformed("the base weights do not have the editable matrices' shapes".into()));
        }
        Ok(Self {
            shapes: shapes.into(),
            base: Arc::new(base),
            sums: sizes.iter().map(|&size| vec![0; size]).collect(),
            bounds: vec![0; shapes.len()],
        })
    }

    /// The matrices that are summed over.
    pub fn shapes(&self) -> &[EditableMatrix] {
        &self.shapes
    }

    /// Puts a contribution into the set.
    pub fn add(&mut self, contribution: &Contribution) -> Result<(), WeightsError> {
        self.change(&[], &[contribution])
    }

    /// Takes out a contribution that is in the set.
    pub fn remove(&mut self, contribution: &Contribution) -> Result<(), WeightsError> {
        self.change(&[contribution], &[])
    }

    /// Takes some contributions out and puts others in, in one pass over memory. On an error nothing has changed.
    pub fn change(&mut self, removed: &[&Contribution], added: &[&Contribution]) -> Result<(), WeightsError> {
        self.sweep(removed, added, None)
    }

    /// [`Accumulator::change`], and the weights after it, still in the same pass.
    pub fn change_to_weights(
        &mut self,
        removed: &[&Contribution],
        added: &[&Contribution],
    ) -> Result<Vec<Vec<f32>>, WeightsError> {
        let mut weights: Vec<Vec<f32>> = self.sums.iter().map(|sums| vec![0.0; sums.len()]).collect();
        self.sweep(removed, added, Some(&mut weights))?;
        Ok(weights)
    }

    /// `W = W0 + sum`, row-major, one vector per editable matrix.
    pub fn weights(&self) -> Vec<Vec<f32>> {
        let mut weights: Vec<Vec<f32>> = self.sums.iter().map(|sums| vec![0.0; sums.len()]).collect();
        for ((weights, base), sums) in weights.iter_mut().zip(self.base.iter()).zip(&self.sums) {
            let tasks = weights.par_chunks_mut(TASK_ELEMENTS).zip(base.par_chunks(TASK_ELEMENTS));
            tasks.zip(sums.par_chunks(TASK_ELEMENTS)).for_each(|((weights, base), sums)| {
                kernel::write_weights(weights, base, sums);
            });
        }
        weights
    }

    /// Digest of [`Accumulator::weights`], without making them.
    pub fn digest(&self) -> Digest {
        digest_of(&self.shapes, |matrix, range, values| {
            kernel::write_weights(values, &self.base[matrix][range.clone()], &self.sums[matrix][range]);
        })
    }

    fn sweep(
        &mut self,
        removed: &[&Contribution],
        added: &[&Contribution],
        mut weights: Option<&mut Vec<Vec<f32>>>,
    ) -> Result<(), WeightsError> {
        for contribution in removed.iter().chain(added) {
            contribution.check_shapes(&self.shapes)?;
            if contribution.parts().iter().any(|part| matches!(part.values, Values::Joint { .. })) {
                return Err(WeightsError::Malformed("it is of the joint composition".into()));
            }
        }
        let moves: Vec<Vec<(Direction, &Part)>> =
            (0..self.shapes.len()).map(|matrix| moves_of(matrix, removed, added)).collect();
        let plans = moves.iter().enumerate().map(|(m, moves)| self.plan(m, moves)).collect::<Result<Vec<_>, _>>()?;
        for (matrix, (moves, plan)) in moves.iter().zip(plans).enumerate() {
            let weights = weights.as_mut().map(|weights| weights[matrix].as_mut_slice());
            self.apply(matrix, moves, plan.conversion, weights);
            self.bounds[matrix] = plan.bound;
        }
        Ok(())
    }

    /// Decides how a matrix takes its moves, or that it can not. The bounds settle almost every case; only where they
    /// do not is each element looked at.
    fn plan(&self, matrix: usize, moves: &Moves<'_>) -> Result<Plan, WeightsError> {
        let mut plan = Plan { conversion: Conversion::Narrow, bound: self.bounds[matrix] };
        let mut most = plan.bound;
        for (direction, part) in moves {
            let share = part.bound();
            if share as f64 >= fixed::NARROW_LIMIT * fixed::SCALE {
                plan.conversion = Conversion::Wide;
            }
            if *direction == Direction::Enters {
                plan.bound += share;
                most += share;
            } else {
                plan.bound = plan.bound.checked_sub(share).ok_or_else(|| {
                    WeightsError::Malformed(format!("what leaves {} never entered", self.shapes[matrix].name))
                })?;
            }
        }
        if plan.conversion == Conversion::Narrow && most < 1 << 63 {
            return Ok(plan);
        }
        plan.conversion = Conversion::Wide;
        let shape = &self.shapes[matrix];
        let rows = rows_per_task(shape.d_in);
        let fits = self.sums[matrix]
            .par_chunks(rows * shape.d_in)
            .enumerate()
            .all(|(task, sums)| kernel::fits(task * rows, shape.d_in, sums, moves));
        if fits { Ok(plan) } else { Err(WeightsError::Overflow { matrix: shape.name.clone(), limit: fixed::LIMIT }) }
    }

    fn apply(&mut self, matrix: usize, moves: &Moves<'_>, conversion: Conversion, weights: Option<&mut [f32]>) {
        let d_in = self.shapes[matrix].d_in;
        let rows = rows_per_task(d_in);
        let sums = self.sums[matrix].par_chunks_mut(rows * d_in);
        let tasks = sums.zip(self.base[matrix].par_chunks(rows * d_in)).enumerate();
        match weights {
            Some(weights) => {
                tasks.zip(weights.par_chunks_mut(rows * d_in)).for_each(|((task, (sums, base)), weights)| {
                    let rows = Rows { first: task * rows, d_in, sums, base, weights: Some(weights) };
                    kernel::apply(rows, moves, conversion);
                });
            }
            None => tasks.for_each(|(task, (sums, base))| {
                kernel::apply(Rows { first: task * rows, d_in, sums, base, weights: None }, moves, conversion);
            }),
        }
    }
}

/// How one matrix takes a change.
struct Plan {
    conversion: Conversion,
    bound: u128,
}

fn moves_of<'a>(matrix: usize, removed: &[&'a Contribution], added: &[&'a Contribution]) -> Vec<(Direction, &'a Part)> {
    let part = |contribution: &&'a Contribution| &contribution.parts()[matrix];
    let leaving = removed.iter().map(|c| (Direction::Leaves, part(c)));
    leaving.chain(added.iter().map(|c| (Direction::Enters, part(c)))).collect()
}

fn rows_per_task(d_in: usize) -> usize {
    (TASK_ELEMENTS / d_in).max(1)
}

impl Part {
    /// No element of this part has a larger magnitude, in steps; rounded up.
    fn bound(&self) -> u128 {
        let largest = |values: &[f32]| f64::from(values.iter().fold(0_f32, |most, value| most.max(value.abs())));
        let bound = match &self.values {
            Values::Dense(values) => largest(values),
            Values::LowRank { left, right } | Values::Joint { left, right, .. } => {
                let terms = (0..self.n).map(|i| largest(row(left, self.d_out, i)) * largest(row(right, self.d_in, i)));
                // f32 rounds each of n products and n sums by at most 2^-24 of its size; 2^-20 n is generous.
                terms.sum::<f64>() * (1.0 + self.n as f64 / f64::from(1 << 20))
            }
        };
        // Rounding to a step moves a value by half a step at most.
        (bound * fixed::SCALE).min(BOUND_CEILING).ceil() as u128 + 1
    }
}

#[cfg(test)]
#[path = "accumulator_tests.rs"]
mod tests;
