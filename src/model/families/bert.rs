//! BERT for sequence classification: learned positions, norms after what they belong to, and a pooled first token.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Family, check_numbers, check_sizes, even_share, parse};
use crate::model::{
    ModelError, Network,
    builder::{Builder, Layout, Place},
    classifier::{Classifier, Parts},
    decoder::trunk_blocks,
    layers::{
        Activation, Attention, Embedding, Mlp,
        attention::Heads,
        codec::{CodecBlock, NormPlace},
    },
    load::Checkpoint,
    tokenizer::Framing,
};

/// The fields of `config.json` that matter, with Hugging Face's defaults.
#[derive(Debug, Deserialize)]
struct BertConfig {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
    max_position_embeddings: usize,
    #[serde(default = "types")]
    type_vocab_size: usize,
    #[serde(default = "epsilon")]
    layer_norm_eps: f64,
    /// One row of the output per label.
    #[serde(default)]
    id2label: BTreeMap<String, String>,
}

fn gelu() -> String {
    "gelu".to_owned()
}

fn types() -> usize {
    2
}

fn epsilon() -> f64 {
    1e-12
}

/// Reads `config.json`.
pub fn from_hub(text: &str, file: &str) -> Result<Box<dyn Family>, ModelError> {
    Ok(Box::new(parse::<BertConfig>(text, file)?))
}

impl BertConfig {
    fn check(&self, file: &str) -> Result<(), ModelError> {
        let sizes = [
            ("vocabulary", self.vocab_size),
            ("hidden size", self.hidden_size),
            ("block count", self.num_hidden_layers),
            ("head count", self.num_attention_heads),
            ("intermediate size", self.intermediate_size),
            ("context length", self.max_position_embeddings),
            ("number of token types", self.type_vocab_size),
        ];
        check_sizes(file, &sizes)?;
        check_numbers(file, [("norm epsilon", self.layer_norm_eps)])
    }

    /// The labels' names, by number. A single row of output, which the configuration names alone, weighs the second of two
    /// labels against the first.
    fn labels(&self) -> Vec<String> {
        let named = |number: usize| match self.id2label.get(&number.to_string()) {
            Some(name) if self.id2label.len() > 1 => name.clone(),
            _ => format!("LABEL_{number}"),
        };
        (0..self.id2label.len().max(2)).map(named).collect()
    }

    fn block(&self, builder: &mut Builder<'_>, index: usize, heads: Heads) -> Result<CodecBlock, ModelError> {
        let name = |part: &str| format!("bert.encoder.layer.{index}.{part}");
        let (hidden, inner, eps) = (self.hidden_size, self.intermediate_size, self.layer_norm_eps);
        let mut square = |part: &str| builder.linear(&name(&format!("attention.{part}.weight")), (hidden, hidden));
        let attention = Attention {
            q: square("self.query")?,
            k: square("self.key")?,
            v: square("self.value")?,
            o: square("output.dense")?,
            q_norm: None,
            k_norm: None,
            heads,
        };
        Ok(CodecBlock {
            attention,
            attention_norm: builder.layer_norm(&name("attention.output.LayerNorm"), hidden, eps)?,
            cross: None,
            mlp: Mlp {
                gate: None,
                rise: builder.editable(&name("intermediate.dense.weight"), (inner, hidden))?,
                fall: builder.editable(&name("output.dense.weight"), (hidden, inner))?,
                activation: Activation::named(&self.hidden_act)?,
            },
            mlp_norm: builder.layer_norm(&name("output.LayerNorm"), hidden, eps)?,
            place: NormPlace::After,
        })
    }

    fn embedding(&self, builder: &mut Builder<'_>) -> Result<Embedding, ModelError> {
        let hidden = self.hidden_size;
        let mut table = |part: &str, rows| builder.tensor(&format!("bert.embeddings.{part}.weight"), &[rows, hidden]);
        let tokens = table("word_embeddings", self.vocab_size)?;
        let positions = table("position_embeddings", self.max_position_embeddings)?;
        // A text alone is all of the first type.
        let kind = table("token_type_embeddings", self.type_vocab_size)?.narrow(0, 0, 1)?;
        Ok(Embedding {
            positions: Some(positions.broadcast_add(&kind)?),
            norm: Some(builder.layer_norm("bert.embeddings.LayerNorm", hidden, self.layer_norm_eps)?),
            ..Embedding::plain(tokens)
        })
    }
}

impl Family for BertConfig {
    fn framing(&self) -> Framing {
        Framing::Label(self.labels())
    }

    fn build(&self, checkpoint: &mut dyn Checkpoint, tail_blocks: usize) -> Result<Box<dyn Network>, ModelError> {
        let file = checkpoint.name();
        self.check(&file)?;
        let heads = even_share(&file, self.hidden_size, self.num_attention_heads)?;
        let trunk = trunk_blocks(&file, self.num_hidden_layers, tail_blocks)?;
        let mut builder = Builder::new(checkpoint, Layout::Linear);
        let mut blocks = Vec::with_capacity(self.num_hidden_layers);
        for index in 0..self.num_hidden_layers {
            builder.set_place(Place::of(index >= trunk));
            blocks.push(self.block(&mut builder, index, heads)?);
        }
        let hidden = self.hidden_size;
        let labels = if self.id2label.is_empty() { self.labels().len() } else { self.id2label.len() };
        let parts = Parts {
            embedding: self.embedding(&mut builder)?,
            blocks,
            pooler: builder.linear("bert.pooler.dense.weight", (hidden, hidden))?,
            weight: builder.tensor("classifier.weight", &[labels, hidden])?,
            bias: builder.tensor("classifier.bias", &[labels])?,
            context: self.max_position_embeddings,
        };
        Ok(Box::new(Classifier::new(parts, builder, tail_blocks)?))
    }
}
