//! Training a gate ([`crate::editor::gate`]): a metric under which the input at an answer behind a paraphrase is near to that behind
//! the prompt, and what no edit is about is near to none.
//!
//! The inputs of the first editable matrix are the base model's own, so they are computed once, and a step is a few small products.
//! They are centred and whitened by what tells wordings apart: with `D` the second moment of the difference between the inputs at an
//! answer behind a record's prompt and behind its paraphrase, by `B = (D + e I)^-1/2`; the map begins as the directions in which whitened
//! inputs vary most. A step draws records, in sets of several sizes; a paraphrase should be given to its own edit among its
//! set, or to silence if its edit is not in it; a neighbour, a position of running text, and what comes before the answer or after it in the
//! record's own texts, to silence: cross entropies over the shares. The threshold and what it gains
//! with the number of edits are then set on records that were held out, so that a given share of their neighbours meets silence.

use std::{ops::Range, sync::Mutex};

use candle_core::{D, DType, Device, Result as CandleResult, Tensor, Var};
use faer::{Mat, Side};
use rand::{Rng, SeedableRng, seq::index::sample};
use rand_chacha::ChaCha8Rng;

use super::{
    TrainingError, cache::HiddenStates, corpus::Corpus, factors::FactorCache, optimizer::Adam, parallel::Workers,
};
use crate::{
    editor::gate::{Gate, Scalars},
    model::{DenseMatrices, Extent, Model, Passage, Projection, Rows},
};

/// Texts in one pass.
const PASS: usize = 16;
/// Most rows of the map.
const RANK: usize = 256;
/// `e`, as a share of the mean of the diagonal of `D`.
const RIDGE: f64 = 0.05;
/// Length of the whitened inputs, as the root of their mean square.
const LENGTH: f64 = 24.0;
/// Records of a step, and positions of running text.
const BATCH: usize = 1024;
const TEXT_BATCH: usize = 512;
/// Sizes of the sets that the records of a step are taken in.
const SETS: [usize; 6] = [1, 4, 16, 64, 512, 1024];
/// What a set's weight gains with the logarithm of its size.
const SET_WEIGHT: f64 = 0.5;
const STEPS: u64 = 500;
const WARMUP: u64 = 30;
const LEARNING_RATE: f64 = 3e-3;
/// Of the sharpness, the threshold and its growth.
const SCALAR_RATE: f64 = 1e-2;
/// Weights of cross entropies beside those of paraphrases and neighbours: of running text, of other places in the record's own
/// texts, of paraphrases of edits that are not active.
const TEXT_WEIGHT: f64 = 0.3;
const ELSEWHERE_WEIGHT: f64 = 0.5;
const STRANGER_WEIGHT: f64 = 0.5;
/// Other places that are kept of each record.
const ELSEWHERE: usize = 6;
/// Standard deviation of what is added to whitened inputs in each dimension.
const NOISE: f32 = 0.1;
/// What the logarithm of the sharpness, the threshold and its growth start at.
const INITIAL: [f32; 3] = [2.5, 0.5, 0.03];
/// One record in so many is held out of the fit, and the threshold is set on these: the fit knows its own paraphrases by heart.
const HELD_OUT: usize = 12;
/// Numbers of active edits at which the threshold is set, each with the share of the neighbours that is then given to silence.
/// Less is asked where few edits are active: the one that speaks at a neighbour is then the neighbour's own, which its editor
/// teaches to leave it alone; of many it is another.
const SILENT: [(usize, f64); 4] = [(1, 0.65), (10, 0.70), (100, 0.75), (800, 0.75)];

/// What a gate is trained on.
pub struct Sources<'a> {
    pub model: &'a Model,
    pub states: &'a HiddenStates,
    pub factors: &'a FactorCache<'a>,
    pub records: &'a [usize],
    /// Windows of running text.
    pub windows: &'a [usize],
    pub workers: &'a Workers,
}

