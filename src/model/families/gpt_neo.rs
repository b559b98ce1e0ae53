//! GPT-Neo: learned positions, layer norms, attention that is not scaled, and blocks that look back a window only in turn
//! with blocks that look back all the way.

use serde::Deserialize;

use super::{
    Family, check_numbers, check_sizes, even_share,
    gpt2::{epsilon, gelu_new, yes},
    malformed, parse,
};
use crate::model::{
    ModelError, Network,
    builder::{Builder, Layout, Place},
    decoder::{Decoder, Parts, trunk_blocks},
    layers::{Activation, Attention, Block, Embedding, Mlp, Positions, attention::Heads},
    load::Checkpoint,
};

/// The fields of `config.json` that matter, with Hugging Face's defaults.
#[derive(Debug, Deserialize)]
struct GptNeoConfig {
    vocab_size: usize,
    max_position_embeddings: usize,
    hidden_size: usize,
    num_layers: usize,
    num_heads: usize,
    intermediate_size: Option<usize>,
    /// One name per block, or, in `attention_types`, runs of names and how often each is repeated.
    attention_layers: Option<Vec<Reach>>,
    attention_types: Option<Vec<(Vec<Reach>, usize)>>,
    #[serde(default = "window")]
    window_size: usize,
    #[serde(default = "gelu_new")]
    activation_function: String,
    #[serde(default = "epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reach {
    Global,
    Local,
}

fn window() -> usize {
    256
}

/// Reads `config.json`.
pub fn from_hub(text: &str, file: &str) -> Result<Box<dyn Family>, ModelError> {
    Ok(Box::new(parse::<GptNeoConfig>(text, file)?))
}

impl GptNeoConfig {
    fn inner(&self) -> usize {
        self.intermediate_size.unwrap_or(4 * self.hidden_size)
    }

    fn check(&self, file: &str) -> Result<(), ModelError> {
        let sizes = [
            ("vocabulary", self.vocab_size),
            ("context length", self.max_position_embeddings),
            ("hidden size", self.hidden_size),
            ("intermediate size", self.inner()),
            ("block count", self.num_layers),
            ("head count", self.num_heads),
            ("window", self.window_size),
        ];
        check_sizes(file, &sizes)?;
        check_numbers(file, [("norm epsilon", self.layer_norm_epsilon)])
    }

    /// How far each block looks back.
    fn reaches(&self, file: &str) -> Result<Vec<Reach>, ModelError> {
        let reaches: Vec<Reach> = match (&self.attention_layers, &self.attention_types) {
            (Some(layers), _) => layers.clone(),
            // One more than is needed shows that there are too many.
            (None, Some(types)) => types
                .iter()
                .flat_map(|(run, times)| run.iter().cycle().take(run.len().saturating_mul(*times)))
                .take(self.num_layers + 1)
                .copied()
                .collect(),
            (None, None) => [Reach::Global, Reach::Local].into_iter().cycle().take(self.num_layers).collect(),
        };
        match reaches.len() == self.num_layers {
            true => Ok(reaches),
            false => Err(malformed(file, format!("kinds of attention are not as many as blocks, {}", self.num_layers))),
        }
    }

    fn block(&self, builder: &mut Builder<'_>, index: usize, reach: Reach, heads: Heads) -> Result<Block, ModelError> {
        let name = |part: &str| format!("transformer.h.{index}.{part}");
        let (hidden, inner, eps) = (self.hidden_size, self.inner(), self.layer_norm_epsilon);
        let mut square = |part: &str| builder.linear(&name(&format!("attn.attention.{part}.weight")), (hidden, hidden));
        let attention = Attention {
            q: square("q_proj")?,
            k: square("k_proj")?,
            v: square("v_proj")?,
            o: square("out_proj")?,
            q_norm: None,
            k_norm: None,
            heads,
        };
        Ok(Block {
            attention_norm: builder.layer_norm(&name("ln_1"), hidden, eps)?,
            attention,
            attended_norm: None,
            mlp_norm: Some(builder.layer_norm(&name("ln_2"), hidden, eps)?),
            mlp: Mlp {
                gate: None,
                rise: builder.editable(&name("mlp.c_fc.weight"), (inner, hidden))?,
                fall: builder.editable(&name("mlp.c_proj.weight"), (hidden, inner))?,
                activation: Activation::named(&self.activation_function)?,
            },
            mixed_norm: None,
            positions: reach as usize,
        })
    }
}

impl Family for GptNeoConfig {
    fn build(&self, checkpoint: &mut dyn Checkpoint, tail_blocks: usize) -> Result<Box<dyn Network>, ModelError> {
        let file = checkpoint.name();
        self.check(&file)?;
        let heads = Heads { scale: 1.0, ..even_share(&file, self.hidden_size, self.num_heads)? };
        let trunk = trunk_blocks(&file, self.num_layers, tail_blocks)?;
        let mut builder = Builder::new(checkpoint, Layout::Linear);
        let mut blocks = Vec::with_capacity(self.num_layers);
        for (index, reach) in self.reaches(&file)?.into_iter().enumerate() {
            builder.set_place(Place::of(index >= trunk));
            blocks.push(self.block(&mut builder, index, reach, heads)?);
        }
        let embedding = "transformer.wte.weight";
        let tokens = builder.tensor(embedding, &[self.vocab_size, self.hidden_size])?;
        let tied = self.tie_word_embeddings.then_some((embedding, &tokens));
        let head = builder.head(tied, (self.vocab_size, self.hidden_size))?;
        let learned = [self.max_position_embeddings, self.hidden_size];
        let parts = Parts {
            embedding: Embedding {
                positions: Some(builder.tensor("transformer.wpe.weight", &learned)?),
                ..Embedding::plain(tokens)
            },
            blocks,
            // In the order of `Reach`.
            positions: vec![Positions::default(), Positions { window: Some(self.window_size), ..Positions::default() }],
            norm: builder.layer_norm("transformer.ln_f", self.hidden_size, self.layer_norm_epsilon)?,
            head,
            context: self.max_position_embeddings,
        };
        Ok(Box::new(Decoder::new(parts, builder, tail_blocks)?))
    }
}
