//! Sequences of different lengths in one packed tensor.
//!
//! Linear layers and norms work on rows, so a batch is kept as `[n, d]` with the sequences one after another and no
//! padding. Attention alone needs `[batch, width, d]`: [`Packing`] pads for it and packs again. Where there is an encoder, a
//! sequence is its rows and then the decoder's: [`Halves`] takes them apart.

use candle_core::{Device, Result, Tensor};

/// Where the rows of each sequence lie.
#[derive(Debug, Clone)]
pub struct Packing {
    lengths: Vec<usize>,
    width: usize,
    /// Indices to pad by and to pack by; none where all lengths are equal.
    maps: Option<(Tensor, Tensor)>,
}

impl Packing {
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

/// How long a packed sequence is: an encoder's rows, and the rows that follow them. Without an encoder, all follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Rows that an encoder reads.
    pub source: usize,
    /// Rows of a decoder's text; of a classifier's answer.
    pub target: usize,
}

impl Extent {
    /// A sequence that no encoder reads.
    pub fn text(length: usize) -> Self {
        Self { source: 0, target: length }
    }

    /// Rows altogether.
    pub fn total(self) -> usize {
        self.source + self.target
    }
}

/// The two halves of packed sequences, apart.
pub struct Halves {
    /// Source rows of each sequence.
    pub sources: Vec<usize>,
    /// Target rows of each sequence.
    pub targets: Vec<usize>,
    /// Where the sources' rows lie among all.
    pub source_rows: Vec<u32>,
    /// Where the targets' rows lie among all.
    pub target_rows: Vec<u32>,
}

impl Halves {
    /// Of sequences as long as these.
    pub fn of(extents: &[Extent]) -> Self {
        let (mut source_rows, mut target_rows, mut start) = (Vec::new(), Vec::new(), 0);
        for extent in extents {
            let (middle, end) = (start + extent.source as u32, start + extent.total() as u32);
            source_rows.extend(start..middle);
            target_rows.extend(middle..end);
            start = end;
        }
        let sources = extents.iter().map(|extent| extent.source).collect();
        let targets = extents.iter().map(|extent| extent.target).collect();
        Self { sources, targets, source_rows, target_rows }
    }

    /// The sources' rows of `x [n, d]`.
    pub fn source(&self, x: &Tensor) -> Result<Tensor> {
        x.index_select(&Tensor::new(self.source_rows.as_slice(), x.device())?, 0)
    }

    /// The targets' rows of `x [n, d]`.
    pub fn target(&self, x: &Tensor) -> Result<Tensor> {
        x.index_select(&Tensor::new(self.target_rows.as_slice(), x.device())?, 0)
    }

    /// Undoes [`Halves::source`] and [`Halves::target`].
    pub fn join(&self, source: &Tensor, target: &Tensor) -> Result<Tensor> {
        let mut order = vec![0u32; self.source_rows.len() + self.target_rows.len()];
        for (from, &to) in (0..).zip(self.source_rows.iter().chain(&self.target_rows)) {
            order[to as usize] = from;
        }
        Tensor::cat(&[source, target], 0)?.index_select(&Tensor::new(order, source.device())?, 0)
    }
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
    fn halves_come_apart_and_together() {
        let extents = [(2, 1), (0, 2), (3, 0)].map(|(source, target)| Extent { source, target });
        let halves = Halves::of(&extents);
        assert_eq!(halves.source_rows, [0, 1, 5, 6, 7]);
        assert_eq!(halves.target_rows, [2, 3, 4]);
        let x = random(&[8, 3], 1);
        let (source, target) = (halves.source(&x).unwrap(), halves.target(&x).unwrap());
        assert_close(&halves.join(&source, &target).unwrap(), &x, 0.0);
    }
}
