//! Law 5 over a shared database: one process has the writer's place, and nobody else commits.

use std::time::Duration;

use sqlx::{Connection, PgConnection, SqliteConnection};
use tokio::time::{Instant, sleep, timeout};

use super::{Database, edit, identity, server::PostgresServer};
use crate::{
    digest::Digest,
    edit_log::{
        EditLog, LEASE, LogError, NewEdit, NewVersion, Outcome, Seat, VersionKind,
        postgres::{PostgresLog, PostgresSeat},
        statements::{Bind, Columns, Session},
    },
};

/// A process of several at one log.
struct Replica {
    log: PostgresLog,
    seat: PostgresSeat,
}

impl Replica {
    async fn at(url: &str, address: &str) -> Self {
        let log = PostgresLog::open(url).await.unwrap();
        let seat = log.seat(Some(address.to_owned()));
        Self { log, seat }
    }

    async fn commit(&self) -> Result<u64, LogError> {
        self.commit_with(edit("prompt")).await
    }

    async fn commit_with(&self, new: NewEdit) -> Result<u64, LogError> {
        let number = self.log.head().await?.number + 1;
        let new = NewEdit { prompt: format!("prompt {number}"), ..new };
        let (digest, set_digest) = (Digest::of(&number.to_le_bytes()), Digest::of(b"set"));
        let version = NewVersion {
            number,
            kind: VersionKind::Edit,
            actor: "ana".into(),
            digest,
            set_digest,
            edits: vec![new],
            restored: Vec::new(),
            removed: Vec::new(),
            idempotency: None,
        };
        Ok(self.log.commit(version).await?.number)
    }
}

async fn two() -> Option<(Database, String, Replica, Replica)> {
    let server = PostgresServer::start()?;
    let url = server.database();
    let (one, two) = (Replica::at(&url, "http://one").await, Replica::at(&url, "http://two").await);
    Some((Database::Postgres(server), url, one, two))
}

#[tokio::test]
async fn one_process_has_the_place_and_only_it_commits() {
    let Some((_server, _, one, two)) = two().await else { return };
    assert_eq!(one.seat.survey().await.unwrap().newest, None);
    assert!(matches!(one.log.pin(&identity()).await, Err(LogError::NotWriter { own: 0, newest: 0 })));
    assert_eq!(one.seat.take().await.unwrap(), Some(1));
    assert_eq!(two.seat.take().await.unwrap(), None);
    one.log.pin(&identity()).await.unwrap();
    two.log.pin(&identity()).await.unwrap();
    assert_eq!(one.commit().await.unwrap(), 1);
    assert!(matches!(two.commit().await, Err(LogError::NotWriter { own: 0, newest: 1 })));
    let survey = two.seat.survey().await.unwrap();
    assert_eq!((survey.newest, survey.epoch, survey.address.as_deref()), (Some(1), 1, Some("http://one")));
    assert!(survey.holder.contains("process"), "{}", survey.holder);
    one.seat.keep().await.unwrap();
    assert!(matches!(two.seat.keep().await, Err(LogError::Storage(_))), "it never had it");

    one.seat.leave().await;
    assert_eq!(two.seat.take().await.unwrap(), Some(2));
    assert!(matches!(one.commit().await, Err(LogError::NotWriter { own: 0, newest: 2 })));
    assert_eq!(two.commit().await.unwrap(), 2);
    assert_eq!(two.log.check_chain().await.unwrap(), 2 + 2 * 2);
}

