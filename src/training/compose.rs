//! From the captured factors of a batch's edits to the changes of its sets, as functions of the editor's variables.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use faer::{Mat, linalg::solvers::DenseSolveCore};

use super::{
    TrainingError,
    factored::{Gating, Owners, Side, Sides},
};
use crate::{
    editor::mend::Mend,
    model::capture::{Captured, Factors},
};

/// The changes that the edits of each set make together, one side per matrix. `sets` says which set each edit is in, and
/// never falls. With ridges in `mend` it is the joint solve of [`crate::editor::joint`], else the sum, of edits behind a gate what
/// they say together where all are heard.
pub fn sides(mend: &Mend, captured: &[Arc<Captured>], sets: &[u32]) -> std::result::Result<Sides, TrainingError> {
    let matrices = captured.first().map_or(0, |captured| captured.factors.len());
    let mut factors = Vec::with_capacity(matrices);
    let mut owners = Vec::with_capacity(matrices);
    for matrix in 0..matrices {
        let own: Vec<&Factors> = captured.iter().map(|captured| &captured.factors[matrix]).collect();
        let us: Vec<&Tensor> = own.iter().map(|factors| &factors.u).collect();
        let deltas: Vec<&Tensor> = own.iter().map(|factors| &factors.delta).collect();
        let counts = us.iter().map(|u| u.dim(0)).collect::<Result<Vec<_>>>()?;
        let spread = |owner: &dyn Fn(usize) -> u32| -> Vec<u32> {
            counts.iter().enumerate().flat_map(|(edit, &rows)| std::iter::repeat_n(owner(edit), rows)).collect()
        };
        factors.push(Factors { u: Tensor::cat(&us, 0)?, delta: Tensor::cat(&deltas, 0)? });
        owners.push(Owners { edits: spread(&|edit| edit as u32), sets: spread(&|edit| sets[edit]) });
    }
    let gating = match (mend.gate(), factors.first(), owners.first()) {
        (Some(gate), Some(factors), Some(owners)) => {
            Some(Gating { gate: Arc::clone(gate), readings: gate.read(&factors.u)?, owners: owners.clone() })
        }
        _ => None,
    };
    let pseudo = mend.transform(&factors)?;
    let mut sides = Vec::with_capacity(matrices);
    for (matrix, ((pseudo, factors), owners)) in pseudo.iter().zip(&factors).zip(owners).enumerate() {
        let alone = Side::new(pseudo, &mend.learning_rate(matrix)?, owners)?;
        sides.push(match &mend.log_ridges {
            None => alone,
            Some(logs) => Side { delta: joint(&factors.u, &alone, &logs.narrow(0, matrix, 1)?.exp()?)?, ..alone },
        });
    }
    Ok(Sides { matrices: sides, gating })
}

/// `X` of the joint solve, each set for itself: the Gram matrix is cut to blocks by a mask.
fn joint(keys: &Tensor, alone: &Side, ridge: &Tensor) -> Result<Tensor> {
    let Owners { edits, sets } = &alone.owners;
    let wide = |tensor: &Tensor| tensor.to_dtype(DType::F64);
    let gram = wide(&keys.matmul(&alone.u.t()?)?)?;
    let size = wide(&(keys * &alone.u)?.sum_keepdim(1)?.abs()?)?;
    let mean = same(sets, |set| 1.0 / sets.iter().filter(|other| **other == set).count() as f64)?;
    let damping = mean.matmul(&size)?.broadcast_mul(&wide(ridge)?)?.sqr()?;
    let own = (&gram * same(edits, |_| 1.0)?)?;
    let gram = (gram * same(sets, |_| 1.0)?)?;
    let said = wide(&alone.delta)?;
    let cross_talk = (gram.matmul(&said)? - own.matmul(&said)?)?;
    let eye = Tensor::eye(sets.len(), DType::F64, &Device::Cpu)?;
    let normal = (gram.t()?.matmul(&gram)? + eye.broadcast_mul(&damping)?)?;
    (said - solve(&normal, &gram.t()?.matmul(&cross_talk)?)?)?.to_dtype(DType::F32)
}

/// `weight` where two rows have the same owner, `[n, n]`.
fn same(owners: &[u32], weight: impl Fn(u32) -> f64) -> Result<Tensor> {
    let n = owners.len();
    let values: Vec<f64> = owners
        .iter()
        .flat_map(|own| {
            let weight = weight(*own);
            owners.iter().map(move |other| if own == other { weight } else { 0.0 })
        })
        .collect();
    Tensor::from_vec(values, (n, n), &Device::Cpu)
}

/// `A^-1 B`, differentiable in both. With the inverse `M` and the solution `X` as constants, `X + M (B - A X)` has the
/// value of `X`, refined once, and its exact gradients: `M^T dX` and `-M^T dX X^T`.
fn solve(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let n = a.dim(0)?;
    let values = a.detach().flatten_all()?.to_vec1::<f64>()?;
    let inverse = Mat::from_fn(n, n, |i, j| values[i * n + j]).partial_piv_lu().inverse();
    let inverse: Vec<f64> = (0..n * n).map(|at| inverse[(at / n, at % n)]).collect();
    let inverse = Tensor::from_vec(inverse, (n, n), a.device())?;
    let x = inverse.matmul(&b.detach())?;
    &x + inverse.matmul(&(b - a.matmul(&x)?)?)?
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::model::testing::{assert_close, random};

    #[test]
    fn the_gradients_of_a_solve_are_those_of_finite_differences() {
        let eye = (Tensor::eye(4, DType::F64, &Device::Cpu).unwrap() * 3.0).unwrap();
        let a = Var::from_tensor(&(random(&[4, 4], 1).to_dtype(DType::F64).unwrap() + eye).unwrap()).unwrap();
        let b = Var::from_tensor(&random(&[4, 2], 2).to_dtype(DType::F64).unwrap()).unwrap();
        let weights = random(&[4, 2], 3).to_dtype(DType::F64).unwrap();
        let loss = |a: &Tensor, b: &Tensor| (solve(a, b).unwrap() * &weights).unwrap().sum_all().unwrap();
        let narrow = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap();
        assert_close(&narrow(&a.matmul(&solve(&a, &b).unwrap()).unwrap()), &narrow(&b), 1e-6);
        let store = loss(&a, &b).backward().unwrap();
        for (variable, at_b) in [(&a, false), (&b, true)] {
            let gradient: Vec<f64> = store.get(variable).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            for (element, gradient) in gradient.into_iter().enumerate() {
                let moved = |step: f64| {
                    let mut values: Vec<f64> = variable.flatten_all().unwrap().to_vec1().unwrap();
                    values[element] += step;
                    let moved = Tensor::from_vec(values, variable.shape(), &Device::Cpu).unwrap();
                    let loss = if at_b { loss(&a, &moved) } else { loss(&moved, &b) };
                    loss.to_scalar::<f64>().unwrap()
                };
                let difference = (moved(1e-4) - moved(-1e-4)) / 2e-4;
                assert!((gradient - difference).abs() < 1e-6, "{gradient} for {difference}");
            }
        }
    }
}
