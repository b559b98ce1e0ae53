//! GPT-J: attention and MLP side by side under one norm, rotation of a part of each head in interleaved pairs, and a head
//! of its own with a bias.

use candle_core::Tensor;
use serde::Deserialize;

use super::{
    Family, check_numbers, check_sizes, even_share,
    gpt2::{epsilon, gelu_new},
    malformed, parse,
};
use crate::model::{
    ModelError, Network,
    builder::{Builder, Layout, Place},
    decoder::{Decoder, Parts, trunk_blocks},
    layers::{
        Activation, Attention, Block, Embedding, Linear, Mlp, Positions, Rotary,
        attention::Heads,
        rotary::{RopeScaling, halves_from_pairs},
    },
    load::Checkpoint,
};

/// The fields of `config.json` that matter, with Hugging Face's defaults.
#[derive(Debug, Deserialize)]
struct GptJConfig {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    rotary_dim: usize,
    n_inner: Option<usize>,
    #[serde(default = "gelu_new")]
    activation_function: String,
    #[serde(default = "epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
}

/// Reads `config.json`.
pub fn from_hub(text: &str, file: &str) -> Result<Box<dyn Family>, ModelError> {
    Ok(Box::new(parse::<GptJConfig>(text, file)?))
}

impl GptJConfig {
    fn inner(&self) -> usize {
        self.n_inner.unwrap_or(4 * self.n_embd)
    }

    /// Refuses sizes that do not fit each other; gives the heads.
    fn check(&self, file: &str) -> Result<Heads, ModelError> {
        let sizes = [
            ("vocabulary", self.vocab_size),
            ("context length", self.n_positions),
            ("hidden size", self.n_embd),
            ("intermediate size", self.inner()),
            ("block count", self.n_layer),
            ("head count", self.n_head),
            ("rotary dimension", self.rotary_dim),
        ];
        check_sizes(file, &sizes)?;
        check_numbers(file, [("norm epsilon", self.layer_norm_epsilon)])?;
        let heads = even_share(file, self.n_embd, self.n_head)?;
        if self.rotary_dim > heads.dim || !self.rotary_dim.is_multiple_of(2) {
            let why = format!("rotary dimension {} of heads of {} dimensions", self.rotary_dim, heads.dim);
            return Err(malformed(file, why));
        }
        Ok(heads)
    }

    fn block(&self, builder: &mut Builder<'_>, index: usize, heads: Heads) -> Result<Block, ModelError> {
        let name = |part: &str| format!("transformer.h.{index}.{part}");
        let (hidden, inner) = (self.n_embd, self.inner());
        let square = (hidden, hidden);
        let order = halves_from_pairs(heads.count, heads.dim, self.rotary_dim);
        let order = Tensor::new(order, &builder.device())?;
        let mut turned = |part: &str| -> Result<Linear, ModelError> {
            let weight = builder.weight(&name(part), square)?.index_select(&order, 0)?;
            Ok(Linear::Dense { weight, bias: None })
        };
        let (q, k) = (turned("attn.q_proj.weight")?, turned("attn.k_proj.weight")?);
        Ok(Block {
            attention_norm: builder.layer_norm(&name("ln_1"), hidden, self.layer_norm_epsilon)?,
            attention: Attention {
                q,
                k,
                v: builder.linear(&name("attn.v_proj.weight"), square)?,
                o: builder.linear(&name("attn.out_proj.weight"), square)?,
                q_norm: None,
                k_norm: None,
                heads,
            },
            attended_norm: None,
            mlp_norm: None,
            mlp: Mlp {
                gate: None,
                rise: builder.editable(&name("mlp.fc_in.weight"), (inner, hidden))?,
                fall: builder.editable(&name("mlp.fc_out.weight"), (hidden, inner))?,
                activation: Activation::named(&self.activation_function)?,
            },
            mixed_norm: None,
            positions: 0,
        })
    }
}

impl Family for GptJConfig {
    fn build(&self, checkpoint: &mut dyn Checkpoint, tail_blocks: usize) -> Result<Box<dyn Network>, ModelError> {
        let file = checkpoint.name();
        let heads = self.check(&file)?;
        let trunk = trunk_blocks(&file, self.n_layer, tail_blocks)?;
        let mut builder = Builder::new(checkpoint, Layout::Linear);
        let mut blocks = Vec::with_capacity(self.n_layer);
        for index in 0..self.n_layer {
            builder.set_place(Place::of(index >= trunk));
            blocks.push(self.block(&mut builder, index, heads)?);
        }
        let embedding = "transformer.wte.weight";
        let tokens = builder.tensor(embedding, &[self.vocab_size, self.n_embd])?;
        let tied = self.tie_word_embeddings.then_some((embedding, &tokens));
        let head = builder.head(tied, (self.vocab_size, self.n_embd))?;
        let rotary = Rotary::new(self.rotary_dim, 1e4, &RopeScaling::None, &builder.device())?;
        let parts = Parts {
            embedding: Embedding::plain(tokens),
            blocks,
            positions: vec![Positions { rotary: Some(rotary), ..Positions::default() }],
            norm: builder.layer_norm("transformer.ln_f", self.n_embd, self.layer_norm_epsilon)?,
            head,
            context: self.n_positions,
        };
        Ok(Box::new(Decoder::new(parts, builder, tail_blocks)?))
    }
}
