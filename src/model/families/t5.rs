//! T5, its v1.0 with a plain MLP and its v1.1 (flan-T5) with a gated one: relative positions, RMS norms, attention that is
//! not scaled, no biases.

use serde::Deserialize;

use super::{Family, Frontier, check_numbers, check_sizes, gpt2::yes, malformed, parse};
use crate::model::{
    ModelError, Network,
    builder::{Builder, Layout, Place},
    encoder_decoder::{EncoderDecoder, Parts, Stack},
    layers::{
        Activation, Attention, Embedding, Mlp, Positions,
        attention::Heads,
        codec::{CodecBlock, Cross, NormPlace},
        relative::RelativeBias,
    },
    load::Checkpoint,
    tokenizer::Framing,
};

/// The fields of `config.json` that matter, with Hugging Face's defaults.
#[derive(Debug, Deserialize)]
struct T5Config {
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_decoder_layers: Option<usize>,
    num_heads: usize,
    #[serde(default = "buckets")]
    relative_attention_num_buckets: usize,
    #[serde(default = "farthest")]
    relative_attention_max_distance: usize,
    #[serde(default = "epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default = "relu")]
    feed_forward_proj: String,
    /// What the model was trained on at a time; relative positions know no limit.
    n_positions: Option<usize>,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(default)]
    decoder_start_token_id: u32,
    #[serde(default = "end")]
    eos_token_id: u32,
    /// Newer files say by this, rather than by tying, whether the output is scaled.
    scale_decoder_outputs: Option<bool>,
}

fn end() -> u32 {
    1
}

fn buckets() -> usize {
    32
}

fn farthest() -> usize {
    128
}

fn epsilon() -> f64 {
    1e-6
}

fn relu() -> String {
    "relu".to_owned()
}

/// Reads `config.json`.
pub fn from_hub(text: &str, file: &str) -> Result<Box<dyn Family>, ModelError> {
    Ok(Box::new(parse::<T5Config>(text, file)?))
}

/// One of the two stacks.
struct Side {
    name: &'static str,
    blocks: usize,
    decodes: bool,
}

impl T5Config {
    fn check(&self, file: &str) -> Result<(), ModelError> {
        let sizes = [
            ("vocabulary", self.vocab_size),
            ("hidden size", self.d_model),
            ("head dimension", self.d_kv),
            ("intermediate size", self.d_ff),
            ("block count", self.num_layers),
            ("block count", self.num_decoder_layers.unwrap_or(self.num_layers)),
            ("head count", self.num_heads),
            ("number of distances", self.relative_attention_max_distance),
        ];
        check_sizes(file, &sizes)?;
        check_numbers(file, [("norm epsilon", self.layer_norm_epsilon)])?;
        let (buckets, farthest) = (self.relative_attention_num_buckets, self.relative_attention_max_distance);
        match buckets >= 4 && buckets.is_multiple_of(4) && farthest > buckets / 2 {
            true => Ok(()),
            false => Err(malformed(file, format!("{buckets} buckets for distances up to {farthest}"))),
        }
    }

    /// The activation, and whether it gates.
    fn activation(&self) -> Result<(Activation, bool), ModelError> {
        match self.feed_forward_proj.strip_prefix("gated-") {
            // Hugging Face reads this one as the tanh form.
            Some("gelu") => Ok((Activation::GeluTanh, true)),
            Some(name) => Ok((Activation::named(name)?, true)),
            None => Ok((Activation::named(&self.feed_forward_proj)?, false)),
        }
    }

    fn attention(&self, builder: &mut Builder<'_>, name: &str) -> Result<Attention, ModelError> {
        let (hidden, inner) = (self.d_model, self.num_heads * self.d_kv);
        let heads = Heads { scale: 1.0, ..Heads::new(self.num_heads, self.num_heads, self.d_kv) };
        Ok(Attention {
            q: builder.linear(&format!("{name}.q.weight"), (inner, hidden))?,
            k: builder.linear(&format!("{name}.k.weight"), (inner, hidden))?,
            v: builder.linear(&format!("{name}.v.weight"), (inner, hidden))?,
            o: builder.linear(&format!("{name}.o.weight"), (hidden, inner))?,
            q_norm: None,
            k_norm: None,
            heads,
        })
    }

