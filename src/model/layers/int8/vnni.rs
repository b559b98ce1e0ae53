//! The kernel for AVX-512 VNNI: 16 output rows times up to eight rows of activations.

#![expect(unsafe_code, reason = "SIMD loads through pointers; bounds are asserted before")]

use std::arch::x86_64::{
    __m512, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::{Activations, BLOCK, Group, LANES};

/// Quadruples of a block.
const QUADS: usize = BLOCK / 4;

/// `out [rows][16]`; only where the CPU has AVX-512 VNNI.
pub(super) fn multiply(group: &Group, rows: &[Activations], out: &mut [f32]) {
    let blocks = group.scales.len() / LANES;
    assert_eq!(group.values.len(), blocks * BLOCK * LANES);
    assert_eq!(out.len(), rows.len() * LANES);
    assert!(rows.iter().all(|row| row.values.len() == blocks * BLOCK && row.scales.len() == blocks));
    assert!(rows.iter().all(|row| row.corrections.len() == blocks));
    let (mut rows, mut out) = (rows, out);
    while !rows.is_empty() {
        let take = match rows.len() {
            8.. => 8,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let (now, later) = rows.split_at(take);
        let (here, rest) = out.split_at_mut(take * LANES);
        // SAFETY: the caller has checked the CPU's features; the lengths were asserted above.
        unsafe {
            match take {
                8 => tile::<8>(group, now, here),
                4 => tile::<4>(group, now, here),
                2 => tile::<2>(group, now, here),
                _ => tile::<1>(group, now, here),
            }
        }
        (rows, out) = (later, rest);
    }
}

/// One tile of `ROWS` rows of activations; every packed line is loaded once for all of them.
///
/// # Safety
/// The CPU has AVX-512 VNNI; `group`, `rows` (`ROWS` of them) and `out` have the lengths that [`multiply`] asserts.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn tile<const ROWS: usize>(group: &Group, rows: &[Activations], out: &mut [f32]) {
    let blocks = group.scales.len() / LANES;
    let mut sums: [__m512; ROWS] = [_mm512_setzero_ps(); ROWS];
    for block in 0..blocks {
        let mut products = [_mm512_set1_epi32(0); ROWS];
        for (products, row) in products.iter_mut().zip(rows) {
            // SAFETY: `block` is below the number of blocks, which all of the lengths are multiples of.
            *products = _mm512_set1_epi32(unsafe { *row.corrections.get_unchecked(block) });
        }
        for quad in 0..QUADS {
            // SAFETY: as above; a line is 64 bytes, a quadruple 4, both within their block.
            let line = unsafe { _mm512_loadu_si512(group.values.as_ptr().add((block * QUADS + quad) * 64).cast()) };
            for (products, row) in products.iter_mut().zip(rows) {
                let quadruple =
                    unsafe { row.values.as_ptr().add(block * BLOCK + quad * 4).cast::<i32>().read_unaligned() };
                *products = _mm512_dpbusd_epi32(*products, line, _mm512_set1_epi32(quadruple));
            }
        }
        // SAFETY: as above.
        let scales = unsafe { _mm512_loadu_ps(group.scales.as_ptr().add(block * LANES)) };
        for ((sum, products), row) in sums.iter_mut().zip(products).zip(rows) {
            let scale = _mm512_mul_ps(scales, _mm512_set1_ps(unsafe { *row.scales.get_unchecked(block) }));
            *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, *sum);
        }
    }
    for (sum, out) in sums.iter().zip(out.chunks_exact_mut(LANES)) {
        // SAFETY: `out` is 16 floats.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *sum) };
    }
}
