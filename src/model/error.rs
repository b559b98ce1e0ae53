//! What can go wrong between a model's files and its logits.

use std::{io, path::PathBuf};

use thiserror::Error;

/// Why a model could not be loaded, or could not do what it was asked.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The file is well formed, but this crate does not implement what it holds: an architecture, a kind of tokenizer,
    /// a pre-tokenizer. The name is the file's own.
    #[error("{what} {name:?} is not supported{}", if .hint.is_empty() { String::new() } else { format!(": {}", .hint) })]
    Unsupported { what: &'static str, name: String, hint: String },
    /// The file contradicts its own format.
    #[error("{file} is malformed: {why}")]
    Malformed { file: String, why: String },
    /// A file, or an entry of one, that is needed and not there.
    #[error("{file} has no {what}")]
    Missing { file: String, what: String },
    /// Text could not become token ids, or the other way round.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template does not compile, or refused the conversation.
    #[error("chat template: {0}")]
    Template(String),
    /// A text that must not be empty is.
    #[error("the {what} is empty")]
    Empty { what: &'static str },
    /// More than fits, both in `unit`.
    #[error("too long: {given} {unit}, the limit is {limit}")]
    TooLong { given: usize, limit: usize, unit: &'static str },
    /// A classifier has no such label.
    #[error("{label:?} is none of the labels {}", labels.join(", "))]
    UnknownLabel { label: String, labels: Vec<String> },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}
