//! Attention of one row at a time, on a CPU and where no gradient is wanted.
//!
//! A matrix product adds up in an order that depends on how many rows it is given, so the same token gets other last
//! bits alone than in a batch. In f32 that is all; but where activations are rounded to 8 bits, a last bit now and then
//! makes a whole step, and some blocks later the logits differ in their first digits. Everything else in a quantized
//! trunk works on rows; with this attention a row has the same bits whatever it is computed with: alone, in a batch, in
//! one pass or after a cache. So an edit's factors do not depend on the edits that are captured with it (law 1), and a
//! generation does not depend on those that run beside it.

mod mix;
mod softmax;
mod vectors;

use std::ops::Range;

use candle_core::{CpuStorage, Result, Storage, Tensor};
use rayon::prelude::*;

use super::{attention::Heads, dense, plan::Plan, relative::Distances};
use crate::model::pages::Pages;
use vectors::{ByHead, Paged, Vectors};

/// Attention of fewer multiplications than this is not worth waking another thread for.
const PARALLEL: usize = 200_000;
/// Most rows that ask together, so that the keys are read once for all of them.
const TILE: usize = 16;

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
    let (rows, width) = q.dims2()?;
    let q = q.contiguous()?;
    let (q_storage, q_layout) = q.storage_and_layout();
    let (k_storage, k_layout) = k.storage_and_layout();
    let (v_storage, v_layout) = v.storage_and_layout();
    let q = &floats(&q_storage)?[q_layout.start_offset()..];
    let keys = ByHead::new(floats(&k_storage)?, k_layout, heads.dim)?;
    let values = ByHead::new(floats(&v_storage)?, v_layout, heads.dim)?;
    assert_eq!(seen.len(), rows, "every asking row sees something");
    let asking = Asking { q, width, seen, biases, heads };
    let out = each_tile(&tiles(seen, |_| 0), &asking, |tile, head, out| {
        asking.attend(tile, head, &keys.of(head, &tile.keys), &values.of(head, &tile.keys), out);
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
    let asking = Asking { q, width, seen, biases: biases.as_ref(), heads };
    let out = each_tile(&tiles(seen, |row| owners[row]), &asking, |tile, head, out| {
        let pages = &sequences[owners[tile.rows.start]];
        let of = |rows| Paged { rows, keys: tile.keys.clone() };
        asking.attend(tile, head, &of(pages.keys(block, head)), &of(pages.values(block, head)), out);
    });
    Tensor::from_vec(out, (rows, width), &device)
}

/// Rows one after another that ask for much the same keys.
#[derive(Debug, PartialEq, Eq)]
struct Tile {
    rows: Range<usize>,
    /// All that one of them sees.
    keys: Range<usize>,
}

/// Cuts the asking rows into tiles: rows of one owner, of which each sees something that those before it see.
fn tiles(seen: &[Seen], owner: impl Fn(usize) -> usize) -> Vec<Tile> {
    let mut tiles: Vec<Tile> = Vec::new();
    for (row, seen) in seen.iter().enumerate() {
        let keys = seen.start..seen.start + seen.count;
        match tiles.last_mut() {
            Some(tile)
                if tile.rows.len() < TILE
                    && owner(tile.rows.start) == owner(row)
                    && keys.start < tile.keys.end
                    && tile.keys.start < keys.end =>
            {
                tile.rows.end = row + 1;
                tile.keys = tile.keys.start.min(keys.start)..tile.keys.end.max(keys.end);
            }
            _ => tiles.push(Tile { rows: row..row + 1, keys }),
        }
    }
    tiles
}

/// `[rows, width]`, made by `one` for each tile and each head of keys as `[tile's rows, width / kv_heads]`.
fn each_tile(tiles: &[Tile], asking: &Asking<'_>, one: impl Fn(&Tile, usize, &mut [f32]) + Sync) -> Vec<f32> {
    let (width, kv_heads, group) = (asking.width, asking.heads.kv, asking.group());
    let make = |(tile, head): (&Tile, usize)| {
        let mut out = vec![0f32; tile.rows.len() * group];
        one(tile, head, &mut out);
        out
    };
    let work: usize = asking.seen.iter().map(|seen| seen.count * width).sum();
    let made: Vec<Vec<f32>> = if work < PARALLEL {
        tiles.iter().flat_map(|tile| (0..kv_heads).map(move |head| (tile, head))).map(make).collect()
    } else {
        tiles
            .par_iter()
            .flat_map(|tile| (0..kv_heads).into_par_iter().map(move |head| (tile, head)))
            .map(make)
            .collect()
    };
    let mut out = vec![0f32; asking.seen.len() * width];
    for (tile, heads) in tiles.iter().zip(made.chunks_exact(kv_heads)) {
        for (row, out) in out[tile.rows.start * width..tile.rows.end * width].chunks_exact_mut(width).enumerate() {
            for (made, out) in heads.iter().zip(out.chunks_exact_mut(group)) {
                out.copy_from_slice(&made[row * group..][..group]);
            }
        }
    }
    out
}

fn floats(storage: &Storage) -> Result<&[f32]> {
    match storage {
        Storage::Cpu(CpuStorage::F32(values)) => Ok(values),
        _ => candle_core::bail!("row-wise attention is for f32 on a CPU"),
    }
}

/// What the asking rows have in common.
struct Asking<'a> {
    /// `[rows, width]`
    q: &'a [f32],
    width: usize,
    seen: &'a [Seen],
    biases: Option<&'a Distances>,
    heads: Heads,
}

