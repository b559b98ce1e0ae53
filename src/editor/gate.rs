//! The gate: at which positions of a text an edit speaks.
//!
//! As a change of the weights an edit's delta answers every input, a little, and with many edits active it is the others' answers
//! that break them. A gate compares what enters the first editable matrix, `x`, with the inputs at which the edits were captured,
//! their keys. With a learned map `A` and mean `m`,
//!
//! ```text
//! s_e(x) = max over the keys k of edit e of cos(A (x - m), A (k - m))
//! a_e(x) = exp(b s_e) / (exp(b (t + g ln n)) + sum over the n active edits f of exp(b s_f))
//! ```
//!
//! and `a_e` is the share of its delta with which edit `e` speaks at that position, in every editable matrix; below
//! [`LEAST_SHARE`] it is silent. Where no edit is near, the model is the base model, bit for bit. Nothing
//! below the first editable matrix of a decoder is edited, so which edits speak is decided on the base model's own states: an edit
//! makes no other speak.
//!
//! The keys are those of GRACE (Hartvigsen et al., 2023), a codebook of them; the metric is learned, as in a matching network
//! (Vinyals et al., 2016), and what is kept under a key is MEND's low-rank delta.

use std::collections::HashMap;

use candle_core::{D, DType, Device, Result, Tensor};

use crate::model::layers::linear::frozen_matmul;

/// A smaller share than this is none.
pub const LEAST_SHARE: f32 = 0.01;

/// Names of a gate's tensors in an editor's file.
pub const MAP: &str = "gate.map";
pub const MEAN: &str = "gate.mean";
pub const SCALARS: &str = "gate.scalars";

/// A learned gate.
#[derive(Debug, Clone)]
pub struct Gate {
    /// `A`, `[r, d_in]`.
    pub map: Tensor,
    /// `m`, `[d_in]`.
    pub mean: Tensor,
    pub scalars: Scalars,
}

/// The numbers of a gate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scalars {
    /// `b`
    pub sharpness: f32,
    /// `t`, a cosine.
    pub threshold: f32,
    /// `g`: what a threshold gains with the logarithm of the number of active edits.
    pub growth: f32,
}

/// Which edits speak at a position, each with its share, in the edits' order.
pub type Speakers = Vec<(usize, f32)>;

impl Gate {
    /// Takes a gate's tensors out of an editor's; none if it has none.
    pub fn from_tensors(
        tensors: &HashMap<String, Tensor>,
        d_in: usize,
        device: &Device,
    ) -> std::result::Result<Option<Self>, String> {
        let Some(map) = tensors.get(MAP) else { return Ok(None) };
        let rank = map.dims().first().copied().unwrap_or(0);
        let take = |name: &str, shape: &[usize]| {
            let tensor = tensors.get(name).ok_or_else(|| format!("tensor {name:?} is missing"))?;
            if tensor.dims() != shape || tensor.elem_count() == 0 {
                return Err(format!("tensor {name:?} has shape {:?}, expected {shape:?}", tensor.dims()));
            }
            tensor.to_dtype(DType::F32).and_then(|tensor| tensor.to_device(device)).map_err(|error| error.to_string())
        };
        let scalars = take(SCALARS, &[3])?.to_vec1::<f32>().map_err(|error| error.to_string())?;
        let scalars = Scalars { sharpness: scalars[0], threshold: scalars[1], growth: scalars[2] };
        let gate = Self { map: take(MAP, &[rank, d_in])?, mean: take(MEAN, &[d_in])?, scalars };
        match gate.is_finite().map_err(|error| error.to_string())? && scalars.sharpness > 0.0 {
            true => Ok(Some(gate)),
            false => Err(format!("its gate has a number that is not finite, or the sharpness {}", scalars.sharpness)),
        }
    }

    /// A sum of magnitudes is finite only if all of them are.
    fn is_finite(&self) -> Result<bool> {
        let size = |tensor: &Tensor| tensor.abs()?.sum_all()?.to_scalar::<f32>();
        let Scalars { sharpness, threshold, growth } = self.scalars;
        Ok((size(&self.map)? + size(&self.mean)? + sharpness + threshold + growth).is_finite())
    }

    /// Adds its tensors to an editor's.
    pub fn insert_tensors(&self, tensors: &mut HashMap<String, Tensor>) -> Result<()> {
        let Scalars { sharpness, threshold, growth } = self.scalars;
        tensors.insert(MAP.to_owned(), self.map.clone());
        tensors.insert(MEAN.to_owned(), self.mean.clone());
        tensors.insert(SCALARS.to_owned(), Tensor::new(&[sharpness, threshold, growth], &Device::Cpu)?);
        Ok(())
    }

