//! The Llama family: Llama, SmolLM2, Mistral, Qwen2, Qwen3. They differ in biases, q/k norms, tying of the head and the
//! scaling of rotary frequencies, which [`LlamaConfig`] and the checkpoint tell.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use candle_nn::kv_cache::KvCache;

use super::{
    DenseMatrices, EditableMatrix, LayerCaches, ModelError, Network, NetworkShape, Projection,
    layers::{
        Attention, Linear, Rotary,
        ops::{rms_norm, swiglu},
        packing::{Plan, Rows},
        rescore::rescore,
        rotary::RopeScaling,
    },
    load::Checkpoint,
};

/// What the checkpoint's metadata says.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// The family, as the file names it.
    pub architecture: String,
    pub vocabulary: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub blocks: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub rms_eps: f64,
    pub rope_base: f64,
    pub rope_scaling: RopeScaling,
    /// Most positions; a sliding window shortens it, so that no query ever misses a key it should not see.
    pub context: usize,
}

impl LlamaConfig {
    /// Refuses sizes that do not fit each other.
    pub fn check(&self, file: &str) -> std::result::Result<(), ModelError> {
        let malformed = |why: String| Err(ModelError::Malformed { file: file.to_owned(), why });
        let sizes = [
            ("vocabulary", self.vocabulary),
            ("hidden size", self.hidden),
            ("intermediate size", self.intermediate),
            ("block count", self.blocks),
            ("head count", self.heads),
            ("key/value head count", self.kv_heads),
            ("head dimension", self.head_dim),
            ("context length", self.context),
        ];
        for (what, size) in sizes {
            if size == 0 || size > 1 << 24 {
                return malformed(format!("{what} {size} is out of range"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return malformed(format!("{} heads do not share {} key/value heads evenly", self.heads, self.kv_heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return malformed(format!("head dimension {} is odd", self.head_dim));
        }
        let numbers = [("norm epsilon", self.rms_eps), ("rotary base", self.rope_base)];
        for (what, number) in numbers.into_iter().chain(self.rope_scaling.divisors().map(|by| ("rotary divisor", by))) {
            if !(number > 0.0 && number.is_finite()) {
                return malformed(format!("{what} {number} is out of range"));
            }
        }
        Ok(())
    }
}

struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Mlp {
    fn forward(&self, x: &Tensor, weights: &dyn Projection) -> Result<Tensor> {
        let gate = self.gate.forward(x, weights)?;
        let up = self.up.forward(x, weights)?;
        self.down.forward(&swiglu(&gate, &up)?, weights)
    }
}

struct Block {
    attention_norm: Tensor,
    attention: Attention,
    mlp_norm: Tensor,
    mlp: Mlp,
    eps: f64,
}

impl Block {
    fn forward(
        &self,
        x: &Tensor,
        plan: &Plan,
        cache: Option<&mut KvCache>,
        weights: &dyn Projection,
    ) -> Result<Tensor> {
        let attended = self.attention.forward(&rms_norm(x, &self.attention_norm, self.eps)?, plan, cache, weights)?;
        let x = (plan.select(x)? + attended)?;
        let mixed = self.mlp.forward(&rms_norm(&x, &self.mlp_norm, self.eps)?, weights)?;
        x + mixed
    }
}

/// A loaded network.
pub struct Llama {
    shape: NetworkShape,
    embedding: Tensor,
    blocks: Vec<Block>,
    rotary: Rotary,
    norm: Tensor,
    /// The head in f32: the embedding itself where they are tied.
    head: Tensor,
    /// The head in the file's precision.
    decode_head: Linear,
    eps: f64,
    editable: Vec<EditableMatrix>,
    base: Arc<DenseMatrices>,
    device: Device,
}

impl Llama {
    /// Builds the network; the MLP matrices of the last `tail_blocks` blocks are editable.
    pub fn new(
        config: &LlamaConfig,
        checkpoint: &mut dyn Checkpoint,
        tail_blocks: usize,
    ) -> std::result::Result<Self, ModelError> {
        let device = checkpoint.device().clone();
        if tail_blocks == 0 || tail_blocks > config.blocks {
            return Err(ModelError::Malformed {
                file: checkpoint.name(),
                why: format!("{tail_blocks} editable blocks asked for, of {}", config.blocks),
            });
        }
        let trunk_blocks = config.blocks - tail_blocks;
        let mut tail = TailBuilder::default();
        let blocks = (0..config.blocks)
            .map(|index| build_block(config, checkpoint, index, (index >= trunk_blocks).then_some(&mut tail)))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let embedding_shape = (config.vocabulary, config.hidden);
        let embedding = checkpoint.dense("model.embed_tokens.weight", &[embedding_shape.0, embedding_shape.1])?;
        let head_name = ["lm_head.weight", "model.lm_head.weight"].into_iter().find(|name| checkpoint.has(name));
        let (head, decode_head) = match head_name {
            Some(name) => (
                checkpoint.dense(name, &[embedding_shape.0, embedding_shape.1])?,
                checkpoint.linear(name, None, embedding_shape)?,
            ),
            None => (embedding.clone(), checkpoint.linear("model.embed_tokens.weight", None, embedding_shape)?),
        };
        Ok(Self {
            shape: NetworkShape {
                vocabulary: config.vocabulary,
                hidden: config.hidden,
                context: config.context,
                trunk_blocks,
                tail_blocks,
            },
            embedding,
            blocks,
            rotary: Rotary::new(config.head_dim, config.rope_base, &config.rope_scaling, &device)?,
            norm: checkpoint.dense("model.norm.weight", &[config.hidden])?,
            head,
            decode_head,
            eps: config.rms_eps,
            editable: tail.editable,
            base: Arc::new(DenseMatrices::new(tail.base)),
            device,
        })
    }

    fn run(
        &self,
        blocks: std::ops::Range<usize>,
        hidden: Tensor,
        lengths: &[usize],
        rows: Rows<'_>,
        weights: &dyn Projection,
        mut caches: Option<&mut LayerCaches>,
    ) -> Result<Tensor> {
        let past = caches.as_ref().map_or(0, |caches| caches.len());
        let all = Plan::causal(lengths, past, Rows::All, &self.rotary, &self.device)?;
        let last = match rows {
            Rows::All => None,
            Rows::At(_) => Some(Plan::causal(lengths, past, rows, &self.rotary, &self.device)?),
        };
        let mut hidden = hidden;
        for (slot, index) in blocks.clone().enumerate() {
            let top = index + 1 == blocks.end;
            let plan = last.as_ref().filter(|_| top).unwrap_or(&all);
            let cache = caches.as_mut().map(|caches| caches.layer(slot));
            hidden = self.blocks[index].forward(&hidden, plan, cache, weights)?;
        }
        Ok(hidden)
    }
}

impl Network for Llama {
    fn shape(&self) -> NetworkShape {
        self.shape
    }

    fn editable(&self) -> &[EditableMatrix] {
        &self.editable
    }

    fn base(&self) -> &Arc<DenseMatrices> {
        &self.base
    }

    fn trunk(&self, ids: &[u32], lengths: &[usize], caches: Option<&mut LayerCaches>) -> Result<Tensor> {
        let embedded = self.embedding.index_select(&Tensor::new(ids, &self.device)?, 0)?;
        self.run(0..self.shape.trunk_blocks, embedded, lengths, Rows::All, &NoEditable, caches)
    }

    fn tail(
        &self,
        hidden: &Tensor,
        lengths: &[usize],
        rows: Rows<'_>,
        weights: &dyn Projection,
        caches: Option<&mut LayerCaches>,
    ) -> Result<Tensor> {
        let blocks = self.shape.trunk_blocks..self.blocks.len();
        let top = self.run(blocks, hidden.clone(), lengths, rows, weights, caches)?;
        rms_norm(&top, &self.norm, self.eps)
    }

    fn logits(&self, rows: &Tensor) -> Result<Tensor> {
        super::layers::linear::frozen_matmul(rows, &self.head)
    }

    fn decode_logits(&self, rows: &Tensor) -> Result<Tensor> {
        let logits = self.decode_head.forward(rows, &NoEditable)?;
        match &self.decode_head {
            Linear::Quantized { .. } => rescore(&logits, rows, &self.head),
            _ => Ok(logits),
        }
    }
}

/// What the trunk and the head multiply by: they have no editable matrix.
struct NoEditable;

impl Projection for NoEditable {
    fn project(&self, matrix: usize, _: &Tensor) -> Result<Tensor> {
        candle_core::bail!("editable matrix {matrix} below the tail")
    }
}

/// Collects the editable matrices while the tail's blocks are built.
#[derive(Default)]
struct TailBuilder {
    editable: Vec<EditableMatrix>,
    base: Vec<Tensor>,
}

impl TailBuilder {
    fn editable(
        &mut self,
        checkpoint: &mut dyn Checkpoint,
        name: &str,
        (d_out, d_in): (usize, usize),
    ) -> std::result::Result<Linear, ModelError> {
        let matrix = self.editable.len();
        self.base.push(checkpoint.dense(name, &[d_out, d_in])?);
        self.editable.push(EditableMatrix { name: name.to_owned(), d_out, d_in });
        Ok(Linear::Editable { matrix, bias: bias_of(checkpoint, name, d_out)? })
    }
}

/// The bias that belongs to a weight, if the checkpoint has one.
fn bias_of(
    checkpoint: &mut dyn Checkpoint,
    weight: &str,
    d_out: usize,
) -> std::result::Result<Option<Tensor>, ModelError> {
    checkpoint.optional(&weight.replace(".weight", ".bias"), &[d_out])
}

/// A layer of the trunk, with its bias if it has one.
fn with_bias(
    checkpoint: &mut dyn Checkpoint,
    weight: &str,
    shape: (usize, usize),
) -> std::result::Result<Linear, ModelError> {
    let bias = bias_of(checkpoint, weight, shape.0)?;
    checkpoint.linear(weight, bias, shape)
}

/// One block; with a `tail` its MLP matrices are editable and its attention is dense, so that gradients pass.
fn build_block(
    config: &LlamaConfig,
    checkpoint: &mut dyn Checkpoint,
    index: usize,
    tail: Option<&mut TailBuilder>,
) -> std::result::Result<Block, ModelError> {
    let name = |part: &str| format!("model.layers.{index}.{part}");
    let (hidden, intermediate) = (config.hidden, config.intermediate);
    let (wide, narrow) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let in_tail = tail.is_some();
    let mut projection = |part: &str, shape: (usize, usize)| -> std::result::Result<Linear, ModelError> {
        let weight = name(&format!("self_attn.{part}.weight"));
        if !in_tail {
            return with_bias(checkpoint, &weight, shape);
        }
        let bias = bias_of(checkpoint, &weight, shape.0)?;
        Ok(Linear::Dense { weight: checkpoint.dense(&weight, &[shape.0, shape.1])?, bias })
    };
    let (q, k) = (projection("q_proj", (wide, hidden))?, projection("k_proj", (narrow, hidden))?);
    let (v, o) = (projection("v_proj", (narrow, hidden))?, projection("o_proj", (hidden, wide))?);
    let attention = Attention {
        q,
        k,
        v,
        o,
        q_norm: checkpoint.optional(&name("self_attn.q_norm.weight"), &[config.head_dim])?,
        k_norm: checkpoint.optional(&name("self_attn.k_norm.weight"), &[config.head_dim])?,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        eps: config.rms_eps,
    };
    let (gate, up, down) = (name("mlp.gate_proj.weight"), name("mlp.up_proj.weight"), name("mlp.down_proj.weight"));
    let (rise, fall) = ((intermediate, hidden), (hidden, intermediate));
    let mlp = match tail {
        Some(tail) => Mlp {
            gate: tail.editable(checkpoint, &gate, rise)?,
            up: tail.editable(checkpoint, &up, rise)?,
            down: tail.editable(checkpoint, &down, fall)?,
        },
        None => Mlp {
            gate: with_bias(checkpoint, &gate, rise)?,
            up: with_bias(checkpoint, &up, rise)?,
            down: with_bias(checkpoint, &down, fall)?,
        },
    };
    Ok(Block {
        attention_norm: checkpoint.dense(&name("input_layernorm.weight"), &[hidden])?,
        attention,
        mlp_norm: checkpoint.dense(&name("post_attention_layernorm.weight"), &[hidden])?,
        mlp,
        eps: config.rms_eps,
    })
}
