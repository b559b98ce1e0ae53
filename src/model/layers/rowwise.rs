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

use super::attention::Heads;
use crate::model::pages::{PagedRows, Pages};

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
}

/// `q [rows, heads * d]` asks for keys and values that are either packed rows `[n, kv_heads * d]` or a cache
/// `[1, kv_heads, n, d]`; `seen` says for each row which. Returns `[rows, heads * d]`.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, seen: &[Seen], heads: Heads) -> Result<Tensor> {
    let (kv_heads, head_dim, scale) = (heads.kv, heads.dim, heads.scale as f32);
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
        attend_group(q, keys.of(head, seen[row]), values.of(head, seen[row]), (seen[row].count, scale), out);
    });
    Tensor::from_vec(out, (rows, width), k.device())
}

/// The same where each asking row belongs to one of several sequences with pages of their own: `owners` says which, and
/// `seen` counts that sequence's positions in block `block` of its pages.
pub fn attend_paged(
    q: &Tensor,
    sequences: &[&mut Pages],
    block: usize,
    (owners, seen): (&[usize], &[Seen]),
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
        attend_group(q, keys, values, (seen[row].count, heads.scale as f32), out);
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

/// Vectors of one head, position by position.
trait Vectors: Copy {
    /// Calls `f` with each of the first `count`, in order.
    fn each(self, count: usize, f: impl FnMut(&[f32]));
    fn head_dim(self) -> usize;
}

impl Vectors for Rows<'_> {
    #[inline(always)]
    fn each(self, count: usize, mut f: impl FnMut(&[f32])) {
        (0..count).for_each(|index| f(&self.data[index * self.stride..][..self.head_dim]));
    }

    fn head_dim(self) -> usize {
        self.head_dim
    }
}

/// The rows of one head from `start` on, in pages.
#[derive(Clone, Copy)]
struct Paged<'a> {
    rows: PagedRows<'a>,
    start: usize,
    head_dim: usize,
}

impl Vectors for Paged<'_> {
    #[inline(always)]
    fn each(self, count: usize, mut f: impl FnMut(&[f32])) {
        for stretch in self.rows.stretches(self.start, count) {
            stretch.chunks_exact(self.head_dim).for_each(&mut f);
        }
    }

    fn head_dim(self) -> usize {
        self.head_dim
    }
}

/// All heads that share one head of keys; by the widest vectors that the CPU has, which do not change a bit.
fn attend_group<V: Vectors>(q: &[f32], keys: V, values: V, (count, scale): (usize, f32), out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[expect(unsafe_code, reason = "calling a function compiled for a CPU feature")]
        // SAFETY: the CPU has the feature.
        return unsafe { attend_group_avx2(q, keys, values, (count, scale), out) };
    }
    attend_group_inline(q, keys, values, (count, scale), out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn attend_group_avx2<V: Vectors>(q: &[f32], keys: V, values: V, (count, scale): (usize, f32), out: &mut [f32]) {
    attend_group_inline(q, keys, values, (count, scale), out);
}

#[inline(always)]
fn attend_group_inline<V: Vectors>(q: &[f32], keys: V, values: V, (count, scale): (usize, f32), out: &mut [f32]) {
    let head_dim = keys.head_dim();
    let mut weights = vec![0f32; count];
    for (q, out) in q.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
        let mut largest = f32::NEG_INFINITY;
        let mut unset = weights.iter_mut();
        keys.each(count, |key| {
            if let Some(weight) = unset.next() {
                *weight = dot(q, key) * scale;
                largest = largest.max(*weight);
            }
        });
        let mut total = 0f64;
        for weight in &mut weights {
            *weight = (*weight - largest).exp();
            total += f64::from(*weight);
        }
        let mut left = weights.iter();
        values.each(count, |value| {
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
    use crate::model::{
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
        let seen: Vec<Seen> = (0..n).map(|row| Seen { start: 0, count: row + 1 }).collect();
        let all = attend(&q, &k, &v, &seen, sizes()).unwrap();
        assert_close(&all, &composed(&q, &k, &v, heads), 1e-5);

        // After another sequence, a row at a time, and from a cache.
        let twice = |x: &Tensor| Tensor::cat(&[&random(&[7, x.dim(1).unwrap()], 4), x], 0).unwrap();
        let later: Vec<Seen> = seen.iter().map(|seen| Seen { start: 7, ..*seen }).collect();
        let shifted = attend(&q, &twice(&k), &twice(&v), &later, sizes()).unwrap();
        assert_close(&shifted, &all, 0.0);
        let cached = |x: &Tensor| {
            let heads = x.reshape((1, n, KV_HEADS, HEAD_DIM)).unwrap().transpose(1, 2).unwrap();
            let room = Tensor::cat(&[&heads, &heads.zeros_like().unwrap()], 2).unwrap().contiguous().unwrap();
            room.narrow(2, 0, n).unwrap()
        };
        let (k, v) = (cached(&k), cached(&v));
        for row in [0, 1, 40, n - 1] {
            let alone = attend(&q.narrow(0, row, 1).unwrap(), &k, &v, &seen[row..=row], sizes()).unwrap();
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
        let q = (random(&[4, 3 * KV_HEADS * HEAD_DIM], 9) * 3.0).unwrap();
        let seen = [(0, 45), (0, 17), (0, 20), (3, 30)].map(|(start, count)| Seen { start, count });
        let owners = [0, 0, 1, 0];
        let paged = attend_paged(&q, &[&mut first, &mut second], 0, (&owners, &seen), sizes()).unwrap();
        for (row, owner) in owners.into_iter().enumerate() {
            let (k, v) = if owner == 0 { (&k, &v) } else { (&other_k, &other_v) };
            let alone = attend(&q.narrow(0, row, 1).unwrap(), k, v, &seen[row..=row], sizes()).unwrap();
            assert_close(&paged.narrow(0, row, 1).unwrap(), &alone, 0.0);
        }
    }

    #[test]
    fn vector_width_changes_no_bit() {
        let (q, k, v) = (random(&[HEAD_DIM * 3], 1), random(&[50, HEAD_DIM], 2), random(&[50, HEAD_DIM], 3));
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (q, k, v) = (flat(&q), flat(&k), flat(&v));
        let rows = |data| Rows { data, stride: HEAD_DIM, head_dim: HEAD_DIM };
        let (mut wide, mut plain) = (vec![0f32; q.len()], vec![0f32; q.len()]);
        attend_group(&q, rows(&k), rows(&v), (50, 0.2), &mut wide);
        attend_group_inline(&q, rows(&k), rows(&v), (50, 0.2), &mut plain);
        assert_eq!(wide, plain);
    }
}
