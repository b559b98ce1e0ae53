//! A prompt with a target, as token ids.

use std::ops::Range;

/// Token ids of a prompt followed by a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    pub ids: Vec<u32>,
    /// Which of the ids are the target. `ids.len()..ids.len() + 1` stands for "whatever comes next": a passage without
    /// a target, of which the next token's distribution is wanted.
    pub target: Range<usize>,
}

impl Passage {
    /// A passage without a target.
    pub fn open(ids: Vec<u32>) -> Self {
        let end = ids.len();
        Self { ids, target: end..end + 1 }
    }

    /// The target's ids; none for an open passage.
    pub fn target_ids(&self) -> &[u32] {
        self.ids.get(self.target.clone()).unwrap_or(&[])
    }

    /// Positions whose logits predict the target: one before each of its tokens.
    pub fn predicting(&self) -> Vec<u32> {
        self.target.clone().map(|position| (position - 1) as u32).collect()
    }
}
