//! What the log promises, on real files and a real server. Here: the databases, and the rows that the tests write.

mod backup;
mod chain;
mod compact;
mod history;
mod kill;
mod listing;
mod random;
mod refusals;
mod replicas;
#[path = "../../../tests/common/postgres.rs"]
mod server;
mod sqlite_alone;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use tempfile::TempDir;
use uuid::Uuid;

use self::server::PostgresServer;
use super::{postgres::PostgresLog, sqlite::SqliteLog};
use crate::{
    digest::Digest,
    edit_log::{
        EditLog, EditStatus, IdempotencyRow, Identity, NewEdit, NewVersion, Outcome, Removal, Seat, VersionKind,
        VersionRow,
    },
};

/// Makes of each of these functions two tests, over SQLite and over PostgreSQL.
macro_rules! over_both_databases {
    ($($test:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $test() {
                super::$test(&crate::edit_log::tests::Database::Sqlite).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test]
            async fn $test() {
                if let Some(database) = crate::edit_log::tests::Database::postgres() {
                    super::$test(&database).await;
                }
            })*
        }
    };
}
use over_both_databases;

/// What keeps logs.
enum Database {
    Sqlite,
    Postgres(PostgresServer),
}

impl Database {
    /// None, said aloud, where there is no PostgreSQL.
    fn postgres() -> Option<Self> {
        PostgresServer::start().map(Self::Postgres)
    }

    /// Where a new log may be, and the folder that it is in.
    fn place(&self) -> (String, TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let url = match self {
            Self::Sqlite => format!("sqlite://{}/data/amend.db", folder.path().display()),
            Self::Postgres(server) => server.database(),
        };
        (url, folder)
    }
}

/// Opens the log at `url` as its writer.
async fn open(url: &str) -> Arc<dyn EditLog> {
    if url.starts_with("sqlite:") {
        return Arc::new(SqliteLog::open(url).await.unwrap());
    }
    let log = PostgresLog::open(url).await.unwrap();
    let seat = log.seat(None);
    seat.take().await.unwrap().unwrap();
    Arc::new(log)
}

/// A pinned log of its own.
struct Fixture {
    log: Arc<dyn EditLog>,
    url: String,
    folder: TempDir,
}

impl Fixture {
    async fn new(database: &Database) -> Self {
        let (url, folder) = database.place();
        let log = open(&url).await;
        log.pin(&identity()).await.unwrap();
        Self { log, url, folder }
    }

    /// Carries out `sql` past all manners.
    async fn execute(&self, sql: &str) -> sqlx::Result<()> {
        let sql = AssertSqlSafe(sql.to_owned());
        if self.url.starts_with("sqlite:") {
            let mut raw = SqliteConnection::connect(&self.url).await?;
            sqlx::query("PRAGMA foreign_keys = OFF").execute(&mut raw).await?;
            sqlx::raw_sql(sql).execute(&mut raw).await?;
            raw.close().await
        } else {
            let mut raw = PgConnection::connect(&self.url).await?;
            sqlx::raw_sql(sql).execute(&mut raw).await?;
            raw.close().await
        }
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
