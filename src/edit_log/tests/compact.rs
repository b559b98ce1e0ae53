//! Compaction of a log in a file: what goes, what stays, and that nothing else can go that way.

use jiff::Timestamp;
use sqlx::{Connection, SqliteConnection};
use uuid::Uuid;

use super::{Database, Fixture, edit, open};
use crate::edit_log::{
    EditLog, LogError, NewVersion, VersionKind, WriterLock,
    sqlite::{Compaction, SqliteLog, compact},
};

/// Versions 1 to 6: two edits, one of them taken back, a third that a fourth supersedes, and a rollback that takes two out.
struct History {
    fixture: Fixture,
    active: Uuid,
    /// In the order of the log.
    gone: [Uuid; 3],
}

async fn history() -> History {
    let fixture = Fixture::new(&Database::Sqlite).await;
    let [one, two, three, four] = ["one", "two", "three", "three"].map(edit);
    let ids = [one.id, two.id, three.id, four.id];
    fixture.apply(vec![one, two]).await;
    fixture.apply(vec![three]).await;
    fixture.supersede(ids[2], four).await;
    fixture.take_back(ids[1]).await;
    fixture.roll_back(1).await;
    fixture.take_back(ids[1]).await;
    History { fixture, active: ids[0], gone: [ids[1], ids[2], ids[3]] }
}

/// With the fixture's own log closed, as compaction wants it.
async fn run(fixture: &mut Fixture, until: Timestamp, dry_run: bool) -> Result<Compaction, LogError> {
    fixture.log.close().await;
    let done = compact(&fixture.url, until, "ops", dry_run).await;
    fixture.log = open(&fixture.url).await;
    done
}

/// A connection past all manners.
async fn raw(fixture: &Fixture) -> SqliteConnection {
    let mut raw = SqliteConnection::connect(&fixture.url).await.unwrap();
    sqlx::query("PRAGMA foreign_keys = OFF").execute(&mut raw).await.unwrap();
    raw
}

#[tokio::test]
async fn what_left_the_set_goes_and_the_rest_stays() {
    let History { mut fixture, active, gone } = history().await;
    let before = fixture.log.check_chain().await.unwrap();
    let versions = fixture.log.versions(None, 100).await.unwrap();

    let kept = run(&mut fixture, Timestamp::MIN, false).await.unwrap();
    assert!(kept.edits.is_empty(), "nothing is that old");
    let said = run(&mut fixture, Timestamp::now(), true).await.unwrap();
    assert_eq!(said.edits, gone);
    assert_eq!(fixture.log.check_chain().await.unwrap(), before, "a dry run writes nothing");
    assert!(fixture.log.dropped().await.unwrap().is_empty());

    let done = run(&mut fixture, Timestamp::now(), false).await.unwrap();
    assert_eq!((done.edits.as_slice(), done.bytes), (gone.as_slice(), said.bytes));
    assert_eq!(fixture.log.check_chain().await.unwrap(), before + 1);
    assert_eq!(fixture.log.dropped().await.unwrap(), gone.into_iter().collect());
    assert_eq!(fixture.log.versions(None, 100).await.unwrap(), versions);
    for id in gone {
        assert!(matches!(fixture.log.contribution(id).await, Err(LogError::Dropped(dropped)) if dropped == id));
        assert!(fixture.log.edit(id).await.unwrap().unwrap().contribution.is_some(), "its digest stays");
    }
    fixture.log.contribution(active).await.unwrap();
    let again = run(&mut fixture, Timestamp::now(), false).await.unwrap();
    assert!(again.edits.is_empty(), "it is gone once");

    // The log goes on, and a later compaction takes what has gone since.
    fixture.take_back(active).await;
    let restored = NewVersion { restored: vec![gone[0]], ..fixture.next(VersionKind::Rollback).await };
    assert!(matches!(fixture.log.commit(restored).await, Err(LogError::Dropped(id)) if id == gone[0]));
    assert_eq!(run(&mut fixture, Timestamp::now(), false).await.unwrap().edits, [active]);
    assert_eq!(fixture.log.check_chain().await.unwrap(), before + 3);
}

#[tokio::test]
async fn only_the_time_since_it_left_counts() {
    let mut fixture = Fixture::new(&Database::Sqlite).await;
    let [one, two] = ["one", "two"].map(edit);
    let id = one.id;
    fixture.apply(vec![one, two]).await;
    fixture.take_back(id).await;
    fixture.roll_back(1).await;
    let back = fixture.take_back(id).await.created_at;
    assert!(run(&mut fixture, back, false).await.unwrap().edits.is_empty(), "it came back, and left only then");
    let later = back.checked_add(jiff::SignedDuration::from_nanos(1)).unwrap();
    assert_eq!(run(&mut fixture, later, false).await.unwrap().edits, [id]);
}

