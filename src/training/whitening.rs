//! Whitening: how a reading direction is turned away from what a matrix commonly sees, and from what tells two ways to put
//! the same question apart.
//!
//! With `C` the second moment of a matrix's inputs on texts that no edit is about, `D` that of the difference between its
//! inputs at an answer behind the prompt and behind the paraphrase, and `S` the square roots of the diagonal of `C`, the
//! whitening is `c (C + p D + e I)^-1 S`: the reading direction `u~`, which the network gives in units of the deviations,
//! becomes the one that answers `u~` most for how little it answers those texts (as in ROME and MEMIT, whose keys are
//! multiplied by `C^-1`) and those differences (as in linear discriminant analysis: a solve that holds at one wording then
//! holds at others). The ridge `e` is a share of the mean of the diagonal, and `c` keeps the size of what a direction says at
//! its own input about what it would be without.

use std::sync::Mutex;

use candle_core::{Device, Result as CandleResult, Tensor};
use faer::{Mat, linalg::solvers::Solve};
use half::f16;

use super::{TrainingError, cache::HiddenStates, corpus::Corpus, parallel::Workers};
use crate::model::{
    DenseMatrices, Extent, Model, Projection, Rows,
    capture::{self, Captured},
};

/// Texts in one pass.
const PASS: usize = 16;

/// What a whitening is made of.
pub struct Sources<'a> {
    /// Texts that no edit is about.
    pub still: &'a [usize],
    /// Records, whose prompts and paraphrases are compared.
    pub records: &'a [usize],
}

/// How much of each goes in.
#[derive(Debug, Clone, Copy)]
pub struct Shares {
    /// `e`, a share of the mean of the diagonal of `C`.
    pub ridge: f64,
    /// `p`; 0 leaves the paraphrases out.
    pub paraphrases: f64,
}

/// The whitening of every matrix, `[d_in, d_in]`, from the inputs that `sources` give it under the base weights. Rounded to
/// f16, as an editor's file holds it, so that what is trained with is what is served.
pub fn whitening(
    model: &Model,
    states: &HiddenStates,
    sources: &Sources<'_>,
    shares: Shares,
    workers: &Workers,
) -> Result<Vec<Tensor>, TrainingError> {
    let still = moments(model, sources.still, workers, |texts| pass_moments(model, states, texts))?;
    let records = if shares.paraphrases > 0.0 { sources.records } else { &[] };
    let differences = moments(model, records, workers, |records| pass_differences(model, states, records))?;
    let pairs: Vec<(Moment, Moment)> = still.into_iter().zip(differences).collect();
    let whitened = workers.map(&pairs, |(still, difference)| whiten(still, difference, shares));
    Ok(whitened.into_iter().collect::<CandleResult<_>>()?)
}

/// A second moment, as its sum.
struct Moment {
    width: usize,
    rows: f64,
    /// `x^T x` over all rows, `[width, width]`.
    sum: Vec<f64>,
}

impl Moment {
    fn at(&self, i: usize, j: usize) -> f64 {
        self.sum[i * self.width + j] / self.rows.max(1.0)
    }
}

/// Of every matrix, how many inputs it has, and `x^T x` over them.
type PassMoments = (Vec<f64>, Vec<Vec<f32>>);

/// The moments of what `pass` makes of `items`, a few at a time.
fn moments(
    model: &Model,
    items: &[usize],
    workers: &Workers,
    pass: impl Fn(&[usize]) -> Result<PassMoments, TrainingError> + Sync + Send,
) -> Result<Vec<Moment>, TrainingError> {
    let widths = model.editable().iter().map(|matrix| matrix.d_in);
    let mut moments: Vec<Moment> =
        widths.map(|width| Moment { width, rows: 0.0, sum: vec![0.0; width * width] }).collect();
    let passes: Vec<&[usize]> = items.chunks(PASS).collect();
    for round in passes.chunks(workers.count()) {
        for passed in workers.map(round, |items| pass(items)) {
            let (rows, grams) = passed?;
            for ((moment, rows), gram) in moments.iter_mut().zip(rows).zip(grams) {
                moment.rows += rows;
                moment.sum.iter_mut().zip(gram).for_each(|(sum, value)| *sum += f64::from(value));
            }
        }
    }
    Ok(moments)
}

/// Of the inputs in these texts.
fn pass_moments(model: &Model, states: &HiddenStates, texts: &[usize]) -> Result<PassMoments, TrainingError> {
    let read = texts.iter().map(|&text| states.state(text)).collect::<Result<Vec<_>, _>>()?;
    let extents: Vec<Extent> = read.iter().map(|state| state.passage.extent()).collect();
    let hidden: Vec<&Tensor> = read.iter().map(|state| &state.hidden).collect();
    let moments = Moments { base: model.base(), grams: Mutex::new(vec![Vec::new(); model.editable().len()]) };
    model.network().tail(&Tensor::cat(&hidden, 0)?, &extents, Rows::All, &moments, None)?;
    let grams = moments.grams.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let rows = |matrix| model.network().rows_of(matrix, &extents, Rows::All).iter().map(Vec::len).sum::<usize>() as f64;
    Ok(((0..grams.len()).map(rows).collect(), grams))
}

