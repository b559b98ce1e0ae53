//! Writing. Each function is given a transaction, which its caller commits if all went well and rolls back if anything is
//! wrong.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::{
    Bind, Session,
    convert::{self, bound},
    read,
    tail::Tail,
};
use crate::{
    edit_log::{
        ChangeKind, IdempotencyRow, Identity, LogError, NewEdit, NewVersion, Outcome, VersionKind, VersionRow,
        chain::{ChangeBody, EntryKind, IdempotencyBody, VersionBody, changes_digest, identity_digest},
    },
    faults::{self, Point},
};

/// Who pins: no request does.
const SYSTEM: &str = "system";

/// Pins an empty log and makes its version 0, or checks that it is pinned to the same.
pub async fn pin(transaction: &mut impl Session, identity: &Identity) -> Result<(), LogError> {
    let mut tail = Tail::of(transaction).await?;
    if let Some(pinned) = read::identity(tail.transaction).await? {
        return pinned.same_as(identity);
    }
    let seq = tail.entry(EntryKind::Identity, None, SYSTEM, identity_digest(identity)).await?;
    let sql =
        "INSERT INTO identity (seq, base, editor, composition, base_weights, empty_set) VALUES (?, ?, ?, ?, ?, ?)";
    let binds = [
        Bind::Number(bound(seq)),
        Bind::Bytes(identity.base.as_bytes()),
        Bind::Bytes(identity.editor.as_bytes()),
        Bind::Text(&identity.composition),
        Bind::Bytes(identity.base_weights.as_bytes()),
        Bind::Bytes(identity.empty_set.as_bytes()),
    ];
    tail.transaction.run(sql, &binds).await?;
    let base = VersionBody {
        number: 0,
        kind: VersionKind::Base,
        digest: identity.base_weights,
        set_digest: identity.empty_set,
        active: 0,
        changes: changes_digest(0, &[]),
        idempotency: None,
    };
    tail.version(SYSTEM, &base).await.map(drop)
}

/// Writes a version with everything that belongs to it.
pub async fn commit(transaction: &mut impl Session, version: NewVersion) -> Result<VersionRow, LogError> {
    let mut tail = Tail::of(transaction).await?;
    faults::reach(Point::CommitBegin)?;
    let head = read::head(tail.transaction).await?;
    let expected = head.number + 1;
    if version.number != expected {
        return Err(LogError::VersionConflict { expected, given: version.number });
    }
    if version.kind == VersionKind::Base {
        return Err(LogError::Inconsistent("only version 0 is the base".into()));
    }
    let changes = changes_of(&version);
    check_removals(tail.transaction, &version).await?;
    check_restored(tail.transaction, &version).await?;
    let added: Vec<Uuid> =
        changes.iter().filter(|change| change.kind == ChangeKind::Added).map(|change| change.edit).collect();
    for edit in version.edits {
        if edit.outcome != Outcome::Applied {
            return Err(LogError::Inconsistent(format!("edit {} is part of a version but was not applied", edit.id)));
        }
        tail.edit(edit, Some(version.number)).await?;
    }
    let answer = version.idempotency.map(|row| idempotency_body(version.number, row));
    let body = VersionBody {
        number: version.number,
        kind: version.kind,
        digest: version.digest,
        set_digest: version.set_digest,
        // No underflow: each removed edit was found active, and the table refuses the same change twice.
        active: head.active + added.len() as u64 - version.removed.len() as u64,
        changes: changes_digest(version.number, &changes),
        idempotency: answer.as_ref().map(IdempotencyBody::digest),
    };
    let row = tail.version(&version.actor, &body).await?;
    tail.changes(version.number, &changes).await?;
    if let Some(answer) = &answer {
        tail.idempotency(answer).await?;
    }
    check_prompts(tail.transaction, &added).await?;
    faults::reach(Point::CommitRows)?;
    Ok(row)
}

