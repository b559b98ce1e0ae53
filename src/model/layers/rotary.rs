//! Rotary position embedding in the half-split layout, with Llama 3's frequency scaling.

use candle_core::{D, Device, Result, Tensor};
use serde::Deserialize;

use super::graft::graft;

/// Llama 3's frequency scaling (`rope_scaling` of type `llama3` in a Hugging Face config).
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Llama3Scaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_max_position_embeddings: f64,
}

impl Llama3Scaling {
    /// Slows low frequencies by `factor`, leaves high ones, and blends between.
    fn scale(&self, frequency: f64) -> f64 {
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        let rotations = self.original_max_position_embeddings / wavelength;
        if rotations >= self.high_freq_factor {
            return frequency;
        }
        if rotations <= self.low_freq_factor {
            return frequency / self.factor;
        }
        let blend = (rotations - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
        (1.0 - blend) * frequency / self.factor + blend * frequency
    }
}

/// How frequencies derive from the base.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum RopeScaling {
    #[default]
    None,
    /// All frequencies divided by this factor (type `linear`).
    Linear(f64),
    Llama3(Llama3Scaling),
    /// A divisor per frequency, as GGUF's `rope_freqs.weight` has them.
    Divisors(Vec<f32>),
}

impl RopeScaling {
    /// The numbers that frequencies are divided by: none may be zero.
    pub fn divisors(&self) -> impl Iterator<Item = f64> + '_ {
        let (factor, listed) = match self {
            Self::None => (None, [].as_slice()),
            Self::Linear(factor) | Self::Llama3(Llama3Scaling { factor, .. }) => (Some(*factor), [].as_slice()),
            Self::Divisors(divisors) => (None, divisors.as_slice()),
        };
        factor.into_iter().chain(listed.iter().map(|&divisor| f64::from(divisor)))
    }
}

/// The frequencies at which a head's dimensions turn, `[1, 1, head_dim / 2]`.
#[derive(Debug, Clone)]
pub struct Rotary {
    frequencies: Tensor,
}

impl Rotary {
    /// One frequency per pair of the `head_dim` dimensions that turn.
    pub fn new(head_dim: usize, base: f64, scaling: &RopeScaling, device: &Device) -> Result<Self> {
        let frequencies: Vec<f32> = (0..head_dim / 2)
            .map(|i| {
                let plain = 1.0 / base.powf(2.0 * i as f64 / head_dim as f64);
                let scaled = match scaling {
                    RopeScaling::None => plain,
                    RopeScaling::Linear(factor) => plain / factor,
                    RopeScaling::Llama3(llama3) => llama3.scale(plain),
                    RopeScaling::Divisors(divisors) => plain / f64::from(divisors.get(i).copied().unwrap_or(1.0)),
                };
                scaled as f32
            })
            .collect();
        Ok(Self { frequencies: Tensor::from_vec(frequencies, (1, 1, head_dim / 2), device)? })
    }

    /// The angles of these positions. Computed where they are needed: a table would take as much memory as the context
    /// that a file claims.
    pub fn at(&self, positions: &[u32]) -> Result<Angles> {
        let positions: Vec<f32> = positions.iter().map(|&position| position as f32).collect();
        let column = Tensor::new(positions, self.frequencies.device())?.reshape(((), 1, 1))?;
        let angles = column.broadcast_mul(&self.frequencies)?;
        Ok(Angles { cos: angles.cos()?, sin: angles.sin()? })
    }
}

/// Cosines and sines of some rows, `[rows, 1, head_dim / 2]`.
#[derive(Debug, Clone)]
pub struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Angles {
    /// Rotates `x [rows, heads, head_dim]`, each row by its own position; dimensions beyond those that have an angle stay.
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let (turned, width) = (2 * self.cos.dim(D::Minus1)?, x.dim(D::Minus1)?);
        if turned == width {
            return self.rotate_all(x);
        }
        let rest = x.narrow(D::Minus1, turned, width - turned)?;
        Tensor::cat(&[&self.rotate_all(&x.narrow(D::Minus1, 0, turned)?)?, &rest], D::Minus1)
    }

    fn rotate_all(&self, x: &Tensor) -> Result<Tensor> {
        let value = rotate(&x.detach(), &self.cos, &self.sin)?;
        let (cos, back) = (self.cos.clone(), self.sin.neg()?);
        // A rotation's transpose is the rotation back.
        graft(x, value, move |grad| rotate(grad, &cos, &back))
    }
}

