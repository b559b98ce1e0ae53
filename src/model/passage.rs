//! A prompt and the target that follows it, as token ids.

use std::ops::Range;

/// Token ids of a prompt followed by a target; `target` says which of them are the target.
///
/// `target` may also point past the end, `ids.len()..ids.len() + 1`, where a passage has no target and what matters is
/// the distribution of the next token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    pub ids: Vec<u32>,
    pub target: Range<usize>,
}

impl Passage {
    /// The ids of the target; empty where `target` points past the end.
    pub fn target_ids(&self) -> &[u32] {
        self.ids.get(self.target.clone()).unwrap_or_default()
    }
}
