//! Loading: a GGUF file or a Hugging Face folder gives a configuration, tensors by Hugging Face's names, a tokenizer and
//! a chat template.

pub mod gguf;
mod gguf_config;
pub mod hugging_face;

use std::path::Path;

use candle_core::{Device, Tensor};

use super::{Model, ModelError, families::Family, layers::Linear};

/// How to load a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The MLP matrices of this many last blocks are editable.
    pub tail_blocks: usize,
    pub device: Device,
}

impl Default for LoadOptions {
    /// Three blocks, as MEND edits decoder-only models (config/model/*.yaml), on the CPU.
    fn default() -> Self {
        Self { tail_blocks: 3, device: Device::Cpu }
    }
}

/// Where a network's tensors come from, by Hugging Face's names.
pub trait Checkpoint {
    /// What to call it in errors.
    fn name(&self) -> String;

    /// Where its tensors go.
    fn device(&self) -> &Device;

    /// Whether it has a tensor of this name.
    fn has(&self, name: &str) -> bool;

    /// A tensor in f32 of exactly this shape.
    fn dense(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError>;

    /// A linear layer `(d_out, d_in)` in the precision that serves best.
    fn linear(&mut self, name: &str, bias: Option<Tensor>, shape: (usize, usize)) -> Result<Linear, ModelError>;

    /// Like [`Checkpoint::dense`], or none if there is no such tensor.
    fn optional(&mut self, name: &str, shape: &[usize]) -> Result<Option<Tensor>, ModelError> {
        if self.has(name) { self.dense(name, shape).map(Some) } else { Ok(None) }
    }
}

/// Loads what `path` holds.
pub(super) fn load(path: &Path, options: &LoadOptions) -> Result<Model, ModelError> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(io)?;
    let loaded = if metadata.is_dir() { hugging_face::open(path, options)? } else { gguf::open(path, options)? };
    let Loaded { family, architecture, mut checkpoint, tokenizer, chat_template, name, digest } = loaded;
    let network = family.build(checkpoint.as_mut(), options.tail_blocks)?;
    let tokenizer = tokenizer.framed(family.framing());
    let (ids, rows) = (tokenizer.vocab_size(), network.shape().inputs);
    if ids > rows {
        let why = format!("its tokenizer has {ids} ids, but its embedding has {rows} rows");
        return Err(ModelError::Malformed { file: checkpoint.name(), why });
    }
    Ok(Model { network, tokenizer, chat_template, name, architecture, digest, device: options.device.clone() })
}

/// What a file or folder gives.
pub(super) struct Loaded {
    pub family: Box<dyn Family>,
    /// The family's name, as the file has it.
    pub architecture: String,
    pub checkpoint: Box<dyn Checkpoint>,
    pub tokenizer: super::tokenizer::Tokenizer,
    pub chat_template: Option<super::chat_template::ChatTemplate>,
    pub name: String,
    pub digest: crate::digest::Digest,
}

/// Refuses a tensor of another shape.
fn check_shape(file: &str, name: &str, got: &[usize], want: &[usize]) -> Result<(), ModelError> {
    if got == want {
        return Ok(());
    }
    Err(ModelError::Malformed { file: file.to_owned(), why: format!("{name} has shape {got:?}, expected {want:?}") })
}
