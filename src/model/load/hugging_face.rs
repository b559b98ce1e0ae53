//! Hugging Face folders: `config.json`, `tokenizer.json`, one or more `*.safetensors`.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, safetensors::MmapedSafetensors};
use serde::Deserialize;

use super::{Checkpoint, LoadOptions, Loaded, check_shape};
use crate::{
    digest::Digest,
    model::{ModelError, chat_template::ChatTemplate, families, layers::Linear, tokenizer::Tokenizer},
};

/// Opens a folder.
pub(super) fn open(folder: &Path, options: &LoadOptions) -> Result<Loaded, ModelError> {
    let config_path = folder.join("config.json");
    let file = config_path.display().to_string();
    let text =
        std::fs::read_to_string(&config_path).map_err(|source| ModelError::Io { path: config_path.clone(), source })?;
    let malformed = |error: serde_json::Error| ModelError::Malformed { file: file.clone(), why: error.to_string() };
    let Architecture { model_type } = serde_json::from_str(&text).map_err(malformed)?;
    let family = families::from_hub(&model_type, &text, &file)?;
    let weights = weight_files(folder)?;
    let checkpoint = FolderCheckpoint::open(folder, &weights, options.device.clone())?;
    let tokenizer = Tokenizer::from_folder(folder)?;
    Ok(Loaded {
        family,
        architecture: model_type,
        checkpoint: Box::new(checkpoint),
        chat_template: ChatTemplate::from_folder(folder, &tokenizer)?,
        tokenizer,
        name: folder.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned()),
        digest: digest_folder(folder, &weights)?,
    })
}

#[derive(Deserialize)]
struct Architecture {
    model_type: String,
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
    device: Device,
}

impl FolderCheckpoint {
    fn open(folder: &Path, weights: &[PathBuf], device: Device) -> Result<Self, ModelError> {
        #[expect(unsafe_code, reason = "memory-mapped files have no safe interface")]
        // SAFETY: as with any mapped file, nobody may write to the weights while they are being read; every tensor is
        // copied out of the map before loading ends.
        let tensors = unsafe { MmapedSafetensors::multi(weights) }
            .map_err(|error| ModelError::Malformed { file: folder.display().to_string(), why: error.to_string() })?;
        Ok(Self { tensors, folder: folder.to_owned(), device })
    }
}

/// What Hugging Face calls the part of a network below its head. Files that were saved without a head lack it.
const BASES: &[&str] = &["transformer.", "model.", "bert."];

impl FolderCheckpoint {
    /// What this folder calls the tensor `name`.
    fn stored<'a>(&self, name: &'a str) -> &'a str {
        let bare = BASES.iter().find_map(|base| name.strip_prefix(base));
        bare.filter(|bare| self.tensors.get(name).is_err() && self.tensors.get(bare).is_ok()).unwrap_or(name)
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
        self.tensors.get(self.stored(name)).is_ok()
    }

    fn dense(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let stored = self.stored(name);
        let view = self
            .tensors
            .get(stored)
            .map_err(|_| ModelError::Missing { file: self.name(), what: format!("tensor {name:?}") })?;
        check_shape(&self.name(), name, view.shape(), shape)?;
        Ok(self.tensors.load(stored, &self.device)?.to_dtype(DType::F32)?)
    }

    /// f32: half-precision weights are widened once at load, because a CPU would widen them at every call.
    fn linear(&mut self, name: &str, bias: Option<Tensor>, shape: (usize, usize)) -> Result<Linear, ModelError> {
        Ok(Linear::Dense { weight: self.dense(name, &[shape.0, shape.1])?, bias })
    }
}
