//! Why training or evaluation stopped.

use thiserror::Error;

use super::dataset::DataError;
use crate::{editor::EditorError, model::ModelError};

/// Why training or evaluation stopped.
#[derive(Debug, Error)]
pub enum TrainingError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Editor(#[from] EditorError),
    /// A file of the run could not be read or written.
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    /// The run can not go on as asked.
    #[error("{0}")]
    Refused(String),
    /// The loss is no longer a number.
    #[error("the loss is not finite at step {step}; a smaller learning rate may help")]
    Diverged { step: u64 },
}

impl From<candle_core::Error> for TrainingError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error.into())
    }
}
