//! What a GGUF file's metadata says about its network.

use candle_core::quantized::gguf_file::{Content, Value};

use crate::model::{
    ModelError,
    families::{
        gemma3::{Gemma3Config, PATTERN, reaches_by_pattern},
        llama::LlamaConfig,
    },
    layers::{Activation, attention::Heads, rotary::RopeScaling},
};

/// Typed access to the metadata, with errors that name file and key.
pub(super) struct Metadata<'a> {
    pub content: &'a Content,
    pub file: String,
}

impl Metadata<'_> {
    fn get(&self, key: &str) -> Result<&Value, ModelError> {
        let missing = || ModelError::Missing { file: self.file.clone(), what: format!("metadata {key:?}") };
        self.content.metadata.get(key).ok_or_else(missing)
    }

    fn wrong(&self, key: &str) -> ModelError {
        ModelError::Malformed { file: self.file.clone(), why: format!("metadata {key:?} has the wrong type") }
    }

    pub fn string(&self, key: &str) -> Result<String, ModelError> {
        Ok(self.get(key)?.to_string().map_err(|_| self.wrong(key))?.clone())
    }

    fn optional_string(&self, key: &str) -> Option<String> {
        self.content.metadata.get(key).and_then(|value| value.to_string().ok()).cloned()
    }

    fn size(&self, key: &str) -> Result<usize, ModelError> {
        let value = self.get(key)?;
        let size = value.to_u64().or_else(|_| value.to_u32().map(u64::from)).map_err(|_| self.wrong(key))?;
        usize::try_from(size).map_err(|_| self.wrong(key))
    }

    fn float(&self, key: &str) -> Result<f64, ModelError> {
        let value = self.get(key)?;
        value.to_f64().or_else(|_| value.to_f32().map(f64::from)).map_err(|_| self.wrong(key))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize, ModelError> {
        if self.content.metadata.contains_key(key) { self.size(key) } else { Ok(default) }
    }

    fn float_or(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        if self.content.metadata.contains_key(key) { self.float(key) } else { Ok(default) }
    }

    /// Rows of the embedding.
    fn vocabulary(&self) -> Result<usize, ModelError> {
        let embedding = self.content.tensor_infos.get("token_embd.weight");
        let missing = || ModelError::Missing { file: self.file.clone(), what: "token_embd.weight".to_owned() };
        embedding.and_then(|info| info.shape.dims().first().copied()).ok_or_else(missing)
    }

    /// How rotary frequencies are scaled.
    fn scaling(&self, architecture: &str) -> Result<RopeScaling, ModelError> {
        match self.optional_string(&format!("{architecture}.rope.scaling.type")).as_deref() {
            None | Some("none") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear(self.float(&format!("{architecture}.rope.scaling.factor"))?)),
            Some(other) => Err(ModelError::Unsupported {
                what: "rope scaling",
                name: other.to_owned(),
                hint: "supported are none, linear and rope_freqs.weight".to_owned(),
            }),
        }
    }
}

/// The heads of attention, which every architecture names alike.
pub(super) fn heads(metadata: &Metadata<'_>, architecture: &str) -> Result<Heads, ModelError> {
    let key = |name: &str| format!("{architecture}.{name}");
    let count = metadata.size(&key("attention.head_count"))?;
    let share = metadata.size(&key("embedding_length"))?.checked_div(count).unwrap_or(0);
    let dim = metadata.size_or(&key("attention.key_length"), share)?;
    let turned = metadata.size_or(&key("rope.dimension_count"), dim)?;
    if turned != dim {
        return Err(ModelError::Unsupported {
            what: "partial rotary embedding",
            name: format!("{turned} of {dim} dimensions"),
            hint: String::new(),
        });
    }
    Ok(Heads::new(count, metadata.size_or(&key("attention.head_count_kv"), count)?, dim))
}

/// The Llama family.
pub(super) fn llama(metadata: &Metadata<'_>, architecture: &str) -> Result<LlamaConfig, ModelError> {
    let key = |name: &str| format!("{architecture}.{name}");
    let rope_scaling = metadata.scaling(architecture)?;
    let vocabulary = metadata.vocabulary()?;
    let heads = heads(metadata, architecture)?;
    let context = metadata.size(&key("context_length"))?;
    Ok(LlamaConfig {
        vocabulary,
        hidden: metadata.size(&key("embedding_length"))?,
        intermediate: metadata.size(&key("feed_forward_length"))?,
        blocks: metadata.size(&key("block_count"))?,
        heads: heads.count,
        kv_heads: heads.kv,
        head_dim: heads.dim,
        rms_eps: metadata.float(&key("attention.layer_norm_rms_epsilon"))?,
        rope_base: metadata.float_or(&key("rope.freq_base"), 1e4)?,
        rope_scaling,
        context: context.min(metadata.size_or(&key("attention.sliding_window"), context)?),
        tied: None,
    })
}

/// Blocks of the one Gemma 3 whose attention has another scale (llama.cpp's table of models).
const BLOCKS_OF_27B: usize = 62;

/// Gemma 3. What its files leave unsaid is the same in all that were released.
pub(super) fn gemma3(metadata: &Metadata<'_>) -> Result<Gemma3Config, ModelError> {
    let key = |name: &str| format!("gemma3.{name}");
    let heads = heads(metadata, "gemma3")?;
    let hidden = metadata.size(&key("embedding_length"))?;
    let blocks = metadata.size(&key("block_count"))?;
    let share = hidden.checked_div(heads.count).unwrap_or(0);
    Ok(Gemma3Config {
        vocabulary: metadata.vocabulary()?,
        hidden,
        intermediate: metadata.size(&key("feed_forward_length"))?,
        heads: heads.count,
        kv_heads: heads.kv,
        head_dim: heads.dim,
        activation: Activation::GeluTanh,
        rms_eps: metadata.float(&key("attention.layer_norm_rms_epsilon"))?,
        query_scalar: if blocks == BLOCKS_OF_27B { share } else { heads.dim } as f64,
        window: metadata.size(&key("attention.sliding_window"))?,
        reaches: reaches_by_pattern(blocks, PATTERN),
        sliding_base: metadata.float_or(&key("rope.freq_base_swa"), 1e4)?,
        full_base: metadata.float_or(&key("rope.freq_base"), 1e6)?,
        full_scaling: metadata.scaling("gemma3")?,
        context: metadata.size(&key("context_length"))?,
        tied: true,
        // Added when the file was made.
        norm_offset: 0.0,
    })
}
