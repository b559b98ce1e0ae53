//! Products of quantized weights with many rows at once.
//!
//! candle multiplies quantized weights one row of activations at a time, so that reading a prompt costs as much per
//! token as decoding, and has no SIMD kernel for `Q4_1` at all. Here the weights are packed once at load, 16 output rows
//! side by side, and each packed line is used for up to eight rows of activations while it is in a register. Weights
//! keep the values of the file, bit for bit (`weights`); activations are quantized to 8 bits by GGML's own rule
//! (`activations`), so that a product is what candle's is: for `Q4_1` to the last bit.
//!
//! The kernel is chosen at run time: AVX-512 VNNI where the CPU has it (`vnni`), else candle's own product. The scalar
//! twin in `weights` states what the kernel computes; the tests hold them together.

mod activations;
#[cfg(target_arch = "x86_64")]
mod vnni;
mod weights;

use std::sync::Arc;

use candle_core::{CpuStorage, Device, Result, Storage, Tensor, quantized::QTensor};
use rayon::prelude::*;

use activations::Activations;
use weights::{Format, Group};

/// Weights of one block share a scale.
const BLOCK: usize = 32;
/// Output rows packed side by side: 32-bit lanes of a 512-bit register.
const LANES: usize = 16;
/// Products smaller than this many multiplications are not worth waking another thread for.
const PARALLEL: usize = 200_000;

/// `W [d_out, d_in]` as GGUF's `Q8_0` or `Q4_1`, packed for the kernel.
#[derive(Clone)]
pub struct PackedWeights {
    d_out: usize,
    d_in: usize,
    groups: Arc<Vec<Group>>,
}

impl PackedWeights {
    /// Packs a tensor; none if its type or shape is not one that packs, or the CPU has no kernel.
    pub fn pack(weight: &QTensor) -> Result<Option<Self>> {
        let Some(format) = Format::of(weight.dtype()) else { return Ok(None) };
        let (d_out, d_in) = weight.shape().dims2()?;
        let fits = d_out.is_multiple_of(LANES) && d_in.is_multiple_of(BLOCK);
        if !(kernel_available() && fits && weight.device().is_cpu()) {
            return Ok(None);
        }
        Ok(Some(Self::from_blocks(format, &weight.data()?, d_out, d_in)))
    }

    fn from_blocks(format: Format, bytes: &[u8], d_out: usize, d_in: usize) -> Self {
        let row_bytes = d_in / BLOCK * format.stored_block();
        let groups = bytes.chunks_exact(row_bytes * LANES).map(|rows| Group::pack(format, rows, d_in / BLOCK));
        Self { d_out, d_in, groups: Arc::new(groups.collect()) }
    }

    /// `x [n, d_in]` -> `x W^T [n, d_out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, d_in) = x.dims2()?;
        if d_in != self.d_in {
            candle_core::bail!("a product of {d_in} inputs with weights of {}", self.d_in);
        }
        let x = x.contiguous()?;
        let (storage, layout) = x.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
            candle_core::bail!("packed weights multiply f32 activations on a CPU")
        };
        let values = &values[layout.start_offset()..layout.start_offset() + rows * d_in];
        let activations: Vec<Activations> = values.chunks_exact(d_in).map(Activations::quantize).collect();
        Tensor::from_vec(self.multiply(&activations), (rows, self.d_out), &Device::Cpu)
    }

    fn multiply(&self, rows: &[Activations]) -> Vec<f32> {
        // `[group][row][16]`, which for a single row is the result as it should be.
        let mut grouped = vec![0f32; rows.len() * self.d_out];
        let chunk = rows.len() * LANES;
        if rows.len() * self.d_out * self.d_in < PARALLEL {
            grouped.chunks_exact_mut(chunk).zip(self.groups.iter()).for_each(|(out, group)| group.multiply(rows, out));
        } else {
            // A few large pieces per thread: waking costs more than an uneven end.
            let pieces = self.groups.len().div_ceil(rayon::current_num_threads() * 2).max(1);
            grouped.par_chunks_mut(chunk * pieces).zip(self.groups.par_chunks(pieces)).for_each(|(out, groups)| {
                out.chunks_exact_mut(chunk).zip(groups).for_each(|(out, group)| group.multiply(rows, out));
            });
        }
        if rows.len() == 1 { grouped } else { self.transpose(&grouped, rows.len()) }
    }

    /// `[group][row][16]` to `[row][group][16]`.
    fn transpose(&self, grouped: &[f32], rows: usize) -> Vec<f32> {
        let mut result = vec![0f32; grouped.len()];
        for (row, out) in result.chunks_exact_mut(self.d_out).enumerate() {
            for (out, group) in out.chunks_exact_mut(LANES).zip(grouped.chunks_exact(rows * LANES)) {
                out.copy_from_slice(&group[row * LANES..][..LANES]);
            }
        }
        result
    }
}

