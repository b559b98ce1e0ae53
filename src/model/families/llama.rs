//! The Llama family: Llama, SmolLM2, Mistral, Qwen2, Qwen3. They differ in biases, q/k norms, tying of the head and the
//! scaling of rotary frequencies, which [`LlamaConfig`] and the checkpoint tell.

use serde::Deserialize;
use serde_json::Value;

use super::{Family, check_numbers, check_sizes, malformed, parse};
use crate::model::{
    ModelError, Network,
    builder::{Builder, Layout, Place},
    decoder::{Decoder, Parts, trunk_blocks},
    layers::{
        Activation, Attention, Block, Embedding, Mlp, Positions, Rotary,
        attention::Heads,
        rotary::{Llama3Scaling, RopeScaling},
    },
    load::Checkpoint,
};

/// What the checkpoint's metadata says.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
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
    /// Whether the head is the embedding; unsaid, it is where there is no other.
    pub tied: Option<bool>,
}

impl LlamaConfig {
    /// Refuses sizes that do not fit each other.
    fn check(&self, file: &str) -> Result<(), ModelError> {
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
        check_sizes(file, &sizes)?;
        check_heads(file, self.heads, self.kv_heads, self.head_dim)?;
        let numbers = [("norm epsilon", self.rms_eps), ("rotary base", self.rope_base)];
        check_numbers(file, numbers.into_iter().chain(self.rope_scaling.divisors().map(|by| ("rotary divisor", by))))
    }

    fn block(&self, builder: &mut Builder<'_>, index: usize) -> Result<Block, ModelError> {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let (rise, fall) = ((self.intermediate, self.hidden), (self.hidden, self.intermediate));
        let eps = self.rms_eps;
        Ok(Block {
            attention_norm: builder.rms_norm(&name("input_layernorm"), self.hidden, eps)?,
            attention: self.attention(builder, &name("self_attn"))?,
            attended_norm: None,
            mlp_norm: Some(builder.rms_norm(&name("post_attention_layernorm"), self.hidden, eps)?),
            mlp: Mlp {
                gate: Some(builder.editable(&name("mlp.gate_proj.weight"), rise)?),
                rise: builder.editable(&name("mlp.up_proj.weight"), rise)?,
                fall: builder.editable(&name("mlp.down_proj.weight"), fall)?,
                activation: Activation::Silu,
            },
            mixed_norm: None,
            positions: 0,
        })
    }

    fn attention(&self, builder: &mut Builder<'_>, name: &str) -> Result<Attention, ModelError> {
        let mut norm = |part: &str| match builder.has(&format!("{name}.{part}.weight")) {
            true => builder.rms_norm(&format!("{name}.{part}"), self.head_dim, self.rms_eps).map(Some),
            false => Ok(None),
        };
        let (q_norm, k_norm) = (norm("q_norm")?, norm("k_norm")?);
        let heads = Heads::new(self.heads, self.kv_heads, self.head_dim);
        Ok(Attention { q_norm, k_norm, ..attention(builder, name, self.hidden, heads)? })
    }
}

/// Attention by the names that Llama gives its layers, without q/k norms.
pub(super) fn attention(
    builder: &mut Builder<'_>,
    name: &str,
    hidden: usize,
    heads: Heads,
) -> Result<Attention, ModelError> {
    let (wide, narrow) = (heads.count * heads.dim, heads.kv * heads.dim);
    Ok(Attention {
        q: builder.linear(&format!("{name}.q_proj.weight"), (wide, hidden))?,
        k: builder.linear(&format!("{name}.k_proj.weight"), (narrow, hidden))?,
        v: builder.linear(&format!("{name}.v_proj.weight"), (narrow, hidden))?,
        o: builder.linear(&format!("{name}.o_proj.weight"), (hidden, wide))?,
        q_norm: None,
        k_norm: None,
        heads,
    })
}

/// Refuses heads that do not fit each other.
pub(super) fn check_heads(file: &str, heads: usize, kv_heads: usize, head_dim: usize) -> Result<(), ModelError> {
    if !heads.is_multiple_of(kv_heads) {
        return Err(malformed(file, format!("{heads} heads do not share {kv_heads} key/value heads evenly")));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(malformed(file, format!("head dimension {head_dim} is odd")));
    }
    Ok(())
}

