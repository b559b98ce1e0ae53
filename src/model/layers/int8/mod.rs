//! Products of 8-bit weights with many rows at once.
//!
//! candle multiplies quantized weights one row of activations at a time, so that reading a prompt costs as much per
//! token as decoding. Here the weights are packed once at load, 16 output rows side by side, and each packed line is used
//! for up to eight rows of activations while it is in a register. Weights keep the values of GGUF's `Q8_0` (32 to a
//! block, one scale a block); activations are quantized to 8 bits by the same rule, as candle does.
//!
//! The kernel is chosen at run time: AVX-512 VNNI where the CPU has it (`vnni`), else candle's own product. The scalar
//! twin below states what the kernel computes; the tests hold them together.

#[cfg(target_arch = "x86_64")]
mod vnni;

use candle_core::{
    CpuStorage, Device, Result, Storage, Tensor,
    quantized::{GgmlDType, QTensor},
};
use half::f16;
use rayon::prelude::*;

/// Weights of one block share a scale.
const BLOCK: usize = 32;
/// Output rows packed side by side: 32-bit lanes of a 512-bit register.
const LANES: usize = 16;
/// Bytes of a `Q8_0` block: a half-precision scale and 32 values.
const STORED_BLOCK: usize = 2 + BLOCK;
/// Adding and subtracting 1.5 * 2^23 rounds an f32 of small magnitude to the nearest integer, ties to even, in two
/// instructions that vectorise; `round_ties_even` is a call where SSE4.1 is not assumed.
const ROUND: f32 = 12_582_912.0;
/// Products smaller than this many multiplications are not worth waking another thread for.
const PARALLEL: usize = 200_000;

/// `W [d_out, d_in]` in 8 bits, packed for the kernel.
#[derive(Clone)]
pub struct PackedInt8 {
    d_out: usize,
    d_in: usize,
    groups: std::sync::Arc<Vec<Group>>,
}

/// 16 output rows.
struct Group {
    /// `[blocks][8][16][4]`: eight quadruples a block, each of 16 rows. Values are stored plus 128: the instruction
    /// multiplies unsigned by signed bytes.
    values: Vec<u8>,
    /// `[blocks][16]`
    scales: Vec<f32>,
}

/// One row of activations in 8 bits.
struct Activations {
    /// `[d_in]`
    values: Vec<i8>,
    /// Per block.
    scales: Vec<f32>,
    /// Per block, -128 times the sum of the values: what the weights' offset adds, taken away.
    corrections: Vec<i32>,
}

impl PackedInt8 {
    /// Packs a `Q8_0` tensor; none if its shape does not divide into packs or the CPU has no kernel for it.
    pub fn pack(weight: &QTensor) -> Result<Option<Self>> {
        let (d_out, d_in) = weight.shape().dims2()?;
        let fits = d_out.is_multiple_of(LANES) && d_in.is_multiple_of(BLOCK);
        if !(kernel_available() && fits && weight.dtype() == GgmlDType::Q8_0 && weight.device().is_cpu()) {
            return Ok(None);
        }
        Ok(Some(Self::from_blocks(&weight.data()?, d_out, d_in)))
    }

