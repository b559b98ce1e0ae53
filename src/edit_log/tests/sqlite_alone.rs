//! What only a log in a file promises: a full disk, damage of the file, the lock beside it.

use jiff::Timestamp;

use super::{Database, Fixture, edit, refusals::full};
use crate::edit_log::{
    EditLog, LogError, NewEdit, NewVersion, VersionKind, WriterLock,
    sqlite::{SqliteLog, database_path},
};

/// SQLite rolls back by itself when it runs out of space; the next commit must find a sound connection.
#[tokio::test]
async fn a_full_disk_refuses_the_commit_and_nothing_else() {
    let (fixture, _) = full(&Database::Sqlite).await;
    let log = SqliteLog::open(&fixture.url).await.unwrap();
    let writer = log.writer.as_ref().unwrap();
    let limit: i64 = sqlx::query_scalar("PRAGMA max_page_count = 1").fetch_one(writer).await.unwrap();
    assert!(limit < 100, "the limit is as low as the file is large: {limit} pages");
    let large = NewEdit { contribution: Some(vec![7; 4 << 20]), ..edit("large") };
    let version = NewVersion { edits: vec![large.clone()], ..fixture.next(VersionKind::Edit).await };
    let error = log.commit(version.clone()).await.unwrap_err();
    assert!(matches!(error, LogError::Full), "{error:?}");
    assert_eq!(log.check_chain().await.unwrap(), 4);
    // The new connection has no such limit.
    log.commit(version).await.unwrap();
    assert_eq!(log.contribution(large.id).await.unwrap().len(), 4 << 20);
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
    let (fixture, _) = full(&Database::Sqlite).await;
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

/// An edit's id stands in two tables and two indexes; wherever it is damaged in the file, it shows.
#[tokio::test]
async fn a_flipped_bit_of_an_id_shows_wherever_it_is_stored() {
    let fixture = Fixture::new(&Database::Sqlite).await;
    let (one, two) = (edit("one"), edit("two"));
    let ids = [one.id, two.id];
    fixture.apply(vec![one]).await;
    fixture.apply(vec![two]).await;
    fixture.take_back(ids[0]).await;
    fixture.log.close().await;
    let path = database_path(&fixture.url).unwrap();
    let sound = std::fs::read(&path).unwrap();
    let id = ids[1].as_bytes();
    let places: Vec<usize> = (0..sound.len() - id.len()).filter(|at| sound[*at..].starts_with(id)).collect();
    assert!(places.len() >= 4, "{places:?}");
    for place in places {
        let mut damaged = sound.clone();
        damaged[place + 15] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        let log = SqliteLog::open_read_only(&fixture.url).await.unwrap();
        let error = log.check_chain().await.unwrap_err();
        assert!(matches!(error, LogError::Damaged { .. }), "byte {place}: {error}");
        log.close().await;
    }
    std::fs::write(&path, sound).unwrap();
    SqliteLog::open_read_only(&fixture.url).await.unwrap().check_chain().await.unwrap();
}
