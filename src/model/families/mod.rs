//! The families of networks: each file reads one family's configuration and says which parts the network has and what
//! their tensors are called.

pub mod bart;
pub mod bert;
pub mod gemma3;
pub mod gpt2;
pub mod gpt_neo;
pub mod gptj;
pub mod llama;
pub mod t5;

use super::{
    ModelError, Network, builder::Place, decoder::trunk_blocks, layers::attention::Heads, load::Checkpoint,
    tokenizer::Framing,
};

/// A family's configuration: what a file says about a network before its tensors are read.
pub trait Family {
    /// Reads the network; the MLP matrices of its last `tail_blocks` blocks are editable.
    ///
    /// # Errors
    /// Sizes that do not fit each other; tensors that are missing or of another shape.
    fn build(&self, checkpoint: &mut dyn Checkpoint, tail_blocks: usize) -> Result<Box<dyn Network>, ModelError>;

    /// How the network takes its prompts and targets.
    fn framing(&self) -> Framing {
        Framing::Continuation
    }
}

/// Reads the text of `config.json`; the file's name is for errors.
type FromHub = fn(&str, &str) -> Result<Box<dyn Family>, ModelError>;

/// Families that load from a Hugging Face folder, by its `model_type`.
const HUB: &[(&str, FromHub)] = &[
    ("llama", llama::from_hub),
    ("mistral", llama::from_hub),
    ("qwen2", llama::from_hub),
    ("qwen3", llama::from_hub),
    ("gemma3_text", gemma3::from_hub),
    ("gpt2", gpt2::from_hub),
    ("gpt_neo", gpt_neo::from_hub),
    ("gptj", gptj::from_hub),
    ("t5", t5::from_hub),
    ("bart", bart::from_hub),
    ("bert", bert::from_hub),
];

/// Families that load from a GGUF file, by its `general.architecture`.
pub const GGUF: &[&str] = &["llama", "mistral", "qwen2", "qwen3", "gemma3"];

/// The family of a Hugging Face folder.
pub fn from_hub(model_type: &str, config: &str, file: &str) -> Result<Box<dyn Family>, ModelError> {
    match HUB.iter().find(|(name, _)| *name == model_type) {
        Some((_, read)) => read(config, file),
        None => Err(unsupported(model_type, HUB.iter().map(|(name, _)| *name))),
    }
}

/// The refusal of a family, by name.
pub fn unsupported<'a>(architecture: &str, supported: impl Iterator<Item = &'a str>) -> ModelError {
    ModelError::Unsupported {
        what: "architecture",
        name: architecture.to_owned(),
        hint: format!("supported are {}", supported.collect::<Vec<_>>().join(", ")),
    }
}

/// A file that contradicts itself.
fn malformed(file: &str, why: String) -> ModelError {
    ModelError::Malformed { file: file.to_owned(), why }
}

/// A configuration out of `config.json`.
fn parse<T: serde::de::DeserializeOwned>(text: &str, file: &str) -> Result<T, ModelError> {
    serde_json::from_str(text).map_err(|error| malformed(file, error.to_string()))
}

/// Refuses sizes of zero, and sizes that no network has.
fn check_sizes(file: &str, sizes: &[(&str, usize)]) -> Result<(), ModelError> {
    match sizes.iter().find(|(_, size)| *size == 0 || *size > 1 << 24) {
        Some((what, size)) => Err(malformed(file, format!("{what} {size} is out of range"))),
        None => Ok(()),
    }
}

/// Refuses numbers that must be positive and are not.
fn check_numbers<'a>(file: &str, numbers: impl IntoIterator<Item = (&'a str, f64)>) -> Result<(), ModelError> {
    match numbers.into_iter().find(|(_, number)| !(*number > 0.0 && number.is_finite())) {
        Some((what, number)) => Err(malformed(file, format!("{what} {number} is out of range"))),
        None => Ok(()),
    }
}

/// As many heads as are asked for, each with its even share of the dimensions.
fn even_share(file: &str, hidden: usize, heads: usize) -> Result<Heads, ModelError> {
    match hidden.is_multiple_of(heads) {
        true => Ok(Heads::new(heads, heads, hidden / heads)),
        false => Err(malformed(file, format!("{heads} heads do not share {hidden} dimensions evenly"))),
    }
}

/// Where the edited blocks of an encoder and of a decoder begin.
struct Frontier {
    encoder: usize,
    decoder: usize,
}

impl Frontier {
    /// The last `tail_blocks` of both are edited; `blocks` are how many each has.
    fn new(file: &str, blocks: (usize, usize), tail_blocks: usize) -> Result<Self, ModelError> {
        let first = |blocks| trunk_blocks(file, blocks, tail_blocks);
        Ok(Self { encoder: first(blocks.0)?, decoder: first(blocks.1)? })
    }

    fn encoder(&self, index: usize) -> Place {
        Place::of(index >= self.encoder)
    }

    /// The whole decoder lies above the encoder's edited blocks.
    fn decoder(&self, index: usize) -> Place {
        if index >= self.decoder { Place::Edited } else { Place::Frozen }
    }
}