    fn from_blocks(bytes: &[u8], d_out: usize, d_in: usize) -> Self {
        let row_bytes = d_in / BLOCK * STORED_BLOCK;
        let groups = bytes.chunks_exact(row_bytes * LANES).map(|rows| Group::pack(rows, d_in / BLOCK)).collect();
        Self { d_out, d_in, groups: std::sync::Arc::new(groups) }
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
            candle_core::bail!("packed 8-bit weights multiply f32 activations on a CPU")
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

impl Group {
    /// Packs 16 rows of stored blocks.
    fn pack(rows: &[u8], blocks: usize) -> Self {
        let mut values = vec![0u8; blocks * BLOCK * LANES];
        let mut scales = vec![0f32; blocks * LANES];
        for (lane, row) in rows.chunks_exact(blocks * STORED_BLOCK).enumerate() {
            for (block, stored) in row.chunks_exact(STORED_BLOCK).enumerate() {
                scales[block * LANES + lane] = f16::from_le_bytes([stored[0], stored[1]]).to_f32();
                for (k, &value) in stored[2..].iter().enumerate() {
                    values[block * BLOCK * LANES + (k / 4) * 4 * LANES + lane * 4 + k % 4] = value.wrapping_add(128);
                }
            }
        }
        Self { values, scales }
    }

    /// `out [rows][16]`.
    fn multiply(&self, rows: &[Activations], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if kernel_available() {
            return vnni::multiply(self, rows, out);
        }
        self.multiply_scalar(rows, out);
    }

    /// What the kernel computes, without it.
    fn multiply_scalar(&self, rows: &[Activations], out: &mut [f32]) {
        for (row, out) in rows.iter().zip(out.chunks_exact_mut(LANES)) {
            for (lane, out) in out.iter_mut().enumerate() {
                let mut sum = 0f32;
                for (block, scale) in row.scales.iter().enumerate() {
                    let mut products = row.corrections[block];
                    for k in 0..BLOCK {
                        let packed = block * BLOCK * LANES + (k / 4) * 4 * LANES + lane * 4 + k % 4;
                        products += i32::from(self.values[packed]) * i32::from(row.values[block * BLOCK + k]);
                    }
                    sum = (products as f32).mul_add(self.scales[block * LANES + lane] * scale, sum);
                }
                *out = sum;
            }
        }
    }
}

impl Activations {
    fn quantize(row: &[f32]) -> Self {
        let blocks = row.len() / BLOCK;
        let mut quantized =
            Self { values: vec![0; row.len()], scales: vec![0.0; blocks], corrections: vec![0; blocks] };
        for (block, values) in row.chunks_exact(BLOCK).enumerate() {
            let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            let mut sum = 0i32;
            for (out, value) in quantized.values[block * BLOCK..][..BLOCK].iter_mut().zip(values) {
                let rounded = (value * inverse + ROUND) - ROUND;
                *out = rounded as i8;
                sum += i32::from(*out);
            }
            // A row that is not finite must not look as if it were.
            quantized.scales[block] =
                if values.iter().all(|value| value.is_finite()) { largest / 127.0 } else { f32::NAN };
            quantized.corrections[block] = -128 * sum;
        }
        quantized
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
    use candle_core::Module;

    use super::*;
    use crate::model::testing::{assert_close, random};

    fn quantized(d_out: usize, d_in: usize) -> QTensor {
        QTensor::quantize(&random(&[d_out, d_in], 1), GgmlDType::Q8_0).unwrap()
    }

    fn packed(weight: &QTensor) -> PackedInt8 {
        let (d_out, d_in) = weight.shape().dims2().unwrap();
        PackedInt8::from_blocks(&weight.data().unwrap(), d_out, d_in)
    }

    #[test]
    fn equals_candles_product_at_every_row_count() {
        let weight = quantized(48, 96);
        let ours = packed(&weight);
        let theirs = candle_core::quantized::QMatMul::from_qtensor(weight).unwrap();
        for rows in 1..=19 {
            let x = random(&[rows, 96], 2);
            assert_close(&ours.forward(&x).unwrap(), &theirs.forward(&x).unwrap(), 2e-3);
        }
    }

    #[test]
    fn kernel_equals_its_scalar_twin() {
        let ours = packed(&quantized(32, 64));
        let x = random(&[11, 64], 3).to_vec2::<f32>().unwrap();
        let rows: Vec<Activations> = x.iter().map(|row| Activations::quantize(row)).collect();
        for group in ours.groups.iter() {
            let mut fast = vec![0f32; rows.len() * LANES];
            let mut scalar = fast.clone();
            group.multiply(&rows, &mut fast);
            group.multiply_scalar(&rows, &mut scalar);
            assert_eq!(fast, scalar, "the kernel adds in the same order, so the bits agree");
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        let ours = packed(&quantized(16, 64));
        let x = random(&[9, 64], 4);
        let together = ours.forward(&x).unwrap();
        for row in 0..9 {
            let alone = ours.forward(&x.narrow(0, row, 1).unwrap()).unwrap();
            assert_close(&alone, &together.narrow(0, row, 1).unwrap(), 0.0);
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let ours = packed(&quantized(16, 32));
        let mut row = vec![1f32; 32];
        row[3] = f32::NAN;
        let y = ours.forward(&Tensor::from_vec(row, (1, 32), &Device::Cpu).unwrap()).unwrap();
        assert!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|v| v.is_nan()));
    }
}
