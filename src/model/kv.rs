//! The state of a sequence that is being decoded: keys and values of every block.

use candle_core::Result;
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

    /// A copy of the first `len` positions.
    fn copy(&self, len: usize) -> Result<Self> {
        let copy_layer = |layer: &KvCache| {
            let mut copy = KvCache::new(2, CACHE_STEP);
            if let (Some(k), Some(v)) = (layer.k()?, layer.v()?)
                && len > 0
            {
                copy.append(&k.narrow(2, 0, len)?.contiguous()?, &v.narrow(2, 0, len)?.contiguous()?)?;
            }
            Ok(copy)
        };
        Ok(Self { layers: self.layers.iter().map(copy_layer).collect::<Result<_>>()?, positions: len })
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

    /// Another sequence that was fed the same.
    pub fn fork(&self) -> Result<Self> {
        Ok(Self { trunk: self.trunk.copy(self.trunk.len())?, tail: self.tail.copy(self.tail.len())? })
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if self.trunk.len() > len {
            self.trunk = self.trunk.copy(len)?;
        }
        if self.tail.len() > len {
            self.tail = self.tail.copy(len)?;
        }
        Ok(())
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
