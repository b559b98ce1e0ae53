//! A prompt with a target, as token ids.

use std::ops::Range;

use super::layers::packing::Extent;

/// Token ids of a prompt followed by a target. Where the network has an encoder, the prompt is what it reads, then come the
/// ids that its decoder begins with, then the target. For a classifier the target is a label's number, after one id that
/// stands for the place where the network is asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    pub ids: Vec<u32>,
    /// How many of the ids an encoder reads; 0 where there is none.
    pub source: usize,
    /// Which of the ids are the target. `ids.len()..ids.len() + 1` stands for "whatever comes next": a passage without
    /// a target, of which the next token's distribution is wanted.
    pub target: Range<usize>,
}

impl Passage {
    /// A passage that no encoder reads.
    pub fn text(ids: Vec<u32>, target: Range<usize>) -> Self {
        Self { ids, source: 0, target }
    }

    /// A passage without a target, that no encoder reads.
    pub fn open(ids: Vec<u32>) -> Self {
        let end = ids.len();
        Self::text(ids, end..end + 1)
    }

    /// The target's ids; none for an open passage.
    pub fn target_ids(&self) -> &[u32] {
        self.ids.get(self.target.clone()).unwrap_or(&[])
    }

    /// Positions whose logits predict the target: one before each of its tokens.
    pub fn predicting(&self) -> Vec<u32> {
        self.target.clone().map(|position| (position - 1) as u32).collect()
    }

    /// How long it is.
    pub fn extent(&self) -> Extent {
        Extent { source: self.source, target: self.ids.len() - self.source }
    }
}