impl Asking<'_> {
    /// A tile's rows, in all heads that share one head of keys; `keys` and `values` are the tile's. `out` is zero before.
    fn attend(&self, tile: &Tile, head: usize, keys: &impl Vectors, values: &impl Vectors, out: &mut [f32]) {
        if tile.keys.is_empty() {
            return;
        }
        let mut scores = self.scores(tile, head, keys);
        let inverses = self.soften(tile, head, &mut scores);
        self.mix(tile, &scores, values, out);
        for (out, inverse) in out.chunks_exact_mut(self.heads.dim).zip(inverses) {
            out.iter_mut().for_each(|out| *out *= inverse);
        }
    }

    /// `[row][shared heads][keys]`; those that a row does not see are computed and not looked at.
    fn scores(&self, tile: &Tile, head: usize, keys: &impl Vectors) -> Vec<f32> {
        let (dim, group, count) = (self.heads.dim, self.group(), tile.keys.len());
        let own = |row| self.q[row * self.width + head * group..][..group].iter().copied();
        let q: Vec<f32> = tile.rows.clone().flat_map(own).collect();
        let mut scores = vec![0f32; q.len() / dim * count];
        let mut at = 0;
        keys.stretches(|keys| {
            dense::products(&q, keys, dim, &mut scores[at..], count);
            at += keys.len() / dim;
        });
        scores
    }

    /// Turns scores into weights; by row and shared head, one by their sum.
    fn soften(&self, tile: &Tile, head: usize, scores: &mut [f32]) -> Vec<f32> {
        let (shared, scale) = (self.group() / self.heads.dim, self.heads.scale as f32);
        let each = scores.chunks_exact_mut(tile.keys.len()).enumerate();
        each.map(|(index, scores)| {
            let row = tile.rows.start + index / shared;
            let seen = self.seen[row];
            let biases = self.biases.map(|biases| biases.of(head * shared + index % shared, seen.distance, seen.count));
            softmax::soften(&mut scores[self.own(tile, row)], scale, biases)
        })
        .collect()
    }

    /// Adds each row's weighted values to `out [row][shared heads * d]`.
    fn mix(&self, tile: &Tile, weights: &[f32], values: &impl Vectors, out: &mut [f32]) {
        let (dim, group, count) = (self.heads.dim, self.group(), tile.keys.len());
        let mut at = 0;
        values.stretches(|values| {
            let here = at..at + values.len() / dim;
            at = here.end;
            for (index, out) in out.chunks_exact_mut(group).enumerate() {
                let own = self.own(tile, tile.rows.start + index);
                let (start, end) = (own.start.max(here.start), own.end.min(here.end));
                if start < end {
                    let weights = &weights[index * (group / dim) * count + start..];
                    let values = &values[(start - here.start) * dim..(end - here.start) * dim];
                    mix::add(weights, count, values, dim, out);
                }
            }
        });
    }

    /// Values of all heads that share one head of keys.
    fn group(&self) -> usize {
        self.width / self.heads.kv
    }

    /// Which of the tile's keys a row sees.
    fn own(&self, tile: &Tile, row: usize) -> Range<usize> {
        let Seen { start, count, .. } = self.seen[row];
        start - tile.keys.start..start - tile.keys.start + count
    }
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
    fn tiles_are_of_rows_that_look_at_the_same() {
        let seen = |start, count| Seen { start, count, distance: 0 };
        // Two sequences one after the other, the second through a window; then one of another owner.
        let rows = [seen(0, 1), seen(0, 2), seen(2, 1), seen(2, 2), seen(3, 2), seen(3, 1)];
        let tile = |rows, keys| Tile { rows, keys };
        let owner = |row| usize::from(row == 5);
        assert_eq!(tiles(&rows, owner), [tile(0..2, 0..2), tile(2..5, 2..5), tile(5..6, 3..4)]);
        let many = vec![seen(0, 3); TILE + 1];
        assert_eq!(tiles(&many, |_| 0), [tile(0..TILE, 0..3), tile(TILE..TILE + 1, 0..3)]);
        assert!(tiles(&[], |_| 0).is_empty());
    }
}
