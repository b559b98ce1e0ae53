//! How the changes of the active edits become one change of the weights.
//!
//! Law 2 (a version is a set of active edits): each composition is a function of the set. A sum has no order; a joint
//! solve runs over the edits in the order that it is given, which whoever calls it takes from the edits themselves.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{
    Delta, EditorError, MatrixDelta,
    gate::Gate,
    joint::{JointRows, Rule, Solved},
};

/// How the changes of several edits become one.
#[derive(Debug, Clone)]
pub enum Composition {
    /// `W0 + sum of the deltas`.
    Sum,
    /// A joint solve ([`super::joint`]), with a ridge for each matrix.
    Joint { ridges: Vec<f32> },
    /// Least squares over the active edits' keys, with one ridge.
    LeastSquares { ridge: f32 },
    /// `W0`, and each edit beside it behind a gate ([`super::gate`]).
    Gated(Arc<Gate>),
}

/// The kinds of [`Composition`], as files and options name them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompositionKind {
    #[default]
    Sum,
    Joint,
    Gated,
}

impl Composition {
    /// Its name, which the log is pinned to.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Joint { .. } => "joint",
            Self::LeastSquares { .. } => "least_squares",
            Self::Gated(_) => "gated",
        }
    }

    /// What is solved for a matrix; none for a sum, or behind a gate.
    pub fn rule(&self, matrix: usize) -> Option<Rule> {
        match self {
            Self::Sum | Self::Gated(_) => None,
            Self::Joint { ridges } => Some(Rule::Joint { ridge: ridges[matrix] }),
            Self::LeastSquares { ridge } => Some(Rule::LeastSquares { ridge: *ridge }),
        }
    }

    /// One change from those of several edits, in their order; no part of it is a [`MatrixDelta::Joint`]. Refused behind a gate,
    /// where edits stay apart ([`super::gated::GatedEdits`]).
    pub fn compose(&self, deltas: &[&Delta]) -> Result<Delta, EditorError> {
        if let Self::Gated(_) = self {
            return Err(EditorError::Composition("edits behind a gate stay apart: they have no sum".to_owned()));
        }
        let matrices = deltas.first().map_or(0, |delta| delta.0.len());
        let of_matrix = |matrix| deltas.iter().map(move |delta| &delta.0[matrix]);
        let composed = (0..matrices).map(|matrix| match self.rule(matrix) {
            None => sum(&of_matrix(matrix).collect::<Vec<_>>()),
            Some(rule) => solve(&of_matrix(matrix).collect::<Vec<_>>(), rule),
        });
        Ok(Delta(composed.collect::<Result<_, _>>()?))
    }
}

fn sum(deltas: &[&MatrixDelta]) -> Result<MatrixDelta, EditorError> {
    let (mut lefts, mut rights, mut total) = (Vec::new(), Vec::new(), None);
    for delta in deltas {
        match delta {
            MatrixDelta::LowRank { left, right } => {
                lefts.push(left);
                rights.push(right);
            }
            MatrixDelta::Dense(dense) => {
                total = Some(match total {
                    None => dense.clone(),
                    Some(total) => (total + dense)?,
                });
            }
            MatrixDelta::Joint { .. } => return Err(mixed("sum", "joint")),
        }
    }
    match total {
        None => Ok(MatrixDelta::LowRank { left: Tensor::cat(&lefts, 0)?, right: Tensor::cat(&rights, 0)? }),
        Some(total) if lefts.is_empty() => Ok(MatrixDelta::Dense(total)),
        Some(_) => Err(mixed("dense", "low-rank")),
    }
}

fn solve(deltas: &[&MatrixDelta], rule: Rule) -> Result<MatrixDelta, EditorError> {
    let (mut keys, mut left, mut right, mut edits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut d_in, mut d_out, mut device) = (0, 0, None);
    for delta in deltas {
        let MatrixDelta::Joint { keys: k, left: l, right: r } = delta else { return Err(mixed("joint", "another")) };
        let rows;
        (rows, d_in) = k.dims2()?;
        d_out = l.dim(1)?;
        device = Some(k.device());
        edits.push(rows);
        for (all, part) in [(&mut keys, k), (&mut left, l), (&mut right, r)] {
            all.extend(host(part)?);
        }
    }
    let rows = JointRows { keys: &keys, right: &right, left: &left, edits: &edits, d_in, d_out };
    let Solved { left, right } = rows.solve(rule)?;
    let device = device.unwrap_or(&Device::Cpu);
    let tensor =
        |values: Vec<f32>, width: usize| Tensor::from_vec(values, (edits.iter().sum::<usize>(), width), device);
    Ok(MatrixDelta::LowRank { left: tensor(left, d_out)?, right: tensor(right, d_in)? })
}

fn host(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

fn mixed(one: &str, other: &str) -> EditorError {
    EditorError::Composition(format!("a {one} change can not be composed with {other}"))
}