#[tokio::test]
async fn it_needs_the_log_for_itself_and_a_log_that_is_whole() {
    let History { mut fixture, .. } = history().await;
    let held = WriterLock::acquire(&fixture.url).unwrap();
    let refused = run(&mut fixture, Timestamp::now(), false).await;
    assert!(matches!(refused, Err(LogError::Locked { .. })), "{refused:?}");
    drop(held);
    let mut connection = raw(&fixture).await;
    sqlx::query("DROP TRIGGER edits_no_update").execute(&mut connection).await.unwrap();
    sqlx::query("UPDATE edits SET target = 'x' WHERE prompt = 'two'").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let refused = run(&mut fixture, Timestamp::now(), false).await;
    assert!(matches!(refused, Err(LogError::Damaged { table: "edits", .. })), "{refused:?}");
    let nowhere = compact("sqlite://nowhere/amend.db", Timestamp::now(), "ops", false).await;
    assert!(matches!(nowhere, Err(LogError::NoDatabase { .. })), "{nowhere:?}");
}

/// What someone with the file could try: each is refused by a trigger, or seen by the walk over the chain.
#[tokio::test]
async fn nothing_else_goes_that_way() {
    let History { mut fixture, active, gone } = history().await;
    run(&mut fixture, Timestamp::now(), false).await.unwrap();
    let seq = fixture.log.edit(active).await.unwrap().unwrap().seq;
    let (of_active, of_gone) = (seq.to_string(), fixture.log.edit(gone[0]).await.unwrap().unwrap().seq.to_string());
    let compaction = "(SELECT max(seq) FROM compactions)";
    let mut connection = raw(&fixture).await;
    for statement in [
        format!("DELETE FROM contributions WHERE seq = {of_active}"),
        format!("INSERT INTO dropped (seq, compaction) VALUES ({of_active}, {compaction})"),
        format!("UPDATE dropped SET seq = {of_active} WHERE seq = {of_gone}"),
        "DELETE FROM dropped".to_owned(),
        "DELETE FROM compactions".to_owned(),
        "UPDATE compactions SET until = 'now'".to_owned(),
        format!("INSERT INTO compactions SELECT {of_active}, until, dropped, dropped_digest FROM compactions"),
        format!("INSERT INTO contributions (seq, bytes) VALUES ({of_gone}, x'00')"),
        format!("INSERT OR REPLACE INTO dropped (seq, compaction) VALUES ({of_gone}, {compaction})"),
    ] {
        let refused = sqlx::query(sqlx::AssertSqlSafe(statement.clone())).execute(&mut connection).await.unwrap_err();
        assert!(refused.to_string().contains("append-only"), "{statement}: {refused}");
    }
    fixture.log.check_chain().await.unwrap();

    let behind_the_triggers = [
        ("contributions_no_delete", format!("DELETE FROM contributions WHERE seq = {of_active}"), "contributions"),
        (
            "contributions_only_at_the_tail",
            format!("INSERT INTO contributions VALUES ({of_gone}, x'00')"),
            "contributions",
        ),
        ("dropped_no_delete", format!("DELETE FROM dropped WHERE seq = {of_gone}"), "dropped"),
        ("dropped_only_at_the_tail", format!("INSERT INTO dropped VALUES ({of_active}, {compaction})"), "dropped"),
        ("compactions_no_update", "UPDATE compactions SET until = '2999'".to_owned(), "compactions"),
        ("compactions_no_delete", "DELETE FROM compactions".to_owned(), "compactions"),
    ];
    connection.close().await.unwrap();
    fixture.log.close().await;
    let whole = std::fs::read(crate::edit_log::sqlite::database_path(&fixture.url).unwrap()).unwrap();
    for (trigger, change, named) in behind_the_triggers {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("copy.db");
        std::fs::write(&path, &whole).unwrap();
        let url = format!("sqlite://{}", path.display());
        let mut raw = SqliteConnection::connect(&url).await.unwrap();
        for statement in ["PRAGMA foreign_keys = OFF", &format!("DROP TRIGGER {trigger}"), &change] {
            sqlx::query(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut raw).await.unwrap();
        }
        raw.close().await.unwrap();
        let copy = SqliteLog::open_read_only(&url).await.unwrap();
        let seen = copy.check_chain().await;
        assert!(matches!(&seen, Err(LogError::Damaged { table, .. }) if *table == named), "{change}: {seen:?}");
    }
}
