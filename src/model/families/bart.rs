//! BART: learned positions, norms after what they belong to, biases everywhere, and a bias on the logits.

use candle_core::Tensor;
use serde::Deserialize;

use super::{Family, Frontier, check_sizes, even_share, gpt2::yes, parse};
use crate::model::{
    ModelError, Network,
    builder::{Builder, Layout, Place},
    encoder_decoder::{EncoderDecoder, Parts, Stack},
    layers::{
        Activation, Attention, Embedding, Mlp, Positions,
        attention::Heads,
        codec::{CodecBlock, Cross, NormPlace},
    },
    load::Checkpoint,
    tokenizer::Framing,
};

/// Of every norm; no configuration says it.
const EPSILON: f64 = 1e-5;
/// The first rows of the tables of positions stand for nothing.
const OFFSET: usize = 2;

/// The fields of `config.json` that matter, with Hugging Face's defaults.
#[derive(Debug, Deserialize)]
struct BartConfig {
    vocab_size: usize,
    max_position_embeddings: usize,
    d_model: usize,
    encoder_layers: usize,
    encoder_ffn_dim: usize,
    encoder_attention_heads: usize,
    decoder_layers: usize,
    decoder_ffn_dim: usize,
    decoder_attention_heads: usize,
    #[serde(default = "gelu")]
    activation_function: String,
    #[serde(default)]
    scale_embedding: bool,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(default = "end")]
    decoder_start_token_id: u32,
    #[serde(default)]
    bos_token_id: u32,
    #[serde(default = "end")]
    eos_token_id: u32,
}

fn end() -> u32 {
    2
}

fn gelu() -> String {
    "gelu".to_owned()
}

/// Reads `config.json`.
pub fn from_hub(text: &str, file: &str) -> Result<Box<dyn Family>, ModelError> {
    Ok(Box::new(parse::<BartConfig>(text, file)?))
}

/// One of the two stacks.
struct Side {
    name: &'static str,
    blocks: usize,
    inner: usize,
    heads: Heads,
    decodes: bool,
}

impl BartConfig {
    fn check(&self, file: &str) -> Result<(), ModelError> {
        let sizes = [
            ("vocabulary", self.vocab_size),
            ("context length", self.max_position_embeddings),
            ("hidden size", self.d_model),
            ("block count", self.encoder_layers),
            ("intermediate size", self.encoder_ffn_dim),
            ("head count", self.encoder_attention_heads),
            ("block count", self.decoder_layers),
            ("intermediate size", self.decoder_ffn_dim),
            ("head count", self.decoder_attention_heads),
        ];
        check_sizes(file, &sizes)
    }

    fn attention(&self, builder: &mut Builder<'_>, name: &str, heads: Heads) -> Result<Attention, ModelError> {
        let mut square = |part: &str| builder.linear(&format!("{name}.{part}.weight"), (self.d_model, self.d_model));
        Ok(Attention {
            q: square("q_proj")?,
            k: square("k_proj")?,
            v: square("v_proj")?,
            o: square("out_proj")?,
            q_norm: None,
            k_norm: None,
            heads,
        })
    }

    fn block(&self, builder: &mut Builder<'_>, side: &Side, index: usize) -> Result<CodecBlock, ModelError> {
        let name = |part: &str| format!("model.{}.layers.{index}.{part}", side.name);
        let hidden = self.d_model;
        let cross = match side.decodes {
            true => Some(Cross {
                attention: self.attention(builder, &name("encoder_attn"), side.heads)?,
                norm: builder.layer_norm(&name("encoder_attn_layer_norm"), hidden, EPSILON)?,
            }),
            false => None,
        };
        Ok(CodecBlock {
            attention: self.attention(builder, &name("self_attn"), side.heads)?,
            attention_norm: builder.layer_norm(&name("self_attn_layer_norm"), hidden, EPSILON)?,
            cross,
            mlp: Mlp {
                gate: None,
                rise: builder.editable(&name("fc1.weight"), (side.inner, hidden))?,
                fall: builder.editable(&name("fc2.weight"), (hidden, side.inner))?,
                activation: Activation::named(&self.activation_function)?,
            },
            mlp_norm: builder.layer_norm(&name("final_layer_norm"), hidden, EPSILON)?,
            place: NormPlace::After,
        })
    }

    fn stack(
        &self,
        builder: &mut Builder<'_>,
        side: &Side,
        tokens: &Tensor,
        places: impl Fn(usize) -> Place,
    ) -> Result<Stack, ModelError> {
        let mut blocks = Vec::with_capacity(side.blocks);
        for index in 0..side.blocks {
            builder.set_place(places(index));
            blocks.push(self.block(builder, side, index)?);
        }
        let name = |part: &str| format!("model.{}.{part}", side.name);
        let rows = self.max_position_embeddings;
        let table = builder.tensor(&name("embed_positions.weight"), &[rows + OFFSET, self.d_model])?;
        let embedding = Embedding {
            positions: Some(table.narrow(0, OFFSET, rows)?.contiguous()?),
            scale: self.scale_embedding.then(|| (self.d_model as f64).sqrt()),
            norm: Some(builder.layer_norm(&name("layernorm_embedding"), self.d_model, EPSILON)?),
            ..Embedding::plain(tokens.clone())
        };
        Ok(Stack { embedding, blocks, positions: Positions::default(), norm: None })
    }
}

impl Family for BartConfig {
    /// BART was trained to begin every answer with its BOS.
    fn framing(&self) -> Framing {
        Framing::Answer { start: vec![self.decoder_start_token_id, self.bos_token_id], end: Some(self.eos_token_id) }
    }

    fn build(&self, checkpoint: &mut dyn Checkpoint, tail_blocks: usize) -> Result<Box<dyn Network>, ModelError> {
        let file = checkpoint.name();
        self.check(&file)?;
        let encoder = Side {
            name: "encoder",
            blocks: self.encoder_layers,
            inner: self.encoder_ffn_dim,
            heads: even_share(&file, self.d_model, self.encoder_attention_heads)?,
            decodes: false,
        };
        let decoder = Side {
            name: "decoder",
            blocks: self.decoder_layers,
            inner: self.decoder_ffn_dim,
            heads: even_share(&file, self.d_model, self.decoder_attention_heads)?,
            decodes: true,
        };
        let frontier = Frontier::new(&file, (encoder.blocks, decoder.blocks), tail_blocks)?;
        let mut builder = Builder::new(checkpoint, Layout::Linear);
        let shape = (self.vocab_size, self.d_model);
        let tokens = builder.tensor("model.shared.weight", &[shape.0, shape.1])?;
        let tied = self.tie_word_embeddings.then_some(("model.shared.weight", &tokens));
        let mut head = builder.head(tied, shape)?;
        if builder.has("final_logits_bias") {
            head.bias = Some(builder.tensor("final_logits_bias", &[1, shape.0])?.flatten_all()?);
        }
        let parts = Parts {
            encoder: self.stack(&mut builder, &encoder, &tokens, |index| frontier.encoder(index))?,
            decoder: self.stack(&mut builder, &decoder, &tokens, |index| frontier.decoder(index))?,
            head,
            output_scale: None,
            context: self.max_position_embeddings,
        };
        Ok(Box::new(EncoderDecoder::new(parts, builder, tail_blocks)?))
    }
}
