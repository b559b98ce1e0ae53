//! Running mean and deviation of the factors of one weight shape, over training tokens (Welford).
//!
//! They are part of the editor and are kept with it: a network resumed with fresh statistics sees another input.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};

use super::network::Take;

/// Added to every deviation before dividing by it (algs/mend.py).
const EPSILON: f64 = 1e-7;

/// Running statistics of `[u ; delta]`, in f64.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Rows seen.
    pub count: f64,
    /// Mean of each dimension, `d_in` of `u` then `d_out` of `delta`.
    mean: Vec<f64>,
    /// Sum of squared deviations of each dimension.
    squares: Vec<f64>,
    d_in: usize,
}

impl Statistics {
    /// No rows seen.
    pub fn new((d_in, d_out): (usize, usize)) -> Self {
        Self { count: 0.0, mean: vec![0.0; d_in + d_out], squares: vec![0.0; d_in + d_out], d_in }
    }

    /// Takes rows in, in order; `u [n, d_in]`, `delta [n, d_out]`.
    pub fn update(&mut self, u: &Tensor, delta: &Tensor) -> Result<()> {
        for row in Tensor::cat(&[u, delta], 1)?.to_vec2::<f32>()? {
            self.count += 1.0;
            for ((value, mean), squares) in row.into_iter().zip(&mut self.mean).zip(&mut self.squares) {
                let value = f64::from(value);
                let before = value - *mean;
                *mean += before / self.count;
                *squares += before * (value - *mean);
            }
        }
        Ok(())
    }

    /// Standard deviations, `sqrt(s / (k - 1))`.
    fn deviations(&self) -> impl Iterator<Item = f64> + '_ {
        let freedom = (self.count - 1.0).max(1.0);
        self.squares.iter().map(move |squares| (squares / freedom).sqrt())
    }

    /// What normalising needs, as tensors.
    pub fn normal(&self, device: &Device) -> Result<Normal> {
        let mean: Vec<f32> = self.mean.iter().map(|&mean| mean as f32).collect();
        let inverse: Vec<f32> = self.deviations().map(|std| (1.0 / (std + EPSILON)) as f32).collect();
        let tensor = |values: &[f32]| Tensor::new(values, device);
        let (mean_u, mean_delta) = mean.split_at(self.d_in);
        let (inverse_u, inverse_delta) = inverse.split_at(self.d_in);
        Ok(Normal {
            mean_u: tensor(mean_u)?,
            mean_delta: tensor(mean_delta)?,
            inverse_u: tensor(inverse_u)?,
            inverse_delta: tensor(inverse_delta)?,
        })
    }

    /// Reads the statistics stored under the reference's names (`v` stands for delta there).
    pub(super) fn from_tensors(shape: (usize, usize), take: &Take<'_>) -> std::result::Result<Self, String> {
        let (d_in, d_out) = shape;
        let read = |part: &str, size: usize| {
            let tensor = take(&name(shape, part), &[size], DType::F64)?;
            tensor.to_vec1::<f64>().map_err(|error| error.to_string())
        };
        let join = |mut u: Vec<f64>, delta: Vec<f64>| {
            u.extend(delta);
            u
        };
        Ok(Self {
            count: read("k", 1)?[0],
            mean: join(read("u_mean", d_in)?, read("v_mean", d_out)?),
            squares: join(read("u_s", d_in)?, read("v_s", d_out)?),
            d_in,
        })
    }

    /// Adds the statistics under the reference's names, as f64, so that training resumes bit for bit.
    pub fn insert_tensors(&self, shape: (usize, usize), tensors: &mut HashMap<String, Tensor>) -> Result<()> {
        let deviations: Vec<f64> = self.deviations().collect();
        let mut insert = |part: &str, values: &[f64]| -> Result<()> {
            tensors.insert(name(shape, part), Tensor::new(values, &Device::Cpu)?);
            Ok(())
        };
        insert("k", &[self.count])?;
        insert("u_mean", &self.mean[..self.d_in])?;
        insert("v_mean", &self.mean[self.d_in..])?;
        insert("u_s", &self.squares[..self.d_in])?;
        insert("v_s", &self.squares[self.d_in..])?;
        insert("u_std", &deviations[..self.d_in])?;
        insert("v_std", &deviations[self.d_in..])
    }
}

fn name((d_in, d_out): (usize, usize), part: &str) -> String {
    format!("net.{d_in}x{d_out}.{part}")
}

/// Means and inverse deviations as tensors.
pub struct Normal {
    mean_u: Tensor,
    mean_delta: Tensor,
    inverse_u: Tensor,
    inverse_delta: Tensor,
}

impl Normal {
    /// `(u - mean) / (std + eps)`.
    pub fn u(&self, u: &Tensor) -> Result<Tensor> {
        u.broadcast_sub(&self.mean_u)?.broadcast_mul(&self.inverse_u)
    }

    /// The same for delta.
    pub fn delta(&self, delta: &Tensor) -> Result<Tensor> {
        delta.broadcast_sub(&self.mean_delta)?.broadcast_mul(&self.inverse_delta)
    }
}
