//! Why an editor could not be loaded or could not edit.

use thiserror::Error;

use crate::{digest::Digest, model::ModelError};

/// Why an editor could not be loaded or could not edit.
#[derive(Debug, Error)]
pub enum EditorError {
    /// The folder is not an editor, or is damaged.
    #[error("editor {folder}: {why}")]
    Malformed { folder: String, why: String },
    /// The editor was trained on another model.
    #[error("editor {folder} was trained on model {trained_on}, but the loaded model is {loaded}")]
    OtherModel { folder: String, trained_on: Digest, loaded: Digest },
    /// A number left the range of f32.
    #[error("{what} is not finite")]
    NonFinite { what: String },
    /// Changes of different forms can not be composed.
    #[error("{0}")]
    Composition(String),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl From<candle_core::Error> for EditorError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}
