//! Activations in 8 bits, by the rule of GGML's `Q8_0` and `Q8_1`: 32 to a block, the scale in half precision.

use half::f16;

use super::BLOCK;

/// The largest f32 below one half. Adding it and cutting the fraction off rounds to the nearest integer, ties away from
/// zero, for every f32; adding one half itself would round its predecessor up.
const ALMOST_HALF: f32 = 0.499_999_97;

/// One row of activations.
pub(super) struct Activations {
    /// `[d_in]`
    pub values: Vec<i8>,
    /// Per block.
    pub scales: Vec<f32>,
    /// Per block, the sum of the values.
    pub sums: Vec<i32>,
    /// Per block, the sum times the scale, in half precision as `Q8_1` keeps it: what a block's minimum is multiplied by.
    pub scaled_sums: Vec<f32>,
}

impl Activations {
    /// By the widest vectors that the CPU has, which change no bit.
    pub(super) fn quantize(row: &[f32]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("f16c") {
            #[expect(unsafe_code, reason = "calling a function compiled for CPU features")]
            // SAFETY: the CPU has the features.
            return unsafe { Self::quantize_avx2(row) };
        }
        Self::quantize_inline(row)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,f16c")]
    fn quantize_avx2(row: &[f32]) -> Self {
        Self::quantize_inline(row)
    }

    #[inline(always)]
    fn quantize_inline(row: &[f32]) -> Self {
        let blocks = row.len() / BLOCK;
        let mut quantized = Self {
            values: vec![0; row.len()],
            scales: vec![0.0; blocks],
            sums: vec![0; blocks],
            scaled_sums: vec![0.0; blocks],
        };
        for (block, values) in row.as_chunks::<BLOCK>().0.iter().enumerate() {
            let largest = largest_magnitude(values);
            let scale = largest / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            let mut sum = 0i32;
            for (out, value) in quantized.values[block * BLOCK..][..BLOCK].iter_mut().zip(values) {
                let scaled = value * inverse;
                let rounded = (scaled + ALMOST_HALF.copysign(scaled)) as i32;
                *out = rounded as i8;
                sum += rounded;
            }
            // A row that is not finite must not look as if it were.
            let finite = values.iter().fold(true, |finite, value| finite & value.is_finite());
            let scale = if finite { f16::from_f32(scale) } else { f16::NAN };
            quantized.scales[block] = scale.to_f32();
            quantized.sums[block] = sum;
            quantized.scaled_sums[block] = (f16::from_f32(sum as f32) * scale).to_f32();
        }
        quantized
    }
}

/// The largest absolute value, found lane by lane, so that vectors can do it.
#[inline(always)]
fn largest_magnitude(values: &[f32; BLOCK]) -> f32 {
    const LANES: usize = 8;
    let mut lanes = [0f32; LANES];
    for values in values.as_chunks::<LANES>().0 {
        for (lane, value) in lanes.iter_mut().zip(values) {
            // Not `max`, which would have to look for what is not a number.
            *lane = if value.abs() > *lane { value.abs() } else { *lane };
        }
    }
    lanes.into_iter().fold(0.0, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_standard_library() {
        let mut values: Vec<f32> = (-255..=255).map(|twice| twice as f32 / 2.0).collect();
        values.extend((-127..=127).flat_map(|whole| {
            let tie = whole as f32 + 0.5;
            [tie.next_up(), tie.next_down()]
        }));
        for value in values {
            assert_eq!((value + ALMOST_HALF.copysign(value)) as i32, value.round() as i32, "{value}");
        }
    }

    #[test]
    fn a_block_keeps_its_largest_value_and_its_sum() {
        let row: Vec<f32> = (0..BLOCK).map(|i| i as f32 - 10.0).collect();
        let quantized = Activations::quantize(&row);
        assert_eq!(quantized.values[BLOCK - 1], 127);
        assert_eq!(quantized.sums[0], quantized.values.iter().map(|&value| i32::from(value)).sum::<i32>());
        let exact: f32 = row.iter().sum();
        assert!((quantized.scaled_sums[0] - exact).abs() < 0.01 * exact.abs(), "{}", quantized.scaled_sums[0]);
        assert!(Activations::quantize(&[0.0; BLOCK]).values.iter().all(|&value| value == 0));
    }
}