/// Trains a gate; a function of the sources and the seed.
pub fn train(sources: &Sources<'_>, seed: u64) -> Result<Gate, TrainingError> {
    let inputs = Inputs::of(sources)?;
    // On one thread, whatever the others are: how a decomposition is shared out shows in its bits.
    Workers::new(1)?.run(|| {
        // Every so many, for records of one kind follow each other.
        let (held_out, fitted): (Vec<_>, Vec<_>) =
            inputs.record_rows().into_iter().enumerate().partition(|(record, _)| record % HELD_OUT == HELD_OUT - 1);
        let rows = |records: Vec<(usize, Range<usize>)>| records.into_iter().map(|(_, rows)| rows).collect::<Vec<_>>();
        let gate = fit(&inputs, &rows(fitted), &Frame::of(&inputs)?, seed)?;
        Ok(calibrated(gate, &inputs, &rows(held_out))?)
    })
}

/// Inputs of the first editable matrix.
struct Inputs {
    /// At an answer behind a prompt, behind its paraphrase, and at the answer of its record's neighbour, `[n, d_in]` each.
    prompts: Tensor,
    paraphrases: Tensor,
    neighbours: Tensor,
    /// In the record's own texts where its answer is not due, [`ELSEWHERE`] for each of the `n`.
    elsewhere: Tensor,
    /// At positions of running text, `[m, d_in]`.
    text: Option<Tensor>,
    /// Which record each of the `n` belongs to, never falling.
    records: Vec<usize>,
}

impl Inputs {
    fn of(sources: &Sources<'_>) -> Result<Self, TrainingError> {
        let answers = |index: fn(usize) -> usize| {
            let texts: Vec<usize> = sources.records.iter().map(|record| index(*record)).collect();
            sources.inputs(&texts, Passage::predicting)
        };
        let (paraphrases, neighbours) = (answers(Corpus::paraphrase)?, answers(Corpus::locality)?);
        let [about, again] = [Corpus::prompt, Corpus::paraphrase].map(|index| {
            let texts: Vec<usize> = sources.records.iter().map(|record| index(*record)).collect();
            sources.inputs(&texts, elsewhere)
        });
        let mut elsewhere = about?.into_iter().zip(again?);
        let mut kept: [Vec<Tensor>; 4] = Default::default();
        let mut records = Vec::new();
        let captured = sources.factors.of(sources.records, sources.workers)?;
        for (record, ((captured, paraphrase), neighbour)) in
            captured.iter().zip(paraphrases).zip(neighbours).enumerate()
        {
            let prompt = &captured.factors[0].u;
            let beside = elsewhere.next();
            // A row without a gradient is no key; what is compared must be at the same token of the answer.
            if prompt.dims() != paraphrase.dims() || prompt.dim(0)? == 0 {
                continue;
            }
            let rows = prompt.dim(0)?;
            records.extend(std::iter::repeat_n(record, rows));
            // Of a neighbour's answer as many rows, from its first on, again and again.
            let own: Vec<u32> = (0..rows as u32).map(|row| row % neighbour.dims()[0] as u32).collect();
            kept[0].push(prompt.clone());
            kept[1].push(paraphrase);
            kept[2].push(neighbour.index_select(&Tensor::new(own, &Device::Cpu)?, 0)?);
            if let Some((about, again)) = beside {
                let beside = Tensor::cat(&[about, again], 0)?;
                kept[3].extend(std::iter::repeat_n(beside, rows));
            }
        }
        if records.is_empty() {
            return Err(TrainingError::Refused("no record has a key that a gate could be trained on".to_owned()));
        }
        let text = sources.inputs(sources.windows, |passage| (0..passage.ids.len() as u32).collect())?;
        let text = if text.is_empty() { None } else { Some(Tensor::cat(&text, 0)?) };
        let [prompts, paraphrases, neighbours, elsewhere] = kept.map(|rows| Tensor::cat(&rows, 0));
        let (prompts, paraphrases, neighbours, elsewhere) = (prompts?, paraphrases?, neighbours?, elsewhere?);
        Ok(Self { prompts, paraphrases, neighbours, elsewhere, text, records })
    }
}

