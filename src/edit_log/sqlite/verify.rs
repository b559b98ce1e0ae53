//! Feeds all rows, in the order of their entries and from one snapshot, to the [`Checker`]; then looks for rows that no
//! entry heads, and for indexes that disagree with their tables.

use sqlx::{Row, SqliteConnection, SqlitePool};

use super::convert::{self, bound};
use crate::edit_log::{
    LogError,
    chain::{Entry, EntryKind},
    check::{Checker, VersionRows, contribution_fits, edit_name, entry_name, version_name},
};

/// How many entries are read at once; what they head is read one by one, so that one contribution is in memory at a time.
const BATCH: i64 = 256;

pub(super) async fn check_chain(readers: &SqlitePool) -> Result<u64, LogError> {
    let mut snapshot = readers.begin().await?;
    let mut checker = Checker::new();
    loop {
        let rows = sqlx::query("SELECT * FROM entries WHERE seq > ? ORDER BY seq LIMIT ?")
            .bind(bound(checker.entries()))
            .bind(BATCH)
            .fetch_all(&mut *snapshot)
            .await?;
        if rows.is_empty() {
            break;
        }
        for row in &rows {
            let (entry, prev, hash) = convert::entry(row)?;
            checker.entry(&entry, &prev, &hash)?;
            check_body(&mut snapshot, &mut checker, &entry).await?;
        }
    }
    let entries = checker.finish()?;
    check_strays(&mut snapshot).await?;
    check_indexes(&mut snapshot).await?;
    Ok(entries)
}

async fn check_body(connection: &mut SqliteConnection, checker: &mut Checker, entry: &Entry) -> Result<(), LogError> {
    match entry.kind {
        EntryKind::Identity => check_identity(connection, checker, entry).await,
        EntryKind::Edit => check_edit(connection, checker, entry).await,
        EntryKind::Compaction => check_compaction(connection, checker, entry).await,
        EntryKind::Base | EntryKind::Version => {
            let version = version_rows(connection, entry).await?;
            checker.version(entry, &version)
        }
    }
}

async fn check_identity(
    connection: &mut SqliteConnection,
    checker: &mut Checker,
    entry: &Entry,
) -> Result<(), LogError> {
    let row = sqlx::query("SELECT * FROM identity WHERE seq = ?")
        .bind(bound(entry.seq))
        .fetch_optional(connection)
        .await?
        .ok_or_else(|| missing("identity", entry_name(entry.seq)))?;
    checker.identity(entry, convert::identity(&row)?)
}

async fn check_edit(connection: &mut SqliteConnection, checker: &mut Checker, entry: &Entry) -> Result<(), LogError> {
    let row = sqlx::query(
        "SELECT e.*, c.bytes FROM edits AS e LEFT JOIN contributions AS c ON c.seq = e.seq WHERE e.seq = ?",
    )
    .bind(bound(entry.seq))
    .fetch_optional(connection)
    .await
    .map_err(|error| reading("edits", entry_name(entry.seq), error))?
    .ok_or_else(|| missing("edits", entry_name(entry.seq)))?;
    let edit = convert::edit_body(&row)?;
    checker.edit(entry, &edit)?;
    let bytes: Option<&[u8]> =
        row.try_get("bytes").map_err(|error| reading("contributions", edit_name(edit.id), error))?;
    if edit.contribution.is_some() && bytes.is_none() {
        checker.absent(edit.id);
        return Ok(());
    }
    contribution_fits(edit.id, edit.contribution.as_ref(), bytes)
}

async fn check_compaction(
    connection: &mut SqliteConnection,
    checker: &mut Checker,
    entry: &Entry,
) -> Result<(), LogError> {
    let row = sqlx::query("SELECT * FROM compactions WHERE seq = ?")
        .bind(bound(entry.seq))
        .fetch_optional(&mut *connection)
        .await
        .map_err(|error| reading("compactions", entry_name(entry.seq), error))?
        .ok_or_else(|| missing("compactions", entry_name(entry.seq)))?;
    let body = convert::compaction(&row)?;
    let dropped = sqlx::query(
        "SELECT e.seq, e.id FROM dropped AS d JOIN edits AS e ON e.seq = d.seq WHERE d.compaction = ? ORDER BY d.seq",
    )
    .bind(bound(entry.seq))
    .fetch_all(connection)
    .await
    .map_err(|error| reading("dropped", entry_name(entry.seq), error))?;
    let edits = dropped.iter().map(convert::dropped_edit).collect::<Result<Vec<_>, _>>()?;
    checker.compaction(entry, &body, &edits)
}

