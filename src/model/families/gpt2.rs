//! GPT-2, distilGPT-2 among its sizes: learned positions, layer norms, fused queries, keys and values, and weights that
//! are stored as `Conv1D`s.

use candle_core::Tensor;
use serde::Deserialize;

use super::{Family, check_numbers, check_sizes, even_share, parse};
use crate::model::{
    ModelError, Network,
    builder::{Builder, Layout, Place},
    decoder::{Decoder, Parts, trunk_blocks},
    layers::{Activation, Attention, Block, Embedding, Linear, Mlp, Positions, attention::Heads},
    load::Checkpoint,
};

/// The fields of `config.json` that matter, with Hugging Face's defaults.
#[derive(Debug, Deserialize)]
struct Gpt2Config {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    #[serde(default = "gelu_new")]
    activation_function: String,
    #[serde(default = "epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default = "yes")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
}

pub(super) fn gelu_new() -> String {
    "gelu_new".to_owned()
}

pub(super) fn epsilon() -> f64 {
    1e-5
}

pub(super) fn yes() -> bool {
    true
}

/// Reads `config.json`.
pub fn from_hub(text: &str, file: &str) -> Result<Box<dyn Family>, ModelError> {
    Ok(Box::new(parse::<Gpt2Config>(text, file)?))
}

impl Gpt2Config {
    fn inner(&self) -> usize {
        self.n_inner.unwrap_or(4 * self.n_embd)
    }

    fn check(&self, file: &str) -> Result<(), ModelError> {
        let sizes = [
            ("vocabulary", self.vocab_size),
            ("context length", self.n_positions),
            ("hidden size", self.n_embd),
            ("intermediate size", self.inner()),
            ("block count", self.n_layer),
            ("head count", self.n_head),
        ];
        check_sizes(file, &sizes)?;
        check_numbers(file, [("norm epsilon", self.layer_norm_epsilon)])
    }

    /// The heads of a block, with its scale.
    fn heads(&self, index: usize, heads: Heads) -> Heads {
        let scale = if self.scale_attn_weights { heads.scale } else { 1.0 };
        let by = if self.scale_attn_by_inverse_layer_idx { index + 1 } else { 1 };
        Heads { scale: scale / by as f64, ..heads }
    }

    fn block(&self, builder: &mut Builder<'_>, index: usize, heads: Heads) -> Result<Block, ModelError> {
        let name = |part: &str| format!("transformer.h.{index}.{part}");
        let (hidden, inner, eps) = (self.n_embd, self.inner(), self.layer_norm_epsilon);
        let [q, k, v] = fused(builder, &name("attn.c_attn.weight"), hidden)?;
        let heads = self.heads(index, heads);
        Ok(Block {
            attention_norm: builder.layer_norm(&name("ln_1"), hidden, eps)?,
            attention: Attention {
                q,
                k,
                v,
                o: builder.linear(&name("attn.c_proj.weight"), (hidden, hidden))?,
                q_norm: None,
                k_norm: None,
                heads,
            },
            attended_norm: None,
            mlp_norm: Some(builder.layer_norm(&name("ln_2"), hidden, eps)?),
            mlp: Mlp {
                gate: None,
                rise: builder.editable(&name("mlp.c_fc.weight"), (inner, hidden))?,
                fall: builder.editable(&name("mlp.c_proj.weight"), (hidden, inner))?,
                activation: Activation::named(&self.activation_function)?,
            },
            mixed_norm: None,
            positions: 0,
        })
    }
}

/// The three parts of a layer that gives queries, keys and values at once.
fn fused(builder: &mut Builder<'_>, name: &str, hidden: usize) -> Result<[Linear; 3], ModelError> {
    let weight = builder.weight(name, (3 * hidden, hidden))?;
    let bias = builder.bias(name, 3 * hidden)?;
    let part = |index: usize| -> Result<Linear, ModelError> {
        let own = |all: &Tensor| all.narrow(0, index * hidden, hidden)?.contiguous();
        Ok(Linear::Dense { weight: own(&weight)?, bias: bias.as_ref().map(own).transpose()? })
    };
    Ok([part(0)?, part(1)?, part(2)?])
}

impl Family for Gpt2Config {
    fn build(&self, checkpoint: &mut dyn Checkpoint, tail_blocks: usize) -> Result<Box<dyn Network>, ModelError> {
        let file = checkpoint.name();
        self.check(&file)?;
        let heads = even_share(&file, self.n_embd, self.n_head)?;
        let trunk = trunk_blocks(&file, self.n_layer, tail_blocks)?;
        let mut builder = Builder::new(checkpoint, Layout::Conv1d);
        let mut blocks = Vec::with_capacity(self.n_layer);
        for index in 0..self.n_layer {
            builder.set_place(Place::of(index >= trunk));
            blocks.push(self.block(&mut builder, index, heads)?);
        }
        let embedding = "transformer.wte.weight";
        let tokens = builder.tensor(embedding, &[self.vocab_size, self.n_embd])?;
        let tied = self.tie_word_embeddings.then_some((embedding, &tokens));
        let head = builder.head(tied, (self.vocab_size, self.n_embd))?;
        let parts = Parts {
            embedding: Embedding {
                positions: Some(builder.tensor("transformer.wpe.weight", &[self.n_positions, self.n_embd])?),
                ..Embedding::plain(tokens)
            },
            blocks,
            positions: vec![Positions::default()],
            norm: builder.layer_norm("transformer.ln_f", self.n_embd, self.layer_norm_epsilon)?,
            head,
            context: self.n_positions,
        };
        Ok(Box::new(Decoder::new(parts, builder, tail_blocks)?))
    }
}