/// Three places of a text where its answer is not due: behind it, just before it, and half-way to it.
fn elsewhere(passage: &Passage) -> Vec<u32> {
    let behind = passage.ids.len() as u32 - 1;
    match passage.predicting().first() {
        Some(first) if *first > 0 => vec![behind, first - 1, (first - 1) / 2],
        _ => vec![behind; 3],
    }
}

impl Inputs {
    /// Where the rows of each record stand.
    fn record_rows(&self) -> Vec<Range<usize>> {
        let mut start = 0;
        let ranges = self.records.chunk_by(|a, b| a == b).map(|rows| {
            start += rows.len();
            start - rows.len()..start
        });
        ranges.collect()
    }
}

impl Sources<'_> {
    /// What enters the first editable matrix in each of these texts, at the positions that `wanted` names.
    fn inputs(
        &self,
        texts: &[usize],
        wanted: impl Fn(&Passage) -> Vec<u32> + Sync + Send,
    ) -> Result<Vec<Tensor>, TrainingError> {
        let passes: Vec<&[usize]> = texts.chunks(PASS).collect();
        let passed = self.workers.map(&passes, |texts| {
            let read = texts.iter().map(|&text| self.states.state(text)).collect::<Result<Vec<_>, _>>()?;
            let extents: Vec<Extent> = read.iter().map(|state| state.passage.extent()).collect();
            let hidden: Vec<&Tensor> = read.iter().map(|state| &state.hidden).collect();
            // One row of the top block is the least that it can be asked for.
            let last: Vec<Vec<u32>> = read.iter().map(|state| vec![state.passage.ids.len() as u32 - 1]).collect();
            let first = First { base: self.model.base(), seen: Mutex::new(None) };
            let rows = if self.model.network().shape().tail_blocks > 1 { Rows::At(&last) } else { Rows::All };
            self.model.network().tail(&Tensor::cat(&hidden, 0)?, &extents, rows, &first, None)?;
            let seen = first.seen.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            let seen = seen.ok_or_else(|| candle_core::Error::Msg("the tail has no editable matrix".to_owned()))?;
            let mut start = 0;
            let own = read.iter().map(|state| {
                let rows: Vec<u32> = wanted(&state.passage).iter().map(|row| start + row).collect();
                start += state.passage.ids.len() as u32;
                seen.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)
            });
            Ok::<_, TrainingError>(own.collect::<CandleResult<Vec<_>>>()?)
        });
        Ok(passed.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }
}

/// Multiplies by the base weights and keeps what entered the first matrix.
struct First<'a> {
    base: &'a DenseMatrices,
    seen: Mutex<Option<Tensor>>,
}

impl Projection for First<'_> {
    fn project(&self, matrix: usize, x: &Tensor) -> CandleResult<Tensor> {
        if matrix == 0 {
            *self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(x.clone());
        }
        self.base.project(matrix, x)
    }
}

/// How inputs are centred and whitened, and where the map begins.
struct Frame {
    /// `[d_in]`
    mean: Tensor,
    /// `B` times what makes whitened inputs as long as they should be, `[d_in, d_in]`, symmetric.
    whitening: Tensor,
    /// `[r, d_in]`, on whitened inputs.
    map: Tensor,
}

impl Frame {
    fn of(inputs: &Inputs) -> Result<Self, TrainingError> {
        let all = Tensor::cat(&[&inputs.prompts, &inputs.paraphrases, &inputs.neighbours], 0)?;
        let mean = all.mean(0)?;
        let centred = all.broadcast_sub(&mean)?;
        let width = mean.dim(0)?;
        let apart = moment(&(&inputs.prompts - &inputs.paraphrases)?)?;
        let ridge = RIDGE * (0..width).map(|i| apart[(i, i)]).sum::<f64>() / width as f64;
        let shifted = Mat::from_fn(width, width, |i, j| apart[(i, j)] + if i == j { ridge } else { 0.0 });
        let (sizes, axes) = eigen(&shifted)?;
        let inverse = Mat::from_fn(width, width, |i, j| axes[(i, j)] / sizes[j].max(1e-12).sqrt());
        let root = &inverse * axes.transpose();
        let varied = &root * moment(&centred)? * &root;
        let (_, axes) = eigen(&varied)?;
        let rank = RANK.min(width);
        // The last are the largest.
        let map: Vec<f32> = (0..rank * width).map(|at| axes[(at % width, width - 1 - at / width)] as f32).collect();
        let length = (0..width).map(|i| varied[(i, i)]).sum::<f64>().sqrt();
        let whitening: Vec<f32> =
            (0..width * width).map(|at| (root[(at / width, at % width)] * LENGTH / length) as f32).collect();
        Ok(Self {
            mean,
            whitening: Tensor::from_vec(whitening, (width, width), &Device::Cpu)?,
            map: Tensor::from_vec(map, (rank, width), &Device::Cpu)?,
        })
    }

