//! Decoder-only networks: embedding, blocks, norm and head. What a family is made of it says in `families`.

use std::{ops::Range, sync::Arc};

use candle_core::{Device, Result, Tensor};

use super::{
    DenseMatrices, EditableMatrix, Kind, LayerCaches, ModelError, Network, NetworkShape, Projection, Sequence,
    batch::Batching,
    builder::{Builder, Head},
    kv::{Kv, PagedBlock},
    layers::{Block, Embedding, Norm, Plan, Positions, packing::Extent, plan::Rows},
    matrices::NoEditable,
    pages::{PageShape, Pages},
};

/// The parts of a decoder-only network.
pub struct Parts {
    pub embedding: Embedding,
    pub blocks: Vec<Block>,
    /// The kinds of attention that the blocks have, by [`Block::positions`].
    pub positions: Vec<Positions>,
    pub norm: Norm,
    pub head: Head,
    /// Most positions of a sequence.
    pub context: usize,
}

/// A loaded decoder-only network.
pub struct Decoder {
    shape: NetworkShape,
    parts: Parts,
    editable: Vec<EditableMatrix>,
    base: Arc<DenseMatrices>,
    device: Device,
}

impl Decoder {
    /// Puts the parts together; the last `tail_blocks` blocks were read as the tail.
    pub fn new(parts: Parts, builder: Builder<'_>, tail_blocks: usize) -> std::result::Result<Self, ModelError> {
        let (vocabulary, hidden) = parts.embedding.tokens.dims2()?;
        let shape = NetworkShape {
            kind: Kind::Causal,
            inputs: vocabulary,
            vocabulary,
            hidden,
            context: parts.context,
            trunk_blocks: parts.blocks.len() - tail_blocks,
            tail_blocks,
        };
        let device = builder.device();
        let (editable, base) = builder.finish();
        Ok(Self { shape, parts, editable, base: Arc::new(base), device })
    }

    fn run(
        &self,
        blocks: Range<usize>,
        mut hidden: Tensor,
        lengths: &[usize],
        rows: Rows<'_>,
        weights: &dyn Projection,
        mut kept: Kept<'_, '_>,
    ) -> Result<Tensor> {
        let pasts = kept.pasts(lengths.len());
        let paged = matches!(kept, Kept::Paged(_));
        let plan = |rows, kind: usize| {
            let (positions, device) = (&self.parts.positions[kind], &self.device);
            match paged {
                true => Plan::continuing(lengths, &pasts, rows, positions, device),
                false => Plan::causal(lengths, pasts.first().copied().unwrap_or(0), rows, positions, device),
            }
        };
        let all = (0..self.parts.positions.len()).map(|kind| plan(Rows::All, kind)).collect::<Result<Vec<_>>>()?;
        for (slot, index) in blocks.clone().enumerate() {
            let block = &self.parts.blocks[index];
            let cache = kept.block(slot);
            let top = index + 1 == blocks.end && matches!(rows, Rows::At(_));
            hidden = match top {
                true => block.forward(&hidden, &plan(rows, block.positions)?, cache, weights)?,
                false => block.forward(&hidden, &all[block.positions], cache, weights)?,
            };
        }
        if let Kept::Stored(caches) = kept {
            caches.advance(lengths.iter().sum());
        }
        Ok(hidden)
    }

    fn read(&self, ids: &[u32], lengths: &[usize], kept: Kept<'_, '_>) -> Result<Tensor> {
        let embedded = self.parts.embedding.forward(ids, lengths, &kept.pasts(lengths.len()))?;
        self.run(0..self.shape.trunk_blocks, embedded, lengths, Rows::All, &NoEditable, kept)
    }

    fn climb(
        &self,
        hidden: &Tensor,
        lengths: &[usize],
        rows: Rows<'_>,
        weights: &dyn Projection,
        kept: Kept<'_, '_>,
    ) -> Result<Tensor> {
        let blocks = self.shape.trunk_blocks..self.parts.blocks.len();
        let pass = weights.begin_pass();
        let weights = pass.as_deref().unwrap_or(weights);
        self.parts.norm.forward(&self.run(blocks, hidden.clone(), lengths, rows, weights, kept)?)
    }
}

/// What a pass knows of earlier positions.
enum Kept<'a, 'p> {
    Nothing,
    Stored(&'a mut LayerCaches),
    Paged(&'a mut [&'p mut Pages]),
}

impl<'a> From<Option<&'a mut LayerCaches>> for Kept<'a, '_> {
    fn from(caches: Option<&'a mut LayerCaches>) -> Self {
        caches.map_or(Self::Nothing, Self::Stored)
    }
}

