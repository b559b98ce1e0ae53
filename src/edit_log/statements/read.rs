//! Reading versions, sets, contributions and answers.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::{
    Bind, Columns, Session,
    convert::{self, bound},
    keyed,
};
use crate::edit_log::{
    Change, EditBrief, IdempotencyRow, Identity, LogError, VersionRow,
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

pub async fn identity(session: &mut impl Session) -> Result<Option<Identity>, LogError> {
    let row = session.first("SELECT * FROM identity", &[]).await?;
    row.as_ref().map(convert::identity).transpose()
}

pub async fn head(session: &mut impl Session) -> Result<VersionRow, LogError> {
    let row = session.first(select_version!("ORDER BY v.number DESC LIMIT 1"), &[]).await?;
    convert::version(&row.ok_or(LogError::NotPinned)?)
}

pub async fn version(session: &mut impl Session, number: u64) -> Result<Option<VersionRow>, LogError> {
    let row = session.first(select_version!("WHERE v.number = ?"), &[Bind::Number(bound(number))]).await?;
    row.as_ref().map(convert::version).transpose()
}

pub async fn versions(
    session: &mut impl Session,
    before: Option<u64>,
    limit: u32,
) -> Result<Vec<VersionRow>, LogError> {
    let binds = [Bind::Number(bound(before.unwrap_or(u64::MAX))), Bind::Number(limit.into())];
    let rows = session.all(select_version!("WHERE v.number < ? ORDER BY v.number DESC LIMIT ?"), &binds).await?;
    rows.iter().map(convert::version).collect()
}

/// `snapshot` is one: what it is asked twice, it answers alike.
pub async fn changes(snapshot: &mut impl Session, after: u64, to: u64) -> Result<Vec<Change>, LogError> {
    known(snapshot, to).await?;
    let sql = "SELECT version, edit, kind, superseded_by FROM version_changes
               WHERE version > ? AND version <= ? ORDER BY version, position";
    let rows = snapshot.all(sql, &[Bind::Number(bound(after)), Bind::Number(bound(to))]).await?;
    rows.iter().map(convert::change).collect()
}

/// An edit is active in a version if its last change up to it is that it was added. `snapshot` is one.
pub async fn active_set(snapshot: &mut impl Session, number: u64) -> Result<BTreeSet<Uuid>, LogError> {
    known(snapshot, number).await?;
    let sql = "SELECT c.edit FROM version_changes AS c
               JOIN (SELECT edit, max(version) AS version FROM version_changes WHERE version <= ? GROUP BY edit) AS last
                 ON last.edit = c.edit AND last.version = c.version
               WHERE c.kind = 'added'";
    let rows = snapshot.all(sql, &[Bind::Number(bound(number))]).await?;
    convert::active_set(&rows, number)
}

async fn known(session: &mut impl Session, number: u64) -> Result<(), LogError> {
    let newest = head(session).await?.number;
    if number > newest {
        return Err(LogError::UnknownVersion { number, newest });
    }
    Ok(())
}

pub async fn contribution(session: &mut impl Session, id: Uuid) -> Result<Vec<u8>, LogError> {
    contributions(session, &[id]).await?.pop().ok_or(LogError::UnknownEdit(id))
}

/// In the order of `ids`.
pub async fn contributions(session: &mut impl Session, ids: &[Uuid]) -> Result<Vec<Vec<u8>>, LogError> {
    let sql = "SELECT e.*, c.bytes, d.compaction FROM edits AS e LEFT JOIN contributions AS c ON c.seq = e.seq
               LEFT JOIN dropped AS d ON d.seq = e.seq WHERE e.id";
    let rows = by_id(session, sql, ids).await?;
    ids.iter().map(|id| contributed(*id, rows.get(id).ok_or(LogError::UnknownEdit(*id))?)).collect()
}

pub async fn briefs(session: &mut impl Session, ids: &[Uuid]) -> Result<Vec<EditBrief>, LogError> {
    let rows = by_id(session, "SELECT seq, id, prompt, contribution FROM edits WHERE id", ids).await?;
    ids.iter().map(|id| convert::brief(rows.get(id).ok_or(LogError::UnknownEdit(*id))?)).collect()
}

async fn by_id<S: Session>(session: &mut S, sql: &str, ids: &[Uuid]) -> Result<BTreeMap<Uuid, S::Row>, LogError> {
    let keys: Vec<Bind<'_>> = ids.iter().map(|id| Bind::Bytes(id.as_bytes())).collect();
    let rows = keyed(session, sql, &keys, "").await?;
    rows.into_iter().map(|row| Ok((convert::edit_id(&row)?, row))).collect()
}

/// Held against what the edit's row says.
fn contributed(id: Uuid, row: &impl Columns) -> Result<Vec<u8>, LogError> {
    let edit = convert::edit_body(row)?;
    let bytes = row.bytes("bytes").map_err(|why| LogError::damaged("contributions", edit_name(id), why))?;
    let compaction = row.number("compaction").map_err(|why| LogError::damaged("dropped", edit_name(id), why))?;
    if bytes.is_none() && compaction.is_some() {
        return Err(LogError::Dropped(id));
    }
    contribution_fits(id, edit.contribution.as_ref(), bytes)?;
    bytes.map(<[u8]>::to_vec).ok_or(LogError::NoContribution(id))
}

pub async fn is_dropped(session: &mut impl Session, id: Uuid) -> Result<bool, LogError> {
    let sql = "SELECT d.seq FROM dropped AS d JOIN edits AS e ON e.seq = d.seq WHERE e.id = ?";
    Ok(session.first(sql, &[Bind::Bytes(id.as_bytes())]).await?.is_some())
}

pub async fn dropped(session: &mut impl Session) -> Result<BTreeSet<Uuid>, LogError> {
    let rows = session.all("SELECT e.seq, e.id FROM dropped AS d JOIN edits AS e ON e.seq = d.seq", &[]).await?;
    rows.iter().map(convert::edit_id).collect()
}

pub async fn idempotent(session: &mut impl Session, key: &str) -> Result<Option<IdempotencyRow>, LogError> {
    let row = session.first("SELECT * FROM idempotency WHERE key = ?", &[Bind::Text(key)]).await?;
    row.as_ref().map(convert::idempotency).transpose()
}

pub async fn ping(session: &mut impl Session) -> Result<(), LogError> {
    // Reads a page of the log, which `SELECT 1` would not.
    session.first("SELECT seq FROM entries LIMIT 1", &[]).await.map(drop)
}