/// Whether this CPU has the kernel.
pub fn kernel_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512vnni");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(test)]
mod tests {
    use candle_core::{
        Module,
        quantized::{GgmlDType, QMatMul},
    };

    use super::*;
    use crate::model::testing::{assert_close, random};

    const TYPES: [GgmlDType; 2] = [GgmlDType::Q8_0, GgmlDType::Q4_1];

    fn quantized(dtype: GgmlDType, d_out: usize, d_in: usize) -> QTensor {
        QTensor::quantize(&random(&[d_out, d_in], 1), dtype).unwrap()
    }

    fn packed(weight: &QTensor) -> PackedWeights {
        let (d_out, d_in) = weight.shape().dims2().unwrap();
        let format = Format::of(weight.dtype()).unwrap();
        PackedWeights::from_blocks(format, &weight.data().unwrap(), d_out, d_in)
    }

    #[test]
    fn equals_candles_product_at_every_row_count() {
        // candle adds up the blocks of Q4_1 one after another, as we do, but those of Q8_0 in eight lanes.
        for (dtype, tolerance) in TYPES.into_iter().zip([1e-6, 0.0]) {
            let weight = quantized(dtype, 48, 192);
            let ours = packed(&weight);
            let theirs = QMatMul::from_qtensor(weight).unwrap();
            for rows in 1..=19 {
                let x = (random(&[rows, 192], 2) * 3.0).unwrap();
                assert_close(&ours.forward(&x).unwrap(), &theirs.forward(&x).unwrap(), tolerance);
            }
        }
    }

    #[test]
    fn kernel_equals_its_scalar_twin() {
        let x = random(&[11, 64], 3).to_vec2::<f32>().unwrap();
        let rows: Vec<Activations> = x.iter().map(|row| Activations::quantize(row)).collect();
        for dtype in TYPES {
            for group in packed(&quantized(dtype, 32, 64)).groups.iter() {
                let mut fast = vec![0f32; rows.len() * LANES];
                let mut scalar = fast.clone();
                group.multiply(&rows, &mut fast);
                group.multiply_scalar(&rows, &mut scalar);
                assert_eq!(fast, scalar, "the kernel adds in the same order, so the bits agree");
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        for dtype in TYPES {
            let ours = packed(&quantized(dtype, 16, 64));
            let x = random(&[9, 64], 4);
            let together = ours.forward(&x).unwrap();
            for row in 0..9 {
                let alone = ours.forward(&x.narrow(0, row, 1).unwrap()).unwrap();
                assert_close(&alone, &together.narrow(0, row, 1).unwrap(), 0.0);
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for dtype in TYPES {
            let ours = packed(&quantized(dtype, 16, 32));
            let mut row = vec![1f32; 32];
            row[3] = f32::NAN;
            let y = ours.forward(&Tensor::from_vec(row, (1, 32), &Device::Cpu).unwrap()).unwrap();
            assert!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|v| v.is_nan()));
        }
    }
}
