//! The tiles of [`super`] for AVX-512, and for AVX2 with FMA. Both add up in the order of the scalar twin, so the bits agree.

#![expect(unsafe_code, reason = "SIMD loads through pointers; bounds are asserted before")]

use std::arch::x86_64::{
    __m128, __m256, __m512, _MM_HINT_T0, _mm_add_ps, _mm_movehl_ps, _mm_movelh_ps, _mm_prefetch, _mm_storeu_ps,
    _mm_unpackhi_ps, _mm_unpacklo_ps, _mm256_add_ps, _mm256_castps256_ps128, _mm256_castsi256_ps,
    _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_castps_si512,
    _mm512_castps512_ps256, _mm512_extracti64x4_epi64, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_setzero_ps,
    _mm512_storeu_ps,
};

use super::{LANES, TILE, add_products, total};

/// Which vectors to compute with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Avx512,
    Avx2,
}

impl Level {
    /// Those that this CPU has, the widest first.
    pub fn available() -> impl Iterator<Item = Self> {
        let avx2 = std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
        let avx512 = avx2 && std::arch::is_x86_feature_detected!("avx512f");
        avx512.then_some(Self::Avx512).into_iter().chain(avx2.then_some(Self::Avx2))
    }
}

/// `out [n][d_out]`, rows `stride` apart, if this CPU has vectors for it.
pub(super) fn block(x: &[f32], w: &[f32], d_in: usize, out: &mut [f32], stride: usize) -> bool {
    match Level::available().next() {
        Some(level) => {
            block_at(level, x, w, d_in, out, stride);
            true
        }
        None => false,
    }
}

/// The same with vectors that the CPU has.
pub(super) fn block_at(level: Level, x: &[f32], w: &[f32], d_in: usize, out: &mut [f32], stride: usize) {
    let (rows, outputs) = (x.len() / d_in, w.len() / d_in);
    assert_eq!((x.len(), w.len()), (rows * d_in, outputs * d_in));
    assert!(rows == 0 || outputs <= stride && out.len() >= (rows - 1) * stride + outputs);
    // SAFETY: the CPU has the features; the lengths were asserted.
    unsafe {
        match level {
            Level::Avx512 => avx512::block(x, w, d_in, out, stride),
            Level::Avx2 => avx2::block(x, w, d_in, out, stride),
        }
    }
}

/// A kernel: tiles of at most `$rows` rows and `$outputs` rows of weights, as many as its registers hold, each sum in
/// `$parts` vectors.
macro_rules! kernel {
    ($name:ident, $features:literal, $vector:ty, $parts:literal, $rows:literal, $outputs:literal,
     $zero:ident, $load:ident, $fma:ident, $store:ident, $halve:ident) => {
        mod $name {
            use super::*;

            const PARTS: usize = $parts;
            const WIDTH: usize = LANES / PARTS;

            /// # Safety
            /// The CPU has the features; `x` is `[n, d_in]`, `w` `[d_out, d_in]` and `out` `[n][d_out]`, rows `stride` apart.
            #[target_feature(enable = $features)]
            pub unsafe fn block(x: &[f32], w: &[f32], d_in: usize, out: &mut [f32], stride: usize) {
                let outputs = w.len() / d_in;
                let whole = outputs - outputs % $outputs;
                for output in (0..whole).step_by($outputs) {
                    // SAFETY: by the caller.
                    unsafe { strip::<$outputs>(x, &w[output * d_in..], d_in, &mut out[output..], stride) };
                }
                for output in whole..outputs {
                    // SAFETY: by the caller.
                    unsafe { strip::<1>(x, &w[output * d_in..], d_in, &mut out[output..], stride) };
                }
            }

            /// `O` outputs of all rows; a row's results are `stride` apart from the next's.
            ///
            /// # Safety
            /// As for [`block`].
            #[target_feature(enable = $features)]
            unsafe fn strip<const O: usize>(x: &[f32], w: &[f32], d_in: usize, out: &mut [f32], stride: usize) {
                let rows = x.len() / d_in;
                let mut row = 0;
                while row < rows {
                    let (here, out) = (&x[row * d_in..], &mut out[row * stride..]);
                    let whole = rows - row >= $rows;
                    // SAFETY: as many rows are left as the tile takes.
                    unsafe {
                        match (whole, row == 0) {
                            (true, true) => tile::<$rows, O, true>(here, w, d_in, out, stride),
                            (true, false) => tile::<$rows, O, false>(here, w, d_in, out, stride),
                            (false, true) => tile::<1, O, true>(here, w, d_in, out, stride),
                            (false, false) => tile::<1, O, false>(here, w, d_in, out, stride),
                        }
                    }
                    row += if whole { $rows } else { 1 };
                }
            }

            /// The first `R` rows of `x` times `O` rows of weights; a row's results are `stride` apart from the next's. The `FIRST`
            /// tile of these weights asks for those of the next ones: the CPU itself looks no further than the end of a page.
            ///
            /// # Safety
            /// The CPU has the features; `x` has `R` rows, `w` has `O`, `out` has room.
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn tile<const R: usize, const O: usize, const FIRST: bool>(
                x: &[f32],
                w: &[f32],
                d_in: usize,
                out: &mut [f32],
                stride: usize,
            ) {
                debug_assert!(x.len() >= R * d_in && w.len() >= O * d_in);
                let mut sums: [[[$vector; PARTS]; R]; O] = [[[$zero(); PARTS]; R]; O];
                let whole = d_in - d_in % LANES;
                let mut at = 0;
                while at < whole {
                    for part in 0..PARTS {
                        let place = at + part * WIDTH;
                        // SAFETY: `place + WIDTH` is at most `d_in`, and the rows are there.
                        let xs: [$vector; R] =
                            std::array::from_fn(|r| unsafe { $load(x.as_ptr().add(r * d_in + place)) });
                        for o in 0..O {
                            if FIRST {
                                prefetch(w, (O + o) * d_in + place);
                            }
                            // SAFETY: as above.
                            let w = unsafe { $load(w.as_ptr().add(o * d_in + place)) };
                            for r in 0..R {
                                sums[o][r][part] = $fma(xs[r], w, sums[o][r][part]);
                            }
                        }
                    }
                    at += LANES;
                }
                if whole == d_in && (R * O).is_multiple_of(4) {
                    for four in (0..R * O).step_by(4) {
                        let eight = |i: usize| $halve(sums[(four + i) % O][(four + i) / O]);
                        let mut totals = [0f32; 4];
                        // SAFETY: room for four values.
                        unsafe { _mm_storeu_ps(totals.as_mut_ptr(), totals_of(std::array::from_fn(eight))) };
                        for (i, total) in (four..).zip(totals) {
                            out[i / O * stride + i % O] = total;
                        }
                    }
                    return;
                }
                for o in 0..O {
                    for r in 0..R {
                        let mut lanes = [0f32; LANES];
                        for part in 0..PARTS {
                            // SAFETY: the parts fill the lanes.
                            unsafe { $store(lanes.as_mut_ptr().add(part * WIDTH), sums[o][r][part]) };
                        }
                        let rest = |row: usize| row * d_in + whole..(row + 1) * d_in;
                        add_products(&mut lanes, &x[rest(r)], &w[rest(o)]);
                        out[r * stride + o] = total(lanes);
                    }
                }
            }
        }
    };
}