    fn whitened(&self, x: &Tensor) -> CandleResult<Tensor> {
        x.broadcast_sub(&self.mean)?.matmul(&self.whitening)
    }
}

/// `x^T x / n`, `x [n, width]`.
fn moment(x: &Tensor) -> CandleResult<Mat<f64>> {
    let (n, width) = x.dims2()?;
    let sum = x.t()?.contiguous()?.matmul(x)?.to_vec2::<f32>()?;
    Ok(Mat::from_fn(width, width, |i, j| f64::from(sum[i][j]) / n as f64))
}

/// Eigenvalues, rising, and eigenvectors as columns.
fn eigen(matrix: &Mat<f64>) -> Result<(Vec<f64>, Mat<f64>), TrainingError> {
    let failed = |_| TrainingError::Refused("the inputs that a gate is trained on have no eigenvectors".to_owned());
    let eigen = matrix.self_adjoint_eigen(Side::Lower).map_err(failed)?;
    let sizes = (0..matrix.nrows()).map(|i| eigen.S()[i]).collect();
    Ok((sizes, eigen.U().to_owned()))
}

/// The variables of a gate in training.
struct Variables {
    map: Var,
    /// Logarithm of the sharpness, threshold, growth.
    scalars: Var,
}

impl Variables {
    /// As [`Gate::read`], on whitened inputs.
    fn read(&self, x: &Tensor) -> CandleResult<Tensor> {
        let seen = x.matmul(&self.map.t()?)?;
        let length = (seen.sqr()?.sum_keepdim(D::Minus1)? + 1e-12)?.sqrt()?;
        seen.broadcast_div(&length)
    }

    /// Logarithms of the shares of silence and of each of `m` edits at similarities `[g, q, m]`: `[g, q, 1 + m]`.
    fn log_shares(&self, similarities: &Tensor) -> CandleResult<Tensor> {
        let (groups, asking, size) = similarities.dims3()?;
        let scalar = |index| self.scalars.narrow(0, index, 1);
        let silence = (scalar(1)? + (scalar(2)? * (size as f64).ln())?)?;
        let silence = silence.reshape((1, 1, 1))?.broadcast_as((groups, asking, 1))?;
        let all = Tensor::cat(&[&silence, similarities], 2)?;
        candle_nn::ops::log_softmax(&all.broadcast_mul(&scalar(0)?.exp()?)?, D::Minus1)
    }

