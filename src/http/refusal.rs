//! Which code each error of the other rooms becomes, and which of its numbers are handed out.

use std::time::Duration;

use super::error::{Code, Problem};
use crate::{
    edit_log::LogError,
    generation::GenerateError,
    model::Kind,
    writer::{RejectedBy, WriterError},
};

impl From<WriterError> for Problem {
    fn from(error: WriterError) -> Self {
        let detail = error.to_string();
        match error {
            WriterError::QueueFull { capacity, retry_after } => queue_full(detail, capacity, retry_after),
            WriterError::Invalid { field, .. } => Self::new(Code::InvalidRequest, detail).with("field", field),
            WriterError::UnknownLabel { field, label, labels } => unknown_label(detail, field, label, labels),
            WriterError::Rejected { by, report, batch, .. } => {
                let code = match by {
                    RejectedBy::Limits => Code::GuardRejected,
                    RejectedBy::Breaks => Code::BreaksEdits,
                    RejectedBy::Conflicts => Code::ConflictingEdit,
                };
                let problem = Self::new(code, detail);
                match report.edits.first() {
                    Some(edit) if !batch => problem.with("report", edit),
                    _ => problem.with("report", &report),
                }
            }
            WriterError::Failed { id, .. } => Self::new(Code::EditFailed, detail).with("id", id),
            WriterError::VersionConflict { expected, current } => {
                Self::new(Code::VersionConflict, detail).with("expected", expected).with("current", current)
            }
            WriterError::UnknownEdit(id) => Self::new(Code::UnknownEdit, detail).with("id", id),
            WriterError::UnknownVersion { number, newest } => unknown_version(number, newest),
            WriterError::NotActive { id, status } => {
                let status = serde_json::to_value(status).unwrap_or_default();
                let name = status.as_str().unwrap_or_default();
                Self::new(Code::EditNotActive, format!("edit {id} is not active: it is {name}"))
                    .with("id", id)
                    .with("edit_status", name)
            }
            WriterError::IdempotencyMismatch { .. } => Self::new(Code::IdempotencyKeyReused, detail),
            WriterError::Overflow { matrix, limit } => {
                Self::new(Code::AccumulatorOverflow, detail).with("matrix", matrix).with("limit", limit)
            }
            WriterError::ShuttingDown => Self::new(Code::Draining, detail),
            WriterError::NotWriter { writer } => Self::new(Code::NoWriter, detail).with("writer", writer),
            WriterError::Log(error) => error.into(),
            WriterError::Internal(cause) => Self::internal(cause),
        }
    }
}

impl From<GenerateError> for Problem {
    fn from(error: GenerateError) -> Self {
        let detail = error.to_string();
        match error {
            GenerateError::QueueFull { capacity, retry_after } => queue_full(detail, capacity, retry_after),
            GenerateError::Invalid { field, .. } => Self::new(Code::InvalidRequest, detail).with("field", field),
            GenerateError::UnknownLabel { field, label, labels } => unknown_label(detail, field, label, labels),
            GenerateError::WrongKind { kind } => Self::new(wrong_kind(kind), detail).with("kind", kind.name()),
            GenerateError::UnknownVersion { number, newest } => unknown_version(number, newest),
            GenerateError::VersionDropped { number, edit } => {
                Self::new(Code::ContributionDropped, detail).with("number", number).with("id", edit)
            }
            GenerateError::ContextExceeded { prompt_tokens, max_tokens, limit } => {
                Self::new(Code::ContextExceeded, detail)
                    .with("prompt_tokens", prompt_tokens)
                    .with("max_tokens", max_tokens)
                    .with("limit", limit)
            }
            GenerateError::CacheExceeded { prompt_tokens, max_tokens, n, limit } => {
                Self::new(Code::CacheExceeded, detail)
                    .with("prompt_tokens", prompt_tokens)
                    .with("max_tokens", max_tokens)
                    .with("n", n)
                    .with("limit", limit)
            }
            GenerateError::ShuttingDown => Self::new(Code::Draining, detail),
            GenerateError::Internal(cause) => Self::internal(cause),
        }
    }
}

impl From<LogError> for Problem {
    fn from(error: LogError) -> Self {
        // What the database said may name files of the host: it goes to the operator's log, not to the client.
        tracing::error!(%error, "the log refused or failed");
        let detail = error.to_string();
        match error {
            LogError::UnknownEdit(id) => Self::new(Code::UnknownEdit, detail).with("id", id),
            LogError::UnknownVersion { number, newest } => unknown_version(number, newest),
            LogError::VersionConflict { .. } => {
                Self::new(Code::VersionConflict, "another version came first; try again")
            }
            LogError::Damaged { table, row, .. } => {
                Self::new(Code::LogDamaged, detail).with("table", table).with("row", row)
            }
            LogError::IdentityMismatch { .. } => {
                Self::new(Code::LogDamaged, "the log belongs to another model, editor or composition")
            }
            LogError::Dropped(id) => Self::new(Code::ContributionDropped, detail).with("id", id),
            LogError::NotPinned => Self::new(Code::NotReady, detail),
            LogError::Full => Self::new(Code::LogFull, detail),
            LogError::ReadOnly => Self::new(Code::LogUnavailable, detail),
            LogError::NotWriter { .. } => {
                Self::new(Code::NoWriter, "another replica has become the writer; nothing was changed. Try again")
            }
            LogError::Locked { .. } => Self::new(Code::LogUnavailable, "another process writes to this database"),
            LogError::NoDatabase { .. } | LogError::Storage(_) => {
                Self::new(Code::LogUnavailable, "the log's storage failed")
            }
            LogError::Inconsistent(_) | LogError::NoContribution(_) => Self::internal(detail),
        }
    }
}

fn queue_full(detail: String, capacity: usize, retry_after: Duration) -> Problem {
    Problem::new(Code::QueueFull, detail)
        .with("capacity", capacity)
        .with("retry_after_seconds", retry_after.as_secs().max(1))
        .retry_after(retry_after)
}

fn unknown_label(detail: String, field: String, label: String, labels: Vec<String>) -> Problem {
    Problem::new(Code::UnknownLabel, detail).with("field", field).with("label", label).with("labels", labels)
}

/// What the model is, where that is why it can not do what it was asked.
fn wrong_kind(kind: Kind) -> Code {
    match kind {
        Kind::Causal => Code::ModelIsCausal,
        Kind::EncoderDecoder => Code::ModelIsEncoderDecoder,
        Kind::Classifier => Code::ModelIsClassifier,
    }
}

/// No such version.
pub(super) fn unknown_version(number: u64, newest: u64) -> Problem {
    Problem::new(Code::UnknownVersion, format!("there is no version {number}; the newest is {newest}"))
        .with("number", number)
        .with("newest", newest)
}
