//! From a database's rows to the log's. What does not fit a column is damage, and named.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use super::Columns;
use crate::{
    digest::Digest,
    edit_log::{
        Change, ChangeKind, EditBrief, EditRow, EditStatus, IdempotencyRow, Identity, LogError, Outcome, VersionKind,
        VersionRow,
        chain::{ChangeBody, CompactionBody, EditBody, Entry, EntryKind, IdempotencyBody, VersionBody},
        check::{VersionRows, edit_name, entry_name, version_name},
    },
};

/// Why a column could not be read.
type Why = String;

fn there<T>(name: &str, value: Option<T>) -> Result<T, Why> {
    value.ok_or_else(|| format!("column {name} is null"))
}

fn text(row: &impl Columns, name: &str) -> Result<String, Why> {
    there(name, row.text(name)?)
}

fn parsed<T>(row: &impl Columns, name: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, Why> {
    let text = text(row, name)?;
    parse(&text).ok_or_else(|| format!("column {name} says {text:?}"))
}

fn optional_number(row: &impl Columns, name: &str) -> Result<Option<u64>, Why> {
    let Some(stored) = row.number(name)? else { return Ok(None) };
    u64::try_from(stored).map(Some).map_err(|_| format!("column {name} is {stored}"))
}

fn number(row: &impl Columns, name: &str) -> Result<u64, Why> {
    there(name, optional_number(row, name)?)
}

fn optional_digest(row: &impl Columns, name: &str) -> Result<Option<Digest>, Why> {
    let Some(bytes) = row.bytes(name)? else { return Ok(None) };
    match bytes.try_into() {
        Ok(bytes) => Ok(Some(Digest(bytes))),
        Err(_) => Err(format!("column {name} has {} bytes instead of 32", bytes.len())),
    }
}

fn digest(row: &impl Columns, name: &str) -> Result<Digest, Why> {
    there(name, optional_digest(row, name)?)
}

fn id(row: &impl Columns, name: &str) -> Result<Uuid, Why> {
    there(name, optional_id(row, name)?)
}

fn optional_id(row: &impl Columns, name: &str) -> Result<Option<Uuid>, Why> {
    let Some(bytes) = row.bytes(name)? else { return Ok(None) };
    match Uuid::from_slice(bytes) {
        Ok(id) => Ok(Some(id)),
        Err(_) => Err(format!("column {name} has {} bytes instead of 16", bytes.len())),
    }
}

fn time(row: &impl Columns, name: &str) -> Result<Timestamp, Why> {
    parsed(row, name, |text| text.parse().ok())
}

fn json(row: &impl Columns, name: &str) -> Result<Value, Why> {
    serde_json::from_str(&text(row, name)?).map_err(|error| format!("column {name} is not JSON: {error}"))
}

/// A time as stored: of fixed width, so that it sorts as text.
pub fn stored_time(time: Timestamp) -> String {
    format!("{time:.9}")
}

/// A number as it is bound; nothing stored is beyond its range, so a larger one finds the same as the largest.
pub fn bound(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The row's own number for messages, as far as it can be read.
fn key(row: &impl Columns, name: &str) -> u64 {
    number(row, name).unwrap_or(0)
}

/// Which edit a message names, as far as it can be read.
fn edit_key(row: &impl Columns) -> String {
    id(row, "id").map_or_else(|_| entry_name(key(row, "seq")), edit_name)
}

/// An entry, its `prev_hash` and its `hash`.
pub fn entry(row: &impl Columns) -> Result<(Entry, Digest, Digest), LogError> {
    let read = || -> Result<_, Why> {
        let entry = Entry {
            seq: number(row, "seq")?,
            at: text(row, "at")?,
            kind: parsed(row, "kind", EntryKind::parse)?,
            version: optional_number(row, "version")?,
            actor: text(row, "actor")?,
            body: digest(row, "body_digest")?,
        };
        Ok((entry, digest(row, "prev_hash")?, digest(row, "hash")?))
    };
    read().map_err(|why| LogError::damaged("entries", entry_name(key(row, "seq")), why))
}

pub fn identity(row: &impl Columns) -> Result<Identity, LogError> {
    let read = || -> Result<_, Why> {
        Ok(Identity {
            base: digest(row, "base")?,
            editor: digest(row, "editor")?,
            composition: text(row, "composition")?,
            base_weights: digest(row, "base_weights")?,
            empty_set: digest(row, "empty_set")?,
        })
    };
    read().map_err(|why| LogError::damaged("identity", entry_name(1), why))
}

pub fn edit_body(row: &impl Columns) -> Result<EditBody, LogError> {
    let read = || -> Result<_, Why> {
        Ok(EditBody {
            id: id(row, "id")?,
            received_at: text(row, "received_at")?,
            prompt: text(row, "prompt")?,
            target: text(row, "target")?,
            request: text(row, "request")?,
            report: text(row, "report")?,
            outcome: text(row, "outcome")?,
            reason: row.text("reason")?,
            contribution: optional_digest(row, "contribution")?,
        })
    };
    read().map_err(|why| LogError::damaged("edits", edit_key(row), why))
}

/// A row of `edits` joined with its entry (`actor`, `version`) and its last change (`last_kind`, `superseded_by`).
pub fn edit(row: &impl Columns) -> Result<EditRow, LogError> {
    let read = || -> Result<_, Why> {
        let superseded_by = optional_id(row, "superseded_by")?;
        Ok(EditRow {
            seq: number(row, "seq")?,
            id: id(row, "id")?,
            received_at: time(row, "received_at")?,
            actor: text(row, "actor")?,
            prompt: text(row, "prompt")?,
            target: text(row, "target")?,
            request: json(row, "request")?,
            report: json(row, "report")?,
            status: status(row, superseded_by)?,
            reason: row.text("reason")?,
            version: optional_number(row, "version")?,
            superseded_by,
            contribution: optional_digest(row, "contribution")?,
        })
    };
    read().map_err(|why| LogError::damaged("edits", edit_key(row), why))
}

fn status(row: &impl Columns, superseded_by: Option<Uuid>) -> Result<EditStatus, Why> {
    let last = row.text("last_kind")?.map(|name| ChangeKind::parse(&name));
    match (text(row, "outcome")?.as_str(), last) {
        (Outcome::REJECTED, None) => Ok(EditStatus::Rejected),
        (Outcome::FAILED, None) => Ok(EditStatus::Failed),
        (Outcome::APPLIED, Some(Some(ChangeKind::Added))) => Ok(EditStatus::Applied),
        (Outcome::APPLIED, Some(Some(ChangeKind::Removed))) if superseded_by.is_some() => Ok(EditStatus::Superseded),
        (Outcome::APPLIED, Some(Some(ChangeKind::Removed))) => Ok(EditStatus::TakenBack),
        (outcome, last) => Err(format!("its outcome is {outcome:?} and its last change {last:?}")),
    }
}

/// A row of `versions` joined with its entry (`actor`, `at`, `hash`).
pub fn version(row: &impl Columns) -> Result<VersionRow, LogError> {
    let read = || -> Result<_, Why> {
        Ok(VersionRow {
            number: number(row, "number")?,
            kind: parsed(row, "kind", VersionKind::parse)?,
            actor: text(row, "actor")?,
            created_at: time(row, "at")?,
            digest: digest(row, "digest")?,
            set_digest: digest(row, "set_digest")?,
            active: number(row, "active")?,
            entry_hash: digest(row, "hash")?,
        })
    };
    read().map_err(|why| LogError::damaged("versions", version_name(key(row, "number")), why))
}

/// A row of `versions`, without what hangs on it.
pub fn version_rows(row: &impl Columns) -> Result<VersionRows, LogError> {
    let read = || -> Result<_, Why> {
        let body = VersionBody {
            number: number(row, "number")?,
            kind: parsed(row, "kind", VersionKind::parse)?,
            digest: digest(row, "digest")?,
            set_digest: digest(row, "set_digest")?,
            active: number(row, "active")?,
            changes: digest(row, "changes_digest")?,
            idempotency: optional_digest(row, "idempotency_digest")?,
        };
        Ok(VersionRows { seq: number(row, "seq")?, row: body, changes: Vec::new(), idempotency: None })
    };
    read().map_err(|why| LogError::damaged("versions", version_name(key(row, "number")), why))
}

pub fn change(row: &impl Columns) -> Result<Change, LogError> {
    let ChangeBody { edit, kind, .. } = change_body(row)?;
    Ok(Change { version: key(row, "version"), edit, kind })
}

pub fn change_body(row: &impl Columns) -> Result<ChangeBody, LogError> {
    let read = || -> Result<_, Why> {
        Ok(ChangeBody {
            edit: id(row, "edit")?,
            kind: parsed(row, "kind", ChangeKind::parse)?,
            superseded_by: optional_id(row, "superseded_by")?,
        })
    };
    read().map_err(|why| LogError::damaged("version_changes", version_name(key(row, "version")), why))
}

/// The `id` of an edit's row.
pub fn edit_id(row: &impl Columns) -> Result<Uuid, LogError> {
    id(row, "id").map_err(|why| LogError::damaged("edits", edit_key(row), why))
}

/// `seq`, `id`, `prompt` and `contribution` of an edit.
pub fn brief(row: &impl Columns) -> Result<EditBrief, LogError> {
    let read = || -> Result<_, Why> {
        let contribution = optional_digest(row, "contribution")?;
        Ok(EditBrief { id: id(row, "id")?, prompt: text(row, "prompt")?, contribution })
    };
    read().map_err(|why| LogError::damaged("edits", edit_key(row), why))
}

pub fn compaction(row: &impl Columns) -> Result<CompactionBody, LogError> {
    let read = || -> Result<_, Why> {
        Ok(CompactionBody {
            until: text(row, "until")?,
            dropped: number(row, "dropped")?,
            dropped_digest: digest(row, "dropped_digest")?,
        })
    };
    read().map_err(|why| LogError::damaged("compactions", entry_name(key(row, "seq")), why))
}

pub fn active_set(rows: &[impl Columns], number: u64) -> Result<BTreeSet<Uuid>, LogError> {
    rows.iter()
        .map(|row| id(row, "edit").map_err(|why| LogError::damaged("version_changes", version_name(number), why)))
        .collect()
}

fn status_code(row: &impl Columns) -> Result<u16, Why> {
    let stored = number(row, "http_status")?;
    u16::try_from(stored).map_err(|_| format!("column http_status is {stored}"))
}

pub fn idempotency_body(row: &impl Columns) -> Result<IdempotencyBody, LogError> {
    let read = || -> Result<_, Why> {
        Ok(IdempotencyBody {
            key: text(row, "key")?,
            version: number(row, "version")?,
            request: digest(row, "request")?,
            http_status: status_code(row)?,
            body: text(row, "body")?,
        })
    };
    read().map_err(|why| LogError::damaged("idempotency", version_name(key(row, "version")), why))
}

pub fn idempotency(row: &impl Columns) -> Result<IdempotencyRow, LogError> {
    let IdempotencyBody { key, request, http_status, .. } = idempotency_body(row)?;
    match json(row, "body") {
        Ok(body) => Ok(IdempotencyRow { key, request, http_status, body }),
        Err(why) => Err(LogError::damaged("idempotency", format!("key {key:?}"), why)),
    }
}