impl Family for LlamaConfig {
    fn build(&self, checkpoint: &mut dyn Checkpoint, tail_blocks: usize) -> Result<Box<dyn Network>, ModelError> {
        let file = checkpoint.name();
        self.check(&file)?;
        let trunk = trunk_blocks(&file, self.blocks, tail_blocks)?;
        let mut builder = Builder::new(checkpoint, Layout::Linear);
        let mut blocks = Vec::with_capacity(self.blocks);
        for index in 0..self.blocks {
            builder.set_place(Place::of(index >= trunk));
            blocks.push(self.block(&mut builder, index)?);
        }
        let embedding = "model.embed_tokens.weight";
        let tokens = builder.tensor(embedding, &[self.vocabulary, self.hidden])?;
        let tied = self.tied.unwrap_or_else(|| !builder.has("lm_head.weight")).then_some((embedding, &tokens));
        let head = builder.head(tied, (self.vocabulary, self.hidden))?;
        let rotary = Rotary::new(self.head_dim, self.rope_base, &self.rope_scaling, &builder.device())?;
        let parts = Parts {
            embedding: Embedding::plain(tokens),
            blocks,
            positions: vec![Positions { rotary: Some(rotary), ..Positions::default() }],
            norm: builder.rms_norm("model.norm", self.hidden, self.rms_eps)?,
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
    #[serde(default = "default_rms_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    /// Newer files keep base and scaling together here.
    rope_parameters: Option<Value>,
    #[serde(default = "default_context")]
    max_position_embeddings: usize,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    #[serde(default)]
    tie_word_embeddings: bool,
    hidden_act: Option<String>,
    partial_rotary_factor: Option<f64>,
}

fn default_rms_eps() -> f64 {
    1e-6
}

fn default_context() -> usize {
    2048
}

impl RawConfig {
    fn into_config(self, file: &str) -> Result<LlamaConfig, ModelError> {
        let unsupported = |what, name, hint: &str| ModelError::Unsupported { what, name, hint: hint.to_owned() };
        if let Some(act) = self.hidden_act.filter(|act| *act != "silu") {
            return Err(unsupported("activation", act, "supported is silu"));
        }
        if let Some(part) = self.partial_rotary_factor.filter(|part| *part != 1.0) {
            return Err(unsupported("partial rotary embedding", format!("{part} of the dimensions"), ""));
        }
        let rope = self.rope_scaling.as_ref().or(self.rope_parameters.as_ref());
        let nested_base = self.rope_parameters.as_ref().and_then(|rope| rope.get("rope_theta")).and_then(Value::as_f64);
        let window = self.sliding_window.filter(|_| self.use_sliding_window != Some(false));
        let share = || self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0);
        Ok(LlamaConfig {
            rope_scaling: rope.map_or(Ok(RopeScaling::None), |rope| scaling(rope, file))?,
            rope_base: self.rope_theta.or(nested_base).unwrap_or(1e4),
            vocabulary: self.vocab_size,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            blocks: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim: self.head_dim.unwrap_or_else(share),
            rms_eps: self.rms_norm_eps,
            context: window.map_or(self.max_position_embeddings, |window| window.min(self.max_position_embeddings)),
            tied: Some(self.tie_word_embeddings),
        })
    }
}

/// `rope_scaling` or `rope_parameters` of a `config.json`.
pub(super) fn scaling(rope: &Value, file: &str) -> Result<RopeScaling, ModelError> {
    let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str).unwrap_or("default");
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => rope
            .get("factor")
            .and_then(Value::as_f64)
            .map(RopeScaling::Linear)
            .ok_or_else(|| malformed(file, "rope scaling without a factor".to_owned())),
        "llama3" => Llama3Scaling::deserialize(rope)
            .map(RopeScaling::Llama3)
            .map_err(|error| malformed(file, format!("rope scaling: {error}"))),
        other => Err(ModelError::Unsupported {
            what: "rope scaling",
            name: other.to_owned(),
            hint: "supported are default, linear and llama3".to_owned(),
        }),
    }
}
