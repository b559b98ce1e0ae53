//! Packed weights: GGUF's blocks of 16 output rows, interleaved so that one load serves all of them.

use candle_core::quantized::GgmlDType;
use half::f16;

use super::{BLOCK, LANES, activations::Activations};

/// How a block of 32 weights is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// `d q`: a half-precision scale and 32 signed bytes.
    Q8_0,
    /// `d q + m`: a half-precision scale and minimum, and 32 values of 4 bits, the first 16 in the low halves.
    Q4_1,
}

impl Format {
    pub(super) fn of(dtype: GgmlDType) -> Option<Self> {
        match dtype {
            GgmlDType::Q8_0 => Some(Self::Q8_0),
            GgmlDType::Q4_1 => Some(Self::Q4_1),
            _ => None,
        }
    }

    /// Bytes of a block in the file.
    pub(super) fn stored_block(self) -> usize {
        match self {
            Self::Q8_0 => 2 + BLOCK,
            Self::Q4_1 => 4 + BLOCK / 2,
        }
    }

    /// Bytes of the values of a packed block, of all 16 rows. They lie in lines of four bytes for each row.
    pub(super) fn packed_block(self) -> usize {
        match self {
            Self::Q8_0 => BLOCK * LANES,
            Self::Q4_1 => BLOCK / 2 * LANES,
        }
    }
}

/// 16 output rows.
pub(super) struct Group {
    pub format: Format,
    /// `Q8_0`: `[blocks][8][16][4]`, plus 128, because the instruction multiplies unsigned by signed bytes.
    /// `Q4_1`: `[blocks][4][16][4]`, value `k` in the low half of the byte that has value `k + 16` in its high half.
    pub values: Vec<u8>,
    /// `[blocks][16]`
    pub scales: Vec<f16>,
    /// `[blocks][16]`; empty where the format has none.
    pub minimums: Vec<f16>,
}

impl Group {
    /// Packs 16 rows of stored blocks.
    pub(super) fn pack(format: Format, rows: &[u8], blocks: usize) -> Self {
        let mut values = vec![0u8; blocks * format.packed_block()];
        let mut scales = vec![f16::ZERO; blocks * LANES];
        let mut minimums = vec![f16::ZERO; if format == Format::Q4_1 { blocks * LANES } else { 0 }];
        for (lane, row) in rows.chunks_exact(blocks * format.stored_block()).enumerate() {
            for (block, stored) in row.chunks_exact(format.stored_block()).enumerate() {
                let half = |at: usize| f16::from_le_bytes([stored[at], stored[at + 1]]);
                scales[block * LANES + lane] = half(0);
                let (start, offset) = match format {
                    Format::Q8_0 => (2, 128),
                    Format::Q4_1 => (4, 0),
                };
                if format == Format::Q4_1 {
                    minimums[block * LANES + lane] = half(2);
                }
                let packed = &mut values[block * format.packed_block()..];
                for (k, &value) in stored[start..].iter().enumerate() {
                    packed[(k / 4) * 4 * LANES + lane * 4 + k % 4] = value.wrapping_add(offset);
                }
            }
        }
        Self { format, values, scales, minimums }
    }

    /// `out [rows][16]`.
    pub(super) fn multiply(&self, rows: &[Activations], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if super::kernel_available() {
            return super::vnni::multiply(self, rows, out);
        }
        self.multiply_scalar(rows, out);
    }

    /// What the kernel computes, without it. The sum goes over the blocks in order, each product rounded, as candle's
    /// for `Q4_1` does.
    pub(super) fn multiply_scalar(&self, rows: &[Activations], out: &mut [f32]) {
        for (row, out) in rows.iter().zip(out.chunks_exact_mut(LANES)) {
            for (lane, out) in out.iter_mut().enumerate() {
                *out =
                    (0..row.scales.len()).map(|block| self.block(row, block, lane)).fold(0.0, |sum, part| sum + part);
            }
        }
    }

    fn block(&self, row: &Activations, block: usize, lane: usize) -> f32 {
        let packed = &self.values[block * self.format.packed_block()..];
        let packed = |k: usize| i32::from(packed[(k / 4) * 4 * LANES + lane * 4 + k % 4]);
        let activation = |k: usize| i32::from(row.values[block * BLOCK + k]);
        let scale = self.scales[block * LANES + lane].to_f32();
        match self.format {
            Format::Q8_0 => {
                let products: i32 = (0..BLOCK).map(|k| packed(k) * activation(k)).sum();
                (products - 128 * row.sums[block]) as f32 * scale * row.scales[block]
            }
            Format::Q4_1 => {
                let half = BLOCK / 2;
                let products: i32 =
                    (0..half).map(|k| (packed(k) & 15) * activation(k) + (packed(k) >> 4) * activation(k + half)).sum();
                let minimum = self.minimums[block * LANES + lane].to_f32();
                products as f32 * scale * row.scales[block] + minimum * row.scaled_sums[block]
            }
        }
    }
}