/// Asks for a value, which may be beyond the end.
#[inline(always)]
fn prefetch(values: &[f32], place: usize) {
    // SAFETY: a prefetch reads nothing, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().wrapping_add(place).cast()) };
}

/// The upper eight lanes added to the lower eight.
#[target_feature(enable = "avx512f,avx2")]
#[inline]
fn halve_avx512([lanes]: [__m512; 1]) -> __m256 {
    let upper = _mm256_castsi256_ps(_mm512_extracti64x4_epi64::<1>(_mm512_castps_si512(lanes)));
    _mm256_add_ps(_mm512_castps512_ps256(lanes), upper)
}

/// The same of two registers.
#[target_feature(enable = "avx2")]
#[inline]
fn halve_avx2([lower, upper]: [__m256; 2]) -> __m256 {
    _mm256_add_ps(lower, upper)
}

/// The upper four lanes added to the lower four.
#[target_feature(enable = "avx2")]
#[inline]
fn halve(lanes: __m256) -> __m128 {
    _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes))
}

/// The totals of four times eight lanes, each by halves: what [`total`] does from there on, four sums at a time.
#[target_feature(enable = "avx2")]
#[inline]
fn totals_of([a, b, c, d]: [__m256; 4]) -> __m128 {
    let (a, b, c, d) = (halve(a), halve(b), halve(c), halve(d));
    // Transposed: the first lanes of all four, the second ones, and so on.
    let (ab_low, ab_high) = (_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
    let (cd_low, cd_high) = (_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
    let (first, second) = (_mm_movelh_ps(ab_low, cd_low), _mm_movehl_ps(cd_low, ab_low));
    let (third, fourth) = (_mm_movelh_ps(ab_high, cd_high), _mm_movehl_ps(cd_high, ab_high));
    _mm_add_ps(_mm_add_ps(first, third), _mm_add_ps(second, fourth))
}

kernel!(
    avx512,
    "avx512f,avx2,fma",
    __m512,
    1,
    4,
    4,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_fmadd_ps,
    _mm512_storeu_ps,
    halve_avx512
);
kernel!(
    avx2,
    "avx2,fma",
    __m256,
    2,
    2,
    2,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_fmadd_ps,
    _mm256_storeu_ps,
    halve_avx2
);

const _: () = assert!(TILE.is_multiple_of(4), "pieces of work are whole tiles of either kernel");