    fn loss(&self, batch: &Batch) -> CandleResult<Tensor> {
        let [keys, paraphrases, neighbours, elsewhere] =
            [&batch.prompts, &batch.paraphrases, &batch.neighbours, &batch.elsewhere].map(|rows| self.read(rows));
        let (keys, paraphrases, neighbours, elsewhere) = (keys?, paraphrases?, neighbours?, elsewhere?);
        let text = batch.text.as_ref().map(|text| self.read(text)).transpose()?;
        let likeness = batch.likeness()?;
        let (count, rank) = keys.dims2()?;
        let sizes: Vec<usize> = SETS.into_iter().filter(|size| *size <= count).collect();
        let weight = |size: usize| 1.0 + SET_WEIGHT * (size as f64).ln();
        let weights: f64 = sizes.iter().map(|size| weight(*size)).sum();
        let mut total = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        for &size in &sizes {
            let groups = count / size;
            let in_groups = |rows: &Tensor| rows.narrow(0, 0, groups * size)?.reshape((groups, size, rank));
            let own = in_groups(&keys)?.transpose(1, 2)?.contiguous()?;
            let shares = |asking: &Tensor| self.log_shares(&in_groups(asking)?.matmul(&own)?);
            let eye = Tensor::eye(size, DType::F32, &Device::Cpu)?;
            let silence = |asking: &Tensor| shares(asking)?.narrow(2, 0, 1)?.mean_all();
            let said = shares(&paraphrases)?.narrow(2, 1, size)?.broadcast_mul(&eye)?.sum_all()?;
            let mut likely = ((said / (groups * size) as f64)? + silence(&neighbours)?)?;
            likely = (likely + (silence(&elsewhere)? * ELSEWHERE_WEIGHT)?)?;
            if groups > 1 {
                let strangers = paraphrases.index_select(&strangers(&likeness, size)?, 0)?;
                likely = (likely + (silence(&strangers)? * STRANGER_WEIGHT)?)?;
            }
            if let Some(text) = &text {
                let shares = self.log_shares(&text.unsqueeze(0)?.matmul(&own.narrow(0, 0, 1)?)?)?;
                likely = (likely + (shares.narrow(2, 0, 1)?.mean_all()? * TEXT_WEIGHT)?)?;
            }
            total = (total - (likely * (weight(size) / weights))?)?;
        }
        Ok(total)
    }
}

/// Whitened inputs of a step.
struct Batch {
    prompts: Tensor,
    paraphrases: Tensor,
    neighbours: Tensor,
    elsewhere: Tensor,
    text: Option<Tensor>,
}

impl Batch {
    /// How like each record's key is to each other's, `[n][n]`.
    fn likeness(&self) -> CandleResult<Vec<Vec<f32>>> {
        let length = (self.prompts.sqr()?.sum_keepdim(D::Minus1)? + 1e-12)?.sqrt()?;
        let keys = self.prompts.broadcast_div(&length)?;
        keys.matmul(&keys.t()?)?.to_vec2()
    }
}

/// For each record, the one outside of its set of `size` whose key is most like its own: the hardest to tell from those of the
/// set. `[n]`, u32.
fn strangers(likeness: &[Vec<f32>], size: usize) -> CandleResult<Tensor> {
    let nearest = |(own, alike): (usize, &Vec<f32>)| {
        let others = alike.iter().enumerate().filter(|(other, _)| other / size != own / size);
        others.max_by(|a, b| a.1.total_cmp(b.1)).map_or(own as u32, |(other, _)| other as u32)
    };
    Tensor::new(likeness.iter().enumerate().map(nearest).collect::<Vec<_>>(), &Device::Cpu)
}

fn fit(inputs: &Inputs, records: &[Range<usize>], frame: &Frame, seed: u64) -> CandleResult<Gate> {
    let whitened = Batch {
        prompts: frame.whitened(&inputs.prompts)?,
        paraphrases: frame.whitened(&inputs.paraphrases)?,
        neighbours: frame.whitened(&inputs.neighbours)?,
        elsewhere: frame.whitened(&inputs.elsewhere)?,
        text: inputs.text.as_ref().map(|text| frame.whitened(text)).transpose()?,
    };
    let variables = Variables { map: Var::from_tensor(&frame.map)?, scalars: Var::new(&INITIAL, &Device::Cpu)? };
    let named = [("map", &variables.map, LEARNING_RATE), ("scalars", &variables.scalars, SCALAR_RATE)];
    let mut adam = Adam::new(named.map(|(name, variable, rate)| (name.to_owned(), variable.clone(), rate)));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for step in 0..STEPS {
        let loss = variables.loss(&drawn(&whitened, records, &mut rng)?)?;
        let gradients = adam.gradients(&loss.backward()?)?;
        adam.update(&gradients, schedule(step), f64::INFINITY)?;
    }
    let scalars = variables.scalars.to_vec1::<f32>()?;
    Ok(Gate {
        map: variables.map.as_tensor().detach().matmul(&frame.whitening)?,
        mean: frame.mean.clone(),
        scalars: Scalars { sharpness: scalars[0].exp(), threshold: scalars[1], growth: scalars[2] },
    })
}

