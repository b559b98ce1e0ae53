//! What the log promises, on real files. Here: the rows that the tests write.

mod backup;
mod chain;
mod compact;
mod history;
mod kill;
mod listing;
mod random;
mod refusals;

use jiff::Timestamp;
use serde_json::json;
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;
use uuid::Uuid;

use super::SqliteLog;
use crate::{
    digest::Digest,
    edit_log::{
        EditLog, EditStatus, IdempotencyRow, Identity, NewEdit, NewVersion, Outcome, Removal, VersionKind, VersionRow,
    },
};

/// A pinned log in a folder of its own.
struct Fixture {
    log: SqliteLog,
    url: String,
    _folder: TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/data/amend.db", folder.path().display());
        let log = SqliteLog::open(&url).await.unwrap();
        log.pin(&identity()).await.unwrap();
        Self { log, url, _folder: folder }
    }

    /// A connection past all manners: no foreign keys, as a stranger's tool would have it.
    async fn raw(&self) -> SqliteConnection {
        let mut raw = SqliteConnection::connect(&self.url).await.unwrap();
        sqlx::query("PRAGMA foreign_keys = OFF").execute(&mut raw).await.unwrap();
        raw
    }

    async fn next(&self, kind: VersionKind) -> NewVersion {
        let number = self.log.head().await.unwrap().number + 1;
        NewVersion {
            number,
            kind,
            actor: "ana".into(),
            digest: Digest::of(&number.to_le_bytes()),
            set_digest: Digest::of(b"set"),
            edits: Vec::new(),
            restored: Vec::new(),
            removed: Vec::new(),
            idempotency: None,
        }
    }

    async fn apply(&self, edits: Vec<NewEdit>) -> VersionRow {
        let version = NewVersion { edits, ..self.next(VersionKind::Edit).await };
        self.log.commit(version).await.unwrap()
    }

    async fn supersede(&self, old: Uuid, new: NewEdit) -> VersionRow {
        let removed = vec![Removal { edit: old, superseded_by: Some(new.id) }];
        let version = NewVersion { edits: vec![new], removed, ..self.next(VersionKind::Edit).await };
        self.log.commit(version).await.unwrap()
    }

    async fn take_back(&self, id: Uuid) -> VersionRow {
        let removed = vec![Removal { edit: id, superseded_by: None }];
        self.log.commit(NewVersion { removed, ..self.next(VersionKind::TakeBack).await }).await.unwrap()
    }

    async fn roll_back(&self, to: u64) -> VersionRow {
        let next = self.next(VersionKind::Rollback).await;
        let now = self.log.active_set(next.number - 1).await.unwrap();
        let then = self.log.active_set(to).await.unwrap();
        let restored = then.difference(&now).copied().collect();
        let removed = now.difference(&then).map(|id| Removal { edit: *id, superseded_by: None }).collect();
        self.log.commit(NewVersion { restored, removed, ..next }).await.unwrap()
    }

    async fn status(&self, id: Uuid) -> EditStatus {
        self.log.edit(id).await.unwrap().unwrap().status
    }
}

fn identity() -> Identity {
    Identity {
        base: Digest::of(b"base"),
        editor: Digest::of(b"editor"),
        composition: "sum".into(),
        base_weights: Digest::of(b"weights"),
        empty_set: Digest::of(b"empty"),
    }
}

fn edit(prompt: &str) -> NewEdit {
    NewEdit {
        id: Uuid::now_v7(),
        received_at: Timestamp::now(),
        actor: "ana".into(),
        prompt: prompt.into(),
        target: format!("target of {prompt}"),
        request: json!({"prompt": prompt, "note": "ä\u{0}\n"}),
        report: json!({"probability": 0.25}),
        outcome: Outcome::Applied,
        contribution: Some(format!("contribution of {prompt}").into_bytes()),
    }
}

fn without_effect(prompt: &str, outcome: Outcome) -> NewEdit {
    NewEdit { outcome, contribution: None, ..edit(prompt) }
}

fn answer(key: &str) -> IdempotencyRow {
    IdempotencyRow {
        key: key.into(),
        request: Digest::of(key.as_bytes()),
        http_status: 201,
        body: json!({"id": key, "probability": 0.1}),
    }
}
