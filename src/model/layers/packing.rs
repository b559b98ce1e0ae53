//! Sequences of different lengths in one packed tensor.
//!
//! Linear layers and norms work on rows, so a batch is kept as `[n, d]` with the sequences one after another and no
//! padding. Attention alone needs `[batch, width, d]`: [`Packing`] pads for it and packs again. [`Plan`] holds what one
//! pass through a block needs besides the rows: who may look at whom, and at which positions.

use std::{ops::Range, sync::OnceLock};

use candle_core::{Device, Result, Tensor};

use super::{
    rotary::{Angles, Rotary},
    rowwise::Seen,
};

/// Where the rows of each sequence lie.
#[derive(Debug, Clone)]
pub struct Packing {
    lengths: Vec<usize>,
    width: usize,
    /// Indices to pad by and to pack by; none where all lengths are equal.
    maps: Option<(Tensor, Tensor)>,
}

impl Packing {
    /// Rows of each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Sequences of these lengths, one after another.
    pub fn new(lengths: &[usize], device: &Device) -> Result<Self> {
        let width = lengths.iter().copied().max().unwrap_or(0);
        let ragged = lengths.iter().any(|&length| length != width);
        let maps = if ragged { Some(Self::maps(lengths, width, device)?) } else { None };
        Ok(Self { lengths: lengths.to_vec(), width, maps })
    }

    fn maps(lengths: &[usize], width: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        let mut pad = Vec::with_capacity(lengths.len() * width);
        let mut pack = Vec::new();
        let mut start = 0u32;
        for (sequence, &length) in lengths.iter().enumerate() {
            // Padding repeats row 0: the mask hides it from every query, so its values and gradients never count.
            pad.extend((0..width).map(|i| if i < length { start + i as u32 } else { 0 }));
            pack.extend((0..length).map(|i| (sequence * width + i) as u32));
            start += length as u32;
        }
        Ok((Tensor::new(pad, device)?, Tensor::new(pack, device)?))
    }

    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.lengths.len()
    }

    /// Length of the longest.
    pub fn width(&self) -> usize {
        self.width
    }

    /// `[n, d]` -> `[batch, width, d]`.
    pub fn pad(&self, x: &Tensor) -> Result<Tensor> {
        let d = x.dim(1)?;
        let padded = match &self.maps {
            Some((pad, _)) => x.index_select(pad, 0)?,
            None => x.clone(),
        };
        padded.reshape((self.batch(), self.width, d))
    }

    /// `[batch, width, d]` -> `[n, d]`.
    pub fn pack(&self, x: &Tensor) -> Result<Tensor> {
        let d = x.dim(2)?;
        let rows = x.reshape((self.batch() * self.width, d))?;
        match &self.maps {
            Some((_, pack)) => rows.index_select(pack, 0),
            None => Ok(rows),
        }
    }
}

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
    /// None where positions are not attention's business.
    pub rotary: Option<Rotary>,
    /// Keys that a row sees at most, itself the last; none: all before it.
    pub window: Option<usize>,
}

