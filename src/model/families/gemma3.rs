//! Gemma 3, text: norms before and after attention and MLP whose weights are stored less one, a gated GELU, q/k norms,
//! scaled embeddings, and blocks that look back a window only, rotated by another base than those that see everything.

use candle_core::Tensor;
use serde::Deserialize;
use serde_json::Value;

use super::{
    Family, check_numbers, check_sizes,
    gpt2::yes,
    llama::{attention, check_heads, scaling},
    malformed, parse,
};
use crate::model::{
    ModelError, Network,
    builder::{Builder, Layout, Place},
    decoder::{Decoder, Parts, trunk_blocks},
    layers::{
        Activation, Attention, Block, Embedding, Mlp, Norm, Positions, Rotary, attention::Heads, rotary::RopeScaling,
    },
    load::Checkpoint,
};

/// How a block's attention sees: which of the network's two kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Reach {
    #[serde(rename = "sliding_attention")]
    Sliding,
    #[serde(rename = "full_attention")]
    Full,
}

/// What the checkpoint's metadata says.
#[derive(Debug, Clone, PartialEq)]
pub struct Gemma3Config {
    pub vocabulary: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub activation: Activation,
    pub rms_eps: f64,
    /// Attention's scale is one over its root.
    pub query_scalar: f64,
    /// Keys that sliding blocks see.
    pub window: usize,
    /// One per block.
    pub reaches: Vec<Reach>,
    pub sliding_base: f64,
    pub full_base: f64,
    /// Of the blocks that see everything.
    pub full_scaling: RopeScaling,
    pub context: usize,
    pub tied: bool,
    /// What stored norm weights lack: 1 in Hugging Face's files, 0 in GGUF files.
    pub norm_offset: f64,
}

impl Gemma3Config {
    fn check(&self, file: &str) -> Result<(), ModelError> {
        let sizes = [
            ("vocabulary", self.vocabulary),
            ("hidden size", self.hidden),
            ("intermediate size", self.intermediate),
            ("block count", self.reaches.len()),
            ("head count", self.heads),
            ("key/value head count", self.kv_heads),
            ("head dimension", self.head_dim),
            ("window", self.window),
            ("context length", self.context),
        ];
        check_sizes(file, &sizes)?;
        check_heads(file, self.heads, self.kv_heads, self.head_dim)?;
        let numbers = [
            ("norm epsilon", self.rms_eps),
            ("rotary base", self.sliding_base),
            ("rotary base", self.full_base),
            ("query scalar", self.query_scalar),
        ];
        check_numbers(file, numbers.into_iter().chain(self.full_scaling.divisors().map(|by| ("rotary divisor", by))))
    }

    fn norm(&self, builder: &mut Builder<'_>, name: &str, size: usize) -> Result<Norm, ModelError> {
        let weight = (builder.tensor(&format!("{name}.weight"), &[size])? + self.norm_offset)?;
        Ok(Norm::Rms { weight, eps: self.rms_eps })
    }

    fn attention(&self, builder: &mut Builder<'_>, name: &str) -> Result<Attention, ModelError> {
        let q_norm = Some(self.norm(builder, &format!("{name}.q_norm"), self.head_dim)?);
        let k_norm = Some(self.norm(builder, &format!("{name}.k_norm"), self.head_dim)?);
        let scale = self.query_scalar.sqrt().recip();
        let heads = Heads { count: self.heads, kv: self.kv_heads, dim: self.head_dim, scale };
        Ok(Attention { q_norm, k_norm, ..attention(builder, name, self.hidden, heads)? })
    }

    fn block(&self, builder: &mut Builder<'_>, index: usize) -> Result<Block, ModelError> {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let (rise, fall) = ((self.intermediate, self.hidden), (self.hidden, self.intermediate));
        Ok(Block {
            attention_norm: self.norm(builder, &name("input_layernorm"), self.hidden)?,
            attention: self.attention(builder, &name("self_attn"))?,
            attended_norm: Some(self.norm(builder, &name("post_attention_layernorm"), self.hidden)?),
            mlp_norm: Some(self.norm(builder, &name("pre_feedforward_layernorm"), self.hidden)?),
            mlp: Mlp {
                gate: Some(builder.editable(&name("mlp.gate_proj.weight"), rise)?),
                rise: builder.editable(&name("mlp.up_proj.weight"), rise)?,
                fall: builder.editable(&name("mlp.down_proj.weight"), fall)?,
                activation: self.activation,
            },
            mixed_norm: Some(self.norm(builder, &name("post_feedforward_layernorm"), self.hidden)?),
            positions: self.reaches[index] as usize,
        })
    }

    fn positions(&self, device: &candle_core::Device) -> Result<Vec<Positions>, ModelError> {
        let rotary = |base, scaling| Rotary::new(self.head_dim, base, scaling, device).map(Some);
        // In the order of `Reach`.
        Ok(vec![
            Positions { rotary: rotary(self.sliding_base, &RopeScaling::None)?, window: Some(self.window), bias: None },
            Positions { rotary: rotary(self.full_base, &self.full_scaling)?, ..Positions::default() },
        ])
    }
}

