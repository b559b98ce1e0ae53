//! Reading edits: one, or a page of those that a query asks for.

use uuid::Uuid;

use super::{
    Bind, Session,
    convert::{self, bound, stored_time},
};
use crate::edit_log::{EditQuery, EditRow, EditStatus, LogError, Page};

/// An edit, its entry and its last change.
fn select<S: Session>(rest: &str) -> String {
    format!(
        "SELECT d.seq, d.id, d.received_at, e.actor, d.prompt, d.target, d.request, d.report, d.outcome, d.reason, e.version,
                d.contribution, c.kind AS last_kind, c.superseded_by
         FROM edits AS d
         JOIN entries AS e ON e.seq = d.seq
         LEFT JOIN version_changes AS c {}
             ON c.edit = d.id AND c.version = (SELECT max(version) FROM version_changes WHERE edit = d.id)
         WHERE {rest}",
        S::BY_EDIT
    )
}

pub async fn one<S: Session>(session: &mut S, id: Uuid) -> Result<Option<EditRow>, LogError> {
    let row = session.first(&select::<S>("d.id = ?"), &[Bind::Bytes(id.as_bytes())]).await?;
    row.as_ref().map(convert::edit).transpose()
}

pub async fn page<S: Session>(session: &mut S, query: &EditQuery) -> Result<Page<EditRow>, LogError> {
    let limit = query.limit.max(1) as usize;
    // The same number in both tables; an actor's entries are found in order by the index of theirs.
    let seq = if query.actor.is_some() { "e.seq" } else { "d.seq" };
    let times = [query.since, query.until].map(|time| time.map(stored_time));
    let text = query.text.as_ref().map(|text| text.to_ascii_lowercase());
    let (mut conditions, mut binds) =
        (vec![format!("{seq} < ?")], vec![Bind::Number(bound(query.before.unwrap_or(u64::MAX)))]);
    if let Some(status) = query.status {
        conditions.push(status_is(status).to_owned());
    }
    if let Some(text) = &text {
        conditions.push(format!("({} OR {})", S::contains("d.prompt"), S::contains("d.target")));
        binds.extend([Bind::Words(text), Bind::Words(text)]);
    }
    if let Some(actor) = &query.actor {
        conditions.push("e.actor = ?".to_owned());
        binds.push(Bind::Text(actor));
    }
    for (condition, time) in ["d.received_at >= ?", "d.received_at < ?"].into_iter().zip(&times) {
        if let Some(time) = time {
            conditions.push(condition.to_owned());
            binds.push(Bind::Text(time));
        }
    }
    // One more than asked for, to know whether another page follows.
    binds.push(Bind::Number(bound(limit as u64 + 1)));
    let sql = select::<S>(&format!("{} ORDER BY {seq} DESC LIMIT ?", conditions.join(" AND ")));
    let rows = session.all(&sql, &binds).await?;
    let items: Vec<EditRow> = rows.iter().take(limit).map(convert::edit).collect::<Result<_, _>>()?;
    let next = items.last().filter(|_| rows.len() > limit).map(|edit| edit.seq);
    Ok(Page { items, next })
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
