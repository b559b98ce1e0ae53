//! The state of a sequence that is being decoded: keys and values of every block.

use candle_nn::kv_cache::KvCache;

/// Positions that a cache holds before it grows, and by which it grows.
const CACHE_STEP: usize = 256;

/// One cache per block of a trunk or tail, for one sequence.
pub struct LayerCaches {
    layers: Vec<KvCache>,
    /// What each block of a decoder keeps of the source; none where there is no source.
    sources: Vec<KvCache>,
    positions: usize,
}

impl LayerCaches {
    /// Empty caches for `blocks` blocks.
    pub fn new(blocks: usize) -> Self {
        Self { layers: vec![empty(); blocks], sources: Vec::new(), positions: 0 }
    }

    /// Empty caches for `blocks` blocks of a decoder that looks at a source too.
    pub fn with_source(blocks: usize) -> Self {
        Self { sources: vec![empty(); blocks], ..Self::new(blocks) }
    }

    /// Positions held of the sequence itself, also where there is no block to hold them.
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

    /// Positions held of the source.
    pub fn source_len(&self) -> usize {
        self.sources.first().map_or(0, KvCache::current_seq_len)
    }

    /// The cache of one block.
    pub fn layer(&mut self, block: usize) -> &mut KvCache {
        &mut self.layers[block]
    }

    /// The cache of one block of a decoder, and its cache of the source.
    pub fn pair(&mut self, block: usize) -> (&mut KvCache, &mut KvCache) {
        (&mut self.layers[block], &mut self.sources[block])
    }
}

fn empty() -> KvCache {
    // Dimension 2 of `[1, kv_heads, positions, head_dim]`.
    KvCache::new(2, CACHE_STEP)
}

/// A sequence being decoded. Its trunk state would fit any version; its tail state belongs to the version whose weights
/// it was fed with, so a sequence stays on one version (law 4).
pub struct Sequence {
    pub(super) trunk: LayerCaches,
    pub(super) tail: LayerCaches,
    pub(super) fed: usize,
}

impl Sequence {
    pub(super) fn new(trunk: LayerCaches, tail: LayerCaches) -> Self {
        Self { trunk, tail, fed: 0 }
    }

    /// Tokens fed so far, a source's among them.
    pub fn len(&self) -> usize {
        self.fed
    }

    /// Whether nothing was fed yet.
    pub fn is_empty(&self) -> bool {
        self.fed == 0
    }
}
