//! Why the writer did not do what it was asked. `http` maps each variant to a stable code and a status.

use std::time::Duration;

use thiserror::Error;
use uuid::Uuid;

use super::report::BatchReport;
use crate::edit_log::{EditStatus, LogError};

/// What of the guard rejected an edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectedBy {
    /// Its own figures are outside its limits.
    Limits,
    /// It would break active edits or canaries.
    Breaks,
    /// It conflicts with active edits.
    Conflicts,
}

/// Why the writer refused or failed.
#[derive(Debug, Clone, Error)]
pub enum WriterError {
    /// The bounded queue is full.
    #[error("the edit queue is full: {capacity} requests are waiting; try again in {} s", retry_after.as_secs().max(1))]
    QueueFull { capacity: usize, retry_after: Duration },
    /// The request can not be carried out as written.
    #[error("{field}: {message}")]
    Invalid { field: String, message: String },
    /// The model is a classifier, and this is none of its labels.
    #[error("{field}: {label:?} is none of the labels {}", labels.join(", "))]
    UnknownLabel { field: String, label: String, labels: Vec<String> },
    /// The guard refused at least one edit; the report has the figures and reasons.
    #[error("the guard rejected the edit: {reason}")]
    Rejected { reason: String, by: RejectedBy, report: Box<BatchReport>, batch: bool },
    /// Computing an edit failed; it is in the log under this id, and nothing changed.
    #[error("edit {id} failed: {message}")]
    Failed { id: Uuid, message: String },
    /// Compare-and-swap failed.
    #[error("expected version {expected}, but the newest is {current}")]
    VersionConflict { expected: u64, current: u64 },
    /// No such edit.
    #[error("there is no edit {0}")]
    UnknownEdit(Uuid),
    /// No such version.
    #[error("there is no version {number}; the newest is {newest}")]
    UnknownVersion { number: u64, newest: u64 },
    /// The edit is not part of the newest version, so it can not be taken back.
    #[error("edit {id} is not active: it is {status:?}")]
    NotActive { id: Uuid, status: EditStatus },
    /// The idempotency key came with another request before.
    #[error("idempotency key {key:?} was used for a different request")]
    IdempotencyMismatch { key: String },
    /// A sum of deltas left the range of the fixed-point accumulator.
    #[error("the edit would overflow the accumulator of {matrix}: |sum| must stay under {limit}")]
    Overflow { matrix: String, limit: f64 },
    /// The service is stopping.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// Another process changes the set, or none does for the moment.
    #[error("this replica does not write; {}", at(writer.as_deref()))]
    NotWriter { writer: Option<String> },
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A defect or a resource that ran out; the message is for the operator.
    #[error("internal error: {0}")]
    Internal(String),
}

fn at(writer: Option<&str>) -> String {
    writer.map_or_else(|| "which one does is not known".to_owned(), |writer| format!("the writer is at {writer}"))
}
