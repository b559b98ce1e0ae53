//! The fixed point in which deltas are summed: 64 bits, 2^-40 a step.
//!
//! A step is 9.1e-13. Half a unit in the last place of a typical weight (1e-2 in f32) is 2^-31 = 4.7e-10,
//! which is 512 steps, and rounding loses half a step at most: it can not be seen in the weights. The range is +-2^23 =
//! 8.4e6: four orders above any weight of a working network. Rounding is to nearest, ties to even, once per contribution
//! and element.

/// Bits after the binary point.
const FRACTION_BITS: i32 = 40;

/// Steps in 1.0.
pub const SCALE: f64 = (1_u64 << FRACTION_BITS) as f64;

/// Magnitudes (of one element of a contribution, and of a sum) stay under this.
pub const LIMIT: f64 = (1_u64 << (63 - FRACTION_BITS)) as f64;

/// Up to this magnitude [`narrow`] is exact; `2^51` steps.
pub const NARROW_LIMIT: f64 = (1_u64 << (51 - FRACTION_BITS)) as f64;

/// `1.5 * 2^52`: adding it to an f64 of magnitude under `2^51` leaves that number, rounded to an integer (ties to
/// even), in the low bits of the mantissa.
const MAGIC: f64 = 6_755_399_441_055_744.0;

/// Steps nearest to `value`, for magnitudes under [`NARROW_LIMIT`]. The same number as [`wide`], without the conversion
/// instruction that compilers can not vectorise on x86-64.
#[inline(always)]
pub fn narrow(value: f32) -> i64 {
    let shifted = f64::from(value) * SCALE + MAGIC;
    (shifted.to_bits() as i64).wrapping_sub(MAGIC.to_bits() as i64)
}

/// Steps nearest to `value`, for magnitudes under [`LIMIT`] (outside it saturates: check with [`fits`]).
#[inline(always)]
pub fn wide(value: f32) -> i64 {
    (f64::from(value) * SCALE).round_ties_even() as i64
}

/// Whether `value` has a fixed-point form. False for NaN.
#[inline(always)]
pub fn fits(value: f32) -> bool {
    f64::from(value).abs() < LIMIT
}

/// The weight that a base weight becomes under a sum of steps. With no steps it is the base weight, bit for bit: the
/// sum is negated and subtracted because `-0.0 - 0.0` is `-0.0`, where `-0.0 + 0.0` is not.
#[inline(always)]
pub fn weight(base: f32, steps: i64) -> f32 {
    (f64::from(base) - steps.wrapping_neg() as f64 * (1.0 / SCALE)) as f32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_is_scale_steps() {
        assert_eq!(narrow(1.0), 1 << 40);
        assert_eq!(wide(-1.0), -(1 << 40));
        assert_eq!(weight(0.5, 1 << 39), 1.0);
        assert_eq!(weight(0.5, -(1 << 39)), 0.0);
        assert!(fits(8_388_607.5) && !fits(8_388_608.0) && !fits(f32::NAN) && !fits(f32::NEG_INFINITY));
    }

    #[test]
    fn no_steps_leave_every_bit_of_the_base() {
        for base in [0.0, -0.0, 1e-42, -0.3, f32::MAX] {
            assert_eq!(weight(base, 0).to_bits(), base.to_bits());
        }
    }

    #[test]
    fn ties_round_to_even() {
        let half = (0.5 / SCALE) as f32;
        for (steps, rounded) in [(1.0, 0), (3.0, 2), (5.0, 2), (-1.0, 0), (-3.0, -2)] {
            assert_eq!(narrow(half * steps), rounded);
            assert_eq!(wide(half * steps), rounded);
        }
    }

    proptest! {
        #[test]
        fn narrow_is_wide_within_its_limit(value in -2047.9_f32..2047.9, exponent in 0_i32..50) {
            let value = value * 2_f32.powi(-exponent);
            prop_assert_eq!(narrow(value), wide(value));
        }
    }
}