impl Family for Gemma3Config {
    fn build(&self, checkpoint: &mut dyn Checkpoint, tail_blocks: usize) -> Result<Box<dyn Network>, ModelError> {
        let file = checkpoint.name();
        self.check(&file)?;
        let trunk = trunk_blocks(&file, self.reaches.len(), tail_blocks)?;
        let mut builder = Builder::new(checkpoint, Layout::Linear);
        let mut blocks = Vec::with_capacity(self.reaches.len());
        for index in 0..self.reaches.len() {
            builder.set_place(Place::of(index >= trunk));
            blocks.push(self.block(&mut builder, index)?);
        }
        let embedding = "model.embed_tokens.weight";
        let tokens: Tensor = builder.tensor(embedding, &[self.vocabulary, self.hidden])?;
        let head = builder.head(self.tied.then_some((embedding, &tokens)), (self.vocabulary, self.hidden))?;
        let parts = Parts {
            embedding: Embedding { scale: Some((self.hidden as f64).sqrt()), ..Embedding::plain(tokens) },
            blocks,
            positions: self.positions(&builder.device())?,
            norm: self.norm(&mut builder, "model.norm", self.hidden)?,
            head,
            context: self.context,
        };
        Ok(Box::new(Decoder::new(parts, builder, tail_blocks)?))
    }
}

/// Reads `config.json`.
pub fn from_hub(text: &str, file: &str) -> Result<Box<dyn Family>, ModelError> {
    let raw: RawConfig = parse(text, file)?;
    Ok(Box::new(raw.into_config(file)?))
}

/// The fields of `config.json` that matter, with Hugging Face's defaults.
#[derive(Deserialize)]
struct RawConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_activation: Option<String>,
    rms_norm_eps: Option<f64>,
    query_pre_attn_scalar: Option<f64>,
    sliding_window: Option<usize>,
    layer_types: Option<Vec<Reach>>,
    /// Without `layer_types`: every so many blocks one sees everything.
    #[serde(alias = "_sliding_window_pattern")]
    sliding_window_pattern: Option<usize>,
    rope_theta: Option<f64>,
    rope_local_base_freq: Option<f64>,
    rope_scaling: Option<Value>,
    /// Newer files keep bases and scaling here, by kind of attention.
    rope_parameters: Option<Value>,
    max_position_embeddings: Option<usize>,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    use_bidirectional_attention: Option<bool>,
}

/// Every so many blocks one sees everything.
pub const PATTERN: usize = 6;

/// Blocks by the rule that every `pattern`th sees everything.
pub fn reaches_by_pattern(blocks: usize, pattern: usize) -> Vec<Reach> {
    let full = |index: usize| pattern > 0 && (index + 1).is_multiple_of(pattern);
    (0..blocks.min(1 << 24)).map(|index| if full(index) { Reach::Full } else { Reach::Sliding }).collect()
}

impl RawConfig {
    fn into_config(self, file: &str) -> Result<Gemma3Config, ModelError> {
        let refused = [
            ("capped attention", self.attn_logit_softcapping),
            ("capped logits", self.final_logit_softcapping),
            ("attention", self.use_bidirectional_attention.filter(|both| *both).map(|_| 1.0)),
        ];
        if let Some((what, _)) = refused.into_iter().find(|(_, value)| value.is_some()) {
            let hint = "Gemma 3 as it was released has neither caps nor attention in both directions".to_owned();
            return Err(ModelError::Unsupported { what, name: "gemma3_text".to_owned(), hint });
        }
        let blocks = self.num_hidden_layers;
        let pattern = self.sliding_window_pattern.unwrap_or(PATTERN);
        let reaches = self.layer_types.unwrap_or_else(|| reaches_by_pattern(blocks, pattern));
        if reaches.len() != blocks {
            return Err(malformed(file, format!("{} kinds of attention for {blocks} blocks", reaches.len())));
        }
        let rope = |kind: &str| self.rope_parameters.as_ref().and_then(|rope| rope.get(kind));
        let base = |kind: &str| rope(kind).and_then(|rope| rope.get("rope_theta")).and_then(Value::as_f64);
        let scaled = rope("full_attention").or(self.rope_scaling.as_ref());
        Ok(Gemma3Config {
            sliding_base: base("sliding_attention").or(self.rope_local_base_freq).unwrap_or(1e4),
            full_base: base("full_attention").or(self.rope_theta).unwrap_or(1e6),
            full_scaling: scaled.map_or(Ok(RopeScaling::None), |rope| scaling(rope, file))?,
            vocabulary: self.vocab_size,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim: self.head_dim.unwrap_or(256),
            activation: Activation::named(self.hidden_activation.as_deref().unwrap_or("gelu_pytorch_tanh"))?,
            rms_eps: self.rms_norm_eps.unwrap_or(1e-6),
            query_scalar: self.query_pre_attn_scalar.unwrap_or(256.0),
            window: self.sliding_window.unwrap_or(4096),
            reaches,
            context: self.max_position_embeddings.unwrap_or(131_072),
            tied: self.tie_word_embeddings,
            norm_offset: 1.0,
        })
    }
}
