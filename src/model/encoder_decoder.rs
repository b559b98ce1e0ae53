//! Networks of an encoder and a decoder. The trunk ends in the encoder, below its last blocks; all above, the whole decoder
//! included, is the tail.
//!
//! A packed sequence is the source's rows and then the decoder's. At the tail's door, the source's are hidden states, and
//! the decoder's are their embeddings still: nothing below the tail looks at them.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::{
    DenseMatrices, EditableMatrix, Kind, LayerCaches, ModelError, Network, NetworkShape, Projection, Sequence,
    builder::{Builder, Head},
    layers::{
        Embedding, Norm, Plan, Positions,
        codec::{CodecBlock, Source},
        packing::{Extent, Halves},
        plan::{Rows, flat_rows},
    },
    matrices::NoEditable,
};

/// An encoder or a decoder.
pub struct Stack {
    pub embedding: Embedding,
    pub blocks: Vec<CodecBlock>,
    pub positions: Positions,
    /// Over the last block's output.
    pub norm: Option<Norm>,
}

impl Stack {
    fn finish(&self, x: Tensor) -> Result<Tensor> {
        match &self.norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }
}

/// The parts of an encoder-decoder.
pub struct Parts {
    pub encoder: Stack,
    pub decoder: Stack,
    pub head: Head,
    /// What the decoder's output is multiplied by before the head.
    pub output_scale: Option<f64>,
    /// Most positions of a sequence, source and text together.
    pub context: usize,
}

/// A loaded encoder-decoder.
pub struct EncoderDecoder {
    shape: NetworkShape,
    parts: Parts,
    editable: Vec<EditableMatrix>,
    base: Arc<DenseMatrices>,
    device: Device,
}

impl EncoderDecoder {
    /// Puts the parts together; the last `tail_blocks` blocks of both stacks are edited, and of each as many matrices, the
    /// encoder's first.
    pub fn new(parts: Parts, builder: Builder<'_>, tail_blocks: usize) -> std::result::Result<Self, ModelError> {
        let (vocabulary, hidden) = parts.head.dense.dims2()?;
        let shape = NetworkShape {
            kind: Kind::EncoderDecoder,
            inputs: parts.encoder.embedding.tokens.dim(0)?,
            vocabulary,
            hidden,
            context: parts.context,
            trunk_blocks: parts.encoder.blocks.len() - tail_blocks,
            tail_blocks,
        };
        let device = builder.device();
        let (editable, base) = builder.finish();
        Ok(Self { shape, parts, editable, base: Arc::new(base), device })
    }

    /// Some of the encoder's blocks, without a cache: a source is read as a whole.
    fn encode(
        &self,
        blocks: &[CodecBlock],
        mut x: Tensor,
        lengths: &[usize],
        weights: &dyn Projection,
    ) -> Result<Tensor> {
        let plan = Plan::both_ways(lengths, &self.parts.encoder.positions, &self.device)?;
        for block in blocks {
            x = block.forward(&x, &plan, None, None, weights)?;
        }
        Ok(x)
    }

    /// The decoder over `x`, looking at the `source`, or at what the caches hold of it.
    fn decode(
        &self,
        mut x: Tensor,
        source: Option<&Tensor>,
        halves: &Halves,
        weights: &dyn Projection,
        mut caches: Option<&mut LayerCaches>,
    ) -> Result<Tensor> {
        let (past, held) = caches.as_ref().map_or((0, 0), |caches| (caches.len(), caches.source_len()));
        let decoder = &self.parts.decoder;
        let plan = Plan::causal(&halves.targets, past, Rows::All, &decoder.positions, &self.device)?;
        let sources: Vec<usize> = halves.sources.iter().map(|source| source + held).collect();
        let across = Plan::across(&sources, &halves.targets, &self.device)?;
        for (index, block) in decoder.blocks.iter().enumerate() {
            let (own, cross) = caches.as_mut().map(|caches| caches.pair(index)).unzip();
            let source = Source { rows: source, plan: &across, cache: cross };
            x = block.forward(&x, &plan, own, Some(source), weights)?;
        }
        if let Some(caches) = caches {
            caches.advance(halves.targets.iter().sum());
        }
        Ok(x)
    }

    fn scaled(&self, rows: &Tensor) -> Result<Tensor> {
        match self.parts.output_scale {
            Some(scale) => rows * scale,
            None => Ok(rows.clone()),
        }
    }
}

impl Network for EncoderDecoder {
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
        Sequence::new(LayerCaches::new(0), LayerCaches::with_source(self.parts.decoder.blocks.len()))
    }

    fn rows_of(&self, matrix: usize, extents: &[Extent], _: Rows<'_>) -> Vec<Vec<u32>> {
        let encoders = matrix < self.editable.len() / 2;
        let own = |extent: &Extent| match encoders {
            true => 0..extent.source as u32,
            false => extent.source as u32..extent.total() as u32,
        };
        extents.iter().map(|extent| own(extent).collect()).collect()
    }

    fn trunk(&self, ids: &[u32], extents: &[Extent], caches: Option<&mut LayerCaches>) -> Result<Tensor> {
        let halves = Halves::of(extents);
        let past = caches.as_ref().map_or(0, |caches| caches.len());
        let targets: Vec<u32> = halves.target_rows.iter().map(|&row| ids[row as usize]).collect();
        let decoder = self.parts.decoder.embedding.forward(&targets, &halves.targets, past)?;
        if let Some(caches) = caches {
            caches.advance(targets.len());
        }
        if halves.source_rows.is_empty() {
            return Ok(decoder);
        }
        let sources: Vec<u32> = halves.source_rows.iter().map(|&row| ids[row as usize]).collect();
        let encoder = self.parts.encoder.embedding.forward(&sources, &halves.sources, 0)?;
        let blocks = &self.parts.encoder.blocks[..self.shape.trunk_blocks];
        let encoder = self.encode(blocks, encoder, &halves.sources, &NoEditable)?;
        halves.join(&encoder, &decoder)
    }

    fn tail(
        &self,
        hidden: &Tensor,
        extents: &[Extent],
        rows: Rows<'_>,
        weights: &dyn Projection,
        caches: Option<&mut LayerCaches>,
    ) -> Result<Tensor> {
        let halves = Halves::of(extents);
        let before = caches.as_ref().map_or(0, |caches| caches.source_len() + caches.len());
        let source = match halves.source_rows.is_empty() {
            true => None,
            false => {
                let blocks = &self.parts.encoder.blocks[self.shape.trunk_blocks..];
                let encoded = self.encode(blocks, halves.source(hidden)?, &halves.sources, weights)?;
                Some(self.parts.encoder.finish(encoded)?)
            }
        };
        let decoded = self.decode(halves.target(hidden)?, source.as_ref(), &halves, weights, caches)?;
        let top = match rows {
            Rows::All => decoded,
            Rows::At(wanted) => decoded.index_select(&flat_rows(extents, before, wanted, &self.device)?, 0)?,
        };
        self.parts.decoder.finish(top)
    }

    fn logits(&self, rows: &Tensor) -> Result<Tensor> {
        self.parts.head.forward(&self.scaled(rows)?)
    }

    fn decode_logits(&self, rows: &Tensor) -> Result<Tensor> {
        self.parts.head.decode(&self.scaled(rows)?)
    }
}
