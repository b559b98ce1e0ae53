//! The loop over elements: how much a contribution adds to each, in steps of the fixed point.
//!
//! An element's value is the f32 sum of its rank-one terms' products, in row order, each product and each sum rounded
//! (Rust never contracts them into a fused multiply-add, and vectors across `d_in` do not change the order within an
//! element). So it is the same on every machine, for every block size and thread count.

use std::ops::Range;

use super::{
    contribution::{Part, Values, row},
    fixed,
};

/// Columns handled at a time: twelve right rows of this width, the sums and the scratch stay in a 32 KiB cache.
const COLUMNS: usize = 512;

/// Whether a contribution enters the sum or leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Enters,
    Leaves,
}

/// One matrix's share of a change of the set.
pub type Moves<'a> = [(Direction, &'a Part)];

/// How values become steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conversion {
    /// Every value is known to be within [`fixed::NARROW_LIMIT`].
    Narrow,
    /// Every value is known to fit.
    Wide,
}

/// Rows of one matrix: their sums, the base weights under them, and where the new weights go, if wanted.
pub struct Rows<'a> {
    pub first: usize,
    pub d_in: usize,
    pub sums: &'a mut [i64],
    pub base: &'a [f32],
    pub weights: Option<&'a mut [f32]>,
}

/// Applies a change to some rows, by the widest vectors that the CPU has, which do not change a bit. The caller has made
/// sure that no sum overflows.
pub fn apply(rows: Rows<'_>, moves: &Moves<'_>, conversion: Conversion) {
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "calling functions compiled for a CPU feature")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
            // SAFETY: the CPU has the features.
            return unsafe { apply_avx512(rows, moves, conversion) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has the feature.
            return unsafe { apply_avx2(rows, moves, conversion) };
        }
    }
    apply_inline(rows, moves, conversion);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
fn apply_avx512(rows: Rows<'_>, moves: &Moves<'_>, conversion: Conversion) {
    apply_inline(rows, moves, conversion);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn apply_avx2(rows: Rows<'_>, moves: &Moves<'_>, conversion: Conversion) {
    apply_inline(rows, moves, conversion);
}

#[inline(always)]
fn apply_inline(rows: Rows<'_>, moves: &Moves<'_>, conversion: Conversion) {
    let Rows { first, d_in, sums, base, mut weights } = rows;
    let mut scratch = [0_f32; COLUMNS];
    for start in (0..d_in).step_by(COLUMNS) {
        let columns = start..(start + COLUMNS).min(d_in);
        let scratch = &mut scratch[..columns.len()];
        for o in 0..sums.len() / d_in {
            let here = o * d_in + columns.start..o * d_in + columns.end;
            let sums = &mut sums[here.clone()];
            for (direction, part) in moves {
                values(part, first + o, columns.clone(), scratch);
                match conversion {
                    Conversion::Narrow => accumulate(sums, scratch, *direction, fixed::narrow),
                    Conversion::Wide => accumulate(sums, scratch, *direction, fixed::wide),
                }
            }
            if let Some(weights) = weights.as_deref_mut() {
                write_weights(&mut weights[here.clone()], &base[here], sums);
            }
        }
    }
}

/// Whether these rows can take a change: every value has a fixed-point form and every new sum a magnitude under `2^63`
/// steps. Exact, and independent of the order of the moves.
pub fn fits(first: usize, d_in: usize, sums: &[i64], moves: &Moves<'_>) -> bool {
    let mut scratch = vec![0_f32; d_in];
    let mut totals = vec![0_i128; d_in];
    sums.chunks_exact(d_in).enumerate().all(|(o, sums)| {
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total = i128::from(*sum);
        }
        for (direction, part) in moves {
            values(part, first + o, 0..d_in, &mut scratch);
            if !scratch.iter().all(|value| fixed::fits(*value)) {
                return false;
            }
            for (total, value) in totals.iter_mut().zip(&scratch) {
                match direction {
                    Direction::Enters => *total += i128::from(fixed::wide(*value)),
                    Direction::Leaves => *total -= i128::from(fixed::wide(*value)),
                }
            }
        }
        totals.iter().all(|total| total.unsigned_abs() < 1 << 63)
    })
}