/// The row order that turns projections made for interleaved rotation, pairs `(2i, 2i + 1)` of each head's first `turned`
/// dimensions, into projections for rotation by halves. Queries and keys in the same order have the same products.
pub fn halves_from_pairs(heads: usize, head_dim: usize, turned: usize) -> Vec<u32> {
    let pairs = (0..2).flat_map(|part| (0..turned / 2).map(move |i| 2 * i + part));
    let order: Vec<usize> = pairs.chain(turned..head_dim).collect();
    (0..heads).flat_map(|head| order.iter().map(move |&row| (head * head_dim + row) as u32)).collect()
}

fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    candle_nn::rotary_emb::rope(&x.contiguous()?.unsqueeze(2)?, cos, sin)?.squeeze(2)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::model::testing::{assert_close, random};

    #[test]
    fn rotation_and_its_gradient_equal_the_composed_ones() {
        let rotary = Rotary::new(8, 10_000.0, &RopeScaling::None, &Device::Cpu).unwrap();
        let positions: Vec<u32> = (0..5).collect();
        let angles = rotary.at(&positions).unwrap();
        let x = Var::from_tensor(&random(&[5, 3, 8], 1)).unwrap();
        let probe = random(&[5, 3, 8], 2);
        let composed = |x: &Tensor| {
            let x = x.transpose(0, 1).unwrap().unsqueeze(0).unwrap().contiguous().unwrap();
            let (cos, sin) = (angles.cos.squeeze(1).unwrap(), angles.sin.squeeze(1).unwrap());
            candle_nn::rotary_emb::rope_slow(&x, &cos, &sin).unwrap().squeeze(0).unwrap().transpose(0, 1).unwrap()
        };
        let gradient = |y: Tensor| {
            let loss = (y * &probe).unwrap().sum_all().unwrap();
            loss.backward().unwrap().get(&x).unwrap().clone()
        };
        assert_close(&angles.rotate(x.as_tensor()).unwrap(), &composed(x.as_tensor()), 1e-6);
        assert_close(&gradient(angles.rotate(x.as_tensor()).unwrap()), &gradient(composed(x.as_tensor())), 1e-6);
    }

    #[test]
    fn partial_rotation_of_reordered_rows_equals_the_interleaved_one() {
        let (heads, head_dim, turned, rows) = (3, 8, 6, 5);
        let rotary = Rotary::new(turned, 100.0, &RopeScaling::None, &Device::Cpu).unwrap();
        let angles = rotary.at(&(0..rows as u32).collect::<Vec<_>>()).unwrap();
        let x = random(&[rows, heads * head_dim], 3);
        let order = halves_from_pairs(heads, head_dim, turned);
        let reorder = |x: &Tensor| x.index_select(&Tensor::new(order.clone(), &Device::Cpu).unwrap(), 1).unwrap();
        let halves = reorder(&x).reshape((rows, heads, head_dim)).unwrap();
        let got = angles.rotate(&halves).unwrap().reshape((rows, heads * head_dim)).unwrap();

        let by_head = x.reshape((rows, heads, head_dim)).unwrap().transpose(0, 1).unwrap().unsqueeze(0).unwrap();
        let first = by_head.narrow(3, 0, turned).unwrap().contiguous().unwrap();
        let (cos, sin) = (angles.cos.squeeze(1).unwrap(), angles.sin.squeeze(1).unwrap());
        let first = candle_nn::rotary_emb::rope_i_slow(&first, &cos, &sin).unwrap();
        let rest = by_head.narrow(3, turned, head_dim - turned).unwrap();
        let want = Tensor::cat(&[&first, &rest], 3).unwrap().squeeze(0).unwrap().transpose(0, 1).unwrap();
        assert_close(&got, &reorder(&want.reshape((rows, heads * head_dim)).unwrap()), 1e-6);
    }

    #[test]
    fn llama3_scaling_leaves_high_frequencies_and_slows_low_ones() {
        let scaling = Llama3Scaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        assert_eq!(scaling.scale(1.0), 1.0);
        let low = 2.0 * std::f64::consts::PI / 10_000.0;
        assert_eq!(scaling.scale(low), low / 8.0);
        let middle = 2.0 * std::f64::consts::PI / 4096.0;
        assert!(scaling.scale(middle) < middle && scaling.scale(middle) > middle / 8.0);
    }
}
