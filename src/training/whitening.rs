//! Whitening: how a reading direction is turned away from what a matrix commonly sees.
//!
//! With `C` the second moment of a matrix's inputs on texts that no edit is about, and `S` the square roots of its
//! diagonal, the whitening is `c (C + e I)^-1 S`: the reading direction `u~`, which the network gives in units of the
//! deviations, becomes the one that answers `u~` most for how little it answers those texts (as in ROME and MEMIT, whose
//! keys are multiplied by `C^-1`). The ridge `e` is a share of the mean of the diagonal, and `c` keeps the size of what a
//! direction says at its own input about what it would be without.

use std::sync::Mutex;

use candle_core::{Device, Result as CandleResult, Tensor};
use faer::{Mat, linalg::solvers::Solve};
use half::f16;

use super::{TrainingError, cache::HiddenStates, parallel::Workers};
use crate::model::{DenseMatrices, Extent, Model, Projection, Rows};

/// Texts in one pass.
const PASS: usize = 16;

/// The whitening of every matrix, `[d_in, d_in]`, from the inputs that `texts` give it under the base weights. Rounded to
/// f16, as an editor's file holds it, so that what is trained with is what is served.
pub fn whitening(
    model: &Model,
    states: &HiddenStates,
    texts: &[usize],
    ridge: f64,
    workers: &Workers,
) -> Result<Vec<Tensor>, TrainingError> {
    let passes: Vec<&[usize]> = texts.chunks(PASS).collect();
    let mut moments: Vec<Vec<f64>> =
        model.editable().iter().map(|matrix| vec![0.0; matrix.d_in * matrix.d_in]).collect();
    let mut rows = vec![0.0; model.editable().len()];
    for round in passes.chunks(workers.count()) {
        for pass in workers.map(round, |texts| pass_moments(model, states, texts)) {
            let (counts, grams) = pass?;
            rows.iter_mut().zip(counts).for_each(|(rows, count)| *rows += count);
            for (moments, gram) in moments.iter_mut().zip(grams) {
                moments.iter_mut().zip(gram).for_each(|(sum, value)| *sum += f64::from(value));
            }
        }
    }
    let sizes = model.editable().iter().map(|matrix| matrix.d_in).zip(rows);
    let matrices: Vec<((usize, f64), Vec<f64>)> = sizes.zip(moments).collect();
    let whitened = workers.map(&matrices, |((d_in, rows), moments)| whiten(*d_in, moments, *rows, ridge));
    Ok(whitened.into_iter().collect::<CandleResult<_>>()?)
}

/// Of every matrix, how many inputs `x` it has in these texts, and `x^T x` over them.
fn pass_moments(
    model: &Model,
    states: &HiddenStates,
    texts: &[usize],
) -> Result<(Vec<f64>, Vec<Vec<f32>>), TrainingError> {
    let read = texts.iter().map(|&text| states.state(text)).collect::<Result<Vec<_>, _>>()?;
    let extents: Vec<Extent> = read.iter().map(|state| state.passage.extent()).collect();
    let hidden: Vec<&Tensor> = read.iter().map(|state| &state.hidden).collect();
    let moments = Moments { base: model.base(), grams: Mutex::new(vec![Vec::new(); model.editable().len()]) };
    model.network().tail(&Tensor::cat(&hidden, 0)?, &extents, Rows::All, &moments, None)?;
    let grams = moments.grams.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let rows = |matrix| model.network().rows_of(matrix, &extents, Rows::All).iter().map(Vec::len).sum::<usize>() as f64;
    Ok(((0..grams.len()).map(rows).collect(), grams))
}

/// Multiplies by the base weights and keeps `x^T x`.
struct Moments<'a> {
    base: &'a DenseMatrices,
    grams: Mutex<Vec<Vec<f32>>>,
}

impl Projection for Moments<'_> {
    fn project(&self, matrix: usize, x: &Tensor) -> CandleResult<Tensor> {
        let gram = x.t()?.contiguous()?.matmul(x)?.flatten_all()?.to_vec1()?;
        self.grams.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[matrix] = gram;
        self.base.project(matrix, x)
    }
}

fn whiten(d_in: usize, moments: &[f64], rows: f64, ridge: f64) -> CandleResult<Tensor> {
    let moment = |i: usize, j: usize| moments[i * d_in + j] / rows;
    let sizes: Vec<f64> = (0..d_in).map(|i| moment(i, i).sqrt()).collect();
    let shift = ridge * sizes.iter().map(|size| size * size).sum::<f64>() / d_in as f64;
    let shifted = Mat::from_fn(d_in, d_in, |i, j| moment(i, j) + if i == j { shift } else { 0.0 });
    let scaled = shifted.partial_piv_lu().solve(Mat::from_fn(d_in, d_in, |i, j| if i == j { sizes[j] } else { 0.0 }));
    // The mean over inputs x, in units z = x / sizes, of x . (whitening z), before and after.
    let after: f64 =
        (0..d_in).map(|i| (0..d_in).map(|j| moment(i, j) * scaled[(i, j)] / sizes[j].max(1e-30)).sum::<f64>()).sum();
    let scale = sizes.iter().sum::<f64>() / after;
    let values: Vec<f32> =
        (0..d_in * d_in).map(|at| f16::from_f64(scaled[(at / d_in, at % d_in)] * scale).to_f32()).collect();
    Tensor::from_vec(values, (d_in, d_in), &Device::Cpu)
}