/// What one pass through a block needs besides its rows.
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
    /// Which sequence each asking row belongs to.
    pub owners: Vec<usize>,
    /// What each row may look at within its own sequence, per sequence.
    looks: Vec<Vec<Range<usize>>>,
    /// Keys of the widest sequence, those in the cache too.
    key_width: usize,
    device: Device,
    mask: OnceLock<Option<Tensor>>,
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
        assert!(past == 0 || lengths.len() == 1, "such a cache belongs to one sequence");
        Self::new(lengths, &vec![past; lengths.len()], rows, positions, device)
    }

    /// A causal pass over sequences of `lengths`, each after the positions that its own pages hold: `seen` counts those.
    pub fn continuing(
        lengths: &[usize],
        pasts: &[usize],
        rows: Rows<'_>,
        positions: &Positions,
        device: &Device,
    ) -> Result<Self> {
        let mut plan = Self::new(lengths, pasts, rows, positions, device)?;
        let looks = plan.looks.iter().flatten();
        plan.seen = looks.map(|look| Seen { start: look.start, count: look.len() }).collect();
        Ok(plan)
    }

    fn new(lengths: &[usize], pasts: &[usize], rows: Rows<'_>, positions: &Positions, device: &Device) -> Result<Self> {
        let given = || lengths.iter().zip(pasts).map(|(&length, &past)| past as u32..(past + length) as u32);
        let key_positions: Vec<u32> = given().flatten().collect();
        let asking: Vec<Vec<u32>> = match rows {
            Rows::All => given().map(Iterator::collect).collect(),
            Rows::At(selected) => selected.to_vec(),
        };
        let query_lengths: Vec<usize> = asking.iter().map(Vec::len).collect();
        let query_positions: Vec<u32> = asking.iter().flatten().copied().collect();
        let select = match rows {
            Rows::All => None,
            Rows::At(selected) => Some(Tensor::new(flat_index(lengths, pasts, selected), device)?),
        };
        let angles = |at: &[u32]| positions.rotary.as_ref().map(|rotary| rotary.at(at)).transpose();
        let key_angles = angles(&key_positions)?;
        let query_angles = if select.is_some() { angles(&query_positions)? } else { key_angles.clone() };
        let keys = Packing::new(lengths, device)?;
        let looks = backward_looks(&asking, positions.window);
        Ok(Self {
            key_width: lengths.iter().zip(pasts).map(|(length, past)| length + past).max().unwrap_or(0),
            keys,
            queries: Packing::new(&query_lengths, device)?,
            select,
            key_angles,
            query_angles,
            seen: seen(lengths, &looks),
            owners: owners(&looks),
            looks,
            device: device.clone(),
            mask: OnceLock::new(),
        })
    }

    /// What padded attention adds to its scores, `[batch, 1, 1, query width, key width]`: 0 where a query may look, minus
    /// infinity where not; none if it may look everywhere. Made when it is first asked for: it is as large as the square
    /// of the text.
    pub fn mask(&self) -> Result<Option<&Tensor>> {
        if self.mask.get().is_none() {
            let mask = mask(&self.looks, self.key_width, &self.device)?;
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

fn owners(looks: &[Vec<Range<usize>>]) -> Vec<usize> {
    looks.iter().enumerate().flat_map(|(owner, looks)| std::iter::repeat_n(owner, looks.len())).collect()
}

fn flat_index(lengths: &[usize], pasts: &[usize], selected: &[Vec<u32>]) -> Vec<u32> {
    let mut start = 0u32;
    let mut index = Vec::new();
    for ((&length, &past), positions) in lengths.iter().zip(pasts).zip(selected) {
        index.extend(positions.iter().map(|&position| start + position - past as u32));
        start += length as u32;
    }
    index
}

/// A row sees itself and what comes before it, at most `window` keys of it.
fn backward_looks(asking: &[Vec<u32>], window: Option<usize>) -> Vec<Vec<Range<usize>>> {
    let look = |&position: &u32| {
        let end = position as usize + 1;
        end.saturating_sub(window.unwrap_or(end))..end
    };
    asking.iter().map(|positions| positions.iter().map(look).collect()).collect()
}

fn seen(lengths: &[usize], looks: &[Vec<Range<usize>>]) -> Vec<Seen> {
    let mut start = 0;
    let mut seen = Vec::new();
    for (&length, looks) in lengths.iter().zip(looks) {
        seen.extend(looks.iter().map(|look| Seen { start: start + look.start, count: look.len() }));
        start += length;
    }
    seen
}

fn mask(looks: &[Vec<Range<usize>>], key_width: usize, device: &Device) -> Result<Option<Tensor>> {
    let query_width = looks.iter().map(Vec::len).max().unwrap_or(0);
    if looks.iter().flatten().all(|look| *look == (0..key_width)) {
        return Ok(None);
    }
    let mut mask = vec![0f32; looks.len() * query_width * key_width];
    for (rows, looks) in mask.chunks_exact_mut(query_width * key_width).zip(looks) {
        for (row, look) in rows.chunks_exact_mut(key_width).zip(looks) {
            row[..look.start].fill(f32::NEG_INFINITY);
            row[look.end..].fill(f32::NEG_INFINITY);
        }
    }
    Tensor::from_vec(mask, (looks.len(), 1, 1, query_width, key_width), device).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::{assert_close, random};

    #[test]
    fn packing_undoes_padding() {
        for lengths in [vec![3, 1, 2], vec![2, 2], vec![5]] {
            let packing = Packing::new(&lengths, &Device::Cpu).unwrap();
            let x = random(&[lengths.iter().sum(), 4], 1);
            let padded = packing.pad(&x).unwrap();
            assert_eq!(padded.dims(), [lengths.len(), packing.width(), 4]);
            assert_close(&packing.pack(&padded).unwrap(), &x, 0.0);
        }
    }

    #[test]
    fn a_query_sees_its_past_and_itself_only() {
        let row = |start, count| Seen { start, count };
        let seen = |lengths: &[usize], asking: &[Vec<u32>], window| seen(lengths, &backward_looks(asking, window));
        assert_eq!(seen(&[2, 3], &[vec![0, 1], vec![2]], None), [row(0, 1), row(0, 2), row(2, 3)]);
        assert_eq!(seen(&[2], &[vec![7, 8]], None), [row(0, 8), row(0, 9)]);
        assert_eq!(seen(&[2, 3], &[vec![1], vec![0, 2]], Some(2)), [row(0, 2), row(2, 1), row(3, 2)]);
        let mask = |asking: &[u32], window, width| {
            let looks = backward_looks(&[asking.to_vec()], window);
            let mask = mask(&looks, width, &Device::Cpu).unwrap();
            mask.map(|mask| mask.flatten_all().unwrap().to_vec1::<f32>().unwrap())
        };
        let (open, shut) = (0.0, f32::NEG_INFINITY);
        assert_eq!(mask(&[1, 2], None, 3).unwrap(), [open, open, shut, open, open, open]);
        assert_eq!(mask(&[1, 2], Some(2), 3).unwrap(), [open, open, shut, shut, open, open]);
        assert!(mask(&[7], None, 8).is_none());
    }
}
