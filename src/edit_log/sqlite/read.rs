//! Reading versions, sets, contributions and answers.

use std::collections::BTreeSet;

use sqlx::{Row, SqliteConnection, SqliteExecutor, SqlitePool};
use uuid::Uuid;

use super::convert::{self, bound};
use crate::edit_log::{
    Change, IdempotencyRow, Identity, LogError, VersionRow,
    check::{contribution_fits, edit_name},
};

/// A version and its entry.
macro_rules! select_version {
    ($rest:literal) => {
        concat!(
            "SELECT v.number, v.kind, e.actor, e.at, v.digest, v.set_digest, v.active, e.hash ",
            "FROM versions AS v JOIN entries AS e ON e.seq = v.seq ",
            $rest
        )
    };
}

pub(super) async fn identity(executor: impl SqliteExecutor<'_>) -> Result<Option<Identity>, LogError> {
    let row = sqlx::query("SELECT * FROM identity").fetch_optional(executor).await?;
    row.as_ref().map(convert::identity).transpose()
}

pub(super) async fn head(connection: &mut SqliteConnection) -> Result<VersionRow, LogError> {
    let row = sqlx::query(select_version!("ORDER BY v.number DESC LIMIT 1")).fetch_optional(connection).await?;
    convert::version(&row.ok_or(LogError::NotPinned)?)
}

pub(super) async fn version(readers: &SqlitePool, number: u64) -> Result<Option<VersionRow>, LogError> {
    let row = sqlx::query(select_version!("WHERE v.number = ?")).bind(bound(number)).fetch_optional(readers).await?;
    row.as_ref().map(convert::version).transpose()
}

pub(super) async fn versions(
    readers: &SqlitePool,
    before: Option<u64>,
    limit: u32,
) -> Result<Vec<VersionRow>, LogError> {
    let rows = sqlx::query(select_version!("WHERE v.number < ? ORDER BY v.number DESC LIMIT ?"))
        .bind(bound(before.unwrap_or(u64::MAX)))
        .bind(limit)
        .fetch_all(readers)
        .await?;
    rows.iter().map(convert::version).collect()
}

pub(super) async fn changes(readers: &SqlitePool, after: u64, to: u64) -> Result<Vec<Change>, LogError> {
    let mut snapshot = readers.begin().await?;
    known(&mut snapshot, to).await?;
    let rows = sqlx::query(
        "SELECT version, edit, kind, superseded_by FROM version_changes
         WHERE version > ? AND version <= ? ORDER BY version, position",
    )
    .bind(bound(after))
    .bind(bound(to))
    .fetch_all(&mut *snapshot)
    .await?;
    rows.iter().map(convert::change).collect()
}

/// An edit is active in a version if its last change up to it is that it was added.
pub(super) async fn active_set(readers: &SqlitePool, number: u64) -> Result<BTreeSet<Uuid>, LogError> {
    let mut snapshot = readers.begin().await?;
    known(&mut snapshot, number).await?;
    // SQLite takes the bare column `kind` from the row that holds the maximum.
    let rows = sqlx::query(
        "SELECT edit FROM (SELECT edit, kind, max(version) FROM version_changes WHERE version <= ? GROUP BY edit)
         WHERE kind = 'added'",
    )
    .bind(bound(number))
    .fetch_all(&mut *snapshot)
    .await?;
    convert::active_set(&rows, number)
}

async fn known(connection: &mut SqliteConnection, number: u64) -> Result<(), LogError> {
    let newest = head(connection).await?.number;
    if number > newest {
        return Err(LogError::UnknownVersion { number, newest });
    }
    Ok(())
}

pub(super) async fn contribution(readers: &SqlitePool, id: Uuid) -> Result<Vec<u8>, LogError> {
    let row = sqlx::query(
        "SELECT e.*, c.bytes, d.compaction FROM edits AS e LEFT JOIN contributions AS c ON c.seq = e.seq
             LEFT JOIN dropped AS d ON d.seq = e.seq WHERE e.id = ?",
    )
    .bind(&id.as_bytes()[..])
    .fetch_optional(readers)
    .await?
    .ok_or(LogError::UnknownEdit(id))?;
    let edit = convert::edit_body(&row)?;
    let bytes: Option<Vec<u8>> =
        row.try_get("bytes").map_err(|error| LogError::damaged("contributions", edit_name(id), error.to_string()))?;
    let compaction: Option<i64> = row.try_get("compaction")?;
    if bytes.is_none() && compaction.is_some() {
        return Err(LogError::Dropped(id));
    }
    contribution_fits(id, edit.contribution.as_ref(), bytes.as_deref())?;
    bytes.ok_or(LogError::NoContribution(id))
}

pub(super) async fn is_dropped(connection: &mut SqliteConnection, id: Uuid) -> Result<bool, LogError> {
    let found: i64 =
        sqlx::query_scalar("SELECT count(*) FROM dropped AS d JOIN edits AS e ON e.seq = d.seq WHERE e.id = ?")
            .bind(&id.as_bytes()[..])
            .fetch_one(connection)
            .await?;
    Ok(found > 0)
}

pub(super) async fn dropped(readers: &SqlitePool) -> Result<BTreeSet<Uuid>, LogError> {
    let rows =
        sqlx::query("SELECT e.seq, e.id FROM dropped AS d JOIN edits AS e ON e.seq = d.seq").fetch_all(readers).await?;
    rows.iter().map(convert::dropped_edit).collect()
}

pub(super) async fn idempotent(
    executor: impl SqliteExecutor<'_>,
    key: &str,
) -> Result<Option<IdempotencyRow>, LogError> {
    let row = sqlx::query("SELECT * FROM idempotency WHERE key = ?").bind(key).fetch_optional(executor).await?;
    row.as_ref().map(convert::idempotency).transpose()
}

pub(super) async fn ping(readers: &SqlitePool) -> Result<(), LogError> {
    // Reads a page of the file, which `SELECT 1` would not.
    sqlx::query("SELECT seq FROM entries LIMIT 1").fetch_optional(readers).await?;
    Ok(())
}
