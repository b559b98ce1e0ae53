//! Why the engine did not do what it was asked. `http` maps each variant to a stable code and a status.

use std::time::Duration;

use thiserror::Error;

/// Why a generation or scoring request was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GenerateError {
    /// The bounded queue is full.
    #[error("the generation queue is full: {capacity} requests are waiting; try again in {} s", retry_after.as_secs().max(1))]
    QueueFull { capacity: usize, retry_after: Duration },
    /// The request can not be carried out as written.
    #[error("{field}: {message}")]
    Invalid { field: String, message: String },
    /// No such version.
    #[error("there is no version {number}; the newest is {newest}")]
    UnknownVersion { number: u64, newest: u64 },
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

impl GenerateError {
    /// An [`GenerateError::Invalid`] about `field`.
    pub(super) fn invalid(field: &str, message: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), message: message.into() }
    }

    /// The label under which `generate_requests` counts it.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Invalid { .. }
            | Self::UnknownVersion { .. }
            | Self::ContextExceeded { .. }
            | Self::CacheExceeded { .. } => "invalid",
            Self::QueueFull { .. } | Self::ShuttingDown => "shed",
            Self::Internal(_) => "error",
        }
    }
}
