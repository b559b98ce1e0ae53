//! Attention of one row at a time, on a CPU and where no gradient is wanted.
//!
//! A matrix product adds up in an order that depends on how many rows it is given, so the same token gets other last
//! bits alone than in a batch. In f32 that is all; but where activations are rounded to 8 bits, a last bit now and then
//! makes a whole step, and some blocks later the logits differ in their first digits. Everything else in a quantized
//! trunk works on rows; with this attention a row has the same bits whatever it is computed with: alone, in a batch, in
//! one pass or after a cache. So an edit's factors do not depend on the edits that are captured with it (law 1), and a
//! generation does not depend on those that run beside it.

use candle_core::{CpuStorage, Result, Storage, Tensor};
use rayon::prelude::*;

use super::{attention::Heads, relative::Distances};

/// Partial sums of a product of two vectors, added in a fixed order whatever the vector width.
const LANES: usize = 16;
/// Attention of fewer multiplications than this is not worth waking another thread for.
const PARALLEL: usize = 200_000;

/// What an asking row may look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// First key that it sees, of its sequence or of the window before it.
    pub start: usize,
    /// Keys from there on that it sees; where attention is causal, itself the last.
    pub count: usize,
    /// Where the first of them stands, seen from the row: 0 its own place, negative before it.
    pub distance: i64,
}

/// `q [rows, heads * d]` asks for keys and values that are either packed rows `[n, kv_heads * d]` or a cache
/// `[1, kv_heads, n, d]`; `seen` says for each row which, and `biases` what is added to their
/// scores. Returns `[rows, heads * d]`.
pub fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seen: &[Seen],
    biases: Option<&Distances>,
    heads: Heads,
) -> Result<Tensor> {
    let (kv_heads, head_dim) = (heads.kv, heads.dim);
    let (rows, width) = q.dims2()?;
    let q = q.contiguous()?;
    let (q_storage, q_layout) = q.storage_and_layout();
    let (k_storage, k_layout) = k.storage_and_layout();
    let (v_storage, v_layout) = v.storage_and_layout();
    let q = &floats(&q_storage)?[q_layout.start_offset()..];
    let keys = ByHead::new(floats(&k_storage)?, k_layout, head_dim)?;
    let values = ByHead::new(floats(&v_storage)?, v_layout, head_dim)?;
    assert_eq!(seen.len(), rows, "every asking row sees something");
    let work: usize = seen.iter().map(|seen| seen.count * width).sum();
    let group = width / kv_heads;
    let mut out = vec![0f32; rows * width];
    let one = |(place, out): (usize, &mut [f32])| {
        let (row, head) = (place / kv_heads, place % kv_heads);
        let q = &q[row * width + head * group..][..group];
        let scores = Scores {
            count: seen[row].count,
            scale: heads.scale as f32,
            biases: biases.map(|biases| (biases, head * (group / head_dim), seen[row].distance)),
        };
        attend_group(q, keys.of(head, seen[row]), values.of(head, seen[row]), scores, out);
    };
    if work < PARALLEL {
        out.chunks_exact_mut(group).enumerate().for_each(one);
    } else {
        out.par_chunks_exact_mut(group).enumerate().for_each(one);
    }
    Tensor::from_vec(out, (rows, width), k.device())
}

fn floats(storage: &Storage) -> Result<&[f32]> {
    match storage {
        Storage::Cpu(CpuStorage::F32(values)) => Ok(values),
        _ => candle_core::bail!("row-wise attention is for f32 on a CPU"),
    }
}

/// Keys or values, by head.
struct ByHead<'a> {
    data: &'a [f32],
    head_stride: usize,
    row_stride: usize,
    head_dim: usize,
}

impl<'a> ByHead<'a> {
    fn new(data: &'a [f32], layout: &candle_core::Layout, head_dim: usize) -> Result<Self> {
        let (head_stride, row_stride) = match *layout.stride() {
            [row, 1] => (head_dim, row),
            [_, head, row, 1] => (head, row),
            ref other => candle_core::bail!("keys and values with strides {other:?}"),
        };
        Ok(Self { data: &data[layout.start_offset()..], head_stride, row_stride, head_dim })
    }

    /// The rows of one head from `seen.start` on.
    fn of(&self, head: usize, seen: Seen) -> Rows<'a> {
        let start = head * self.head_stride + seen.start * self.row_stride;
        Rows { data: &self.data[start..], stride: self.row_stride, head_dim: self.head_dim }
    }
}

/// The rows of one head in one sequence.
#[derive(Clone, Copy)]
struct Rows<'a> {
    data: &'a [f32],
    stride: usize,
    head_dim: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    fn row(&self, index: usize) -> &'a [f32] {
        &self.data[index * self.stride..][..self.head_dim]
    }
}

/// How a row scores the keys that it sees.
#[derive(Clone, Copy)]
struct Scores<'a> {
    count: usize,
    scale: f32,
    /// What is added, the first head that shares these keys, and the first key's distance.
    biases: Option<(&'a Distances, usize, i64)>,
}

