//! Decoder-only networks: embedding, blocks, norm and head. What a family is made of it says in `families`.

use std::{ops::Range, sync::Arc};

use candle_core::{Device, Result, Tensor};

use super::{
    DenseMatrices, EditableMatrix, Kind, LayerCaches, ModelError, Network, NetworkShape, Projection, Sequence,
    builder::{Builder, Head},
    layers::{Block, Embedding, Norm, Plan, Positions, packing::Extent, plan::Rows},
    matrices::NoEditable,
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
        mut caches: Option<&mut LayerCaches>,
    ) -> Result<Tensor> {
        let past = caches.as_ref().map_or(0, |caches| caches.len());
        let plan = |rows, kind: usize| Plan::causal(lengths, past, rows, &self.parts.positions[kind], &self.device);
        let all = (0..self.parts.positions.len()).map(|kind| plan(Rows::All, kind)).collect::<Result<Vec<_>>>()?;
        for (slot, index) in blocks.clone().enumerate() {
            let block = &self.parts.blocks[index];
            let cache = caches.as_mut().map(|caches| caches.layer(slot));
            let top = index + 1 == blocks.end && matches!(rows, Rows::At(_));
            hidden = match top {
                true => block.forward(&hidden, &plan(rows, block.positions)?, cache, weights)?,
                false => block.forward(&hidden, &all[block.positions], cache, weights)?,
            };
        }
        if let Some(caches) = caches {
            caches.advance(lengths.iter().sum());
        }
        Ok(hidden)
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
        Sequence::new(LayerCaches::new(self.shape.trunk_blocks), LayerCaches::new(self.shape.tail_blocks))
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
        let lengths = totals(extents);
        let past = caches.as_ref().map_or(0, |caches| caches.len());
        let embedded = self.parts.embedding.forward(ids, &lengths, past)?;
        self.run(0..self.shape.trunk_blocks, embedded, &lengths, Rows::All, &NoEditable, caches)
    }

    fn tail(
        &self,
        hidden: &Tensor,
        extents: &[Extent],
        rows: Rows<'_>,
        weights: &dyn Projection,
        caches: Option<&mut LayerCaches>,
    ) -> Result<Tensor> {
        let blocks = self.shape.trunk_blocks..self.parts.blocks.len();
        let top = self.run(blocks, hidden.clone(), &totals(extents), rows, weights, caches)?;
        self.parts.norm.forward(&top)
    }

    fn logits(&self, rows: &Tensor) -> Result<Tensor> {
        self.parts.head.forward(rows)
    }

    fn decode_logits(&self, rows: &Tensor) -> Result<Tensor> {
        self.parts.head.decode(rows)
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
