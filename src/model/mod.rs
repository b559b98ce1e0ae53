//! Networks: a trunk that all versions share, and a tail above it that each version has for itself.
//!
//! Law 7 (the trunk is shared): everything below the first editable block is the same for all versions, carries no
//! graph and may stay quantized. [`Network::trunk`] has no access to any version's weights; [`Network::tail`] gets them
//! through a [`Projection`].

mod builder;
pub mod capture;
pub mod chat_template;
mod classifier;
mod decoder;
mod encoder_decoder;
mod error;
mod families;
pub mod kv;
pub mod layers;
pub mod load;
mod matrices;
pub mod measure;
mod passage;
#[cfg(test)]
pub mod testing;
pub mod tokenizer;

use std::{path::Path, sync::Arc};

use candle_core::{Device, Tensor};

pub use capture::TrunkState;
pub use error::ModelError;
pub use kv::{LayerCaches, Sequence};
pub use layers::{packing::Extent, plan::Rows};
pub use load::LoadOptions;
pub use matrices::{DenseMatrices, EditableMatrix, Projection};
pub use passage::Passage;

use crate::digest::Digest;
use chat_template::ChatTemplate;
use tokenizer::Tokenizer;

/// A network split below its first editable block.
///
/// Batches are packed: sequences of `extents` one after another in `[n, hidden]`, no padding. What an encoder reads is the
/// first part of a sequence, what its decoder reads the rest. A cache belongs to one sequence and makes the pass go on
/// where it ended; an encoder's part is given to it as a whole, with the first pass.
pub trait Network: Send + Sync {
    /// Sizes that callers need.
    fn shape(&self) -> NetworkShape;

    /// The editable matrices, bottom up.
    fn editable(&self) -> &[EditableMatrix];

    /// The weights of the editable matrices before any edit, `W0`.
    fn base(&self) -> &Arc<DenseMatrices>;

    /// An empty sequence.
    fn start(&self) -> Sequence;

    /// Which positions of each sequence an editable matrix is multiplied by in a pass of the tail, in the order of its
    /// rows.
    fn rows_of(&self, matrix: usize, extents: &[Extent], rows: Rows<'_>) -> Vec<Vec<u32>>;

    /// Token ids to hidden states at the tail's door, `[n, hidden]` f32, without a graph.
    fn trunk(&self, ids: &[u32], extents: &[Extent], caches: Option<&mut LayerCaches>) -> candle_core::Result<Tensor>;

    /// Hidden states at the tail's door to final, normalised ones, `[rows, hidden]`. Gradients flow to `hidden` and
    /// through `weights`.
    fn tail(
        &self,
        hidden: &Tensor,
        extents: &[Extent],
        rows: Rows<'_>,
        weights: &dyn Projection,
        caches: Option<&mut LayerCaches>,
    ) -> candle_core::Result<Tensor>;

    /// The output head in f32, differentiable in its input: `[n, hidden]` -> `[n, vocabulary]`.
    fn logits(&self, rows: &Tensor) -> candle_core::Result<Tensor>;

    /// The output head at decoding speed, in the file's own precision; the best few logits, and so the argmax, are those
    /// of [`Network::logits`].
    fn decode_logits(&self, rows: &Tensor) -> candle_core::Result<Tensor>;
}

/// What a network makes of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It goes on with it.
    Causal,
    /// Its decoder answers what its encoder read.
    EncoderDecoder,
    /// It gives it a label.
    Classifier,
}

/// Sizes of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkShape {
    pub kind: Kind,
    /// Token ids that it reads.
    pub inputs: usize,
    /// Size of the output distribution: tokens, or a classifier's labels.
    pub vocabulary: usize,
    pub hidden: usize,
    /// Most positions of a sequence.
    pub context: usize,
    /// Blocks below the tail, of the encoder where there is one.
    pub trunk_blocks: usize,
    /// Blocks whose matrices are editable; where there is a decoder too, as many of it.
    pub tail_blocks: usize,
}

/// A loaded model: network, tokenizer, chat template.
pub struct Model {
    network: Box<dyn Network>,
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
    name: String,
    architecture: String,
    digest: Digest,
    device: Device,
}

impl Model {
    /// Loads a GGUF file or a Hugging Face folder (`config.json`, `tokenizer.json`, `*.safetensors`).
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Self, ModelError> {
        load::load(path, options)
    }

    /// Digest of the model's files.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The model's own name, or its file's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The family, as the file names it: `llama`, `qwen2`, ...
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The editable matrices, bottom up.
    pub fn editable(&self) -> &[EditableMatrix] {
        self.network.editable()
    }

    /// The weights of the editable matrices before any edit, `W0`.
    pub fn base(&self) -> &Arc<DenseMatrices> {
        self.network.base()
    }

    /// Most positions of a sequence.
    pub fn context_length(&self) -> usize {
        self.network.shape().context
    }

    /// Size of the output distribution.
    pub fn vocab_size(&self) -> usize {
        self.network.shape().vocabulary
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// How the model wants conversations to be written, if it says so.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// Where the tensors live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The network itself.
    pub fn network(&self) -> &dyn Network {
        self.network.as_ref()
    }

    /// What the network makes of a prompt.
    pub fn kind(&self) -> Kind {
        self.network.shape().kind
    }

    /// An empty sequence.
    pub fn start(&self) -> Sequence {
        self.network.start()
    }

    /// Feeds `ids` after what `sequence` already holds; the logits (`vocab_size` of them) after the last one. Where there
    /// is an encoder, the first call gives what it reads as a whole, and one id after it for its decoder to begin with.
    pub fn forward(
        &self,
        sequence: &mut Sequence,
        ids: &[u32],
        weights: &dyn Projection,
    ) -> Result<Vec<f32>, ModelError> {
        let Some(last) = ids.len().checked_sub(1) else { return Err(ModelError::Empty { what: "text to continue" }) };
        let given = sequence.len() + ids.len();
        if given > self.context_length() {
            return Err(ModelError::TooLong { given, limit: self.context_length(), unit: "tokens" });
        }
        let source = if self.kind() != Kind::Causal && sequence.is_empty() { last } else { 0 };
        let extents = [Extent { source, target: ids.len() - source }];
        let wanted = [vec![(sequence.len() + last) as u32]];
        let hidden = self.network.trunk(ids, &extents, Some(&mut sequence.trunk))?;
        // The row to compute is named by its position in the sequence, of which the cache holds the beginning.
        let rows = if extents[0].target == 1 { Rows::All } else { Rows::At(&wanted) };
        let top = self.network.tail(&hidden, &extents, rows, weights, Some(&mut sequence.tail))?;
        sequence.source += source;
        sequence.fed += ids.len();
        Ok(self.network.decode_logits(&top)?.flatten_all()?.to_vec1()?)
    }
}
