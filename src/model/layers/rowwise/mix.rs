//! Values added up by their weights, each output in the order of the positions, whatever the vectors' width.

/// Adds to `out [heads][head_dim]` the sum of `values [positions][head_dim]`, weighted for each head by the first of its
/// `stride` weights.
pub(super) fn add(weights: &[f32], stride: usize, values: &[f32], head_dim: usize, out: &mut [f32]) {
    let (heads, positions) = (out.len() / head_dim, values.len() / head_dim);
    assert_eq!((out.len(), values.len()), (heads * head_dim, positions * head_dim));
    assert!(positions <= stride && weights.len() >= (heads - 1) * stride + positions);
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") {
        return x86::add(weights, stride, values, head_dim, out);
    }
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        #[expect(unsafe_code, reason = "calling a function compiled for CPU features")]
        // SAFETY: the CPU has the features.
        return unsafe { add_avx2(weights, stride, values, head_dim, out) };
    }
    add_plain(weights, stride, values, head_dim, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn add_avx2(weights: &[f32], stride: usize, values: &[f32], head_dim: usize, out: &mut [f32]) {
    add_plain(weights, stride, values, head_dim, out);
}

/// What [`add`] computes.
#[inline(always)]
fn add_plain(weights: &[f32], stride: usize, values: &[f32], head_dim: usize, out: &mut [f32]) {
    for (weights, out) in weights.chunks(stride).zip(out.chunks_exact_mut(head_dim)) {
        for (value, weight) in values.chunks_exact(head_dim).zip(weights) {
            for (out, value) in out.iter_mut().zip(value) {
                *out = weight.mul_add(*value, *out);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![expect(unsafe_code, reason = "SIMD loads through pointers; the caller has asserted the lengths")]

    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps};

    const WIDTH: usize = 16;

    /// Where the CPU has AVX-512, with the lengths that [`super::add`] asserts.
    pub(super) fn add(weights: &[f32], stride: usize, values: &[f32], head_dim: usize, out: &mut [f32]) {
        let heads = out.len() / head_dim;
        let mut head = 0;
        while head < heads {
            let (weights, out) = (&weights[head * stride..], &mut out[head * head_dim..]);
            let take = [4, 3, 2, 1].into_iter().find(|take| head + take <= heads).unwrap_or(1);
            // SAFETY: by the caller; so many heads are left.
            unsafe {
                match take {
                    4 => some_heads::<4>(weights, stride, values, head_dim, out),
                    3 => some_heads::<3>(weights, stride, values, head_dim, out),
                    2 => some_heads::<2>(weights, stride, values, head_dim, out),
                    _ => some_heads::<1>(weights, stride, values, head_dim, out),
                }
            }
            head += take;
        }
    }

    /// # Safety
    /// The CPU has AVX-512; there are `H` heads of weights and outputs.
    #[target_feature(enable = "avx512f")]
    unsafe fn some_heads<const H: usize>(
        weights: &[f32],
        stride: usize,
        values: &[f32],
        head_dim: usize,
        out: &mut [f32],
    ) {
        let mut column = 0;
        while column + 4 * WIDTH <= head_dim {
            // SAFETY: so many columns are left.
            unsafe { columns::<H, 4>(weights, stride, values, head_dim, column, out) };
            column += 4 * WIDTH;
        }
        while column + WIDTH <= head_dim {
            // SAFETY: so many columns are left.
            unsafe { columns::<H, 1>(weights, stride, values, head_dim, column, out) };
            column += WIDTH;
        }
        if column < head_dim {
            for head in 0..H {
                for (value, weight) in values.chunks_exact(head_dim).zip(&weights[head * stride..]) {
                    for (out, value) in out[head * head_dim..][column..head_dim].iter_mut().zip(&value[column..]) {
                        *out = weight.mul_add(*value, *out);
                    }
                }
            }
        }
    }

    /// `C` vectors of columns from `column` on.
    ///
    /// # Safety
    /// The CPU has AVX-512; there are `H` heads of weights and outputs, and `C` vectors of columns.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn columns<const H: usize, const C: usize>(
        weights: &[f32],
        stride: usize,
        values: &[f32],
        head_dim: usize,
        column: usize,
        out: &mut [f32],
    ) {
        debug_assert!(column + C * WIDTH <= head_dim && out.len() >= H * head_dim);
        let place = |head: usize, vector: usize| head * head_dim + column + vector * WIDTH;
        // SAFETY, here and below: the columns are there in each head's outputs and each position's value, and each position
        // has a weight in each head.
        let mut sums: [[_; C]; H] = std::array::from_fn(|head| {
            std::array::from_fn(|vector| unsafe { _mm512_loadu_ps(out.as_ptr().add(place(head, vector))) })
        });
        for position in 0..values.len() / head_dim {
            let value: [_; C] =
                std::array::from_fn(|vector| unsafe { _mm512_loadu_ps(values.as_ptr().add(place(position, vector))) });
            for (head, sums) in sums.iter_mut().enumerate() {
                let weight = _mm512_set1_ps(unsafe { *weights.as_ptr().add(head * stride + position) });
                for (sum, value) in sums.iter_mut().zip(value) {
                    *sum = _mm512_fmadd_ps(weight, value, *sum);
                }
            }
        }
        for (head, sums) in sums.iter().enumerate() {
            for (vector, sum) in sums.iter().enumerate() {
                unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(place(head, vector)), *sum) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::random;

    #[test]
    fn vectors_change_no_bit() {
        let flat = |shape: &[usize], seed| random(shape, seed).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (heads, head_dim, positions) in [(1, 64, 5), (3, 64, 16), (4, 80, 7), (5, 24, 1), (9, 256, 3)] {
            let stride = positions + 2;
            let (weights, values) = (flat(&[heads, stride], 1), flat(&[positions, head_dim], 2));
            let mut wide = flat(&[heads, head_dim], 3);
            let mut plain = wide.clone();
            add(&weights, stride, &values, head_dim, &mut wide);
            add_plain(&weights, stride, &values, head_dim, &mut plain);
            assert_eq!(wide, plain, "{heads} heads of {head_dim}, {positions} positions");
            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                let mut middle = flat(&[heads, head_dim], 3);
                #[expect(unsafe_code, reason = "calling a function compiled for CPU features")]
                // SAFETY: the CPU has the features.
                unsafe {
                    add_avx2(&weights, stride, &values, head_dim, &mut middle);
                }
                assert_eq!(middle, plain);
            }
            // In two stretches, as pages give them.
            let (first, second) = values.split_at(positions / 2 * head_dim);
            let mut parts = flat(&[heads, head_dim], 3);
            add(&weights, stride, first, head_dim, &mut parts);
            add(&weights[positions / 2..], stride, second, head_dim, &mut parts);
            assert_eq!(parts, plain);
        }
    }
}
