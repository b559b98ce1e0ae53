//! The kernel for AVX-512 VNNI: 16 output rows times up to eight rows of activations.

#![expect(unsafe_code, reason = "SIMD loads through pointers; bounds are asserted before")]

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm256_loadu_si256, _mm512_add_ps, _mm512_and_si512,
    _mm512_cvtepi32_ps, _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_srli_epi32, _mm512_storeu_ps,
};

use half::f16;

use super::{
    BLOCK, LANES,
    activations::Activations,
    weights::{Format, Group},
};

/// Bytes of a line: four values (or pairs of values) of each of 16 rows.
const LINE: usize = 4 * LANES;
/// How far ahead lines are asked for, bytes.
const AHEAD: usize = 4096;

/// `out [rows][16]`; only where the CPU has AVX-512 VNNI.
pub(super) fn multiply(group: &Group, rows: &[Activations], out: &mut [f32]) {
    let blocks = group.scales.len() / LANES;
    assert_eq!(group.values.len(), blocks * group.format.packed_block());
    assert_eq!(group.minimums.len(), if group.format == Format::Q4_1 { blocks * LANES } else { 0 });
    assert_eq!(out.len(), rows.len() * LANES);
    assert!(rows.iter().all(|row| row.values.len() == blocks * BLOCK));
    assert!(rows.iter().all(|row| [row.scales.len(), row.sums.len(), row.scaled_sums.len()] == [blocks; 3]));
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
            match (take, group.format) {
                (8, Format::Q8_0) => tile_q8_0::<8>(group, now, here),
                (4, Format::Q8_0) => tile_q8_0::<4>(group, now, here),
                (2, Format::Q8_0) => tile_q8_0::<2>(group, now, here),
                (_, Format::Q8_0) => tile_q8_0::<1>(group, now, here),
                (8, Format::Q4_1) => tile_q4_1::<8>(group, now, here),
                (4, Format::Q4_1) => tile_q4_1::<4>(group, now, here),
                (2, Format::Q4_1) => tile_q4_1::<2>(group, now, here),
                (_, Format::Q4_1) => tile_q4_1::<1>(group, now, here),
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
unsafe fn tile_q8_0<const ROWS: usize>(group: &Group, rows: &[Activations], out: &mut [f32]) {
    let mut sums: [__m512; ROWS] = [_mm512_setzero_ps(); ROWS];
    for block in 0..group.scales.len() / LANES {
        let mut products = [_mm512_set1_epi32(0); ROWS];
        for (products, row) in products.iter_mut().zip(rows) {
            // What the weights' offset adds, taken away beforehand.
            *products = _mm512_set1_epi32(-128 * row.sums[block]);
        }
        for quad in 0..BLOCK / 4 {
            // SAFETY: `block` is below the number of blocks, which all of the lengths are multiples of.
            let line = unsafe { load_line(group, block, quad) };
            prefetch(group, block, quad);
            for (products, row) in products.iter_mut().zip(rows) {
                let quadruple = unsafe { quadruple(row, block, quad) };
                *products = _mm512_dpbusd_epi32(*products, line, quadruple);
            }
        }
        // SAFETY: as above.
        let scales = unsafe { load_halves(&group.scales, block) };
        for ((sum, products), row) in sums.iter_mut().zip(products).zip(rows) {
            let part = _mm512_mul_ps(_mm512_cvtepi32_ps(products), scales);
            *sum = _mm512_add_ps(*sum, _mm512_mul_ps(part, _mm512_set1_ps(row.scales[block])));
        }
    }
    store(&sums, out);
}

/// As [`tile_q8_0`].
///
/// # Safety
/// As for [`tile_q8_0`].
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn tile_q4_1<const ROWS: usize>(group: &Group, rows: &[Activations], out: &mut [f32]) {
    let low_halves = _mm512_set1_epi8(15);
    let mut sums: [__m512; ROWS] = [_mm512_setzero_ps(); ROWS];
    for block in 0..group.scales.len() / LANES {
        let mut products = [_mm512_set1_epi32(0); ROWS];
        for quad in 0..BLOCK / 8 {
            // SAFETY: `block` is below the number of blocks, which all of the lengths are multiples of.
            let line = unsafe { load_line(group, block, quad) };
            prefetch(group, block, quad);
            let low = _mm512_and_si512(line, low_halves);
            let high = _mm512_and_si512(_mm512_srli_epi32::<4>(line), low_halves);
            for (products, row) in products.iter_mut().zip(rows) {
                let (first, second) = unsafe { (quadruple(row, block, quad), quadruple(row, block, quad + BLOCK / 8)) };
                *products = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(*products, low, first), high, second);
            }
        }
        // SAFETY: as above.
        let (scales, minimums) = unsafe { (load_halves(&group.scales, block), load_halves(&group.minimums, block)) };
        for ((sum, products), row) in sums.iter_mut().zip(products).zip(rows) {
            let part = _mm512_mul_ps(_mm512_cvtepi32_ps(products), scales);
            let part = _mm512_mul_ps(part, _mm512_set1_ps(row.scales[block]));
            let part = _mm512_add_ps(part, _mm512_mul_ps(minimums, _mm512_set1_ps(row.scaled_sums[block])));
            *sum = _mm512_add_ps(*sum, part);
        }
    }
    store(&sums, out);
}

/// Line `line` of a block.
///
/// # Safety
/// The block and the line are there.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load_line(group: &Group, block: usize, line: usize) -> __m512i {
    // SAFETY: by the caller.
    unsafe { _mm512_loadu_si512(group.values.as_ptr().add(block * group.format.packed_block() + line * LINE).cast()) }
}

/// Asks for a line that comes later, beyond the group's end for one of the next group, which mostly lies behind it. The CPU
/// itself looks no further than the end of a page, and a group is little longer than that.
#[inline(always)]
fn prefetch(group: &Group, block: usize, line: usize) {
    let place = block * group.format.packed_block() + line * LINE + AHEAD;
    // SAFETY: a prefetch reads nothing, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(group.values.as_ptr().wrapping_add(place).cast()) };
}

/// Four activations of a block, for every lane.
///
/// # Safety
/// The block and the quadruple are there.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn quadruple(row: &Activations, block: usize, quad: usize) -> __m512i {
    // SAFETY: by the caller.
    _mm512_set1_epi32(unsafe { row.values.as_ptr().add(block * BLOCK + quad * 4).cast::<i32>().read_unaligned() })
}

/// The half-precision numbers of a block, one per lane.
///
/// # Safety
/// The block is there.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load_halves(halves: &[f16], block: usize) -> __m512 {
    // SAFETY: by the caller; an `f16` is its 16 bits.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(halves.as_ptr().add(block * LANES).cast()) })
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(sums: &[__m512], out: &mut [f32]) {
    for (sum, out) in sums.iter().zip(out.chunks_exact_mut(LANES)) {
        // SAFETY: `out` is 16 floats.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *sum) };
    }
}
