//! Products of f32 weights with any number of rows, on a CPU.
//!
//! A general matrix product adds up in an order that depends on how many rows it is given, and takes ten times as long
//! for two rows as for one. Here every output is the product of a row and a row of weights, added up in `LANES` lanes
//! in one fixed order. So a row has the same bits whatever it is computed with, and a few rows cost little more than one:
//! a tile multiplies several rows with several rows of weights while they are in registers (`x86`). The scalar twin here
//! states what a tile computes, and is what other machines run; the tests hold them together.

#[cfg(target_arch = "x86_64")]
mod x86;

use candle_core::{CpuStorage, Result, Storage, Tensor};
use rayon::prelude::*;

/// Partial sums of a product of two vectors, added in a fixed order whatever the vector width.
const LANES: usize = 16;
/// Rows of weights that are multiplied together.
const TILE: usize = 4;
/// Values of `x` that are multiplied with all weights before the next: 256 KB, a part of a core's second cache (measured by
/// `benches/dense.rs`: it takes about 30% off 256 rows of 576, and costs less than it gains elsewhere).
const CACHED: usize = 1 << 16;
/// Products smaller than this many multiplications are not worth waking another thread for.
const PARALLEL: usize = 200_000;

/// `x [n, d_in]` times the transpose of `w [d_out, d_in]` -> `[n, d_out]`; f32, on a CPU, no gradient.
pub fn matmul(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let ((rows, d_in), (d_out, width)) = (x.dims2()?, w.dims2()?);
    if d_in != width {
        candle_core::bail!("a product of {d_in} inputs with weights of {width}");
    }
    let (x, w) = (x.contiguous()?, w.contiguous()?);
    let ((x_storage, x_layout), (w_storage, w_layout)) = (x.storage_and_layout(), w.storage_and_layout());
    let x_values = &floats(&x_storage)?[x_layout.start_offset()..][..rows * d_in];
    let w_values = &floats(&w_storage)?[w_layout.start_offset()..][..d_out * d_in];
    let y = multiply(x_values, w_values, d_in);
    Tensor::from_vec(y, (rows, d_out), x.device())
}

fn floats(storage: &Storage) -> Result<&[f32]> {
    match storage {
        Storage::Cpu(CpuStorage::F32(values)) => Ok(values),
        _ => candle_core::bail!("this product is for f32 on a CPU"),
    }
}

/// `[n, d_in]` and `[d_out, d_in]` -> `[n, d_out]`.
fn multiply(x: &[f32], w: &[f32], d_in: usize) -> Vec<f32> {
    if x.is_empty() || w.is_empty() {
        return Vec::new();
    }
    let rows = (CACHED / d_in / TILE * TILE).max(TILE);
    if x.len() <= rows * d_in {
        return multiply_cached(x, w, d_in);
    }
    let mut y = Vec::with_capacity(x.len() / d_in * (w.len() / d_in));
    x.chunks(rows * d_in).for_each(|x| y.extend(multiply_cached(x, w, d_in)));
    y
}

/// The same for as many rows as stay in the cache while all of the weights pass by.
fn multiply_cached(x: &[f32], w: &[f32], d_in: usize) -> Vec<f32> {
    let (rows, d_out) = (x.len() / d_in, w.len() / d_in);
    let mut y = vec![0f32; rows * d_out];
    // A few large pieces per thread: waking costs more than an uneven end.
    let outputs = match rows * w.len() < PARALLEL || rayon::current_num_threads() == 1 {
        true => d_out,
        false => d_out.div_ceil(rayon::current_num_threads() * 2).next_multiple_of(TILE),
    };
    let pieces = w.par_chunks(d_in * outputs);
    if outputs >= d_out {
        block(x, w, d_in, &mut y);
    } else if rows == 1 {
        pieces.zip(y.par_chunks_mut(outputs)).for_each(|(w, y)| block(x, w, d_in, y));
    } else {
        // Each piece is rows of its own outputs, which then find their places side by side.
        let made: Vec<Vec<f32>> = pieces
            .map(|w| {
                let mut piece = vec![0f32; rows * (w.len() / d_in)];
                block(x, w, d_in, &mut piece);
                piece
            })
            .collect();
        for (row, y) in y.chunks_exact_mut(d_out).enumerate() {
            for (piece, y) in made.iter().zip(y.chunks_mut(outputs)) {
                y.copy_from_slice(&piece[row * y.len()..][..y.len()]);
            }
        }
    }
    y
}

