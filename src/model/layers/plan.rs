//! What one pass through attention needs besides its rows: who may look at whom, and where they stand.

use std::{ops::Range, sync::OnceLock};

use candle_core::{Device, Result, Tensor};

use super::{
    packing::{Extent, Packing},
    relative::{Distances, RelativeBias},
    rotary::{Angles, Rotary},
    rowwise::Seen,
};

/// Which rows a block computes.
#[derive(Debug, Clone, Copy)]
pub enum Rows<'a> {
    All,
    /// Per sequence, the positions wanted, ascending. Attention still sees all of the sequence before them.
    At(&'a [Vec<u32>]),
}

/// How rows of a kind of layer know where they stand, and how far back they look.
#[derive(Debug, Clone, Default)]
pub struct Positions {
    /// Rotates queries and keys by where they stand.
    pub rotary: Option<Rotary>,
    /// Added to scores by how far apart query and key stand.
    pub bias: Option<RelativeBias>,
    /// Keys that a row sees at most, itself the last; none: all before it.
    pub window: Option<usize>,
}

/// What one pass through attention needs besides its rows.
pub struct Plan {
    /// Rows that give keys and values.
    pub keys: Packing,
    /// Rows that ask, and whose outputs are computed.
    pub queries: Packing,
    /// Indices of the asking rows among all; none if all ask.
    pub select: Option<Tensor>,
    /// Where keys and queries stand, if positions rotate them.
    pub key_angles: Option<Angles>,
    pub query_angles: Option<Angles>,
    /// Which keys each asking row may look at, among the packed rows or in the cache.
    pub seen: Vec<Seen>,
    /// What is added to scores, if anything is.
    pub biases: Option<Distances>,
    /// The same within its own sequence, per sequence.
    looks: Vec<Vec<Look>>,
    /// Keys of the widest sequence, those in the cache too.
    key_width: usize,
    device: Device,
    mask: OnceLock<Option<Tensor>>,
}

/// What a row may look at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    /// Keys of its own sequence.
    keys: Range<usize>,
    /// Its own position among them.
    own: usize,
}

impl Plan {
    /// A causal pass over sequences of `lengths`, of which the first `past` positions are in a cache already (then there
    /// is one sequence).
    pub fn causal(
        lengths: &[usize],
        past: usize,
        rows: Rows<'_>,
        positions: &Positions,
        device: &Device,
    ) -> Result<Self> {
        assert!(past == 0 || lengths.len() == 1, "a cache belongs to one sequence");
        let given = |length: usize| (past as u32)..(past + length) as u32;
        let asking: Vec<Vec<u32>> = match rows {
            Rows::All => lengths.iter().map(|&length| given(length).collect()).collect(),
            Rows::At(selected) => selected.to_vec(),
        };
        let looks = asking.iter().map(|rows| rows.iter().map(|&own| backward(own, positions.window)).collect());
        let mut plan = Self::new(lengths, past, looks.collect(), positions, device)?;
        if let Some(rotary) = &positions.rotary {
            let key_positions: Vec<u32> = lengths.iter().flat_map(|&length| given(length)).collect();
            plan.key_angles = Some(rotary.at(&key_positions)?);
            plan.query_angles = match rows {
                Rows::All => plan.key_angles.clone(),
                Rows::At(_) => Some(rotary.at(&asking.concat())?),
            };
        }
        if let Rows::At(selected) = rows {
            let extents: Vec<Extent> = lengths.iter().map(|&length| Extent::text(length)).collect();
            plan.select = Some(flat_rows(&extents, past, selected, device)?);
        }
        Ok(plan)
    }

    /// A pass over whole sequences in which every row sees its whole sequence.
    pub fn both_ways(lengths: &[usize], positions: &Positions, device: &Device) -> Result<Self> {
        let all = |&length: &usize| (0..length).map(|own| Look { keys: 0..length, own }).collect();
        Self::new(lengths, 0, lengths.iter().map(all).collect(), positions, device)
    }

    /// A pass of `asking` rows per sequence, which see all of their sequence's `lengths` keys, and no row of their own.
    pub fn across(lengths: &[usize], asking: &[usize], device: &Device) -> Result<Self> {
        let all = |(&length, &rows): (&usize, &usize)| vec![Look { keys: 0..length, own: 0 }; rows];
        let looks = lengths.iter().zip(asking).map(all).collect();
        Self::new(lengths, 0, looks, &Positions::default(), device)
    }

    /// Without rotation and selection.
    fn new(
        lengths: &[usize],
        past: usize,
        looks: Vec<Vec<Look>>,
        positions: &Positions,
        device: &Device,
    ) -> Result<Self> {
        let query_lengths: Vec<usize> = looks.iter().map(Vec::len).collect();
        let keys = Packing::new(lengths, device)?;
        let key_width = past + keys.width();
        Ok(Self {
            keys,
            queries: Packing::new(&query_lengths, device)?,
            select: None,
            key_angles: None,
            query_angles: None,
            seen: seen(lengths, &looks),
            biases: positions.bias.as_ref().map(|bias| bias.at(-(key_width as i64)..key_width as i64)),
            looks,
            key_width,
            device: device.clone(),
            mask: OnceLock::new(),
        })
    }