/// Writes edits that changed nothing.
pub async fn record(transaction: &mut impl Session, edits: Vec<NewEdit>) -> Result<(), LogError> {
    let mut tail = Tail::of(transaction).await?;
    // Version 0 stands before any edit.
    read::head(tail.transaction).await?;
    for edit in edits {
        if edit.outcome == Outcome::Applied {
            return Err(LogError::Inconsistent(format!("edit {} was applied but is in no version", edit.id)));
        }
        tail.edit(edit, None).await?;
    }
    faults::reach(Point::Record)?;
    Ok(())
}

/// Removals first, then what becomes active again, then what is new.
fn changes_of(version: &NewVersion) -> Vec<ChangeBody> {
    let removed = version.removed.iter().map(|removal| ChangeBody {
        edit: removal.edit,
        kind: ChangeKind::Removed,
        superseded_by: removal.superseded_by,
    });
    let added = version.restored.iter().copied().chain(version.edits.iter().map(|edit| edit.id));
    let added = added.map(|edit| ChangeBody { edit, kind: ChangeKind::Added, superseded_by: None });
    removed.chain(added).collect()
}

async fn check_removals(transaction: &mut impl Session, version: &NewVersion) -> Result<(), LogError> {
    let added: BTreeSet<Uuid> =
        version.restored.iter().copied().chain(version.edits.iter().map(|edit| edit.id)).collect();
    let mut seen = BTreeSet::new();
    for removal in &version.removed {
        if last_change(transaction, removal.edit).await? != Some(ChangeKind::Added) || !seen.insert(removal.edit) {
            return Err(LogError::Inconsistent(format!("edit {} is removed but not active", removal.edit)));
        }
        if let Some(by) = removal.superseded_by.filter(|by| !added.contains(by)) {
            return Err(LogError::Inconsistent(format!("edit {by} supersedes another but is not added with it")));
        }
    }
    Ok(())
}

async fn check_restored(transaction: &mut impl Session, version: &NewVersion) -> Result<(), LogError> {
    let mut seen = BTreeSet::new();
    for edit in &version.restored {
        if last_change(transaction, *edit).await? != Some(ChangeKind::Removed) || !seen.insert(*edit) {
            return Err(LogError::Inconsistent(format!("edit {edit} is restored but was not taken back")));
        }
        if read::is_dropped(transaction, *edit).await? {
            return Err(LogError::Dropped(*edit));
        }
    }
    Ok(())
}

/// Two active edits never share a prompt.
async fn check_prompts<S: Session>(transaction: &mut S, added: &[Uuid]) -> Result<(), LogError> {
    for id in added {
        let sql = format!(
            "SELECT other.id FROM edits AS this JOIN edits AS other ON {} AND other.id <> this.id
             WHERE this.id = ?
               AND 'added' = (SELECT kind FROM version_changes WHERE edit = other.id ORDER BY version DESC LIMIT 1)
             LIMIT 1",
            S::SAME_PROMPT
        );
        let twin = transaction.first(&sql, &[Bind::Bytes(id.as_bytes())]).await?;
        if let Some(twin) = twin.as_ref().map(convert::edit_id).transpose()? {
            return Err(LogError::Inconsistent(format!(
                "edits {twin} and {id} have the same prompt and would be active"
            )));
        }
    }
    Ok(())
}

async fn last_change(transaction: &mut impl Session, edit: Uuid) -> Result<Option<ChangeKind>, LogError> {
    let sql =
        "SELECT version, edit, kind, superseded_by FROM version_changes WHERE edit = ? ORDER BY version DESC LIMIT 1";
    let row = transaction.first(sql, &[Bind::Bytes(edit.as_bytes())]).await?;
    Ok(row.as_ref().map(convert::change).transpose()?.map(|change| change.kind))
}

fn idempotency_body(version: u64, row: IdempotencyRow) -> IdempotencyBody {
    let IdempotencyRow { key, request, http_status, body } = row;
    IdempotencyBody { key, version, request, http_status, body: body.to_string() }
}
