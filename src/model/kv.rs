//! The state of a sequence that is being decoded: keys and values of every block.

use std::sync::Arc;

use candle_core::{CpuStorage, Result, Storage, Tensor};
use candle_nn::kv_cache::KvCache;

use super::pages::{Page, Pages};

/// Positions that a cache holds before it grows, and by which it grows.
const CACHE_STEP: usize = 256;

/// One cache per block of a trunk or tail, for one sequence, on any device.
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

/// Where one block's keys and values go, and where those of earlier positions are.
pub enum Kv<'a, 'p> {
    /// Of one sequence, on any device.
    Stored(&'a mut KvCache),
    /// Of each sequence of a pass, on a CPU.
    Paged(PagedBlock<'a, 'p>),
}

/// One block's part of the pages of a pass's sequences.
pub struct PagedBlock<'a, 'p> {
    /// In the order of the pass.
    pub sequences: &'a mut [&'p mut Pages],
    pub block: usize,
}

impl PagedBlock<'_, '_> {
    /// Adds keys and values `[n, kv_heads * head_dim]` of sequences of `lengths`, one after another.
    pub fn write(&mut self, keys: &Tensor, values: &Tensor, lengths: &[usize]) -> Result<()> {
        let width = keys.dim(1)?;
        let (keys, values) = (keys.contiguous()?, values.contiguous()?);
        let ((k_storage, k_layout), (v_storage, v_layout)) = (keys.storage_and_layout(), values.storage_and_layout());
        let (Storage::Cpu(CpuStorage::F32(k)), Storage::Cpu(CpuStorage::F32(v))) = (&*k_storage, &*v_storage) else {
            candle_core::bail!("pages hold f32 on a CPU")
        };
        let (mut k, mut v) = (&k[k_layout.start_offset()..], &v[v_layout.start_offset()..]);
        for (pages, length) in self.sequences.iter_mut().zip(lengths) {
            pages.write(self.block, &k[..length * width], &v[..length * width]);
            (k, v) = (&k[length * width..], &v[length * width..]);
        }
        Ok(())
    }
}

/// A sequence being decoded. What its trunk holds would fit any version; what its tail holds belongs to the version whose
/// weights it was fed with, so a sequence stays on one version (law 4).
pub struct Sequence {
    pub(super) state: State,
}

/// What a sequence has read.
pub(super) enum State {
    /// By candle's caches.
    Stored(Stored),
    /// In pages; the trunk may be ahead of the tail.
    Paged { trunk: Pages, tail: Pages },
}

/// What a sequence has read, on any device, and where there is an encoder.
pub(super) struct Stored {
    pub trunk: LayerCaches,
    pub tail: LayerCaches,
    /// Tokens that an encoder has read.
    pub source: usize,
    /// Tokens fed, the source's among them.
    pub fed: usize,
}

impl Stored {
    fn fork(&self) -> Result<Self> {
        Ok(Self { trunk: self.trunk.copy(self.trunk.len())?, tail: self.tail.copy(self.tail.len())?, ..*self })
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
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
}

impl Sequence {
    pub(super) fn stored(trunk: LayerCaches, tail: LayerCaches) -> Self {
        Self { state: State::Stored(Stored { trunk, tail, source: 0, fed: 0 }) }
    }

    pub(super) fn paged(trunk: Pages, tail: Pages) -> Self {
        assert!(trunk.len() >= tail.len(), "a tail reads what its trunk has read");
        Self { state: State::Paged { trunk, tail } }
    }

    /// The full page number `index` of trunk and of tail, if both have it.
    pub fn full_pages(&self, index: usize) -> Option<(&Arc<Page>, &Arc<Page>)> {
        match &self.state {
            State::Stored(_) => None,
            State::Paged { trunk, tail } => trunk.full(index).zip(tail.full(index)),
        }
    }

    /// Another sequence that was fed the same.
    pub fn fork(&self) -> Result<Self> {
        let state = match &self.state {
            State::Stored(stored) => State::Stored(stored.fork()?),
            State::Paged { trunk, tail } => State::Paged { trunk: trunk.clone(), tail: tail.clone() },
        };
        Ok(Self { state })
    }

    /// Forgets all but the first `len` tokens, also those that a failed pass left in some of the caches.
    ///
    /// # Errors
    /// A source that an encoder reads is kept or forgotten as a whole.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        match &mut self.state {
            State::Stored(stored) => stored.truncate(len),
            State::Paged { trunk, tail } => {
                trunk.truncate(len);
                tail.truncate(len);
                Ok(())
            }
        }
    }

    /// Tokens fed so far, a source's among them.
    pub fn len(&self) -> usize {
        match &self.state {
            State::Stored(stored) => stored.fed,
            State::Paged { tail, .. } => tail.len(),
        }
    }

    /// Whether nothing was fed yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
