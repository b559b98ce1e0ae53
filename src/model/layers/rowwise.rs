//! Attention of one row at a time, on a CPU and where no gradient is wanted.
//!
//! A matrix product adds up in an order that depends on how many rows it is given, so the same token gets other last
//! bits alone than in a batch. In f32 that is all; but where activations are rounded to 8 bits, a last bit now and then
//! makes a whole step, and some blocks later the logits differ in their first digits. Everything else in a quantized
//! trunk works on rows; with this attention a row has the same bits whatever it is computed with: alone, in a batch, in
//! one pass or after a cache. So an edit's factors do not depend on the edits that are captured with it (law 1), and a
//! generation does not depend on those that run beside it.

mod vectors;

use candle_core::{CpuStorage, Result, Storage, Tensor};
use rayon::prelude::*;

use super::{
    attention::Heads,
    dense::{LANES, total},
    plan::Plan,
    relative::Distances,
};
use crate::model::pages::Pages;
use vectors::{ByHead, Paged, Vectors};

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
    let group = width / kv_heads;
    let out = each_group(seen, width, kv_heads, |row, head, out| {
        let q = &q[row * width + head * group..][..group];
        let scores = Scores::new(seen[row], biases, head, group, heads);
        attend_group(q, keys.of(head, seen[row]), values.of(head, seen[row]), scores, out);
    });
    Tensor::from_vec(out, (rows, width), k.device())
}

/// The same where each asking row belongs to one of several sequences with pages of their own, by a plan that continues
/// them: it asks for keys and values in block `block` of its sequence's pages.
pub fn attend_paged(
    q: &Tensor,
    sequences: &[&mut Pages],
    block: usize,
    Plan { owners, seen, biases, .. }: &Plan,
    heads: Heads,
) -> Result<Tensor> {
    let (rows, width) = q.dims2()?;
    let q = q.contiguous()?;
    let device = q.device().clone();
    let (q_storage, q_layout) = q.storage_and_layout();
    let q = &floats(&q_storage)?[q_layout.start_offset()..];
    assert_eq!((seen.len(), owners.len()), (rows, rows), "every asking row has its sequence and sees something");
    let group = width / heads.kv;
    let out = each_group(seen, width, heads.kv, |row, head, out| {
        let pages = &sequences[owners[row]];
        let of = |rows| Paged { rows, start: seen[row].start, head_dim: heads.dim };
        let (keys, values) = (of(pages.keys(block, head)), of(pages.values(block, head)));
        let q = &q[row * width + head * group..][..group];
        attend_group(q, keys, values, Scores::new(seen[row], biases.as_ref(), head, group, heads), out);
    });
    Tensor::from_vec(out, (rows, width), &device)
}

/// `[rows, width]`, made by `one` for each row and each head of keys.
fn each_group(seen: &[Seen], width: usize, kv_heads: usize, one: impl Fn(usize, usize, &mut [f32]) + Sync) -> Vec<f32> {
    let work: usize = seen.iter().map(|seen| seen.count * width).sum();
    let mut out = vec![0f32; seen.len() * width];
    let at = |(place, out): (usize, &mut [f32])| one(place / kv_heads, place % kv_heads, out);
    if work < PARALLEL {
        out.chunks_exact_mut(width / kv_heads).enumerate().for_each(at);
    } else {
        out.par_chunks_exact_mut(width / kv_heads).enumerate().for_each(at);
    }
    out
}