/// Up, and down in a cosine.
fn schedule(step: u64) -> f64 {
    let up = ((step + 1) as f64 / WARMUP as f64).min(1.0);
    up * 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / STEPS as f64).cos())
}

/// A row of each of some records, with noise.
fn drawn(all: &Batch, records: &[Range<usize>], rng: &mut ChaCha8Rng) -> CandleResult<Batch> {
    let own = sample(rng, records.len(), BATCH.min(records.len()));
    let rows: Vec<u32> = own.into_iter().map(|record| rng.random_range(records[record].clone()) as u32).collect();
    let beside: Vec<u32> =
        rows.iter().map(|row| row * ELSEWHERE as u32 + rng.random_range(0..ELSEWHERE) as u32).collect();
    let (rows, beside) = (Tensor::new(rows, &Device::Cpu)?, Tensor::new(beside, &Device::Cpu)?);
    let text = match &all.text {
        Some(text) => {
            let positions = sample(rng, text.dim(0)?, TEXT_BATCH.min(text.dim(0)?)).into_iter();
            let positions: Vec<u32> = positions.map(|position| position as u32).collect();
            Some(noisy(&text.index_select(&Tensor::new(positions, &Device::Cpu)?, 0)?, rng)?)
        }
        None => None,
    };
    Ok(Batch {
        prompts: noisy(&all.prompts.index_select(&rows, 0)?, rng)?,
        paraphrases: noisy(&all.paraphrases.index_select(&rows, 0)?, rng)?,
        neighbours: noisy(&all.neighbours.index_select(&rows, 0)?, rng)?,
        elsewhere: noisy(&all.elsewhere.index_select(&beside, 0)?, rng)?,
        text,
    })
}

/// With uniform noise of the standard deviation [`NOISE`].
fn noisy(x: &Tensor, rng: &mut ChaCha8Rng) -> CandleResult<Tensor> {
    let most = NOISE * 3f32.sqrt();
    let noise: Vec<f32> = (0..x.elem_count()).map(|_| rng.random_range(-most..most)).collect();
    x + Tensor::from_vec(noise, x.shape(), x.device())?
}

/// The gate with the threshold, and its growth, that come nearest to what [`SILENT`] asks for on the neighbours of `records`: by least
/// squares.
fn calibrated(gate: Gate, inputs: &Inputs, records: &[Range<usize>]) -> CandleResult<Gate> {
    let mut points = Vec::with_capacity(SILENT.len());
    for (number, silent) in SILENT.into_iter().filter(|(number, _)| *number <= records.len()) {
        let mut thresholds = Vec::new();
        for group in records.chunks_exact(number) {
            thresholds.extend(thresholds_of(&gate, inputs, group)?);
        }
        thresholds.sort_by(f64::total_cmp);
        let at = ((thresholds.len() - 1) as f64 * silent).round() as usize;
        points.push(((number as f64).ln(), thresholds[at]));
    }
    let scalars = match line(&points) {
        Some((threshold, growth)) => {
            Scalars { threshold: threshold as f32, growth: growth.max(0.0) as f32, ..gate.scalars }
        }
        // So few records that none was held out.
        None => gate.scalars,
    };
    Ok(Gate { scalars, ..gate })
}

/// At each neighbour of a group whose edits are all active, the threshold at which silence would have half of the voice.
fn thresholds_of(gate: &Gate, inputs: &Inputs, group: &[Range<usize>]) -> CandleResult<Vec<f64>> {
    let rows: Vec<u32> = group.iter().flat_map(|rows| rows.clone().map(|row| row as u32)).collect();
    let rows = Tensor::new(rows, &Device::Cpu)?;
    let read = |all: &Tensor| gate.read(&all.index_select(&rows, 0)?);
    let similar = read(&inputs.neighbours)?.matmul(&read(&inputs.prompts)?.t()?)?.to_vec2::<f32>()?;
    let sharpness = f64::from(gate.scalars.sharpness);
    let threshold = |similar: &Vec<f32>| {
        let mut rest = similar.as_slice();
        let mut total = 0.0;
        for keys in group {
            let (own, others) = rest.split_at(keys.len());
            rest = others;
            total += (sharpness * f64::from(own.iter().copied().fold(-1.0, f32::max))).exp();
        }
        total.ln() / sharpness
    };
    Ok(similar.iter().map(threshold).collect())
}

