//! What the log refuses, and that nothing is left behind then.

use uuid::Uuid;

over_both_databases! {
    another_version_than_the_next_leaves_nothing,
    contradictions_are_refused_whole,
    another_identity_is_refused_by_name,
    triggers_refuse_to_change_remove_or_replace_any_row,
    triggers_refuse_to_drop_what_no_compaction_may,
    unknown_versions_and_edits_are_named,
    an_unpinned_log_says_so,
}

use super::{Database, Fixture, answer, edit, identity, open, over_both_databases, without_effect};
use crate::{
    digest::Digest,
    edit_log::{EditQuery, Identity, LogError, NewEdit, NewVersion, Outcome, Removal, VersionKind, shared_by_replicas},
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
pub(super) async fn full(database: &Database) -> (Fixture, Uuid) {
    let fixture = Fixture::new(database).await;
    let first = edit("first");
    let id = first.id;
    let version =
        NewVersion { edits: vec![first], idempotency: Some(answer("key")), ..fixture.next(VersionKind::Edit).await };
    fixture.log.commit(version).await.unwrap();
    (fixture, id)
}

async fn another_version_than_the_next_leaves_nothing(database: &Database) {
    let (fixture, _) = full(database).await;
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

async fn contradictions_are_refused_whole(database: &Database) {
    let (fixture, first) = full(database).await;
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

async fn another_identity_is_refused_by_name(database: &Database) {
    let (fixture, _) = full(database).await;
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
async fn triggers_refuse_to_change_remove_or_replace_any_row(database: &Database) {
    let (fixture, _) = full(database).await;
    for (table, column) in TABLES {
        let (change, remove) = (format!("UPDATE {table} SET {column} = {column}"), format!("DELETE FROM {table}"));
        let others = if shared_by_replicas(&fixture.url) {
            [format!("TRUNCATE {table} CASCADE"), format!("INSERT INTO {table} SELECT * FROM {table}")]
        } else {
            [
                format!("UPDATE OR REPLACE {table} SET {column} = {column}"),
                format!("INSERT OR REPLACE INTO {table} SELECT * FROM {table}"),
            ]
        };
        for sql in [change, remove].into_iter().chain(others) {
            let error = fixture.execute(&sql).await.unwrap_err();
            assert!(error.to_string().contains("the log is append-only"), "{sql}: {error}");
        }
    }
    assert_eq!(fixture.log.check_chain().await.unwrap(), 4);
}

/// A compaction is at the tail of the chain or nowhere, and what is active is never dropped.
async fn triggers_refuse_to_drop_what_no_compaction_may(database: &Database) {
    let (fixture, _) = full(database).await;
    for sql in [
        "INSERT INTO compactions (seq, until, dropped, dropped_digest) SELECT seq, at, 1, hash FROM entries WHERE seq = 1",
        "INSERT INTO dropped (seq, compaction) SELECT max(seq), (SELECT max(seq) FROM entries) FROM contributions",
    ] {
        let error = fixture.execute(sql).await.unwrap_err();
        assert!(error.to_string().contains("the log is append-only"), "{sql}: {error}");
    }
    assert_eq!(fixture.log.check_chain().await.unwrap(), 4);
}

async fn unknown_versions_and_edits_are_named(database: &Database) {
    let (fixture, _) = full(database).await;
    let stranger = Uuid::now_v7();
    let unknown = fixture.log.active_set(2).await;
    assert!(matches!(unknown, Err(LogError::UnknownVersion { number: 2, newest: 1 })));
    assert!(matches!(fixture.log.changes(0, 7).await, Err(LogError::UnknownVersion { number: 7, newest: 1 })));
    assert!(matches!(fixture.log.contribution(stranger).await, Err(LogError::UnknownEdit(id)) if id == stranger));
    assert!(fixture.log.edit(stranger).await.unwrap().is_none());
}

async fn an_unpinned_log_says_so(database: &Database) {
    let (url, _folder) = database.place();
    let log = open(&url).await;
    assert!(matches!(log.head().await, Err(LogError::NotPinned)));
    let edits = vec![without_effect("r", Outcome::Rejected("r".into()))];
    assert!(matches!(log.record(edits).await, Err(LogError::NotPinned)));
    assert_eq!(log.check_chain().await.unwrap(), 0);
    assert!(log.edits(&EditQuery::default()).await.unwrap().items.is_empty());
}
