//! The tail of the chain: inserts rows, each with its entry and hash, inside one transaction.

use jiff::Timestamp;
use sqlx::{Connection, Sqlite, SqliteConnection, Transaction};

use super::{
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

/// The tail of the chain, while one transaction appends to it. Dropped without [`Tail::commit`], it rolls back.
pub(super) struct Tail<'c> {
    pub(super) transaction: Transaction<'c, Sqlite>,
    seq: u64,
    hash: Digest,
    /// One time for all entries of the transaction.
    now: Timestamp,
}

impl<'c> Tail<'c> {
    /// Begins the transaction and finds the newest entry.
    pub(super) async fn begin(connection: &'c mut SqliteConnection) -> Result<Self, LogError> {
        // IMMEDIATE: what is read below stays the newest until the commit.
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        let last = sqlx::query("SELECT * FROM entries ORDER BY seq DESC LIMIT 1").fetch_optional(&mut *transaction);
        let (seq, hash) = match last.await? {
            Some(row) => {
                let (entry, _, hash) = convert::entry(&row)?;
                (entry.seq, hash)
            }
            None => (0, GENESIS),
        };
        Ok(Self { transaction, seq, hash, now: faults::now() })
    }

    /// Law 3: when this returns, everything appended is on the disk.
    pub(super) async fn commit(self) -> Result<(), LogError> {
        Ok(self.transaction.commit().await?)
    }

    /// Appends an entry that heads a row with this digest; returns its `seq`.
    pub(super) async fn entry(
        &mut self,
        kind: EntryKind,
        version: Option<u64>,
        actor: &str,
        body: Digest,
    ) -> Result<u64, LogError> {
        let entry =
            Entry { seq: self.seq + 1, at: stored_time(self.now), kind, version, actor: actor.to_owned(), body };
        let hash = entry.hash(&self.hash);
        sqlx::query(
            "INSERT INTO entries (seq, at, kind, version, actor, body_digest, prev_hash, hash)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(bound(entry.seq))
        .bind(&entry.at)
        .bind(kind.as_str())
        .bind(version.map(bound))
        .bind(actor)
        .bind(&body.as_bytes()[..])
        .bind(&self.hash.as_bytes()[..])
        .bind(&hash.as_bytes()[..])
        .execute(&mut *self.transaction)
        .await?;
        self.seq = entry.seq;
        self.hash = hash;
        Ok(entry.seq)
    }

    /// Appends an edit with its contribution.
    pub(super) async fn edit(&mut self, edit: NewEdit, version: Option<u64>) -> Result<(), LogError> {
        let bytes = edit.contribution;
        if bytes.is_some() != (edit.outcome == Outcome::Applied) {
            let problem = "an applied edit has a contribution, another has none";
            return Err(LogError::Inconsistent(format!("edit {}: {problem}", edit.id)));
        }
        let known: i64 = sqlx::query_scalar("SELECT count(*) FROM edits WHERE id = ?")
            .bind(&edit.id.as_bytes()[..])
            .fetch_one(&mut *self.transaction)
            .await?;
        if known > 0 {
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
            sqlx::query("INSERT INTO contributions (seq, bytes) VALUES (?, ?)")
                .bind(bound(seq))
                .bind(bytes)
                .execute(&mut *self.transaction)
                .await?;
        }
        Ok(())
    }

    async fn edit_row(&mut self, seq: u64, body: &EditBody) -> Result<(), LogError> {
        sqlx::query(
            "INSERT INTO edits (seq, id, received_at, prompt, target, request, report, outcome, reason, contribution)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(bound(seq))
        .bind(&body.id.as_bytes()[..])
        .bind(&body.received_at)
        .bind(&body.prompt)
        .bind(&body.target)
        .bind(&body.request)
        .bind(&body.report)
        .bind(&body.outcome)
        .bind(&body.reason)
        .bind(body.contribution.as_ref().map(|digest| &digest.as_bytes()[..]))
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    /// Appends a version; its changes and its answer must follow.
    pub(super) async fn version(&mut self, actor: &str, body: &VersionBody) -> Result<VersionRow, LogError> {
        let kind = if body.number == 0 { EntryKind::Base } else { EntryKind::Version };
        let seq = self.entry(kind, Some(body.number), actor, body.digest()).await?;
        sqlx::query(
            "INSERT INTO versions (number, seq, kind, digest, set_digest, active, changes_digest, idempotency_digest)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(bound(body.number))
        .bind(bound(seq))
        .bind(body.kind.as_str())
        .bind(&body.digest.as_bytes()[..])
        .bind(&body.set_digest.as_bytes()[..])
        .bind(bound(body.active))
        .bind(&body.changes.as_bytes()[..])
        .bind(body.idempotency.as_ref().map(|digest| &digest.as_bytes()[..]))
        .execute(&mut *self.transaction)
        .await?;
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
    pub(super) async fn changes(&mut self, version: u64, changes: &[ChangeBody]) -> Result<(), LogError> {
        for (position, change) in changes.iter().enumerate() {
            sqlx::query(
                "INSERT INTO version_changes (version, position, edit, kind, superseded_by) VALUES (?, ?, ?, ?, ?)",
            )
            .bind(bound(version))
            .bind(bound(position as u64))
            .bind(&change.edit.as_bytes()[..])
            .bind(change.kind.as_str())
            .bind(change.superseded_by.as_ref().map(|id| &id.as_bytes()[..]))
            .execute(&mut *self.transaction)
            .await?;
        }
        Ok(())
    }

    /// Appends the answer of the version just appended.
    pub(super) async fn idempotency(&mut self, answer: &IdempotencyBody) -> Result<(), LogError> {
        if read::idempotent(&mut *self.transaction, &answer.key).await?.is_some() {
            return Err(LogError::Inconsistent(format!("idempotency key {:?} has an answer already", answer.key)));
        }
        sqlx::query("INSERT INTO idempotency (key, version, request, http_status, body) VALUES (?, ?, ?, ?, ?)")
            .bind(&answer.key)
            .bind(bound(answer.version))
            .bind(&answer.request.as_bytes()[..])
            .bind(answer.http_status)
            .bind(&answer.body)
            .execute(&mut *self.transaction)
            .await?;
        Ok(())
    }
}
