//! The rows of the log, as values.

use std::fmt::Display;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::LogError;
use crate::digest::Digest;

/// What a log belongs to: pinned at first use, checked at every later one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Digest of the model's files.
    pub base: Digest,
    /// Digest of the editor's folder.
    pub editor: Digest,
    /// How contributions compose into weights: `sum`.
    pub composition: String,
    /// `digest` of version 0: the bits of the base model's editable matrices.
    pub base_weights: Digest,
    /// `set_digest` of the empty set.
    pub empty_set: Digest,
}

impl Identity {
    /// Whether a log that is pinned to this one may be used with `given`.
    pub(super) fn same_as(&self, given: &Self) -> Result<(), LogError> {
        let text = |what, pinned: &dyn Display, given: &dyn Display| (what, pinned.to_string(), given.to_string());
        let pairs = [
            text("model", &self.base, &given.base),
            text("editor", &self.editor, &given.editor),
            text("composition", &self.composition, &given.composition),
            text("base model's weights", &self.base_weights, &given.base_weights),
            text("empty set", &self.empty_set, &given.empty_set),
        ];
        match pairs.into_iter().find(|(_, pinned, given)| pinned != given) {
            Some((what, pinned, given)) => Err(LogError::IdentityMismatch { what, pinned, given }),
            None => Ok(()),
        }
    }
}

/// How an attempt to edit ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is part of a version.
    Applied,
    /// The guard refused it; the reason is for people.
    Rejected(String),
    /// Something went wrong while computing it.
    Failed(String),
}

/// An edit as it enters the log.
#[derive(Debug, Clone)]
pub struct NewEdit {
    pub id: Uuid,
    /// When the request was received.
    pub received_at: Timestamp,
    /// Who asked for it.
    pub actor: String,
    /// The prompt, trimmed: two active edits never share one.
    pub prompt: String,
    pub target: String,
    /// The request as received.
    pub request: Value,
    /// The figures: probabilities, locality, norms, milliseconds per phase.
    pub report: Value,
    pub outcome: Outcome,
    /// What it contributes to the weights, for an applied edit.
    pub contribution: Option<Vec<u8>>,
}

/// Where an edit stands as of the newest version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EditStatus {
    /// Active in the newest version.
    Applied,
    /// Taken back by a request or a rollback.
    TakenBack,
    /// Replaced by a later edit of the same prompt.
    Superseded,
    /// Refused by the guard.
    Rejected,
    /// Not computed, because of an error.
    Failed,
}

/// An edit as the log holds it.
#[derive(Debug, Clone)]
pub struct EditRow {
    /// Position in the log; grows with every entry.
    pub seq: u64,
    pub id: Uuid,
    pub received_at: Timestamp,
    pub actor: String,
    pub prompt: String,
    pub target: String,
    pub request: Value,
    pub report: Value,
    pub status: EditStatus,
    /// Why it was rejected or failed.
    pub reason: Option<String>,
    /// The version that first contained it.
    pub version: Option<u64>,
    /// The edit that superseded it.
    pub superseded_by: Option<Uuid>,
    /// Digest of its contribution.
    pub contribution: Option<Digest>,
}

/// What made a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VersionKind {
    /// Version 0.
    Base,
    /// One or more edits applied together.
    Edit,
    /// An edit taken back.
    TakeBack,
    /// The set of an earlier version restored.
    Rollback,
}

/// An edit that leaves the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    pub edit: Uuid,
    /// The edit that takes its place, if it is superseded.
    pub superseded_by: Option<Uuid>,
}

/// A version as it enters the log.
#[derive(Debug, Clone)]
pub struct NewVersion {
    /// The head's number plus one.
    pub number: u64,
    pub kind: VersionKind,
    pub actor: String,
    /// Digest over the bits of the edited matrices.
    pub digest: Digest,
    /// Digest over base, editor, composition and the contributions of the active edits.
    pub set_digest: Digest,
    /// New edits, in order.
    pub edits: Vec<NewEdit>,
    /// Edits already in the log that become active again (rollback).
    pub restored: Vec<Uuid>,
    /// Edits that leave the set.
    pub removed: Vec<Removal>,
    /// The answer to keep under the request's idempotency key.
    pub idempotency: Option<IdempotencyRow>,
}

/// A version as the log holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionRow {
    pub number: u64,
    pub kind: VersionKind,
    pub actor: String,
    pub created_at: Timestamp,
    pub digest: Digest,
    pub set_digest: Digest,
    /// How many edits are active in it.
    pub active: u64,
    /// Hash of the log entry that made it.
    pub entry_hash: Digest,
}

/// What is short of an edit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EditBrief {
    pub id: Uuid,
    pub prompt: String,
    /// Digest of its contribution's bytes; none if it was rejected or failed.
    pub contribution: Option<Digest>,
}

/// Whether an edit enters or leaves the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Added,
    Removed,
}

/// One change of the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    pub version: u64,
    pub edit: Uuid,
    pub kind: ChangeKind,
}

/// The answer given to a request with an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyRow {
    pub key: String,
    /// Digest of the request, so that a key used for another request is noticed.
    pub request: Digest,
    pub http_status: u16,
    pub body: Value,
}

/// Which edits to list.
#[derive(Debug, Clone, Default)]
pub struct EditQuery {
    pub status: Option<EditStatus>,
    /// Text that the prompt or target contains, ignoring ASCII case.
    pub text: Option<String>,
    pub actor: Option<String>,
    /// Received at this time or later.
    pub since: Option<Timestamp>,
    /// Received before this time.
    pub until: Option<Timestamp>,
    /// Only edits whose `seq` is below this one (from a page's `next`).
    pub before: Option<u64>,
    /// Page size; 0 is taken as 1.
    pub limit: u32,
}

/// One page, and where the next begins.
#[derive(Debug, Clone)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// `before` of the next page; none on the last.
    pub next: Option<u64>,
}
