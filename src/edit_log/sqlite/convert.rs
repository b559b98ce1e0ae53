//! From SQLite's rows to the log's. What does not fit a column is damage, and named.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;
use sqlx::{Row, Sqlite, sqlite::SqliteRow};
use uuid::Uuid;

use crate::{
    digest::Digest,
    edit_log::{
        Change, ChangeKind, EditRow, EditStatus, IdempotencyRow, Identity, LogError, Outcome, VersionKind, VersionRow,
        chain::{ChangeBody, CompactionBody, EditBody, Entry, EntryKind, IdempotencyBody, VersionBody},
        check::{VersionRows, edit_name, entry_name, version_name},
    },
};

/// Why a column could not be read.
type Why = String;

fn column<'r, T: sqlx::Decode<'r, Sqlite> + sqlx::Type<Sqlite>>(row: &'r SqliteRow, name: &str) -> Result<T, Why> {
    row.try_get(name).map_err(|error| error.to_string())
}

fn parsed<T>(row: &SqliteRow, name: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, Why> {
    let text: &str = column(row, name)?;
    parse(text).ok_or_else(|| format!("column {name} says {text:?}"))
}

fn number(row: &SqliteRow, name: &str) -> Result<u64, Why> {
    let stored: i64 = column(row, name)?;
    u64::try_from(stored).map_err(|_| format!("column {name} is {stored}"))
}

fn optional_number(row: &SqliteRow, name: &str) -> Result<Option<u64>, Why> {
    match column::<Option<i64>>(row, name)? {
        Some(_) => number(row, name).map(Some),
        None => Ok(None),
    }
}

fn digest(row: &SqliteRow, name: &str) -> Result<Digest, Why> {
    optional_digest(row, name)?.ok_or_else(|| format!("column {name} is null"))
}

fn optional_digest(row: &SqliteRow, name: &str) -> Result<Option<Digest>, Why> {
    let Some(bytes) = column::<Option<&[u8]>>(row, name)? else { return Ok(None) };
    match bytes.try_into() {
        Ok(bytes) => Ok(Some(Digest(bytes))),
        Err(_) => Err(format!("column {name} has {} bytes instead of 32", bytes.len())),
    }
}

fn id(row: &SqliteRow, name: &str) -> Result<Uuid, Why> {
    optional_id(row, name)?.ok_or_else(|| format!("column {name} is null"))
}

fn optional_id(row: &SqliteRow, name: &str) -> Result<Option<Uuid>, Why> {
    let Some(bytes) = column::<Option<&[u8]>>(row, name)? else { return Ok(None) };
    match Uuid::from_slice(bytes) {
        Ok(id) => Ok(Some(id)),
        Err(_) => Err(format!("column {name} has {} bytes instead of 16", bytes.len())),
    }
}

fn time(row: &SqliteRow, name: &str) -> Result<Timestamp, Why> {
    parsed(row, name, |text| text.parse().ok())
}

fn json(row: &SqliteRow, name: &str) -> Result<Value, Why> {
    let text: &str = column(row, name)?;
    serde_json::from_str(text).map_err(|error| format!("column {name} is not JSON: {error}"))
}

/// A time as stored: of fixed width, so that it sorts as text.
pub(super) fn stored_time(time: Timestamp) -> String {
    format!("{time:.9}")
}

/// A number as SQLite binds it; nothing stored is beyond its range, so a larger one finds the same as the largest.
pub(super) fn bound(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The row's own number for messages, as far as it can be read.
fn key(row: &SqliteRow, name: &str) -> u64 {
    number(row, name).unwrap_or(0)
}

/// Which edit a message names, as far as it can be read.
fn edit_key(row: &SqliteRow) -> String {
    id(row, "id").map_or_else(|_| entry_name(key(row, "seq")), edit_name)
}

/// An entry, its `prev_hash` and its `hash`.
pub(super) fn entry(row: &SqliteRow) -> Result<(Entry, Digest, Digest), LogError> {
    let read = || -> Result<_, Why> {
        let entry = Entry {
            seq: number(row, "seq")?,
            at: column(row, "at")?,
            kind: parsed(row, "kind", EntryKind::parse)?,
            version: optional_number(row, "version")?,
            actor: column(row, "actor")?,
            body: digest(row, "body_digest")?,
        };
        Ok((entry, digest(row, "prev_hash")?, digest(row, "hash")?))
    };
    read().map_err(|why| LogError::damaged("entries", entry_name(key(row, "seq")), why))
}

pub(super) fn identity(row: &SqliteRow) -> Result<Identity, LogError> {
    let read = || -> Result<_, Why> {
        Ok(Identity {
            base: digest(row, "base")?,
            editor: digest(row, "editor")?,
            composition: column(row, "composition")?,
            base_weights: digest(row, "base_weights")?,
            empty_set: digest(row, "empty_set")?,
        })
    };
    read().map_err(|why| LogError::damaged("identity", entry_name(1), why))
}

pub(super) fn edit_body(row: &SqliteRow) -> Result<EditBody, LogError> {
    let read = || -> Result<_, Why> {
        Ok(EditBody {
            id: id(row, "id")?,
            received_at: column(row, "received_at")?,
            prompt: column(row, "prompt")?,
            target: column(row, "target")?,
            request: column(row, "request")?,
            report: column(row, "report")?,
            outcome: column(row, "outcome")?,
            reason: column(row, "reason")?,
            contribution: optional_digest(row, "contribution")?,
        })
    };
    read().map_err(|why| LogError::damaged("edits", edit_key(row), why))
}

/// A row of `edits` joined with its entry (`actor`, `version`) and its last change (`last_kind`, `superseded_by`).
pub(super) fn edit(row: &SqliteRow) -> Result<EditRow, LogError> {
    let read = || -> Result<_, Why> {
        let superseded_by = optional_id(row, "superseded_by")?;
        Ok(EditRow {
            seq: number(row, "seq")?,
            id: id(row, "id")?,
            received_at: time(row, "received_at")?,
            actor: column(row, "actor")?,
            prompt: column(row, "prompt")?,
            target: column(row, "target")?,
            request: json(row, "request")?,
            report: json(row, "report")?,
            status: status(row, superseded_by)?,
            reason: column(row, "reason")?,
            version: optional_number(row, "version")?,
            superseded_by,
            contribution: optional_digest(row, "contribution")?,
        })
    };
    read().map_err(|why| LogError::damaged("edits", edit_key(row), why))
}

fn status(row: &SqliteRow, superseded_by: Option<Uuid>) -> Result<EditStatus, Why> {
    let last = column::<Option<&str>>(row, "last_kind")?.map(ChangeKind::parse);
    match (column(row, "outcome")?, last) {
        (Outcome::REJECTED, None) => Ok(EditStatus::Rejected),
        (Outcome::FAILED, None) => Ok(EditStatus::Failed),
        (Outcome::APPLIED, Some(Some(ChangeKind::Added))) => Ok(EditStatus::Applied),
        (Outcome::APPLIED, Some(Some(ChangeKind::Removed))) if superseded_by.is_some() => Ok(EditStatus::Superseded),
        (Outcome::APPLIED, Some(Some(ChangeKind::Removed))) => Ok(EditStatus::TakenBack),
        (outcome, last) => Err(format!("its outcome is {outcome:?} and its last change {last:?}")),
    }
}

/// A row of `versions` joined with its entry (`actor`, `at`, `hash`).
pub(super) fn version(row: &SqliteRow) -> Result<VersionRow, LogError> {
    let read = || -> Result<_, Why> {
        Ok(VersionRow {
            number: number(row, "number")?,
            kind: parsed(row, "kind", VersionKind::parse)?,
            actor: column(row, "actor")?,
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
pub(super) fn version_rows(row: &SqliteRow) -> Result<VersionRows, LogError> {
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

pub(super) fn change(row: &SqliteRow) -> Result<Change, LogError> {
    let ChangeBody { edit, kind, .. } = change_body(row)?;
    Ok(Change { version: key(row, "version"), edit, kind })
}

pub(super) fn change_body(row: &SqliteRow) -> Result<ChangeBody, LogError> {
    let read = || -> Result<_, Why> {
        Ok(ChangeBody {
            edit: id(row, "edit")?,
            kind: parsed(row, "kind", ChangeKind::parse)?,
            superseded_by: optional_id(row, "superseded_by")?,
        })
    };
    read().map_err(|why| LogError::damaged("version_changes", version_name(key(row, "version")), why))
}

/// Which edit a row of `edits` is, of which only `seq` and `id` need be there.
pub(super) fn dropped_edit(row: &SqliteRow) -> Result<Uuid, LogError> {
    id(row, "id").map_err(|why| LogError::damaged("edits", edit_key(row), why))
}

pub(super) fn compaction(row: &SqliteRow) -> Result<CompactionBody, LogError> {
    let read = || -> Result<_, Why> {
        Ok(CompactionBody {
            until: column(row, "until")?,
            dropped: number(row, "dropped")?,
            dropped_digest: digest(row, "dropped_digest")?,
        })
    };
    read().map_err(|why| LogError::damaged("compactions", entry_name(key(row, "seq")), why))
}

pub(super) fn active_set(rows: &[SqliteRow], number: u64) -> Result<BTreeSet<Uuid>, LogError> {
    rows.iter()
        .map(|row| id(row, "edit").map_err(|why| LogError::damaged("version_changes", version_name(number), why)))
        .collect()
}

pub(super) fn idempotency_body(row: &SqliteRow) -> Result<IdempotencyBody, LogError> {
    let read = || -> Result<_, Why> {
        Ok(IdempotencyBody {
            key: column(row, "key")?,
            version: number(row, "version")?,
            request: digest(row, "request")?,
            http_status: column(row, "http_status")?,
            body: column(row, "body")?,
        })
    };
    read().map_err(|why| LogError::damaged("idempotency", version_name(key(row, "version")), why))
}

pub(super) fn idempotency(row: &SqliteRow) -> Result<IdempotencyRow, LogError> {
    let IdempotencyBody { key, request, http_status, .. } = idempotency_body(row)?;
    match json(row, "body") {
        Ok(body) => Ok(IdempotencyRow { key, request, http_status, body }),
        Err(why) => Err(LogError::damaged("idempotency", format!("key {key:?}"), why)),
    }
}