/// The place is lost by silence alone: nothing is heard of the process that has it, and its sessions stay open.
#[tokio::test]
async fn a_silent_writer_is_followed_and_can_not_commit_any_more() {
    let Some((_server, _, one, two)) = two().await else { return };
    one.seat.take().await.unwrap().unwrap();
    one.log.pin(&identity()).await.unwrap();
    one.commit().await.unwrap();
    let begun = Instant::now();
    let epoch = loop {
        if let Some(epoch) = two.seat.take().await.unwrap() {
            break epoch;
        }
        sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(epoch, 2);
    assert!(begun.elapsed() < LEASE + Duration::from_secs(2), "{:?}", begun.elapsed());
    // Its old connection was ended. On a new one it is refused for its epoch.
    one.commit().await.unwrap_err();
    assert!(matches!(one.commit().await, Err(LogError::NotWriter { own: 1, newest: 2 })));
    assert!(one.seat.keep().await.is_err());
    assert_eq!(two.commit().await.unwrap(), 2);
    assert_eq!(two.log.check_chain().await.unwrap(), 2 + 2 * 2);
}

/// A commit that was begun and not ended holds rows that the next writer needs, until it is ended for it.
#[tokio::test]
async fn a_commit_that_stands_still_does_not_hold_up_the_next_writer() {
    let Some((_server, _, one, two)) = two().await else { return };
    one.seat.take().await.unwrap().unwrap();
    one.log.pin(&identity()).await.unwrap();
    // Too large to be written in one go, so that this stops in the middle of it.
    let large = NewEdit { contribution: Some(vec![7; 64 << 20]), ..edit("large") };
    let mut stopped = Box::pin(one.commit_with(large));
    assert!(timeout(Duration::from_millis(300), &mut stopped).await.is_err(), "it was to be stopped");
    one.seat.leave().await;
    let begun = Instant::now();
    assert_eq!(two.seat.take().await.unwrap(), Some(2));
    assert_eq!(two.commit().await.unwrap(), 1);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    stopped.await.unwrap_err();
    assert_eq!(two.log.check_chain().await.unwrap(), 2 + 2);
}

#[tokio::test]
async fn followers_are_told_of_commits_and_of_a_new_writer() {
    let Some((_server, _, one, two)) = two().await else { return };
    two.seat.survey().await.unwrap();
    let told = async |what: &str| {
        let long = Duration::from_secs(30);
        let begun = Instant::now();
        two.seat.changed(long).await;
        assert!(begun.elapsed() < long, "{what}");
        two.seat.survey().await.unwrap()
    };
    one.seat.take().await.unwrap().unwrap();
    assert_eq!(told("a new writer").await.epoch, 1);
    one.log.pin(&identity()).await.unwrap();
    assert_eq!(told("version 0").await.newest, Some(0));
    one.commit().await.unwrap();
    assert_eq!(told("version 1").await.newest, Some(1));
    let begun = Instant::now();
    two.seat.changed(Duration::from_millis(200)).await;
    assert!(begun.elapsed() >= Duration::from_millis(200), "nothing happened");
}

/// Tables with their columns: numbers `n`, text `t`, words of others `w`, bytes `b`.
const TABLES: [(&str, &str); 7] = [
    ("entries", "n seq, t at, t kind, n version, t actor, b body_digest, b prev_hash, b hash"),
    ("identity", "n seq, b base, b editor, t composition, b base_weights, b empty_set"),
    (
        "edits",
        "n seq, b id, t received_at, w prompt, w target, t request, t report, t outcome, w reason, b contribution",
    ),
    ("contributions", "n seq, b bytes"),
    ("versions", "n number, n seq, t kind, b digest, b set_digest, n active, b changes_digest, b idempotency_digest"),
    ("version_changes", "n version, n position, b edit, t kind, b superseded_by"),
    ("idempotency", "t key, n version, b request, n http_status, t body"),
];

/// The hashes are over the same bytes: what SQLite holds, put into PostgreSQL value by value, is a log there, with the hashes
/// that it had.
#[tokio::test]
async fn the_rows_of_one_database_are_a_log_in_the_other() {
    let Some(server) = PostgresServer::start() else { return };
    let (fixture, _) = super::refusals::full(&Database::Sqlite).await;
    fixture.apply(vec![edit("\u{c4}\u{d6}\u{0}\u{1F600}")]).await;
    fixture.log.record(vec![super::without_effect("no", Outcome::Rejected("a\u{0}b".into()))]).await.unwrap();
    let url = server.database();
    let log = PostgresLog::open(&url).await.unwrap();
    let mut from = SqliteConnection::connect(&fixture.url).await.unwrap();
    let mut to = PgConnection::connect(&url).await.unwrap();
    // As they are, and in the order of the tables.
    sqlx::query("SET session_replication_role = replica").execute(&mut to).await.unwrap();
    for (table, columns) in TABLES {
        let columns: Vec<(&str, &str)> = columns.split(", ").map(|column| column.split_once(' ').unwrap()).collect();
        let names = columns.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", ");
        let places = vec!["?"; columns.len()].join(", ");
        for row in from.all(&format!("SELECT {names} FROM {table}"), &[]).await.unwrap() {
            let texts: Vec<Option<String>> = columns
                .iter()
                .map(|(kind, name)| if "tw".contains(kind) { row.text(name).unwrap() } else { None })
                .collect();
            let binds = columns.iter().zip(&texts).map(|((kind, name), text)| match *kind {
                "n" => Bind::OptionalNumber(row.number(name).unwrap()),
                "b" => Bind::OptionalBytes(row.bytes(name).unwrap()),
                "w" => Bind::OptionalWords(text.as_deref()),
                _ => Bind::Text(text.as_deref().unwrap()),
            });
            let binds: Vec<Bind<'_>> = binds.collect();
            to.run(&format!("INSERT INTO {table} ({names}) VALUES ({places})"), &binds).await.unwrap();
        }
    }
    assert_eq!(log.check_chain().await.unwrap(), fixture.log.check_chain().await.unwrap());
    assert_eq!(log.head().await.unwrap(), fixture.log.head().await.unwrap());
}

#[tokio::test]
async fn opening_what_is_no_log_is_refused_without_the_password() {
    let Some(server) = PostgresServer::start() else { return };
    let url = server.database();
    assert!(matches!(PostgresLog::open_read_only(&url).await, Err(LogError::NotPinned)));
    let nobody = "postgres://me:secret@127.0.0.1:1/amend";
    for error in [PostgresLog::open(nobody).await.err(), PostgresLog::open_read_only(nobody).await.err()] {
        let error = error.unwrap().to_string();
        assert!(error.contains("amend at 127.0.0.1:1") && !error.contains("secret"), "{error}");
    }
    // Two at once make one schema.
    let (one, two) = tokio::join!(PostgresLog::open(&url), PostgresLog::open(&url));
    one.unwrap();
    two.unwrap();
    assert_eq!(PostgresLog::open_read_only(&url).await.unwrap().check_chain().await.unwrap(), 0);
}
