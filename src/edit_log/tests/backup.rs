//! Copies of the log: whole, checked, taken beside a writer, and never over something else.

use std::{fs, path::PathBuf};

use super::*;
use crate::edit_log::{
    LogError, WriterLock,
    sqlite::{backup, restore},
};

fn beside(fixture: &Fixture, name: &str) -> PathBuf {
    fixture.folder.path().join(name)
}

/// The URL of a database in a folder that is not there yet.
fn elsewhere(fixture: &Fixture, name: &str) -> String {
    format!("sqlite://{}/restored/{name}", fixture.folder.path().display())
}

#[tokio::test]
async fn a_copy_is_the_whole_log_and_a_log_again() {
    let fixture = Fixture::new(&Database::Sqlite).await;
    let (one, two) = (edit("one"), edit("two"));
    let (first, second) = (one.id, two.id);
    fixture.apply(vec![one]).await;
    fixture.apply(vec![two]).await;
    let head = fixture.take_back(first).await;
    let (to, url) = (beside(&fixture, "copy.db"), elsewhere(&fixture, "amend.db"));
    // The log is open for writing all the time.
    let copy = backup(&fixture.url, &to).await.unwrap();
    assert_eq!((copy.head.number, copy.head.entry_hash, copy.head.digest), (3, head.entry_hash, head.digest));
    assert_eq!((copy.bytes, copy.digest), (fs::metadata(&to).unwrap().len(), Digest::of_file(&to).unwrap()));
    fixture.apply(vec![edit("later")]).await;

    let back = restore(&to, &url, Some(copy.digest)).await.unwrap();
    assert_eq!((back.entries, back.head.entry_hash, back.digest), (copy.entries, copy.head.entry_hash, copy.digest));
    let log = open(&url).await;
    log.pin(&identity()).await.unwrap();
    assert_eq!(log.check_chain().await.unwrap(), copy.entries);
    assert_eq!(log.active_set(3).await.unwrap(), [second].into());
    assert_eq!(log.contribution(first).await.unwrap(), fixture.log.contribution(first).await.unwrap());
    // The triggers are there too, and it can be gone on with.
    let mut raw = SqliteConnection::connect(&url).await.unwrap();
    let refused = sqlx::query("UPDATE edits SET target = 'x'").execute(&mut raw).await.unwrap_err().to_string();
    assert!(refused.contains("append-only"), "{refused}");
    let again = Fixture { log, url, folder: tempfile::tempdir().unwrap() };
    assert_eq!(again.apply(vec![edit("another")]).await.number, 4);
}

#[tokio::test]
async fn a_copy_taken_while_the_writer_writes_is_whole() {
    let fixture = Fixture::new(&Database::Sqlite).await;
    let writing = async {
        for i in 0..40 {
            fixture.apply(vec![edit(&format!("number {i}"))]).await;
        }
    };
    let copying = async {
        let mut newest = 0;
        for i in 0..5 {
            let copy = backup(&fixture.url, &beside(&fixture, &format!("{i}.db"))).await.unwrap();
            assert!(copy.head.number >= newest);
            newest = copy.head.number;
        }
    };
    tokio::join!(writing, copying);
    assert_eq!(fixture.log.head().await.unwrap().number, 40);
}

#[tokio::test]
async fn nothing_is_overwritten_and_a_copy_that_is_not_whole_is_refused() {
    let fixture = Fixture::new(&Database::Sqlite).await;
    for i in 0..20 {
        fixture.apply(vec![edit(&format!("number {i}"))]).await;
    }
    let to = beside(&fixture, "copy.db");
    fs::write(&to, "something else").unwrap();
    let taken = backup(&fixture.url, &to).await.unwrap_err().to_string();
    assert!(taken.contains("copy.db is there already"), "{taken}");
    assert_eq!(fs::read(&to).unwrap(), b"something else");
    fs::remove_file(&to).unwrap();
    let copy = backup(&fixture.url, &to).await.unwrap();

    let taken = restore(&to, &fixture.url, None).await.unwrap_err().to_string();
    assert!(taken.contains("amend.db is there already"), "{taken}");
    let url = elsewhere(&fixture, "amend.db");
    let other = restore(&to, &url, Some(Digest::of(b"another"))).await.unwrap_err().to_string();
    assert!(other.contains(&copy.digest.to_string()), "{other}");
    let whole = fs::read(&to).unwrap();
    let at = whole
        .windows(9)
        .rposition(|window| window == b"number 7\"")
        .or(whole.windows(8).rposition(|window| window == b"number 7"));
    let mut flipped = whole.clone();
    flipped[at.unwrap()] ^= 1;
    for damaged in [&whole[..whole.len() / 2], &flipped, b"not a database, but long enough to be taken for one"] {
        fs::write(&to, damaged).unwrap();
        restore(&to, &url, None).await.unwrap_err();
    }
    fs::write(&to, &whole).unwrap();
    let held = {
        fs::create_dir_all(beside(&fixture, "restored")).unwrap();
        WriterLock::acquire(&url).unwrap()
    };
    assert!(matches!(restore(&to, &url, None).await, Err(LogError::Locked { .. })));
    drop(held);
    restore(&to, &url, Some(copy.digest)).await.unwrap();
    let left = fs::read_dir(beside(&fixture, "restored")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(left.into_iter().all(|name| !name.to_string_lossy().contains("partial")));
    let missing = backup(&elsewhere(&fixture, "nothing.db"), &beside(&fixture, "x.db")).await;
    assert!(matches!(missing, Err(LogError::NoDatabase { .. })));
}
