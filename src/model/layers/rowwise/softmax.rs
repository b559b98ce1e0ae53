//! Softmax of one row's scores, by the widest vectors that the CPU has. They change no bit: sums are made lane by lane, in
//! one fixed order, and the exponential is of operations that round alike everywhere.

/// Partial sums and partial maxima.
const LANES: usize = 16;

/// Turns scores, of which each is multiplied by `scale` and has its bias added, into weights that are too large by their
/// sum. Returns one by that sum.
pub(super) fn soften(scores: &mut [f32], scale: f32, biases: Option<&[f32]>) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        #[expect(unsafe_code, reason = "calling a function compiled for CPU features")]
        // SAFETY: the CPU has the features.
        return unsafe { soften_avx2(scores, scale, biases) };
    }
    soften_inline(scores, scale, biases)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn soften_avx2(scores: &mut [f32], scale: f32, biases: Option<&[f32]>) -> f32 {
    soften_inline(scores, scale, biases)
}

#[inline(always)]
fn soften_inline(scores: &mut [f32], scale: f32, biases: Option<&[f32]>) -> f32 {
    for score in scores.iter_mut() {
        *score *= scale;
    }
    for (score, bias) in scores.iter_mut().zip(biases.into_iter().flatten()) {
        *score += bias;
    }
    let largest = largest(scores);
    let (chunks, rest) = scores.as_chunks_mut::<LANES>();
    let mut sums = [0f64; LANES];
    for chunk in chunks {
        for (sum, score) in sums.iter_mut().zip(chunk) {
            *score = exp(*score - largest);
            *sum += f64::from(*score);
        }
    }
    for (sum, score) in sums.iter_mut().zip(rest) {
        *score = exp(*score - largest);
        *sum += f64::from(*score);
    }
    (1.0 / sums.iter().sum::<f64>()) as f32
}

#[inline(always)]
fn largest(scores: &[f32]) -> f32 {
    let (chunks, rest) = scores.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    // Not `max`, which would have to look for what is not a number; the exponential of that is not one either.
    let higher = |a: f32, b: f32| if b > a { b } else { a };
    for chunk in chunks {
        for (lane, score) in lanes.iter_mut().zip(chunk) {
            *lane = higher(*lane, *score);
        }
    }
    for (lane, score) in lanes.iter_mut().zip(rest) {
        *lane = higher(*lane, *score);
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, higher)
}

/// `e^x` for `x <= 0` to about one unit in the last place; 0 where it would be less than the smallest normal number.
///
/// With `n` the nearest whole number to `x / ln 2`, it is `2^n e^r`, where `r = x - n ln 2` is small enough for the
/// polynomial of the Cephes library.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Added to a small number, it leaves the nearest whole one in the last bits.
    const SHIFT: f32 = 12_582_912.0;
    /// `ln 2` in two parts, the first of few bits.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const POLYNOMIAL: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];
    const LEAST: f32 = -87.3;

    let shifted = x.mul_add(std::f32::consts::LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let r = n.mul_add(-LN_2[1], n.mul_add(-LN_2[0], x));
    let polynomial = POLYNOMIAL.into_iter().fold(0.0, |sum: f32, coefficient| sum.mul_add(r, coefficient));
    let near = polynomial.mul_add(r * r, r) + 1.0;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32).wrapping_add(127);
    let power = f32::from_bits((exponent << 23) as u32);
    if x < LEAST { 0.0 } else { near * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_one() {
        let mut worst = 0f64;
        for i in 0..=870_000 {
            let x = -f64::from(i) as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert_eq!([exp(0.0), exp(-0.0), exp(-88.0), exp(f32::NEG_INFINITY)], [1.0, 1.0, 0.0, 0.0]);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn weights_are_a_softmax_and_vectors_change_no_bit() {
        let scores: Vec<f32> = (0..77).map(|i| ((i * 37) % 101) as f32 / 10.0).collect();
        let biases: Vec<f32> = (0..77).map(|i| (i % 7) as f32 / 5.0).collect();
        for biases in [None, Some(biases.as_slice())] {
            let (mut wide, mut plain) = (scores.clone(), scores.clone());
            let inverse = soften(&mut wide, 0.5, biases);
            assert_eq!(inverse, soften_inline(&mut plain, 0.5, biases));
            assert_eq!(wide, plain);
            let exact: Vec<f64> = (scores.iter().enumerate())
                .map(|(i, score)| f64::from(score * 0.5 + biases.map_or(0.0, |biases| biases[i])).exp())
                .collect();
            let total: f64 = exact.iter().sum();
            for (weight, exact) in wide.iter().zip(exact) {
                assert!((f64::from(weight * inverse) - exact / total).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        for at in [0, 20] {
            let mut scores = vec![1f32; 21];
            scores[at] = f32::NAN;
            assert!(soften(&mut scores, 1.0, None).is_nan());
        }
    }
}
