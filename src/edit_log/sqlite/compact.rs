//! Compaction: drops the contributions of edits that left the set long ago, when someone asks for it.
//!
//! Law 6 (history is append-only) stands: what is dropped is bytes whose digests stay in the chain, and the chain names each
//! edit that lost its own. Every entry, text, figure, set and digest stays as it was. What can not be done afterwards is to
//! make the weights of a version that contained such an edit.

use std::{fs, path::Path};

use jiff::Timestamp;
use sqlx::{Connection, Row, SqliteConnection};
use uuid::Uuid;

use super::{SqliteLog, database_path, settle};
use crate::{
    edit_log::{
        EditLog, LogError, WriterLock,
        chain::{CompactionBody, EntryKind, dropped_digest},
        statements::{
            Bind, Session,
            convert::{bound, edit_id, stored_time},
            tail::Tail,
        },
    },
    faults::{self, Point},
};

/// What a compaction dropped, or would drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compaction {
    /// Edits whose contributions went, in the order of the log.
    pub edits: Vec<Uuid>,
    /// Bytes of these contributions.
    pub bytes: u64,
    /// Bytes of the database before and after.
    pub file: (u64, u64),
}

/// Drops the contributions of edits that left the set before `until` and did not come back, in the log at `url`, which no
/// process may be writing to ([`LogError::Locked`]). The whole log is checked before and after. With `dry_run`, only says
/// what would go.
pub async fn compact(url: &str, until: Timestamp, actor: &str, dry_run: bool) -> Result<Compaction, LogError> {
    let path = database_path(url)?;
    if !path.is_file() {
        return Err(LogError::NoDatabase { path });
    }
    let _alone = WriterLock::acquire(url)?;
    let log = SqliteLog::open(url).await?;
    let done = drop_before(&log, &path, until, actor, dry_run).await;
    log.close().await;
    let mut done = done?;
    done.file.1 = size(&path)?;
    Ok(done)
}

async fn drop_before(
    log: &SqliteLog,
    path: &Path,
    until: Timestamp,
    actor: &str,
    dry_run: bool,
) -> Result<Compaction, LogError> {
    log.check_chain().await?;
    let mut writer = log.writer().await?;
    // What the WAL holds is folded in, so that sizes can be compared.
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut *writer).await?;
    let before = size(path)?;
    let result = transaction(&mut writer, until, actor, dry_run).await;
    let (edits, bytes) = settle(writer, result).await?;
    if !dry_run && !edits.is_empty() {
        faults::reach(Point::Compact)?;
        log.check_chain().await?;
        // The pages are free now; this gives them back to the disk. It writes the file anew and needs room for that.
        let mut writer = log.writer().await?;
        sqlx::query("VACUUM").execute(&mut *writer).await?;
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut *writer).await?;
    }
    Ok(Compaction { edits, bytes, file: (before, before) })
}

async fn transaction(
    connection: &mut SqliteConnection,
    until: Timestamp,
    actor: &str,
    dry_run: bool,
) -> Result<(Vec<Uuid>, u64), LogError> {
    let until = stored_time(until);
    let mut held = connection.begin_with("BEGIN IMMEDIATE").await?;
    let (edits, bytes) = candidates(&mut held, &until).await?;
    let ids: Vec<Uuid> = edits.iter().map(|(_, id)| *id).collect();
    if dry_run || edits.is_empty() {
        return Ok((ids, bytes));
    }
    let mut tail = Tail::of(&mut *held).await?;
    let body = CompactionBody { until, dropped: ids.len() as u64, dropped_digest: dropped_digest(&ids) };
    let seq = bound(tail.entry(EntryKind::Compaction, None, actor, body.digest()).await?);
    let binds = [
        Bind::Number(seq),
        Bind::Text(&body.until),
        Bind::Number(bound(body.dropped)),
        Bind::Bytes(body.dropped_digest.as_bytes()),
    ];
    held.run("INSERT INTO compactions (seq, until, dropped, dropped_digest) VALUES (?, ?, ?, ?)", &binds).await?;
    for (edit, _) in &edits {
        let binds = [Bind::Number(*edit), Bind::Number(seq)];
        held.run("INSERT INTO dropped (seq, compaction) VALUES (?, ?)", &binds).await?;
        held.run("DELETE FROM contributions WHERE seq = ?", &binds[..1]).await?;
    }
    faults::reach(Point::Compact)?;
    held.commit().await?;
    Ok((ids, bytes))
}

/// Edits that have a contribution and whose last change is that they were removed, before this time; and the bytes of it all.
async fn candidates(session: &mut SqliteConnection, until: &str) -> Result<(Vec<(i64, Uuid)>, u64), LogError> {
    // SQLite takes the bare column `kind` from the row that holds the maximum.
    let sql = "SELECT d.seq, d.id, length(b.bytes) AS bytes
               FROM (SELECT edit, kind, max(version) AS version FROM version_changes GROUP BY edit) AS c
               JOIN versions AS v ON v.number = c.version
               JOIN entries AS e ON e.seq = v.seq
               JOIN edits AS d ON d.id = c.edit
               JOIN contributions AS b ON b.seq = d.seq
               WHERE c.kind = 'removed' AND e.at < ?
               ORDER BY d.seq";
    let rows = session.all(sql, &[Bind::Text(until)]).await?;
    let bytes =
        rows.iter().map(|row| Ok(row.try_get::<i64, _>("bytes")?.unsigned_abs())).sum::<Result<u64, sqlx::Error>>()?;
    let edits = rows.iter().map(|row| Ok((row.try_get("seq")?, edit_id(row)?)));
    Ok((edits.collect::<Result<_, LogError>>()?, bytes))
}

fn size(path: &Path) -> Result<u64, LogError> {
    Ok(fs::metadata(path)?.len())
}