impl<'p> Kept<'_, 'p> {
    /// Positions before those of the pass, of each of its sequences.
    fn pasts(&self, sequences: usize) -> Vec<usize> {
        match self {
            Self::Nothing => vec![0; sequences],
            Self::Stored(caches) => vec![caches.len(); sequences],
            Self::Paged(sequences) => sequences.iter().map(|pages| pages.len()).collect(),
        }
    }

    fn block(&mut self, block: usize) -> Option<Kv<'_, 'p>> {
        match self {
            Self::Nothing => None,
            Self::Stored(caches) => Some(Kv::Stored(caches.layer(block))),
            Self::Paged(sequences) => Some(Kv::Paged(PagedBlock { sequences, block })),
        }
    }
}

impl Network for Decoder {
    fn shape(&self) -> NetworkShape {
        self.shape
    }

    fn editable(&self) -> &[EditableMatrix] {
        &self.editable
    }

    fn base(&self) -> &Arc<DenseMatrices> {
        &self.base
    }

    fn start(&self) -> Sequence {
        match self.batching() {
            Some(network) => {
                let (trunk, tail) = network.pages();
                Sequence::paged(Pages::new(trunk), Pages::new(tail))
            }
            None => {
                let (trunk, tail) = (self.shape.trunk_blocks, self.shape.tail_blocks);
                Sequence::stored(LayerCaches::new(trunk), LayerCaches::new(tail))
            }
        }
    }

    fn rows_of(&self, matrix: usize, extents: &[Extent], rows: Rows<'_>) -> Vec<Vec<u32>> {
        let per_block = self.editable.len() / self.shape.tail_blocks;
        match rows {
            // The top block computes no other rows.
            Rows::At(wanted) if matrix + per_block >= self.editable.len() => wanted.to_vec(),
            _ => extents.iter().map(|extent| (0..extent.total() as u32).collect()).collect(),
        }
    }

    fn trunk(&self, ids: &[u32], extents: &[Extent], caches: Option<&mut LayerCaches>) -> Result<Tensor> {
        self.read(ids, &totals(extents), caches.into())
    }

    fn tail(
        &self,
        hidden: &Tensor,
        extents: &[Extent],
        rows: Rows<'_>,
        weights: &dyn Projection,
        caches: Option<&mut LayerCaches>,
    ) -> Result<Tensor> {
        self.climb(hidden, &totals(extents), rows, weights, caches.into())
    }

    fn logits(&self, rows: &Tensor) -> Result<Tensor> {
        self.parts.head.forward(rows)
    }

    fn decode_logits(&self, rows: &Tensor) -> Result<Tensor> {
        self.parts.head.decode(rows)
    }

    fn batching(&self) -> Option<&dyn Batching> {
        let heads = |block: &Block| (block.attention.heads.kv, block.attention.heads.dim);
        let alike = self.parts.blocks.iter().all(|block| heads(block) == heads(&self.parts.blocks[0]));
        (self.device.is_cpu() && alike).then_some(self)
    }
}

impl Batching for Decoder {
    fn pages(&self) -> (PageShape, PageShape) {
        let NetworkShape { hidden, trunk_blocks, tail_blocks, .. } = self.shape;
        let heads = self.parts.blocks[0].attention.heads;
        let shape = |blocks, hidden| PageShape { blocks, kv_heads: heads.kv, head_dim: heads.dim, hidden };
        (shape(trunk_blocks, hidden), shape(tail_blocks, 0))
    }

    fn trunk_pages(&self, ids: &[u32], lengths: &[usize], pages: &mut [&mut Pages]) -> Result<Tensor> {
        self.read(ids, lengths, Kept::Paged(pages))
    }

    fn tail_pages(
        &self,
        hidden: &Tensor,
        lengths: &[usize],
        rows: Rows<'_>,
        weights: &dyn Projection,
        pages: &mut [&mut Pages],
    ) -> Result<Tensor> {
        self.climb(hidden, lengths, rows, weights, Kept::Paged(pages))
    }
}

fn totals(extents: &[Extent]) -> Vec<usize> {
    extents.iter().map(|extent| extent.total()).collect()
}

/// Where the tail begins: blocks below it. Refuses a tail of none or of more blocks than there are.
pub fn trunk_blocks(file: &str, blocks: usize, tail_blocks: usize) -> std::result::Result<usize, ModelError> {
    match blocks.checked_sub(tail_blocks) {
        Some(trunk) if tail_blocks > 0 => Ok(trunk),
        _ => Err(ModelError::Malformed {
            file: file.to_owned(),
            why: format!("{tail_blocks} editable blocks asked for, of {blocks}"),
        }),
    }
}
