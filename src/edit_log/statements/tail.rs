//! The tail of the chain: inserts rows, each with its entry and hash, inside one transaction.

use jiff::Timestamp;

use super::{
    Bind, Session,
    convert::{self, bound, stored_time},
    read,
};
use crate::{
    digest::Digest,
    edit_log::{
        LogError, NewEdit, Outcome, VersionRow,
        chain::{ChangeBody, EditBody, Entry, EntryKind, GENESIS, IdempotencyBody, VersionBody},
    },
    faults,
};

/// The tail of the chain, while one transaction appends to it.
pub struct Tail<'c, S> {
    pub transaction: &'c mut S,
    seq: u64,
    hash: Digest,
    /// One time for all entries of the transaction.
    now: Timestamp,
}

impl<'c, S: Session> Tail<'c, S> {
    /// Finds the newest entry, which stays the newest until the transaction ends: nobody else writes meanwhile.
    pub async fn of(transaction: &'c mut S) -> Result<Self, LogError> {
        let (seq, hash) = match transaction.first("SELECT * FROM entries ORDER BY seq DESC LIMIT 1", &[]).await? {
            Some(row) => {
                let (entry, _, hash) = convert::entry(&row)?;
                (entry.seq, hash)
            }
            None => (0, GENESIS),
        };
        Ok(Self { transaction, seq, hash, now: faults::now() })
    }

    /// Appends an entry that heads a row with this digest; returns its `seq`.
    pub async fn entry(
        &mut self,
        kind: EntryKind,
        version: Option<u64>,
        actor: &str,
        body: Digest,
    ) -> Result<u64, LogError> {
        let entry =
            Entry { seq: self.seq + 1, at: stored_time(self.now), kind, version, actor: actor.to_owned(), body };
        let hash = entry.hash(&self.hash);
        let sql = "INSERT INTO entries (seq, at, kind, version, actor, body_digest, prev_hash, hash)
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
        let binds = [
            Bind::Number(bound(entry.seq)),
            Bind::Text(&entry.at),
            Bind::Text(kind.as_str()),
            Bind::OptionalNumber(version.map(bound)),
            Bind::Text(actor),
            Bind::Bytes(body.as_bytes()),
            Bind::Bytes(self.hash.as_bytes()),
            Bind::Bytes(hash.as_bytes()),
        ];
        self.transaction.run(sql, &binds).await?;
        self.seq = entry.seq;
        self.hash = hash;
        Ok(entry.seq)
    }

    /// Appends an edit with its contribution.
    pub async fn edit(&mut self, edit: NewEdit, version: Option<u64>) -> Result<(), LogError> {
        let bytes = edit.contribution;
        if bytes.is_some() != (edit.outcome == Outcome::Applied) {
            let problem = "an applied edit has a contribution, another has none";
            return Err(LogError::Inconsistent(format!("edit {}: {problem}", edit.id)));
        }
        let id = [Bind::Bytes(edit.id.as_bytes())];
        if self.transaction.first("SELECT seq FROM edits WHERE id = ?", &id).await?.is_some() {
            return Err(LogError::Inconsistent(format!("edit {} is in the log already", edit.id)));
        }
        let (outcome, reason) = edit.outcome.into_parts();
        let body = EditBody {
            id: edit.id,
            received_at: stored_time(edit.received_at),
            prompt: edit.prompt,
            target: edit.target,
            request: edit.request.to_string(),
            report: edit.report.to_string(),
            outcome: outcome.to_owned(),
            reason,
            contribution: bytes.as_deref().map(Digest::of),
        };
        let seq = self.entry(EntryKind::Edit, version, &edit.actor, body.digest()).await?;
        self.edit_row(seq, &body).await?;
        if let Some(bytes) = bytes {
            let binds = [Bind::Number(bound(seq)), Bind::Bytes(&bytes)];
            self.transaction.run("INSERT INTO contributions (seq, bytes) VALUES (?, ?)", &binds).await?;
        }
        Ok(())
    }

    async fn edit_row(&mut self, seq: u64, body: &EditBody) -> Result<(), LogError> {
        let sql = "INSERT INTO edits
                       (seq, id, received_at, prompt, target, request, report, outcome, reason, contribution)
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        let binds = [
            Bind::Number(bound(seq)),
            Bind::Bytes(body.id.as_bytes()),
            Bind::Text(&body.received_at),
            Bind::Words(&body.prompt),
            Bind::Words(&body.target),
            Bind::Text(&body.request),
            Bind::Text(&body.report),
            Bind::Text(&body.outcome),
            Bind::OptionalWords(body.reason.as_deref()),
            Bind::OptionalBytes(body.contribution.as_ref().map(|digest| &digest.as_bytes()[..])),
        ];
        self.transaction.run(sql, &binds).await
    }

    /// Appends a version; its changes and its answer must follow.
    pub async fn version(&mut self, actor: &str, body: &VersionBody) -> Result<VersionRow, LogError> {
        let kind = if body.number == 0 { EntryKind::Base } else { EntryKind::Version };
        let seq = self.entry(kind, Some(body.number), actor, body.digest()).await?;
        let sql = "INSERT INTO versions
                       (number, seq, kind, digest, set_digest, active, changes_digest, idempotency_digest)
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
        let binds = [
            Bind::Number(bound(body.number)),
            Bind::Number(bound(seq)),
            Bind::Text(body.kind.as_str()),
            Bind::Bytes(body.digest.as_bytes()),
            Bind::Bytes(body.set_digest.as_bytes()),
            Bind::Number(bound(body.active)),
            Bind::Bytes(body.changes.as_bytes()),
            Bind::OptionalBytes(body.idempotency.as_ref().map(|digest| &digest.as_bytes()[..])),
        ];
        self.transaction.run(sql, &binds).await?;
        Ok(VersionRow {
            number: body.number,
            kind: body.kind,
            actor: actor.to_owned(),
            created_at: self.now,
            digest: body.digest,
            set_digest: body.set_digest,
            active: body.active,
            entry_hash: self.hash,
        })
    }

    /// Appends the changes of the version just appended.
    pub async fn changes(&mut self, version: u64, changes: &[ChangeBody]) -> Result<(), LogError> {
        for (position, change) in changes.iter().enumerate() {
            let sql =
                "INSERT INTO version_changes (version, position, edit, kind, superseded_by) VALUES (?, ?, ?, ?, ?)";
            let binds = [
                Bind::Number(bound(version)),
                Bind::Number(bound(position as u64)),
                Bind::Bytes(change.edit.as_bytes()),
                Bind::Text(change.kind.as_str()),
                Bind::OptionalBytes(change.superseded_by.as_ref().map(|id| &id.as_bytes()[..])),
            ];
            self.transaction.run(sql, &binds).await?;
        }
        Ok(())
    }

    /// Appends the answer of the version just appended.
    pub async fn idempotency(&mut self, answer: &IdempotencyBody) -> Result<(), LogError> {
        if read::idempotent(self.transaction, &answer.key).await?.is_some() {
            return Err(LogError::Inconsistent(format!("idempotency key {:?} has an answer already", answer.key)));
        }
        let sql = "INSERT INTO idempotency (key, version, request, http_status, body) VALUES (?, ?, ?, ?, ?)";
        let binds = [
            Bind::Text(&answer.key),
            Bind::Number(bound(answer.version)),
            Bind::Bytes(answer.request.as_bytes()),
            Bind::Number(answer.http_status.into()),
            Bind::Text(&answer.body),
        ];
        self.transaction.run(sql, &binds).await
    }
}
