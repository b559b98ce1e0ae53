//! The map and the sharpness of a gate, by gradient descent.

use std::ops::Range;

use candle_core::{D, DType, Device, Result as CandleResult, Tensor, Var};
use rand::{Rng, SeedableRng, seq::index::sample};
use rand_chacha::ChaCha8Rng;

use super::{Frame, Inputs, inputs::ELSEWHERE};
use crate::{
    editor::gate::{Gate, Scalars},
    training::optimizer::Adam,
};

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
/// Standard deviation of what is added to whitened inputs in each dimension.
const NOISE: f32 = 0.1;
/// What the logarithm of the sharpness, the threshold and its growth start at.
const INITIAL: [f32; 3] = [2.5, 0.5, 0.03];

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

    /// Mean over the sizes of sets of the cross entropies at the top of [`super`].
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

/// Fits a gate to the rows of these records; its threshold is right for them alone.
pub fn fit(inputs: &Inputs, records: &[Range<usize>], frame: &Frame, seed: u64) -> CandleResult<Gate> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_is_the_nearest_of_another_set() {
        let likeness = vec![vec![1.0, 0.9, 0.1, 0.2], vec![0.9, 1.0, 0.3, 0.1], vec![0.1, 0.3, 1.0, 0.8], vec![0.2; 4]];
        let of = |size| strangers(&likeness, size).unwrap().to_vec1::<u32>().unwrap();
        assert_eq!(of(1)[..3], [1, 0, 3]);
        assert_eq!(of(2)[..3], [3, 2, 1]);
    }
}
