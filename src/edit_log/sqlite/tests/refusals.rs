//! What the log refuses, and that nothing is left behind then.

use jiff::Timestamp;
use uuid::Uuid;

use super::{Fixture, answer, edit, identity, without_effect};
use crate::{
    digest::Digest,
    edit_log::{
        EditLog, EditQuery, Identity, LogError, NewEdit, NewVersion, Outcome, Removal, VersionKind, WriterLock,
        sqlite::SqliteLog,
    },
};

/// Tables and one column of each.
const TABLES: [(&str, &str); 7] = [
    ("entries", "actor"),
    ("identity", "composition"),
    ("edits", "prompt"),
    ("contributions", "bytes"),
    ("versions", "active"),
    ("version_changes", "kind"),
    ("idempotency", "body"),
];

/// Two versions with a row in every table.
async fn full() -> (Fixture, Uuid) {
    let fixture = Fixture::new().await;
    let first = edit("first");
    let id = first.id;
    let version =
        NewVersion { edits: vec![first], idempotency: Some(answer("key")), ..fixture.next(VersionKind::Edit).await };
    fixture.log.commit(version).await.unwrap();
    (fixture, id)
}

#[tokio::test]
async fn another_version_than_the_next_leaves_nothing() {
    let (fixture, _) = full().await;
    for given in [0, 1, 3, u64::MAX] {
        let new = edit("second");
        let id = new.id;
        let version = NewVersion { number: given, edits: vec![new], ..fixture.next(VersionKind::Edit).await };
        let error = fixture.log.commit(version).await.unwrap_err();
        assert!(matches!(error, LogError::VersionConflict { expected: 2, given: g } if g == given), "{error}");
        assert!(fixture.log.edit(id).await.unwrap().is_none());
    }
    assert_eq!(fixture.log.check_chain().await.unwrap(), 4);
    fixture.apply(vec![edit("second")]).await;
}

#[tokio::test]
async fn contradictions_are_refused_whole() {
    let (fixture, first) = full().await;
    let taken_back = edit("taken back");
    let gone = taken_back.id;
    fixture.apply(vec![taken_back]).await;
    fixture.take_back(gone).await;
    let next = fixture.next(VersionKind::Edit).await;
    let removal = |edit| Removal { edit, superseded_by: None };
    let stranger = Uuid::now_v7();
    let new = || vec![edit("new")];
    let contradictions = [
        ("unknown removal", NewVersion { edits: new(), removed: vec![removal(stranger)], ..next.clone() }),
        ("inactive removal", NewVersion { edits: new(), removed: vec![removal(gone)], ..next.clone() }),
        ("double removal", NewVersion { removed: vec![removal(first), removal(first)], ..next.clone() }),
        ("active restored", NewVersion { edits: new(), restored: vec![first], ..next.clone() }),
        ("unknown restored", NewVersion { edits: new(), restored: vec![stranger], ..next.clone() }),
        ("double restored", NewVersion { restored: vec![gone, gone], ..next.clone() }),
        ("known edit", NewVersion { edits: vec![NewEdit { id: first, ..edit("again") }], ..next.clone() }),
        ("same prompt", NewVersion { edits: vec![edit("first")], ..next.clone() }),
        ("twins", NewVersion { edits: vec![edit("twin"), edit("twin")], ..next.clone() }),
        ("key", NewVersion { edits: new(), idempotency: Some(answer("key")), ..next.clone() }),
        ("base", NewVersion { kind: VersionKind::Base, ..next.clone() }),
        ("failed", NewVersion { edits: vec![without_effect("f", Outcome::Failed("f".into()))], ..next.clone() }),
        ("empty", NewVersion { edits: vec![NewEdit { contribution: None, ..edit("e") }], ..next.clone() }),
        (
            "superseded by a stranger",
            NewVersion { removed: vec![Removal { edit: first, superseded_by: Some(stranger) }], ..next.clone() },
        ),
    ];
    let before = fixture.log.check_chain().await.unwrap();
    for (name, version) in contradictions {
        let error = fixture.log.commit(version).await.unwrap_err();
        assert!(matches!(error, LogError::Inconsistent(_)), "{name}: {error}");
        assert_eq!(fixture.log.check_chain().await.unwrap(), before, "{name}");
    }
    let applied = fixture.log.record(vec![without_effect("r", Outcome::Rejected("r".into())), edit("applied")]).await;
    assert!(matches!(applied, Err(LogError::Inconsistent(_))));
    assert_eq!(fixture.log.check_chain().await.unwrap(), before);
}

#[tokio::test]
async fn another_identity_is_refused_by_name() {
    let (fixture, _) = full().await;
    let other = Digest::of(b"other");
    let others = [
        ("model", Identity { base: other, ..identity() }),
        ("editor", Identity { editor: other, ..identity() }),
        ("composition", Identity { composition: "joint".into(), ..identity() }),
        ("base model's weights", Identity { base_weights: other, ..identity() }),
        ("empty set", Identity { empty_set: other, ..identity() }),
    ];
    for (name, given) in others {
        let error = fixture.log.pin(&given).await.unwrap_err();
        let LogError::IdentityMismatch { what, pinned, given } = error else { panic!("{error}") };
        assert_eq!(what, name);
        assert_ne!(pinned, given);
    }
}

