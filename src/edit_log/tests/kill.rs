//! Law 3 (log, then publish): what was acknowledged survives a kill at any instruction; the rest is whole or not there.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::{Database, Fixture, answer, edit};
use crate::edit_log::{EditLog, NewEdit, NewVersion, Removal, VersionKind, WriterLock, sqlite::SqliteLog};

/// Names the database to the child process.
const DATABASE: &str = "AMEND_TEST_KILLED_DATABASE";

/// Not a test of its own: what the killed process runs. It commits without end and prints each acknowledged version.
#[tokio::test]
async fn killed_child() {
    let Ok(url) = env::var(DATABASE) else { return };
    let _lock = WriterLock::acquire(&url).unwrap();
    let log = SqliteLog::open(&url).await.unwrap();
    loop {
        let head = log.head().await.unwrap();
        let number = head.number + 1;
        let old = log.active_set(head.number).await.unwrap().into_iter().next();
        let new = NewEdit { contribution: Some(vec![3; 50_000]), ..edit(&format!("prompt {number}")) };
        let version = NewVersion {
            number,
            kind: VersionKind::Edit,
            actor: "child".into(),
            digest: head.digest,
            set_digest: head.set_digest,
            removed: old.map(|edit| Removal { edit, superseded_by: Some(new.id) }).into_iter().collect(),
            edits: vec![new],
            restored: Vec::new(),
            idempotency: Some(answer(&number.to_string())),
        };
        log.commit(version).await.unwrap();
        writeln!(std::io::stdout(), "\nacknowledged {number}").unwrap();
    }
}

/// A child that does not outlive the test, whatever fails.
struct Killed(Child);

impl Killed {
    /// SIGKILL.
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn acknowledged_versions_survive_kill_9() {
    let fixture = Fixture::new(&Database::Sqlite).await;
    fixture.log.close().await;
    let mut last = 0;
    for round in 0..12u64 {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "edit_log::tests::kill::killed_child", "--nocapture", "--test-threads=1"])
            .env(DATABASE, &fixture.url)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut child = Killed(child);
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let mut acknowledged = || -> Option<u64> {
            lines.by_ref().map_while(Result::ok).find_map(|line| line.strip_prefix("acknowledged ")?.parse().ok())
        };
        last = acknowledged().unwrap();
        // Each round ends at another moment of a commit.
        std::thread::sleep(Duration::from_micros(7_300 + 3_170 * round));
        child.kill();
        while let Some(number) = acknowledged() {
            last = number;
        }

        // The system freed the lock, and a reader needs no repair by a writer.
        drop(WriterLock::acquire(&fixture.url).unwrap());
        let log = SqliteLog::open_read_only(&fixture.url).await.unwrap();
        let head = log.head().await.unwrap();
        assert!(head.number == last || head.number == last + 1, "{} after {last} was acknowledged", head.number);
        assert_eq!(log.check_chain().await.unwrap(), 2 + 2 * head.number, "an edit and a version each");
        assert!(log.idempotent(&head.number.to_string()).await.unwrap().is_some());
        log.close().await;
    }
    assert!(last > 12);
}

/// A caller that goes away in the middle of a commit is a small kill.
#[tokio::test]
async fn a_cancelled_commit_is_whole_or_not_there() {
    let fixture = Fixture::new(&Database::Sqlite).await;
    for round in 0..40u64 {
        let before = fixture.log.head().await.unwrap().number;
        let new = NewEdit { contribution: Some(vec![5; 200_000]), ..edit(&format!("prompt {round}")) };
        let id = new.id;
        let version = NewVersion { edits: vec![new], ..fixture.next(VersionKind::Edit).await };
        let cancelled = tokio::time::timeout(Duration::from_micros(100 * round), fixture.log.commit(version)).await;
        // Waits for what the cancelled commit left to its connection.
        fixture.log.record(Vec::new()).await.unwrap();
        let there = fixture.log.edit(id).await.unwrap().is_some();
        assert_eq!(fixture.log.head().await.unwrap().number, before + u64::from(there), "round {round}");
        assert!(there || cancelled.is_err(), "an acknowledged version is missing");
    }
    fixture.log.check_chain().await.unwrap();
}
