//! What waits for the writer, and how it is answered.

use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tracing::Span;

use super::{
    BatchReport, Idempotency, SetChange, Submission, VersionReport, WriterError,
    admission::{self, AdmittedEdit},
};
use crate::{edit_log::IdempotencyRow, telemetry::Course};

/// A fresh answer, or the one recorded under the same idempotency key.
#[derive(Debug, Clone)]
pub enum Answer<T> {
    Fresh(T),
    Recorded(IdempotencyRow),
}

/// What an answer is sent through.
pub type Reply<T> = oneshot::Sender<Result<Answer<T>, WriterError>>;

/// What waits in the queue.
pub enum Command {
    Edits(EditJob),
    Change(ChangeJob),
}

impl Command {
    /// Where it is on its way.
    pub fn course(&mut self) -> &mut Course {
        match self {
            Self::Edits(job) => &mut job.course,
            Self::Change(job) => &mut job.course,
        }
    }

    /// The span of whoever sent it.
    pub fn request(&self) -> &Span {
        match self {
            Self::Edits(job) => job.course.request(),
            Self::Change(job) => job.course.request(),
        }
    }

    /// How many edits are to be captured.
    pub fn edits(&self) -> usize {
        match self {
            Self::Edits(job) => job.edits.len(),
            Self::Change(_) => 0,
        }
    }

    /// Tokens of them.
    pub fn tokens(&self) -> usize {
        match self {
            Self::Edits(job) => admission::tokens(&job.edits),
            Self::Change(_) => 0,
        }
    }
}

/// A submission that waits.
pub struct EditJob {
    pub submission: Submission,
    pub edits: Vec<AdmittedEdit>,
    pub received_at: Timestamp,
    pub received: Instant,
    pub course: Course,
    pub reply: Reply<BatchReport>,
}

/// A change of the set that waits.
pub struct ChangeJob {
    pub change: SetChange,
    pub actor: String,
    pub expected_version: Option<u64>,
    pub idempotency: Option<Idempotency>,
    pub course: Course,
    pub reply: Reply<VersionReport>,
}