fn floats(storage: &Storage) -> Result<&[f32]> {
    match storage {
        Storage::Cpu(CpuStorage::F32(values)) => Ok(values),
        _ => candle_core::bail!("row-wise attention is for f32 on a CPU"),
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

impl<'a> Scores<'a> {
    /// Of a row that asks with `group` values for keys of head `head`.
    fn new(seen: Seen, biases: Option<&'a Distances>, head: usize, group: usize, heads: Heads) -> Self {
        let biases = biases.map(|biases| (biases, head * (group / heads.dim), seen.distance));
        Self { count: seen.count, scale: heads.scale as f32, biases }
    }
}

/// All heads that share one head of keys; by the widest vectors that the CPU has, which do not change a bit.
fn attend_group<V: Vectors>(q: &[f32], keys: V, values: V, scores: Scores<'_>, out: &mut [f32]) {
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
fn attend_group_avx2<V: Vectors>(q: &[f32], keys: V, values: V, scores: Scores<'_>, out: &mut [f32]) {
    attend_group_inline(q, keys, values, scores, out);
}

#[inline(always)]
fn attend_group_inline<V: Vectors>(q: &[f32], keys: V, values: V, scores: Scores<'_>, out: &mut [f32]) {
    let head_dim = keys.head_dim();
    let mut weights = vec![0f32; scores.count];
    for (head, (q, out)) in q.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)).enumerate() {
        let mut unset = weights.iter_mut();
        keys.each(scores.count, |key| {
            if let Some(weight) = unset.next() {
                *weight = dot(q, key) * scores.scale;
            }
        });
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
        let mut left = weights.iter();
        values.each(scores.count, |value| {
            if let Some(weight) = left.next() {
                out.iter_mut().zip(value).for_each(|(out, value)| *out += weight * value);
            }
        });
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
    total(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        layers::{
            plan::{Positions, Rows as PlanRows},
            relative::RelativeBias,
        },
        pages::PageShape,
        testing::{assert_close, random},
    };

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
    fn pages_change_no_bit() {
        let shape = PageShape { blocks: 1, kv_heads: KV_HEADS, head_dim: HEAD_DIM, hidden: 0 };
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let sequence = |seed: u64, length: usize| {
            let kv = |seed| random(&[length, KV_HEADS * HEAD_DIM], seed);
            let (k, v) = (kv(seed), kv(seed + 1));
            let mut pages = Pages::new(shape);
            pages.write(0, &flat(&k), &flat(&v));
            pages.grow(length);
            (k, v, pages)
        };
        let (k, v, mut first) = sequence(1, 45);
        let (other_k, other_v, mut second) = sequence(5, 20);
        let bias = RelativeBias::new(&random(&[8, 3 * KV_HEADS], 7), false, 30).unwrap();
        for positions in [
            Positions::default(),
            Positions { window: Some(30), ..Positions::default() },
            Positions { bias: Some(bias), ..Positions::default() },
        ] {
            let asking = [vec![42, 44], vec![0, 19]];
            let plan = Plan::continuing(&[3, 20], &[42, 0], PlanRows::At(&asking), &positions, k.device()).unwrap();
            let q = (random(&[4, 3 * KV_HEADS * HEAD_DIM], 9) * 3.0).unwrap();
            let paged = attend_paged(&q, &[&mut first, &mut second], 0, &plan, sizes()).unwrap();
            for (row, owner) in [0, 0, 1, 1].into_iter().enumerate() {
                let (k, v) = if owner == 0 { (&k, &v) } else { (&other_k, &other_v) };
                let (q, seen) = (q.narrow(0, row, 1).unwrap(), &plan.seen[row..=row]);
                let alone = attend(&q, k, v, seen, plan.biases.as_ref(), sizes()).unwrap();
                assert_close(&paged.narrow(0, row, 1).unwrap(), &alone, 0.0);
            }
        }
    }

    #[test]
    fn vector_width_changes_no_bit() {
        let (q, k, v) = (random(&[HEAD_DIM * 3], 1), random(&[50, HEAD_DIM], 2), random(&[50, HEAD_DIM], 3));
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (q, k, v) = (flat(&q), flat(&k), flat(&v));
        let rows = |data| vectors::Rows { data, stride: HEAD_DIM, head_dim: HEAD_DIM };
        let (mut wide, mut plain) = (vec![0f32; q.len()], vec![0f32; q.len()]);
        let scores = Scores { count: 50, scale: 0.2, biases: None };
        attend_group(&q, rows(&k), rows(&v), scores, &mut wide);
        attend_group_inline(&q, rows(&k), rows(&v), scores, &mut plain);
        assert_eq!(wide, plain);
    }
}
