//! Reading edits: one, or a page of those that a query asks for.

use sqlx::{QueryBuilder, Sqlite, SqlitePool};
use uuid::Uuid;

use super::convert::{self, bound, stored_time};
use crate::edit_log::{EditQuery, EditRow, EditStatus, LogError, Page};

/// An edit, its entry and its last change. The index is named because SQLite, which keeps no statistics here, would
/// otherwise search all changes of the version.
const SELECT: &str = "
    SELECT d.seq, d.id, d.received_at, e.actor, d.prompt, d.target, d.request, d.report, d.outcome, d.reason, e.version,
           d.contribution, c.kind AS last_kind, c.superseded_by
    FROM edits AS d
    JOIN entries AS e ON e.seq = d.seq
    LEFT JOIN version_changes AS c INDEXED BY version_changes_by_edit
        ON c.edit = d.id AND c.version = (SELECT max(version) FROM version_changes WHERE edit = d.id)
    WHERE ";

pub(super) async fn one(readers: &SqlitePool, id: Uuid) -> Result<Option<EditRow>, LogError> {
    let mut builder = QueryBuilder::<Sqlite>::new(SELECT);
    builder.push("d.id = ").push_bind(id.as_bytes().to_vec());
    let row = builder.build().fetch_optional(readers).await?;
    row.as_ref().map(convert::edit).transpose()
}

pub(super) async fn page(readers: &SqlitePool, query: &EditQuery) -> Result<Page<EditRow>, LogError> {
    let limit = query.limit.max(1) as usize;
    // The same number in both tables; an actor's entries are found in order by the index of theirs.
    let seq = if query.actor.is_some() { "e.seq" } else { "d.seq" };
    let mut builder = filtered(query, seq);
    // One more than asked for, to know whether another page follows.
    builder.push(" ORDER BY ").push(seq).push(" DESC LIMIT ").push_bind(bound(limit as u64 + 1));
    let rows = builder.build().fetch_all(readers).await?;
    let items: Vec<EditRow> = rows.iter().take(limit).map(convert::edit).collect::<Result<_, _>>()?;
    let next = items.last().filter(|_| rows.len() > limit).map(|edit| edit.seq);
    Ok(Page { items, next })
}

fn filtered(query: &EditQuery, seq: &str) -> QueryBuilder<Sqlite> {
    let mut builder = QueryBuilder::new(SELECT);
    builder.push(seq).push(" < ").push_bind(bound(query.before.unwrap_or(u64::MAX)));
    if let Some(status) = query.status {
        builder.push(" AND ").push(status_is(status));
    }
    if let Some(text) = &query.text {
        // SQLite's lower() is ASCII's; instr() knows no wildcards.
        let text = text.to_ascii_lowercase();
        builder.push(" AND (instr(lower(d.prompt), ").push_bind(text.clone());
        builder.push(") > 0 OR instr(lower(d.target), ").push_bind(text).push(") > 0)");
    }
    if let Some(actor) = &query.actor {
        builder.push(" AND e.actor = ").push_bind(actor.clone());
    }
    if let Some(since) = query.since {
        builder.push(" AND d.received_at >= ").push_bind(stored_time(since));
    }
    if let Some(until) = query.until {
        builder.push(" AND d.received_at < ").push_bind(stored_time(until));
    }
    builder
}

/// The condition that gives an edit this status; the same as [`convert::edit`] derives.
fn status_is(status: EditStatus) -> &'static str {
    match status {
        EditStatus::Applied => "c.kind = 'added'",
        EditStatus::TakenBack => "c.kind = 'removed' AND c.superseded_by IS NULL",
        EditStatus::Superseded => "c.kind = 'removed' AND c.superseded_by IS NOT NULL",
        EditStatus::Rejected => "d.outcome = 'rejected'",
        EditStatus::Failed => "d.outcome = 'failed'",
    }
}