/// The least-squares line through points, as its value at 0 and its slope; level through one point, none through none.
fn line(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let slope = match points.len() {
        0 => return None,
        1 => 0.0,
        _ => points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / spread,
    };
    Some((y - slope * x, slope))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::random;

    /// Inputs of records whose key is a direction of its own beside much that they share; wordings differ in another dimension.
    fn inputs(records: usize) -> Inputs {
        const WIDTH: usize = 16;
        let own = random(&[records, WIDTH - 1], 1);
        let with = |wording: f32, own: &Tensor| {
            let wording = Tensor::full(wording, (records, 1), &Device::Cpu).unwrap();
            let noise = random(&[records, 1], 2).affine(0.5, 0.0).unwrap();
            Tensor::cat(&[own.clone(), (wording + noise).unwrap()], 1).unwrap()
        };
        Inputs {
            prompts: with(0.0, &own),
            paraphrases: with(3.0, &own),
            neighbours: with(0.0, &random(&[records, WIDTH - 1], 3)),
            elsewhere: random(&[records * ELSEWHERE, WIDTH], 5),
            text: Some(random(&[records, WIDTH], 4)),
            records: (0..records).collect(),
        }
    }

    /// Of the last records, which the fit does not see: how many paraphrases are given to their own edit, and how many
    /// neighbours to silence.
    #[test]
    fn paraphrases_of_other_records_are_known_and_their_neighbours_are_not() {
        let inputs = inputs(240);
        let records = inputs.record_rows();
        let (fitted, unseen) = records.split_at(200);
        let (fitted, held_out) = fitted.split_at(180);
        let gate = fit(&inputs, fitted, &Frame::of(&inputs).unwrap(), 0).unwrap();
        let gate = calibrated(gate, &inputs, held_out).unwrap();
        let read =
            |rows: &Tensor| gate.read(&rows.narrow(0, 200, unseen.len()).unwrap().contiguous().unwrap()).unwrap();
        let keys = read(&inputs.prompts).t().unwrap();
        let speakers = |rows: &Tensor| -> Vec<_> {
            let similar = read(rows).matmul(&keys).unwrap().to_vec2::<f32>().unwrap();
            similar.iter().map(|row| gate.speakers(row, &vec![1; unseen.len()])).collect()
        };
        let most = |own: &[(usize, f32)]| own.iter().find(|(_, share)| *share > 0.5).map(|(edit, _)| *edit);
        let known = speakers(&inputs.paraphrases).iter().enumerate().filter(|(i, own)| most(own) == Some(*i)).count();
        let silent = speakers(&inputs.neighbours).iter().filter(|own| most(own).is_none()).count();
        assert!(known >= 36 && silent >= 28, "{known} known, {silent} silent, of 40");
    }

    #[test]
    fn a_stranger_is_the_nearest_of_another_set() {
        let likeness = vec![vec![1.0, 0.9, 0.1, 0.2], vec![0.9, 1.0, 0.3, 0.1], vec![0.1, 0.3, 1.0, 0.8], vec![0.2; 4]];
        let of = |size| strangers(&likeness, size).unwrap().to_vec1::<u32>().unwrap();
        assert_eq!(of(1)[..3], [1, 0, 3]);
        assert_eq!(of(2)[..3], [3, 2, 1]);
    }

    #[test]
    fn a_line_through_points() {
        assert_eq!(line(&[]), None);
        assert_eq!(line(&[(2.0, 5.0)]), Some((5.0, 0.0)));
        let (at_zero, slope) = line(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]).unwrap();
        assert!((at_zero - 1.0).abs() < 1e-12 && (slope - 2.0).abs() < 1e-12);
    }
}