/// `out [n][d_out]`.
fn block(x: &[f32], w: &[f32], d_in: usize, out: &mut [f32]) {
    products(x, w, d_in, out, w.len() / d_in);
}

/// The product of `x [n, d_in]` and `w [d_out, d_in]` by this thread alone; a row of the result begins `stride` after the one
/// before in `out`.
pub(super) fn products(x: &[f32], w: &[f32], d_in: usize, out: &mut [f32], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    if x86::block(x, w, d_in, out, stride) {
        return;
    }
    block_scalar(x, w, d_in, out, stride);
}

/// What [`products`] computes, without vectors.
fn block_scalar(x: &[f32], w: &[f32], d_in: usize, out: &mut [f32], stride: usize) {
    for (x, out) in x.chunks_exact(d_in).zip(out.chunks_mut(stride)) {
        for (w, out) in w.chunks_exact(d_in).zip(out) {
            let mut sums = [0f32; LANES];
            for (x, w) in x.chunks(LANES).zip(w.chunks(LANES)) {
                add_products(&mut sums, x, w);
            }
            *out = total(sums);
        }
    }
}

/// The products of at most [`LANES`] values, each added to its own lane without rounding in between.
#[inline(always)]
fn add_products(sums: &mut [f32; LANES], x: &[f32], w: &[f32]) {
    for ((sum, x), w) in sums.iter_mut().zip(x).zip(w) {
        *sum = x.mul_add(*w, *sum);
    }
}

/// The sum of all lanes, by halves.
#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::{assert_close, random};

    #[test]
    fn equals_candles_product() {
        for (rows, d_in, d_out) in [(1, 64, 5), (2, 70, 16), (3, 16, 4), (9, 100, 33), (40, 576, 129)] {
            let (x, w) = (random(&[rows, d_in], 1), random(&[d_out, d_in], 2));
            assert_close(&matmul(&x, &w).unwrap(), &x.matmul(&w.t().unwrap()).unwrap(), 1e-5);
        }
        assert!(matmul(&random(&[1, 3], 1), &random(&[2, 4], 2)).is_err());
        assert_eq!(matmul(&random(&[0, 4], 1), &random(&[2, 4], 2)).unwrap().dims(), [0, 2]);
    }

    #[test]
    fn a_row_has_the_same_bits_whatever_it_is_computed_with() {
        let (x, w) = (random(&[23, 200], 3), random(&[70, 200], 4));
        let together = matmul(&x, &w).unwrap();
        for (start, rows) in [(0, 1), (0, 2), (5, 4), (7, 9), (22, 1)] {
            let some = matmul(&x.narrow(0, start, rows).unwrap(), &w).unwrap();
            assert_close(&some, &together.narrow(0, start, rows).unwrap(), 0.0);
        }
        // Large enough to be shared among threads, and to be cut to what the cache holds.
        let rows = CACHED / 600 + 6;
        let (x, w) = (random(&[rows, 600], 5), random(&[333, 600], 6));
        let together = matmul(&x, &w).unwrap();
        for row in [0, 1, rows - 7, rows - 1] {
            let alone = matmul(&x.narrow(0, row, 1).unwrap(), &w).unwrap();
            assert_close(&alone, &together.narrow(0, row, 1).unwrap(), 0.0);
        }
    }

    #[test]
    fn kernels_equal_their_scalar_twin() {
        let flat = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (rows, outputs, d_in) in [(1, 1, 7), (5, 9, 83), (7, 12, 64), (13, 6, 16), (3, 4, 15)] {
            let (x, w) = (flat(random(&[rows, d_in], 7)), flat(random(&[outputs, d_in], 8)));
            let (mut fast, mut scalar) = (vec![0f32; rows * outputs], vec![0f32; rows * outputs]);
            block(&x, &w, d_in, &mut fast);
            block_scalar(&x, &w, d_in, &mut scalar, outputs);
            assert_eq!(fast, scalar, "{rows} rows, {outputs} outputs of {d_in}");
            #[cfg(target_arch = "x86_64")]
            for level in x86::Level::available() {
                fast.fill(0.0);
                x86::block_at(level, &x, &w, d_in, &mut fast, outputs);
                assert_eq!(fast, scalar, "{level:?}: {rows} rows, {outputs} outputs of {d_in}");
            }
        }
    }
}