    fn mlp(&self, builder: &mut Builder<'_>, name: &str) -> Result<Mlp, ModelError> {
        let (activation, gated) = self.activation()?;
        let (rise, fall) = ((self.d_ff, self.d_model), (self.d_model, self.d_ff));
        let gate = match gated {
            true => Some(builder.editable(&format!("{name}.wi_0.weight"), rise)?),
            false => None,
        };
        let rise = match gated {
            true => builder.linear(&format!("{name}.wi_1.weight"), rise)?,
            false => builder.editable(&format!("{name}.wi.weight"), rise)?,
        };
        Ok(Mlp { gate, rise, fall: builder.editable(&format!("{name}.wo.weight"), fall)?, activation })
    }

    fn block(&self, builder: &mut Builder<'_>, side: &Side, index: usize) -> Result<CodecBlock, ModelError> {
        let layer = |number: usize| format!("{}.block.{index}.layer.{number}", side.name);
        let eps = self.layer_norm_epsilon;
        let norm =
            |builder: &mut Builder<'_>, name: &str| builder.rms_norm(&format!("{name}.layer_norm"), self.d_model, eps);
        let cross = match side.decodes {
            true => Some(Cross {
                attention: self.attention(builder, &format!("{}.EncDecAttention", layer(1)))?,
                norm: norm(builder, &layer(1))?,
            }),
            false => None,
        };
        let last = layer(if side.decodes { 2 } else { 1 });
        Ok(CodecBlock {
            attention: self.attention(builder, &format!("{}.SelfAttention", layer(0)))?,
            attention_norm: norm(builder, &layer(0))?,
            cross,
            mlp: self.mlp(builder, &format!("{last}.DenseReluDense"))?,
            mlp_norm: norm(builder, &last)?,
            place: NormPlace::Before,
        })
    }

    fn stack(
        &self,
        builder: &mut Builder<'_>,
        side: &Side,
        embedding: Embedding,
        places: impl Fn(usize) -> Place,
    ) -> Result<Stack, ModelError> {
        let mut blocks = Vec::with_capacity(side.blocks);
        for index in 0..side.blocks {
            builder.set_place(places(index));
            blocks.push(self.block(builder, side, index)?);
        }
        let name = format!("{}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", side.name);
        let table = builder.tensor(&name, &[self.relative_attention_num_buckets, self.num_heads])?;
        let bias = RelativeBias::new(&table, !side.decodes, self.relative_attention_max_distance)?;
        Ok(Stack {
            embedding,
            blocks,
            positions: Positions { bias: Some(bias), ..Positions::default() },
            norm: Some(builder.rms_norm(
                &format!("{}.final_layer_norm", side.name),
                self.d_model,
                self.layer_norm_epsilon,
            )?),
        })
    }
}

impl Family for T5Config {
    fn framing(&self) -> Framing {
        Framing::Answer { start: vec![self.decoder_start_token_id], end: Some(self.eos_token_id) }
    }

    fn build(&self, checkpoint: &mut dyn Checkpoint, tail_blocks: usize) -> Result<Box<dyn Network>, ModelError> {
        let file = checkpoint.name();
        self.check(&file)?;
        let blocks = (self.num_layers, self.num_decoder_layers.unwrap_or(self.num_layers));
        let frontier = Frontier::new(&file, blocks, tail_blocks)?;
        let mut builder = Builder::new(checkpoint, Layout::Linear);
        let shape = (self.vocab_size, self.d_model);
        let tokens = builder.tensor("shared.weight", &[shape.0, shape.1])?;
        let scaled = self.scale_decoder_outputs.unwrap_or(self.tie_word_embeddings);
        let tied = (self.tie_word_embeddings && !builder.has("lm_head.weight")).then_some(("shared.weight", &tokens));
        let head = builder.head(tied, shape)?;
        let embed = || Embedding::plain(tokens.clone());
        let encoder = Side { name: "encoder", blocks: blocks.0, decodes: false };
        let decoder = Side { name: "decoder", blocks: blocks.1, decodes: true };
        let parts = Parts {
            encoder: self.stack(&mut builder, &encoder, embed(), |index| frontier.encoder(index))?,
            decoder: self.stack(&mut builder, &decoder, embed(), |index| frontier.decoder(index))?,
            head,
            output_scale: scaled.then(|| (self.d_model as f64).sqrt().recip()),
            context: 2 * self.n_positions.unwrap_or(512),
        };
        Ok(Box::new(EncoderDecoder::new(parts, builder, tail_blocks)?))
    }
}
