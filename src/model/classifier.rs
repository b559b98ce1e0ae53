//! Encoders that give a text one of a few labels. The trunk ends below the encoder's last blocks.
//!
//! A packed sequence is the text's rows and then those of the answer's place, of which the network computes nothing: what
//! it makes of the whole text is the row that the answer is read from.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::{
    DenseMatrices, EditableMatrix, Kind, LayerCaches, ModelError, Network, NetworkShape, Projection, Sequence,
    builder::Builder,
    layers::{
        Embedding, Linear, Plan, Positions,
        codec::CodecBlock,
        linear::frozen_matmul,
        packing::{Extent, Halves},
        plan::Rows,
    },
    matrices::NoEditable,
};

/// The parts of a classifier.
pub struct Parts {
    pub embedding: Embedding,
    pub blocks: Vec<CodecBlock>,
    /// Over the first token's last state, a tanh after it.
    pub pooler: Linear,
    /// `[labels, hidden]` and its bias. One row alone weighs the second of two labels against nothing.
    pub weight: Tensor,
    pub bias: Tensor,
    /// Most tokens of a text.
    pub context: usize,
}

/// A loaded classifier.
pub struct Classifier {
    shape: NetworkShape,
    parts: Parts,
    editable: Vec<EditableMatrix>,
    base: Arc<DenseMatrices>,
    device: Device,
}

/// Rows that an answer takes: its place, and the label.
const ANSWER: usize = 2;

impl Classifier {
    /// Puts the parts together; the last `tail_blocks` blocks were read as the tail.
    pub fn new(parts: Parts, builder: Builder<'_>, tail_blocks: usize) -> std::result::Result<Self, ModelError> {
        let (inputs, hidden) = parts.embedding.tokens.dims2()?;
        let shape = NetworkShape {
            kind: Kind::Classifier,
            inputs,
            vocabulary: parts.weight.dim(0)?.max(2),
            hidden,
            context: parts.context + ANSWER,
            trunk_blocks: parts.blocks.len() - tail_blocks,
            tail_blocks,
        };
        let device = builder.device();
        let (editable, base) = builder.finish();
        Ok(Self { shape, parts, editable, base: Arc::new(base), device })
    }

    fn run(&self, blocks: &[CodecBlock], mut x: Tensor, lengths: &[usize], weights: &dyn Projection) -> Result<Tensor> {
        let plan = Plan::both_ways(lengths, &Positions::default(), &self.device)?;
        for block in blocks {
            x = block.forward(&x, &plan, None, None, weights)?;
        }
        Ok(x)
    }
}

impl Network for Classifier {
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
        Sequence::new(LayerCaches::new(0), LayerCaches::new(0))
    }

    fn rows_of(&self, _: usize, extents: &[Extent], _: Rows<'_>) -> Vec<Vec<u32>> {
        extents.iter().map(|extent| (0..extent.source as u32).collect()).collect()
    }

    fn trunk(&self, ids: &[u32], extents: &[Extent], _: Option<&mut LayerCaches>) -> Result<Tensor> {
        let halves = Halves::of(extents);
        let texts: Vec<u32> = halves.source_rows.iter().map(|&row| ids[row as usize]).collect();
        let embedded = self.parts.embedding.forward(&texts, &halves.sources, 0)?;
        let blocks = &self.parts.blocks[..self.shape.trunk_blocks];
        let texts = self.run(blocks, embedded, &halves.sources, &NoEditable)?;
        let answers = (halves.target_rows.len(), self.shape.hidden);
        halves.join(&texts, &Tensor::zeros(answers, texts.dtype(), &self.device)?)
    }

    /// One row per sequence, whichever rows are asked for: a text has one label.
    fn tail(
        &self,
        hidden: &Tensor,
        extents: &[Extent],
        _: Rows<'_>,
        weights: &dyn Projection,
        _: Option<&mut LayerCaches>,
    ) -> Result<Tensor> {
        let halves = Halves::of(extents);
        let blocks = &self.parts.blocks[self.shape.trunk_blocks..];
        let texts = self.run(blocks, halves.source(hidden)?, &halves.sources, weights)?;
        let mut start = 0u32;
        let mut firsts = Vec::with_capacity(extents.len());
        for &length in &halves.sources {
            firsts.push(start);
            start += length as u32;
        }
        let first = texts.index_select(&Tensor::new(firsts, &self.device)?, 0)?;
        self.parts.pooler.forward(&first, &NoEditable)?.tanh()
    }

    fn logits(&self, rows: &Tensor) -> Result<Tensor> {
        let logits = frozen_matmul(rows, &self.parts.weight)?.broadcast_add(&self.parts.bias)?;
        match logits.dim(1)? {
            1 => Tensor::cat(&[&logits.zeros_like()?, &logits], 1),
            _ => Ok(logits),
        }
    }

    fn decode_logits(&self, rows: &Tensor) -> Result<Tensor> {
        self.logits(rows)
    }
}