/// All heads that share one head of keys; by the widest vectors that the CPU has, which do not change a bit.
fn attend_group(q: &[f32], keys: Rows<'_>, values: Rows<'_>, scores: Scores<'_>, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[expect(unsafe_code, reason = "calling a function compiled for a CPU feature")]
        // SAFETY: the CPU has the feature.
        return unsafe { attend_group_avx2(q, keys, values, scores, out) };
    }
    attend_group_inline(q, keys, values, scores, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn attend_group_avx2(q: &[f32], keys: Rows<'_>, values: Rows<'_>, scores: Scores<'_>, out: &mut [f32]) {
    attend_group_inline(q, keys, values, scores, out);
}

#[inline(always)]
fn attend_group_inline(q: &[f32], keys: Rows<'_>, values: Rows<'_>, scores: Scores<'_>, out: &mut [f32]) {
    let head_dim = keys.head_dim;
    let mut weights = vec![0f32; scores.count];
    for (head, (q, out)) in q.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)).enumerate() {
        for (key, weight) in weights.iter_mut().enumerate() {
            *weight = dot(q, keys.row(key)) * scores.scale;
        }
        if let Some((biases, first, distance)) = scores.biases {
            let biases = biases.of(first + head, distance, scores.count);
            weights.iter_mut().zip(biases).for_each(|(weight, bias)| *weight += bias);
        }
        let largest = weights.iter().fold(f32::NEG_INFINITY, |largest, &weight| largest.max(weight));
        let mut total = 0f64;
        for weight in &mut weights {
            *weight = (*weight - largest).exp();
            total += f64::from(*weight);
        }
        for (value, weight) in weights.iter().enumerate() {
            out.iter_mut().zip(values.row(value)).for_each(|(out, value)| *out += weight * value);
        }
        let inverse = (1.0 / total) as f32;
        out.iter_mut().for_each(|out| *out *= inverse);
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (mut a_chunks, mut b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (a, b) in (&mut a_chunks).zip(&mut b_chunks) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_chunks.remainder()).zip(b_chunks.remainder()) {
        *lane += a * b;
    }
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

    const KV_HEADS: usize = 2;
    const HEAD_DIM: usize = 24;

    fn sizes() -> Heads {
        Heads::new(3 * KV_HEADS, KV_HEADS, HEAD_DIM)
    }

    /// Attention of one sequence by candle's composed operations.
    fn composed(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Tensor {
        let n = q.dim(0).unwrap();
        let by_head = |x: &Tensor, heads: usize| {
            x.reshape((n, heads, HEAD_DIM)).unwrap().transpose(0, 1).unwrap().contiguous().unwrap()
        };
        let repeat = |x: &Tensor| {
            let index: Vec<u32> = (0..heads).map(|head| (head / (heads / KV_HEADS)) as u32).collect();
            by_head(x, KV_HEADS).index_select(&Tensor::new(index, x.device()).unwrap(), 0).unwrap()
        };
        let scores = by_head(q, heads).matmul(&repeat(k).transpose(1, 2).unwrap()).unwrap();
        let mask: Vec<f32> = (0..n * n).map(|i| if i % n > i / n { f32::NEG_INFINITY } else { 0.0 }).collect();
        let mask = Tensor::from_vec(mask, (n, n), q.device()).unwrap();
        let scores = (scores / (HEAD_DIM as f64).sqrt()).unwrap().broadcast_add(&mask).unwrap();
        let mixed = candle_nn::ops::softmax_last_dim(&scores).unwrap().matmul(&repeat(v)).unwrap();
        mixed.transpose(0, 1).unwrap().reshape((n, heads * HEAD_DIM)).unwrap()
    }

    #[test]
    fn equals_composed_attention_and_repeats_itself_to_the_bit() {
        let heads = 3 * KV_HEADS;
        let n = 90;
        let q = (random(&[n, heads * HEAD_DIM], 1) * 3.0).unwrap();
        let k = (random(&[n, KV_HEADS * HEAD_DIM], 2) * 3.0).unwrap();
        let v = random(&[n, KV_HEADS * HEAD_DIM], 3);
        let seen: Vec<Seen> = (0..n).map(|row| Seen { start: 0, count: row + 1, distance: -(row as i64) }).collect();
        let all = attend(&q, &k, &v, &seen, None, sizes()).unwrap();
        assert_close(&all, &composed(&q, &k, &v, heads), 1e-5);

        // After another sequence, a row at a time, and from a cache.
        let twice = |x: &Tensor| Tensor::cat(&[&random(&[7, x.dim(1).unwrap()], 4), x], 0).unwrap();
        let later: Vec<Seen> = seen.iter().map(|seen| Seen { start: 7, ..*seen }).collect();
        let shifted = attend(&q, &twice(&k), &twice(&v), &later, None, sizes()).unwrap();
        assert_close(&shifted, &all, 0.0);
        let cached = |x: &Tensor| {
            let heads = x.reshape((1, n, KV_HEADS, HEAD_DIM)).unwrap().transpose(1, 2).unwrap();
            let room = Tensor::cat(&[&heads, &heads.zeros_like().unwrap()], 2).unwrap().contiguous().unwrap();
            room.narrow(2, 0, n).unwrap()
        };
        let (k, v) = (cached(&k), cached(&v));
        for row in [0, 1, 40, n - 1] {
            let alone = attend(&q.narrow(0, row, 1).unwrap(), &k, &v, &seen[row..=row], None, sizes()).unwrap();
            assert_close(&alone, &all.narrow(0, row, 1).unwrap(), 0.0);
        }
    }

    #[test]
    fn vector_width_changes_no_bit() {
        let (q, k, v) = (random(&[HEAD_DIM * 3], 1), random(&[50, HEAD_DIM], 2), random(&[50, HEAD_DIM], 3));
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (q, k, v) = (flat(&q), flat(&k), flat(&v));
        let rows = |data| Rows { data, stride: HEAD_DIM, head_dim: HEAD_DIM };
        let (mut wide, mut plain) = (vec![0f32; q.len()], vec![0f32; q.len()]);
        let scores = Scores { count: 50, scale: 0.2, biases: None };
        attend_group(&q, rows(&k), rows(&v), scores, &mut wide);
        attend_group_inline(&q, rows(&k), rows(&v), scores, &mut plain);
        assert_eq!(wide, plain);
    }
}