async fn version_rows(connection: &mut SqliteConnection, entry: &Entry) -> Result<VersionRows, LogError> {
    let Some(number) = entry.version else {
        return Err(LogError::damaged("entries", entry_name(entry.seq), "it names no version"));
    };
    let name = || version_name(number);
    let row = sqlx::query("SELECT * FROM versions WHERE number = ?")
        .bind(bound(number))
        .fetch_optional(&mut *connection)
        .await
        .map_err(|error| reading("versions", name(), error))?
        .ok_or_else(|| missing("versions", name()))?;
    let mut version = convert::version_rows(&row)?;
    let changes = sqlx::query("SELECT * FROM version_changes WHERE version = ? ORDER BY position")
        .bind(bound(number))
        .fetch_all(&mut *connection)
        .await
        .map_err(|error| reading("version_changes", name(), error))?;
    version.changes = changes.iter().map(convert::change_body).collect::<Result<_, _>>()?;
    let answer = sqlx::query("SELECT * FROM idempotency WHERE version = ?")
        .bind(bound(number))
        .fetch_optional(connection)
        .await
        .map_err(|error| reading("idempotency", name(), error))?;
    version.idempotency = answer.as_ref().map(convert::idempotency_body).transpose()?;
    Ok(version)
}

/// Rows that no entry leads to: each query gives the number of the first one in its table.
const STRAYS: [(&str, &str, &str); 8] = [
    (
        "identity",
        "seq",
        "SELECT min(seq) FROM identity AS i
         WHERE NOT EXISTS (SELECT 1 FROM entries AS e WHERE e.seq = i.seq AND e.kind = 'identity')",
    ),
    (
        "edits",
        "seq",
        "SELECT min(seq) FROM edits AS d
         WHERE NOT EXISTS (SELECT 1 FROM entries AS e WHERE e.seq = d.seq AND e.kind = 'edit')",
    ),
    (
        "contributions",
        "seq",
        "SELECT min(seq) FROM contributions AS c WHERE NOT EXISTS (SELECT 1 FROM edits AS d WHERE d.seq = c.seq)",
    ),
    (
        "versions",
        "version",
        "SELECT min(number) FROM versions AS v
         WHERE NOT EXISTS (SELECT 1 FROM entries AS e WHERE e.seq = v.seq AND e.version = v.number)",
    ),
    (
        "version_changes",
        "version",
        "SELECT min(version) FROM version_changes AS c
         WHERE NOT EXISTS (SELECT 1 FROM versions AS v WHERE v.number = c.version)",
    ),
    (
        "idempotency",
        "version",
        "SELECT min(version) FROM idempotency AS i
         WHERE NOT EXISTS (SELECT 1 FROM versions AS v WHERE v.number = i.version)",
    ),
    (
        "compactions",
        "seq",
        "SELECT min(seq) FROM compactions AS c
         WHERE NOT EXISTS (SELECT 1 FROM entries AS e WHERE e.seq = c.seq AND e.kind = 'compaction')",
    ),
    (
        "dropped",
        "seq",
        "SELECT min(seq) FROM dropped AS d
         WHERE NOT EXISTS (SELECT 1 FROM compactions AS c WHERE c.seq = d.compaction)
            OR NOT EXISTS (SELECT 1 FROM edits AS e WHERE e.seq = d.seq)",
    ),
];

async fn check_strays(connection: &mut SqliteConnection) -> Result<(), LogError> {
    for (table, key, first) in STRAYS {
        let stray: Option<i64> = sqlx::query_scalar(first).fetch_one(&mut *connection).await?;
        if let Some(number) = stray {
            return Err(LogError::damaged(table, format!("{key} {number}"), "no entry leads to it"));
        }
    }
    Ok(())
}

/// Sets and statuses are answered from indexes alone, so these must say what the tables say.
async fn check_indexes(connection: &mut SqliteConnection) -> Result<(), LogError> {
    let found: String = sqlx::query_scalar("PRAGMA integrity_check(1)").fetch_one(connection).await?;
    if found == "ok" {
        return Ok(());
    }
    Err(LogError::damaged("(the database file)", "an index or a page", found))
}

fn missing(table: &'static str, row: String) -> LogError {
    LogError::damaged(table, row, "is missing")
}

/// A broken page is named by the row that was being read.
fn reading(table: &'static str, row: String, error: sqlx::Error) -> LogError {
    match LogError::from(error) {
        LogError::Damaged { why, .. } => LogError::damaged(table, row, why),
        other => other,
    }
}