/// Of the differences between the inputs at each record's answer behind its prompt and behind its paraphrase. A matrix that
/// reads the question itself has as many inputs as the question has tokens; where these are not as many, it has none to compare.
fn pass_differences(model: &Model, states: &HiddenStates, records: &[usize]) -> Result<PassMoments, TrainingError> {
    let answers = |text: fn(usize) -> usize| -> Result<Vec<Captured>, TrainingError> {
        let read = records.iter().map(|&record| states.state(text(record))).collect::<Result<Vec<_>, _>>()?;
        let captured = capture::capture(model, &read)?;
        Ok(captured.iter().map(Captured::at_answers).collect::<CandleResult<_>>()?)
    };
    let (prompts, paraphrases) = (answers(Corpus::prompt)?, answers(Corpus::paraphrase)?);
    let of_matrix = |matrix: usize| {
        let mut differences = Vec::new();
        for (prompt, paraphrase) in prompts.iter().zip(&paraphrases) {
            let (prompt, paraphrase) = (&prompt.factors[matrix].u, &paraphrase.factors[matrix].u);
            if prompt.dims() == paraphrase.dims() {
                differences.push((prompt - paraphrase)?);
            }
        }
        if differences.is_empty() {
            return Ok((0.0, Vec::new()));
        }
        let x = Tensor::cat(&differences, 0)?;
        Ok((x.dim(0)? as f64, gram(&x)?))
    };
    let moments = (0..model.editable().len()).map(of_matrix).collect::<CandleResult<Vec<_>>>()?;
    Ok(moments.into_iter().unzip())
}

fn gram(x: &Tensor) -> CandleResult<Vec<f32>> {
    x.t()?.contiguous()?.matmul(x)?.flatten_all()?.to_vec1()
}

/// Multiplies by the base weights and keeps `x^T x`.
struct Moments<'a> {
    base: &'a DenseMatrices,
    grams: Mutex<Vec<Vec<f32>>>,
}

impl Projection for Moments<'_> {
    fn project(&self, matrix: usize, x: &Tensor) -> CandleResult<Tensor> {
        self.grams.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[matrix] = gram(x)?;
        self.base.project(matrix, x)
    }
}

fn whiten(still: &Moment, difference: &Moment, shares: Shares) -> CandleResult<Tensor> {
    let width = still.width;
    let sizes: Vec<f64> = (0..width).map(|i| still.at(i, i).sqrt()).collect();
    let shift = shares.ridge * sizes.iter().map(|size| size * size).sum::<f64>() / width as f64;
    let shifted = Mat::from_fn(width, width, |i, j| {
        let unwanted = still.at(i, j) + shares.paraphrases * difference.at(i, j);
        if i == j { unwanted + shift } else { unwanted }
    });
    let scaled = shifted.partial_piv_lu().solve(Mat::from_fn(width, width, |i, j| if i == j { sizes[j] } else { 0.0 }));
    // The mean over inputs x, in units z = x / sizes, of x . (whitening z), before and after.
    let after: f64 = (0..width)
        .map(|i| (0..width).map(|j| still.at(i, j) * scaled[(i, j)] / sizes[j].max(1e-30)).sum::<f64>())
        .sum();
    let scale = sizes.iter().sum::<f64>() / after;
    let values: Vec<f32> =
        (0..width * width).map(|at| f16::from_f64(scaled[(at / width, at % width)] * scale).to_f32()).collect();
    Tensor::from_vec(values, (width, width), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How strongly an input along each axis is answered, the inputs being alike in all directions, and wordings being told
    /// apart by the first alone.
    fn answered(paraphrases: f64) -> Vec<f32> {
        let still = Moment { width: 3, rows: 2.0, sum: vec![2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0] };
        let difference = Moment { width: 3, rows: 4.0, sum: vec![4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0] };
        let whitening = whiten(&still, &difference, Shares { ridge: 0.0, paraphrases }).unwrap();
        let rows = whitening.to_vec2::<f32>().unwrap();
        (0..3).map(|i| rows[i][i]).collect()
    }

    #[test]
    fn what_tells_wordings_apart_is_answered_less() {
        assert_eq!(answered(0.0), [1.0; 3]);
        let [first, second, third] = answered(3.0)[..] else { panic!("three axes") };
        assert!((first * 4.0 - second).abs() < 1e-2 && (second - third).abs() < 1e-6, "{first} {second} {third}");
    }
}