/// The part's values in row `o`, these columns.
#[inline(always)]
fn values(part: &Part, o: usize, columns: Range<usize>, out: &mut [f32]) {
    match &part.values {
        Values::Dense(values) => out.copy_from_slice(&row(values, part.d_in, o)[columns]),
        Values::LowRank { left, right } | Values::Joint { left, right, .. } => {
            let scale = |i: usize| left[i * part.d_out + o];
            let term = |i: usize| &row(right, part.d_in, i)[columns.clone()];
            out.fill(0.0);
            let whole = part.n - part.n % 4;
            for i in (0..whole).step_by(4) {
                add_four(out, [0, 1, 2, 3].map(|k| (scale(i + k), term(i + k))));
            }
            for i in whole..part.n {
                let scale = scale(i);
                for (out, x) in out.iter_mut().zip(term(i)) {
                    *out += scale * x;
                }
            }
        }
    }
}

/// Four terms in one pass over `out`, added in order: the same bits as four passes, a quarter of the loads and stores.
#[inline(always)]
fn add_four(out: &mut [f32], terms: [(f32, &[f32]); 4]) {
    let [(a, xs), (b, ys), (c, zs), (d, ws)] = terms;
    for ((((out, x), y), z), w) in out.iter_mut().zip(xs).zip(ys).zip(zs).zip(ws) {
        *out = (((*out + a * x) + b * y) + c * z) + d * w;
    }
}

/// Sums wrap here only if the caller broke its promise; the check is [`fits`] or the accumulator's bounds.
#[inline(always)]
fn accumulate(sums: &mut [i64], values: &[f32], direction: Direction, steps: impl Fn(f32) -> i64) {
    match direction {
        Direction::Enters => {
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum = sum.wrapping_add(steps(*value)));
        }
        Direction::Leaves => {
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum = sum.wrapping_sub(steps(*value)));
        }
    }
}

/// The weights that these sums make of the base.
#[inline(always)]
pub fn write_weights(weights: &mut [f32], base: &[f32], sums: &[i64]) {
    for ((weight, base), sum) in weights.iter_mut().zip(base).zip(sums) {
        *weight = fixed::weight(*base, *sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D_OUT: usize = 3;
    const D_IN: usize = COLUMNS + 5;

    /// Values of many magnitudes.
    fn noise(n: usize, seed: usize) -> Vec<f32> {
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5;
        (0..n).map(|i| value(i) * 10_f32.powi(-((i % 9) as i32))).collect()
    }

    #[test]
    fn vector_width_changes_no_bit() {
        let low_rank = Values::LowRank { left: noise(6 * D_OUT, 1), right: noise(6 * D_IN, 2) };
        let low_rank = Part { n: 6, d_out: D_OUT, d_in: D_IN, values: low_rank };
        let dense = Part { n: D_OUT, d_out: D_OUT, d_in: D_IN, values: Values::Dense(noise(D_OUT * D_IN, 3)) };
        let moves = [(Direction::Enters, &low_rank), (Direction::Leaves, &dense)];
        let base = noise(D_OUT * D_IN, 4);
        for conversion in [Conversion::Narrow, Conversion::Wide] {
            let run = |apply: &dyn Fn(Rows<'_>, &Moves<'_>, Conversion)| {
                let (mut sums, mut weights) = (vec![1 << 30; base.len()], vec![0.0; base.len()]);
                let rows = Rows { first: 0, d_in: D_IN, sums: &mut sums, base: &base, weights: Some(&mut weights) };
                apply(rows, &moves, conversion);
                (sums, weights)
            };
            assert_eq!(run(&apply), run(&apply_inline));
        }
    }
}