    /// What padded attention adds to its scores, `[batch, heads or 1, 1, query width, key width]`: minus infinity where a
    /// query may not look, else the bias or 0; none if there is nothing to add. Made when it is first asked for: it is as
    /// large as the square of the text.
    pub fn mask(&self) -> Result<Option<&Tensor>> {
        if self.mask.get().is_none() {
            let mask = mask(&self.looks, self.key_width, self.biases.as_ref(), &self.device)?;
            return Ok(self.mask.get_or_init(|| mask).as_ref());
        }
        Ok(self.mask.get().and_then(Option::as_ref))
    }

    /// The rows that ask, out of `x [n, d]`.
    pub fn select(&self, x: &Tensor) -> Result<Tensor> {
        match &self.select {
            Some(index) => x.index_select(index, 0),
            None => Ok(x.clone()),
        }
    }
}

/// Where rows at `selected` positions lie among the targets' rows of packed sequences, of which the first `past` positions
/// were given before.
pub fn flat_rows(extents: &[Extent], past: usize, selected: &[Vec<u32>], device: &Device) -> Result<Tensor> {
    let mut start = 0;
    let mut index = Vec::new();
    for (extent, positions) in extents.iter().zip(selected) {
        index.extend(positions.iter().map(|&position| (start + position as usize - past - extent.source) as u32));
        start += extent.target;
    }
    Tensor::new(index, device)
}

/// A row sees itself and what comes before it, at most `window` keys of it.
fn backward(own: u32, window: Option<usize>) -> Look {
    let end = own as usize + 1;
    Look { keys: end.saturating_sub(window.unwrap_or(end))..end, own: own as usize }
}

fn seen(lengths: &[usize], looks: &[Vec<Look>]) -> Vec<Seen> {
    let mut start = 0;
    let mut seen = Vec::new();
    for (&length, looks) in lengths.iter().zip(looks) {
        seen.extend(looks.iter().map(|look| Seen {
            start: start + look.keys.start,
            count: look.keys.len(),
            distance: look.keys.start as i64 - look.own as i64,
        }));
        start += length;
    }
    seen
}

fn mask(looks: &[Vec<Look>], key_width: usize, biases: Option<&Distances>, device: &Device) -> Result<Option<Tensor>> {
    let query_width = looks.iter().map(Vec::len).max().unwrap_or(0);
    if biases.is_none() && looks.iter().flatten().all(|look| look.keys == (0..key_width)) {
        return Ok(None);
    }
    let heads = biases.map_or(1, Distances::heads);
    let mut mask = vec![0f32; looks.len() * heads * query_width * key_width];
    let by_head = mask.chunks_exact_mut(query_width * key_width).enumerate();
    for ((place, rows), looks) in by_head.zip(looks.iter().flat_map(|looks| std::iter::repeat_n(looks, heads))) {
        for (row, look) in rows.chunks_exact_mut(key_width).zip(looks) {
            row.fill(f32::NEG_INFINITY);
            let own = &mut row[look.keys.clone()];
            match biases {
                Some(biases) => {
                    let distance = look.keys.start as i64 - look.own as i64;
                    own.copy_from_slice(biases.of(place % heads, distance, look.keys.len()));
                }
                None => own.fill(0.0),
            }
        }
    }
    Tensor::from_vec(mask, (looks.len(), heads, 1, query_width, key_width), device).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_name_rows_of_the_target() {
        let rows = |extents: &[Extent], past, selected: &[Vec<u32>]| {
            flat_rows(extents, past, selected, &Device::Cpu).unwrap().to_vec1::<u32>().unwrap()
        };
        let extents = [Extent { source: 4, target: 3 }, Extent { source: 2, target: 2 }];
        assert_eq!(rows(&extents, 0, &[vec![4, 6], vec![3]]), [0, 2, 4]);
        assert_eq!(rows(&[Extent::text(2)], 5, &[vec![6]]), [1]);
    }

    fn looks(asking: &[Vec<u32>], window: Option<usize>) -> Vec<Vec<Look>> {
        asking.iter().map(|rows| rows.iter().map(|&own| backward(own, window)).collect()).collect()
    }

    #[test]
    fn a_query_sees_its_past_and_itself_only() {
        let seen = |lengths: &[usize], asking: &[Vec<u32>], window| {
            let seen = seen(lengths, &looks(asking, window));
            seen.iter().map(|seen| (seen.start, seen.count)).collect::<Vec<_>>()
        };
        assert_eq!(seen(&[2, 3], &[vec![0, 1], vec![2]], None), [(0, 1), (0, 2), (2, 3)]);
        assert_eq!(seen(&[2], &[vec![7, 8]], None), [(0, 8), (0, 9)]);
        assert_eq!(seen(&[2, 3], &[vec![1], vec![0, 2]], Some(2)), [(0, 2), (2, 1), (3, 2)]);
        let mask = |asking: &[u32], window, width| {
            let mask = mask(&looks(&[asking.to_vec()], window), width, None, &Device::Cpu).unwrap();
            mask.map(|mask| mask.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        let (open, shut) = (0.0, f32::NEG_INFINITY);
        assert_eq!(mask(&[1, 2], None, 3).unwrap(), [open, open, shut, open, open, open]);
        assert_eq!(mask(&[1, 2], Some(2), 3).unwrap(), [open, open, shut, shut, open, open]);
        assert!(mask(&[7], None, 8).is_none());
    }
}