    /// `A (x - m)` at length 1, `x [n, d_in]` -> `[n, r]`: the product of two such rows is their similarity.
    pub fn read(&self, x: &Tensor) -> Result<Tensor> {
        let seen = frozen_matmul(&x.detach().broadcast_sub(&self.mean)?.contiguous()?, &self.map)?;
        let length = (seen.sqr()?.sum_keepdim(D::Minus1)?.sqrt()? + 1e-12)?;
        seen.broadcast_div(&length)
    }

    /// Who speaks at a position whose similarities to the keys of all active edits are these; `counts` says how many keys each
    /// edit has.
    pub fn speakers(&self, similarities: &[f32], counts: &[usize]) -> Speakers {
        let mut start = 0;
        let nearest: Vec<f32> = counts
            .iter()
            .map(|count| {
                start += count;
                similarities[start - count..start].iter().copied().fold(-1.0, f32::max)
            })
            .collect();
        let Scalars { sharpness, threshold, growth } = self.scalars;
        let silence = threshold + growth * (counts.len().max(1) as f32).ln();
        let most = nearest.iter().copied().fold(silence, f32::max);
        let weight = |similarity: f32| (sharpness * (similarity - most)).exp();
        let total = nearest.iter().map(|similarity| weight(*similarity)).sum::<f32>() + weight(silence);
        let shares = nearest.iter().map(|similarity| weight(*similarity) / total).enumerate();
        shares.filter(|(_, share)| *share >= LEAST_SHARE).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::random;

    fn gate(growth: f32) -> Gate {
        let scalars = Scalars { sharpness: 20.0, threshold: 0.5, growth };
        Gate { map: random(&[3, 4], 1), mean: random(&[4], 2), scalars }
    }

    #[test]
    fn the_nearest_edit_speaks_and_beyond_the_threshold_none() {
        let gate = gate(0.0);
        // Edits of two keys and of one.
        let speakers = gate.speakers(&[0.1, 0.9, 0.2], &[2, 1]);
        assert_eq!(speakers.len(), 1);
        assert!(speakers[0].0 == 0 && speakers[0].1 > 0.99, "{speakers:?}");
        assert!(gate.speakers(&[0.2, 0.1, 0.2], &[2, 1]).is_empty());
        let even = gate.speakers(&[0.9, 0.9], &[1, 1]);
        assert!(even.iter().all(|(_, share)| (share - 0.5).abs() < 1e-3), "{even:?}");
    }

    #[test]
    fn more_edits_raise_the_threshold() {
        let similar = |n: usize| (gate(0.05).speakers(&vec![0.55; n], &vec![1; n]), n);
        assert!(similar(1).0[0].1 > 0.7);
        let one_of_many: Vec<f32> = std::iter::once(0.55).chain(std::iter::repeat_n(0.0, 99)).collect();
        let share = gate(0.05).speakers(&one_of_many, &[1; 100]);
        assert!(share.is_empty() || share[0].1 < 0.2, "{share:?}");
    }

    #[test]
    fn a_row_reads_the_same_whatever_it_is_read_with() {
        let (gate, x) = (gate(0.0), random(&[5, 4], 3));
        let all = gate.read(&x).unwrap().to_vec2::<f32>().unwrap();
        for (row, all) in all.iter().enumerate() {
            let alone = gate.read(&x.narrow(0, row, 1).unwrap()).unwrap();
            assert_eq!(alone.to_vec2::<f32>().unwrap()[0], *all);
        }
        let length: f32 = all[0].iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-5);
    }

    #[test]
    fn it_is_what_its_tensors_say() {
        let mut tensors = HashMap::new();
        assert!(Gate::from_tensors(&tensors, 4, &Device::Cpu).unwrap().is_none());
        gate(0.1).insert_tensors(&mut tensors).unwrap();
        let read = Gate::from_tensors(&tensors, 4, &Device::Cpu).unwrap().unwrap();
        assert_eq!(read.scalars, gate(0.1).scalars);
        assert!(Gate::from_tensors(&tensors, 5, &Device::Cpu).unwrap_err().contains("expected [3, 5]"));
        let broken = Tensor::new(&[f32::NAN, 0.5, 0.0], &Device::Cpu).unwrap();
        let whole = tensors.insert(SCALARS.to_owned(), broken).unwrap();
        assert!(Gate::from_tensors(&tensors, 4, &Device::Cpu).unwrap_err().contains("not finite"));
        tensors.insert(SCALARS.to_owned(), whole);
        tensors.remove(MEAN);
        assert!(Gate::from_tensors(&tensors, 4, &Device::Cpu).unwrap_err().contains("is missing"));
    }
}
