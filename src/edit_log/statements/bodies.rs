//! What some entries of the chain head, read together: a few statements for many entries, because each takes its time to a
//! database on another machine.

use std::collections::BTreeMap;

use super::{Bind, Columns, Session, convert::bound, keyed};
use crate::edit_log::{
    LogError,
    chain::{Entry, EntryKind},
    check::{entry_name, version_name},
};

/// The rows of some entries, by what leads to them.
pub struct Bodies<R> {
    /// With their contributions, by `seq`.
    pub edits: BTreeMap<i64, R>,
    /// By number.
    pub versions: BTreeMap<i64, R>,
    /// By version, in order.
    pub changes: BTreeMap<i64, Vec<R>>,
    /// By version.
    pub answers: BTreeMap<i64, R>,
}

impl<R: Columns> Bodies<R> {
    /// A broken page is named by the first row that was being read: of a single entry it is the one.
    pub async fn read(session: &mut impl Session<Row = R>, entries: &[&Entry]) -> Result<Self, LogError> {
        let edits: Vec<i64> =
            entries.iter().filter(|entry| entry.kind == EntryKind::Edit).map(|entry| bound(entry.seq)).collect();
        let versions = entries.iter().filter(|entry| matches!(entry.kind, EntryKind::Base | EntryKind::Version));
        let versions: Vec<i64> = versions.filter_map(|entry| entry.version.map(bound)).collect();
        let sql = "SELECT e.*, c.bytes FROM edits AS e LEFT JOIN contributions AS c ON c.seq = e.seq WHERE e.seq";
        let edits = rows(session, "edits", "seq", sql, &edits, "").await?;
        let sql = "SELECT * FROM version_changes WHERE version";
        let found = rows(session, "version_changes", "version", sql, &versions, " ORDER BY version, position").await?;
        let mut changes: BTreeMap<i64, Vec<R>> = BTreeMap::new();
        for (version, change) in found {
            changes.entry(version).or_default().push(change);
        }
        let sql = "SELECT * FROM idempotency WHERE version";
        let answers = rows(session, "idempotency", "version", sql, &versions, "").await?;
        let sql = "SELECT * FROM versions WHERE number";
        let versions = rows(session, "versions", "number", sql, &versions, "").await?;
        let [edits, versions, answers] = [edits, versions, answers].map(|rows| rows.into_iter().collect());
        Ok(Self { edits, versions, changes, answers })
    }
}

/// The rows whose `column` is one of `keys`, each with its key.
async fn rows<R: Columns>(
    session: &mut impl Session<Row = R>,
    table: &'static str,
    column: &str,
    sql: &str,
    keys: &[i64],
    order: &str,
) -> Result<Vec<(i64, R)>, LogError> {
    let Some(&first) = keys.first() else { return Ok(Vec::new()) };
    let name = || match u64::try_from(first) {
        Ok(number) if column != "seq" => version_name(number),
        number => entry_name(number.unwrap_or_default()),
    };
    let binds: Vec<Bind<'_>> = keys.iter().map(|key| Bind::Number(*key)).collect();
    let rows = keyed(session, sql, &binds, order).await.map_err(|error| reading(table, name(), error))?;
    let key = |row: R| match row.number(column) {
        Ok(Some(key)) => Ok((key, row)),
        _ => Err(LogError::damaged(table, name(), format!("column {column} is no number"))),
    };
    rows.into_iter().map(key).collect()
}

/// A broken page is named by the row that was being read.
pub fn reading(table: &'static str, row: String, error: LogError) -> LogError {
    match error {
        LogError::Damaged { why, .. } => LogError::damaged(table, row, why),
        other => other,
    }
}
