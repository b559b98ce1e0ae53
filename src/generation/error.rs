//! Why the engine did not do what it was asked. `http` maps each variant to a stable code and a status.

use std::time::Duration;

use thiserror::Error;
use uuid::Uuid;

use crate::model::Kind;

/// Why a generation or scoring request was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GenerateError {
    /// The bounded queue is full.
    #[error("the generation queue is full: {capacity} requests are waiting; try again in {} s", retry_after.as_secs().max(1))]
    QueueFull { capacity: usize, retry_after: Duration },
    /// The request can not be carried out as written.
    #[error("{field}: {message}")]
    Invalid { field: String, message: String },
    /// The model is a classifier, and this is none of its labels.
    #[error("{field}: {label:?} is none of the labels {}", labels.join(", "))]
    UnknownLabel { field: String, label: String, labels: Vec<String> },
    /// The model is of a kind that can not do what is asked.
    #[error("the model is {kind}: {}", can(*kind))]
    WrongKind { kind: Kind },
    /// No such version.
    #[error("there is no version {number}; the newest is {newest}")]
    UnknownVersion { number: u64, newest: u64 },
    /// What an edit of the version contributed was dropped from the log.
    #[error(
        "version {number} contains edit {edit}, whose change was dropped by a compaction: it can not be made again"
    )]
    VersionDropped { number: u64, edit: Uuid },
    /// The prompt and what is to follow it do not fit into the model's context; all figures are tokens.
    #[error("{prompt_tokens} prompt tokens and {max_tokens} more exceed the context of {limit} tokens")]
    ContextExceeded { prompt_tokens: usize, max_tokens: usize, limit: usize },
    /// The prompt and what is to follow it are more tokens than the engine keeps in memory, all requests together.
    #[error(
        "{prompt_tokens} prompt tokens and {n} x {max_tokens} more exceed the {limit} tokens that are kept in memory"
    )]
    CacheExceeded { prompt_tokens: usize, max_tokens: usize, n: usize, limit: usize },
    /// The service is stopping.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// A defect or a resource that ran out; the message is for the operator.
    #[error("internal error: {0}")]
    Internal(String),
}

/// What a model of this kind does instead.
fn can(kind: Kind) -> &'static str {
    match kind {
        Kind::Causal => "it continues texts (POST /generate) and has no labels to give",
        Kind::EncoderDecoder => "it answers texts (POST /generate) and has no labels to give",
        Kind::Classifier => "it gives texts a label (POST /classify) and writes none",
    }
}

impl GenerateError {
    /// An [`GenerateError::Invalid`] about `field`.
    pub(super) fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), message: message.into() }
    }

    /// The same, about `field` where it is about a label.
    pub(super) fn about(self, field: &str) -> Self {
        match self {
            Self::UnknownLabel { label, labels, .. } => Self::UnknownLabel { field: field.into(), label, labels },
            other => other,
        }
    }

    /// The label under which `generate_requests` counts it.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Invalid { .. }
            | Self::UnknownLabel { .. }
            | Self::WrongKind { .. }
            | Self::UnknownVersion { .. }
            | Self::VersionDropped { .. }
            | Self::ContextExceeded { .. }
            | Self::CacheExceeded { .. } => "invalid",
            Self::QueueFull { .. } | Self::ShuttingDown => "shed",
            Self::Internal(_) => "error",
        }
    }
}
