//! Feeds all rows, in the order of their entries and from one snapshot, to the [`Checker`]; then looks for rows that no
//! entry heads, and for indexes that disagree with their tables.

use super::{
    Bind, Columns, Session,
    convert::{self, bound},
};
use crate::edit_log::{
    LogError,
    chain::{Entry, EntryKind},
    check::{Checker, VersionRows, contribution_fits, edit_name, entry_name, version_name},
};

/// How many entries are read at once; what they head is read one by one, so that one contribution is in memory at a time.
const BATCH: i64 = 256;

/// `snapshot` is one: what it is asked twice, it answers alike.
pub async fn check_chain(snapshot: &mut impl Session) -> Result<u64, LogError> {
    let mut checker = Checker::new();
    loop {
        let binds = [Bind::Number(bound(checker.entries())), Bind::Number(BATCH)];
        let rows = snapshot.all("SELECT * FROM entries WHERE seq > ? ORDER BY seq LIMIT ?", &binds).await?;
        if rows.is_empty() {
            break;
        }
        for row in &rows {
            let (entry, prev, hash) = convert::entry(row)?;
            checker.entry(&entry, &prev, &hash)?;
            check_body(snapshot, &mut checker, &entry).await?;
        }
    }
    let entries = checker.finish()?;
    check_strays(snapshot).await?;
    snapshot.check_indexes().await?;
    Ok(entries)
}

async fn check_body(session: &mut impl Session, checker: &mut Checker, entry: &Entry) -> Result<(), LogError> {
    match entry.kind {
        EntryKind::Identity => check_identity(session, checker, entry).await,
        EntryKind::Edit => check_edit(session, checker, entry).await,
        EntryKind::Compaction => check_compaction(session, checker, entry).await,
        EntryKind::Base | EntryKind::Version => {
            let version = version_rows(session, entry).await?;
            checker.version(entry, &version)
        }
    }
}

async fn check_identity(session: &mut impl Session, checker: &mut Checker, entry: &Entry) -> Result<(), LogError> {
    let row = session
        .first("SELECT * FROM identity WHERE seq = ?", &[Bind::Number(bound(entry.seq))])
        .await?
        .ok_or_else(|| missing("identity", entry_name(entry.seq)))?;
    checker.identity(entry, convert::identity(&row)?)
}

async fn check_edit(session: &mut impl Session, checker: &mut Checker, entry: &Entry) -> Result<(), LogError> {
    let sql = "SELECT e.*, c.bytes FROM edits AS e LEFT JOIN contributions AS c ON c.seq = e.seq WHERE e.seq = ?";
    let row = session
        .first(sql, &[Bind::Number(bound(entry.seq))])
        .await
        .map_err(|error| reading("edits", entry_name(entry.seq), error))?
        .ok_or_else(|| missing("edits", entry_name(entry.seq)))?;
    let edit = convert::edit_body(&row)?;
    checker.edit(entry, &edit)?;
    let bytes = row.bytes("bytes").map_err(|why| LogError::damaged("contributions", edit_name(edit.id), why))?;
    if edit.contribution.is_some() && bytes.is_none() {
        checker.absent(edit.id);
        return Ok(());
    }
    contribution_fits(edit.id, edit.contribution.as_ref(), bytes)
}

async fn check_compaction(session: &mut impl Session, checker: &mut Checker, entry: &Entry) -> Result<(), LogError> {
    let binds = [Bind::Number(bound(entry.seq))];
    let row = session
        .first("SELECT * FROM compactions WHERE seq = ?", &binds)
        .await
        .map_err(|error| reading("compactions", entry_name(entry.seq), error))?
        .ok_or_else(|| missing("compactions", entry_name(entry.seq)))?;
    let body = convert::compaction(&row)?;
    let sql =
        "SELECT e.seq, e.id FROM dropped AS d JOIN edits AS e ON e.seq = d.seq WHERE d.compaction = ? ORDER BY d.seq";
    let dropped = session.all(sql, &binds).await.map_err(|error| reading("dropped", entry_name(entry.seq), error))?;
    let edits = dropped.iter().map(convert::edit_id).collect::<Result<Vec<_>, _>>()?;
    checker.compaction(entry, &body, &edits)
}

