//! Hugging Face folders: `config.json`, `tokenizer.json`, one or more `*.safetensors`.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, safetensors::MmapedSafetensors};
use serde::Deserialize;
use serde_json::Value;

use super::{Checkpoint, LoadOptions, Loaded, check_architecture, check_shape};
use crate::{
    digest::Digest,
    model::{
        ModelError,
        chat_template::ChatTemplate,
        layers::{Linear, rotary::Llama3Scaling, rotary::RopeScaling},
        llama::LlamaConfig,
        tokenizer::Tokenizer,
    },
};

/// Opens a folder.
pub(super) fn open(folder: &Path, options: &LoadOptions) -> Result<Loaded, ModelError> {
    let config_path = folder.join("config.json");
    let file = config_path.display().to_string();
    let text =
        std::fs::read_to_string(&config_path).map_err(|source| ModelError::Io { path: config_path.clone(), source })?;
    let malformed = |error: serde_json::Error| ModelError::Malformed { file: file.clone(), why: error.to_string() };
    let family: Family = serde_json::from_str(&text).map_err(malformed)?;
    check_architecture(&family.model_type)?;
    let raw: RawConfig = serde_json::from_str(&text).map_err(malformed)?;
    let weights = weight_files(folder)?;
    let tied = raw.tie_word_embeddings;
    let config = raw.into_config(&file)?;
    let checkpoint = FolderCheckpoint::open(folder, &weights, tied, options.device.clone())?;
    if !tied && !checkpoint.has("lm_head.weight") {
        return Err(ModelError::Missing { file: checkpoint.name(), what: "tensor \"lm_head.weight\"".to_owned() });
    }
    let tokenizer = Tokenizer::from_folder(folder)?;
    Ok(Loaded {
        config,
        checkpoint: Box::new(checkpoint),
        chat_template: ChatTemplate::from_folder(folder, &tokenizer)?,
        tokenizer,
        name: folder.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned()),
        digest: digest_folder(folder, &weights)?,
    })
}

#[derive(Deserialize)]
struct Family {
    model_type: String,
}

/// The fields of `config.json` that matter, with Hugging Face's defaults.
#[derive(Deserialize)]
struct RawConfig {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default = "default_rms_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    /// Newer files keep base and scaling together here.
    rope_parameters: Option<Value>,
    #[serde(default = "default_context")]
    max_position_embeddings: usize,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    #[serde(default)]
    tie_word_embeddings: bool,
    hidden_act: Option<String>,
    partial_rotary_factor: Option<f64>,
}

fn default_rms_eps() -> f64 {
    1e-6
}

fn default_context() -> usize {
    2048
}

impl RawConfig {
    fn into_config(self, file: &str) -> Result<LlamaConfig, ModelError> {
        if let Some(act) = self.hidden_act.as_deref().filter(|act| *act != "silu") {
            return Err(ModelError::Unsupported {
                what: "activation",
                name: act.to_owned(),
                hint: "supported is silu".to_owned(),
            });
        }
        if let Some(part) = self.partial_rotary_factor.filter(|part| *part != 1.0) {
            return Err(ModelError::Unsupported {
                what: "partial rotary embedding",
                name: format!("{part} of the dimensions"),
                hint: String::new(),
            });
        }
        let rope = self.rope_scaling.as_ref().or(self.rope_parameters.as_ref());
        let nested_base = self.rope_parameters.as_ref().and_then(|rope| rope.get("rope_theta")).and_then(Value::as_f64);
        let window = self.sliding_window.filter(|_| self.use_sliding_window != Some(false));
        Ok(LlamaConfig {
            rope_scaling: rope.map_or(Ok(RopeScaling::None), |rope| scaling(rope, file))?,
            rope_base: self.rope_theta.or(nested_base).unwrap_or(1e4),
            vocabulary: self.vocab_size,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            blocks: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim: self
                .head_dim
                .unwrap_or_else(|| self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0)),
            rms_eps: self.rms_norm_eps,
            context: window.map_or(self.max_position_embeddings, |window| window.min(self.max_position_embeddings)),
            architecture: self.model_type,
        })
    }
}

fn scaling(rope: &Value, file: &str) -> Result<RopeScaling, ModelError> {
    let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str).unwrap_or("default");
    let malformed = |why: String| ModelError::Malformed { file: file.to_owned(), why };
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => rope
            .get("factor")
            .and_then(Value::as_f64)
            .map(RopeScaling::Linear)
            .ok_or_else(|| malformed("rope scaling without a factor".to_owned())),
        "llama3" => Llama3Scaling::deserialize(rope)
            .map(RopeScaling::Llama3)
            .map_err(|error| malformed(format!("rope scaling: {error}"))),
        other => Err(ModelError::Unsupported {
            what: "rope scaling",
            name: other.to_owned(),
            hint: "supported are default, linear and llama3".to_owned(),
        }),
    }
}

/// The safetensors files, sorted, so that the digest does not depend on the folder's order.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let io = |source| ModelError::Io { path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(ModelError::Missing { file: folder.display().to_string(), what: ".safetensors file".to_owned() });
    }
    Ok(files)
}

/// Files that decide what the model does beside its weights; those that are there count.
const DESCRIPTIONS: &[&str] =
    &["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"];

fn digest_folder(folder: &Path, weights: &[PathBuf]) -> Result<Digest, ModelError> {
    let described = DESCRIPTIONS.iter().map(|name| folder.join(name)).filter(|path| path.exists());
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for path in described.chain(weights.iter().cloned()) {
        let digest = Digest::of_file(&path).map_err(|source| ModelError::Io { path: path.clone(), source })?;
        parts.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned().into_bytes());
        parts.push(digest.as_bytes().to_vec());
    }
    Ok(Digest::of_parts(parts.iter().map(Vec::as_slice)))
}

struct FolderCheckpoint {
    tensors: MmapedSafetensors,
    folder: PathBuf,
    /// The head is the embedding, whatever else the file holds.
    tied: bool,
    device: Device,
}

impl FolderCheckpoint {
    fn open(folder: &Path, weights: &[PathBuf], tied: bool, device: Device) -> Result<Self, ModelError> {
        #[expect(unsafe_code, reason = "memory-mapped files have no safe interface")]
        // SAFETY: as with any mapped file, nobody may write to the weights while they are being read; every tensor is
        // copied out of the map before loading ends.
        let tensors = unsafe { MmapedSafetensors::multi(weights) }
            .map_err(|error| ModelError::Malformed { file: folder.display().to_string(), why: error.to_string() })?;
        Ok(Self { tensors, folder: folder.to_owned(), tied, device })
    }
}

impl Checkpoint for FolderCheckpoint {
    fn name(&self) -> String {
        self.folder.display().to_string()
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn has(&self, name: &str) -> bool {
        !(self.tied && name == "lm_head.weight") && self.tensors.get(name).is_ok()
    }

    fn dense(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let view = self
            .tensors
            .get(name)
            .map_err(|_| ModelError::Missing { file: self.name(), what: format!("tensor {name:?}") })?;
        check_shape(&self.name(), name, view.shape(), shape)?;
        Ok(self.tensors.load(name, &self.device)?.to_dtype(DType::F32)?)
    }

    /// f32: half-precision weights are widened once at load, because a CPU would widen them at every call.
    fn linear(&mut self, name: &str, bias: Option<Tensor>, shape: (usize, usize)) -> Result<Linear, ModelError> {
        Ok(Linear::Dense { weight: self.dense(name, &[shape.0, shape.1])?, bias })
    }
}
