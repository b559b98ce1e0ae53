//! An editor as a folder: what its `editor.json` says, and how it is read and written.

use std::{collections::HashMap, fs, path::Path};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{CompositionKind, EditorError};
use crate::{digest::Digest, files::write_whole};

/// Tensors of the editor.
pub const TENSORS: &str = "editor.safetensors";
/// The manifest.
pub const MANIFEST: &str = "editor.json";

/// `editor.json`: what the editor is, what it belongs to and how it came about.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// How it edits: `mend`.
    pub method: String,
    /// For people.
    pub name: String,
    /// The model it was trained on; it loads over no other.
    pub base_model: BaseModel,
    /// The matrices it edits, in the model's order.
    pub matrices: Vec<String>,
    /// How many last blocks those are.
    pub tail_blocks: usize,
    /// Rank of the editor's network.
    pub rank: usize,
    /// How its edits become one change.
    #[serde(default)]
    pub composition: CompositionKind,
    /// BLAKE3 of `editor.safetensors`.
    pub tensors_digest: Digest,
    /// How it was trained: options, data and its digest, time.
    #[serde(default)]
    pub training: serde_json::Value,
    /// What was measured, and on what.
    #[serde(default)]
    pub figures: serde_json::Value,
}

/// Which model an editor belongs to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BaseModel {
    pub name: String,
    /// Digest of the model's files.
    pub digest: Digest,
}

impl Manifest {
    /// Reads `editor.json` alone, for what has to be known before the model is loaded.
    pub fn read(folder: &Path) -> Result<Self, EditorError> {
        let path = folder.join(MANIFEST);
        let text = fs::read_to_string(&path).map_err(|error| malformed(folder, format!("{MANIFEST}: {error}")))?;
        serde_json::from_str(&text).map_err(|error| malformed(folder, format!("{MANIFEST}: {error}")))
    }
}

/// The manifest and the tensors, after checking that the file is whole and belongs to the model named by `model`.
pub fn read(folder: &Path, model: Digest) -> Result<(Manifest, HashMap<String, Tensor>), EditorError> {
    let manifest = Manifest::read(folder)?;
    if manifest.base_model.digest != model {
        return Err(EditorError::OtherModel {
            folder: folder.display().to_string(),
            trained_on: manifest.base_model.digest,
            loaded: model,
        });
    }
    let bytes = fs::read(folder.join(TENSORS)).map_err(|error| malformed(folder, format!("{TENSORS}: {error}")))?;
    let digest = Digest::of(&bytes);
    if digest != manifest.tensors_digest {
        let why = format!("{TENSORS} is damaged: its digest is {digest}, {MANIFEST} says {}", manifest.tensors_digest);
        return Err(malformed(folder, why));
    }
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
        .map_err(|error| malformed(folder, format!("{TENSORS}: {error}")))?;
    Ok((manifest, tensors))
}

/// Writes the tensors, then the manifest with their digest; each file appears whole or not at all.
pub fn write(folder: &Path, manifest: &mut Manifest, tensors: &HashMap<String, Tensor>) -> Result<(), EditorError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| malformed(folder, format!("{what}: {error}"));
    fs::create_dir_all(folder).map_err(|error| failed("can not be created", &error))?;
    let bytes = safetensors::serialize(tensors, None).map_err(|error| failed(TENSORS, &error))?;
    manifest.tensors_digest = Digest::of(&bytes);
    let text = serde_json::to_string_pretty(manifest).map_err(|error| failed(MANIFEST, &error))?;
    write_whole(&folder.join(TENSORS), &bytes).map_err(|error| failed(TENSORS, &error))?;
    write_whole(&folder.join(MANIFEST), format!("{text}\n").as_bytes()).map_err(|error| failed(MANIFEST, &error))
}

fn malformed(folder: &Path, why: String) -> EditorError {
    EditorError::Malformed { folder: folder.display().to_string(), why }
}