async fn version_rows(session: &mut impl Session, entry: &Entry) -> Result<VersionRows, LogError> {
    let Some(number) = entry.version else {
        return Err(LogError::damaged("entries", entry_name(entry.seq), "it names no version"));
    };
    let name = || version_name(number);
    let binds = [Bind::Number(bound(number))];
    let row = session
        .first("SELECT * FROM versions WHERE number = ?", &binds)
        .await
        .map_err(|error| reading("versions", name(), error))?
        .ok_or_else(|| missing("versions", name()))?;
    let mut version = convert::version_rows(&row)?;
    let changes = session
        .all("SELECT * FROM version_changes WHERE version = ? ORDER BY position", &binds)
        .await
        .map_err(|error| reading("version_changes", name(), error))?;
    version.changes = changes.iter().map(convert::change_body).collect::<Result<_, _>>()?;
    let answer = session
        .first("SELECT * FROM idempotency WHERE version = ?", &binds)
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
        "SELECT min(seq) AS stray FROM identity AS i
         WHERE NOT EXISTS (SELECT 1 FROM entries AS e WHERE e.seq = i.seq AND e.kind = 'identity')",
    ),
    (
        "edits",
        "seq",
        "SELECT min(seq) AS stray FROM edits AS d
         WHERE NOT EXISTS (SELECT 1 FROM entries AS e WHERE e.seq = d.seq AND e.kind = 'edit')",
    ),
    (
        "contributions",
        "seq",
        "SELECT min(seq) AS stray FROM contributions AS c WHERE NOT EXISTS (SELECT 1 FROM edits AS d WHERE d.seq = c.seq)",
    ),
    (
        "versions",
        "version",
        "SELECT min(number) AS stray FROM versions AS v
         WHERE NOT EXISTS (SELECT 1 FROM entries AS e WHERE e.seq = v.seq AND e.version = v.number)",
    ),
    (
        "version_changes",
        "version",
        "SELECT min(version) AS stray FROM version_changes AS c
         WHERE NOT EXISTS (SELECT 1 FROM versions AS v WHERE v.number = c.version)",
    ),
    (
        "idempotency",
        "version",
        "SELECT min(version) AS stray FROM idempotency AS i
         WHERE NOT EXISTS (SELECT 1 FROM versions AS v WHERE v.number = i.version)",
    ),
    (
        "compactions",
        "seq",
        "SELECT min(seq) AS stray FROM compactions AS c
         WHERE NOT EXISTS (SELECT 1 FROM entries AS e WHERE e.seq = c.seq AND e.kind = 'compaction')",
    ),
    (
        "dropped",
        "seq",
        "SELECT min(seq) AS stray FROM dropped AS d
         WHERE NOT EXISTS (SELECT 1 FROM compactions AS c WHERE c.seq = d.compaction)
            OR NOT EXISTS (SELECT 1 FROM edits AS e WHERE e.seq = d.seq)",
    ),
];

async fn check_strays(session: &mut impl Session) -> Result<(), LogError> {
    for (table, key, first) in STRAYS {
        let row = session.first(first, &[]).await?;
        let stray = row.as_ref().map(|row| row.number("stray")).transpose();
        if let Some(number) = stray.map_err(|why| LogError::damaged(table, key, why))?.flatten() {
            return Err(LogError::damaged(table, format!("{key} {number}"), "no entry leads to it"));
        }
    }
    Ok(())
}

fn missing(table: &'static str, row: String) -> LogError {
    LogError::damaged(table, row, "is missing")
}

/// A broken page is named by the row that was being read.
fn reading(table: &'static str, row: String, error: LogError) -> LogError {
    match error {
        LogError::Damaged { why, .. } => LogError::damaged(table, row, why),
        other => other,
    }
}
