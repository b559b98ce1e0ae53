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
    Stored { trunk: LayerCaches, tail: LayerCaches },
    /// In pages; the trunk may be ahead of the tail.
    Paged { trunk: Pages, tail: Pages },
}

impl Sequence {
    pub(super) fn stored(trunk_blocks: usize, tail_blocks: usize) -> Self {
        let (trunk, tail) = (LayerCaches::new(trunk_blocks), LayerCaches::new(tail_blocks));
        Self { state: State::Stored { trunk, tail } }
    }

    pub(super) fn paged(trunk: Pages, tail: Pages) -> Self {
        assert!(trunk.len() >= tail.len(), "a tail reads what its trunk has read");
        Self { state: State::Paged { trunk, tail } }
    }

    /// The full page number `index` of trunk and of tail, if both have it.
    pub fn full_pages(&self, index: usize) -> Option<(&Arc<Page>, &Arc<Page>)> {
        match &self.state {
            State::Stored { .. } => None,
            State::Paged { trunk, tail } => trunk.full(index).zip(tail.full(index)),
        }
    }

    /// Another sequence that was fed the same.
    pub fn fork(&self) -> Result<Self> {
        let state = match &self.state {
            State::Stored { trunk, tail } => {
                State::Stored { trunk: trunk.copy(trunk.len())?, tail: tail.copy(tail.len())? }
            }
            State::Paged { trunk, tail } => State::Paged { trunk: trunk.clone(), tail: tail.clone() },
        };
        Ok(Self { state })
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        match &mut self.state {
            State::Stored { trunk, tail } => {
                for caches in [trunk, tail] {
                    if caches.len() > len {
                        *caches = caches.copy(len)?;
                    }
                }
            }
            State::Paged { trunk, tail } => {
                trunk.truncate(len);
                tail.truncate(len);
            }
        }
        Ok(())
    }

    /// Tokens fed so far.
    pub fn len(&self) -> usize {
        match &self.state {
            State::Stored { tail, .. } => tail.len(),
            State::Paged { tail, .. } => tail.len(),
        }
    }

    /// Whether nothing was fed yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
