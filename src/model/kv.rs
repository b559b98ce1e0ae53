//! The state of a sequence that is being decoded: keys and values of every block.

use candle_core::Result;
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

    /// A copy of the first `len` positions, and of the whole source.
    fn copy(&self, len: usize) -> Result<Self> {
        let layers = self.layers.iter().map(|layer| copy(layer, len)).collect::<Result<_>>()?;
        let sources =
            self.sources.iter().map(|source| copy(source, source.current_seq_len())).collect::<Result<_>>()?;
        Ok(Self { layers, sources, positions: len.min(self.positions) })
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

/// A copy of the first `len` positions.
fn copy(layer: &KvCache, len: usize) -> Result<KvCache> {
    let (mut copy, len) = (empty(), len.min(layer.current_seq_len()));
    if let (Some(k), Some(v)) = (layer.k()?, layer.v()?)
        && len > 0
    {
        copy.append(&k.narrow(2, 0, len)?.contiguous()?, &v.narrow(2, 0, len)?.contiguous()?)?;
    }
    Ok(copy)
}

/// A sequence being decoded. Its trunk state would fit any version; its tail state belongs to the version whose weights
/// it was fed with, so a sequence stays on one version (law 4).
pub struct Sequence {
    pub(super) trunk: LayerCaches,
    pub(super) tail: LayerCaches,
    /// Tokens that an encoder has read.
    pub(super) source: usize,
    /// Tokens fed, the source's among them.
    pub(super) fed: usize,
}

impl Sequence {
    pub(super) fn new(trunk: LayerCaches, tail: LayerCaches) -> Self {
        Self { trunk, tail, source: 0, fed: 0 }
    }

    /// Another sequence that was fed the same.
    pub fn fork(&self) -> Result<Self> {
        Ok(Self { trunk: self.trunk.copy(self.trunk.len())?, tail: self.tail.copy(self.tail.len())?, ..*self })
    }

    /// Forgets all but the first `len` tokens, also those that a failed pass left in some of the caches.
    ///
    /// # Errors
    /// A source that an encoder reads is kept or forgotten as a whole.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len > 0 && len < self.source {
            candle_core::bail!("{len} tokens are not the whole source of {}", self.source)
        }
        if len == 0 {
            self.tail.sources.fill_with(empty);
            self.source = 0;
        }
        let kept = len - self.source;
        (self.trunk, self.tail) = (self.trunk.copy(kept)?, self.tail.copy(kept)?);
        self.fed = self.fed.min(len);
        Ok(())
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
