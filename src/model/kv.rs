//! The state of a sequence that is being decoded: keys and values of every block.

use candle_nn::kv_cache::KvCache;

/// Positions that a cache holds before it grows, and by which it grows.
const CACHE_STEP: usize = 256;

/// One cache per block of a trunk or tail, for one sequence.
pub struct LayerCaches {
    layers: Vec<KvCache>,
    positions: usize,
}

impl LayerCaches {
    /// Empty caches for `blocks` blocks.
    pub fn new(blocks: usize) -> Self {
        // Dimension 2 of `[1, kv_heads, positions, head_dim]`.
        Self { layers: vec![KvCache::new(2, CACHE_STEP); blocks], positions: 0 }
    }

    /// Positions held, also where there is no block to hold them.
    pub fn len(&self) -> usize {
        self.positions
    }

    /// Says that every block holds `positions` more.
    pub fn advance(&mut self, positions: usize) {
        self.positions += positions;
        debug_assert!(self.layers.iter().all(|layer| layer.current_seq_len() == self.positions), "caches went apart");
    }

    /// Whether nothing is held yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The cache of one block.
    pub fn layer(&mut self, block: usize) -> &mut KvCache {
        &mut self.layers[block]
    }
}

/// A sequence being decoded. Its trunk state would fit any version; its tail state belongs to the version whose weights
/// it was fed with, so a sequence stays on one version (law 4).
pub struct Sequence {
    pub(super) trunk: LayerCaches,
    pub(super) tail: LayerCaches,
}

impl Sequence {
    pub(super) fn new(trunk_blocks: usize, tail_blocks: usize) -> Self {
        Self { trunk: LayerCaches::new(trunk_blocks), tail: LayerCaches::new(tail_blocks) }
    }

    /// Tokens fed so far.
    pub fn len(&self) -> usize {
        self.tail.len()
    }

    /// Whether nothing was fed yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