/// Law 6, by the database and not by manners.
#[tokio::test]
async fn triggers_refuse_to_change_remove_or_replace_any_row() {
    let (fixture, _) = full().await;
    let mut raw = fixture.raw().await;
    for (table, column) in TABLES {
        let attempts = [
            format!("UPDATE {table} SET {column} = {column}"),
            format!("UPDATE OR REPLACE {table} SET {column} = {column}"),
            format!("DELETE FROM {table}"),
            format!("INSERT OR REPLACE INTO {table} SELECT * FROM {table}"),
        ];
        for sql in attempts {
            let error = sqlx::query(sqlx::AssertSqlSafe(sql.clone())).execute(&mut raw).await.unwrap_err();
            assert!(error.to_string().contains("the log is append-only"), "{sql}: {error}");
        }
    }
    assert_eq!(fixture.log.check_chain().await.unwrap(), 4);
}

#[tokio::test]
async fn unknown_versions_and_edits_are_named() {
    let (fixture, _) = full().await;
    let stranger = Uuid::now_v7();
    let unknown = fixture.log.active_set(2).await;
    assert!(matches!(unknown, Err(LogError::UnknownVersion { number: 2, newest: 1 })));
    assert!(matches!(fixture.log.changes(0, 7).await, Err(LogError::UnknownVersion { number: 7, newest: 1 })));
    assert!(matches!(fixture.log.contribution(stranger).await, Err(LogError::UnknownEdit(id)) if id == stranger));
    assert!(fixture.log.edit(stranger).await.unwrap().is_none());
}

#[tokio::test]
async fn an_unpinned_log_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let log = SqliteLog::open(&format!("sqlite://{}/amend.db", folder.path().display())).await.unwrap();
    assert!(matches!(log.head().await, Err(LogError::NotPinned)));
    let edits = vec![without_effect("r", Outcome::Rejected("r".into()))];
    assert!(matches!(log.record(edits).await, Err(LogError::NotPinned)));
    assert_eq!(log.check_chain().await.unwrap(), 0);
    assert!(log.edits(&EditQuery::default()).await.unwrap().items.is_empty());
}

/// SQLite rolls back by itself when it runs out of space; the next commit must find a sound connection.
#[tokio::test]
async fn a_full_disk_refuses_the_commit_and_nothing_else() {
    let (fixture, _) = full().await;
    let writer = fixture.log.writer.as_ref().unwrap();
    let limit: i64 = sqlx::query_scalar("PRAGMA max_page_count = 1").fetch_one(writer).await.unwrap();
    assert!(limit < 100, "the limit is as low as the file is large: {limit} pages");
    let large = NewEdit { contribution: Some(vec![7; 4 << 20]), ..edit("large") };
    let version = NewVersion { edits: vec![large.clone()], ..fixture.next(VersionKind::Edit).await };
    let error = fixture.log.commit(version.clone()).await.unwrap_err();
    assert!(matches!(error, LogError::Full), "{error:?}");
    assert_eq!(fixture.log.check_chain().await.unwrap(), 4);
    // The new connection has no such limit.
    fixture.log.commit(version).await.unwrap();
    assert_eq!(fixture.log.contribution(large.id).await.unwrap().len(), 4 << 20);
}

#[tokio::test]
async fn opening_what_is_no_log_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("amend.db");
    let url = format!("sqlite://{}", path.display());
    let absent = SqliteLog::open_read_only(&url).await.err().unwrap();
    assert!(matches!(&absent, LogError::NoDatabase { path: named } if *named == path), "{absent}");
    assert!(!path.exists());

    for url in ["postgres://localhost/amend", "sqlite::memory:", "sqlite://", "amend.db"] {
        let error = SqliteLog::open(url).await.err().unwrap();
        assert!(error.to_string().contains(url), "{error}");
    }

    std::fs::write(&path, vec![b'x'; 8192]).unwrap();
    let error = SqliteLog::open(&url).await.err().unwrap();
    assert!(error.to_string().contains("not a database"), "{error}");
    assert!(SqliteLog::open_read_only(&url).await.is_err());

    let other = folder.path().join("other.db");
    std::fs::write(&other, []).unwrap();
    let error = SqliteLog::open_read_only(&format!("sqlite://{}", other.display())).await.err().unwrap();
    assert!(error.to_string().contains("holds no log"), "{error}");
}

/// Law 5: the lock is beside the database and names its holder.
#[tokio::test]
async fn a_second_writer_is_told_who_holds_the_database() {
    let (fixture, _) = full().await;
    let _lock = WriterLock::acquire(&fixture.url).unwrap();
    let Err(error) = WriterLock::acquire(&fixture.url) else { panic!("taken twice") };
    let this_process = format!("process {} on host ", std::process::id());
    assert!(error.to_string().contains(&this_process), "{error}");
    let year = Timestamp::now().to_string()[..4].to_owned();
    assert!(error.to_string().contains(&format!("since {year}-")), "{error}");
    // Readers need no lock.
    let reader = SqliteLog::open_read_only(&fixture.url).await.unwrap();
    assert_eq!(reader.head().await.unwrap().number, 1);
}
