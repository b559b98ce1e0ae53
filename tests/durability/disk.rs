//! A full disk: edits are refused with 507 and a clear code, reading and generating go on, and writing resumes when there is
//! space again. A disk that can not be written: the service refuses to start.
//!
//! It needs a file system of its own, which only root may mount; without that these tests say so and pass.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use serde_json::json;

use super::{
    process::{amend, finish},
    server::{Files, Reply, Server},
};

/// A small file system in memory, gone with the test.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, bytes: usize) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mount = format!("mount -t tmpfs -o size={bytes} tmpfs '{}' 2>&1", at.display());
        let output = Command::new("sh").args(["-c", &mount]).output().unwrap();
        if !output.status.success() {
            eprintln!("skipped: {}", String::from_utf8_lossy(&output.stdout).trim());
            return None;
        }
        Some(Self(at.to_owned()))
    }

    fn remount(&self, option: &str) {
        let mount = format!("mount -o remount,{option} '{}'", self.0.display());
        assert!(Command::new("sh").args(["-c", &mount]).status().unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn problem(reply: &Reply) -> (u16, Option<&str>) {
    (reply.status, reply.body["code"].as_str())
}

/// Fills what is left.
fn fill(folder: &Path) -> PathBuf {
    let ballast = folder.join("ballast");
    let full = fs::write(&ballast, vec![0; 64 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
    ballast
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_edits_until_there_is_space_again() {
    let files = Files::tiny();
    let folder = files.database().parent().unwrap().to_owned();
    let Some(_small) = Small::mount(&folder, 4 << 20) else { return };
    let server = Server::start(&files).await;
    let client = &server.client;
    let first = client.edit("One is", "uno").await;
    let before = client.newest().await;

    let ballast = fill(&folder);
    let mut refused = 0;
    // The log may have a page or two left; each edit needs several.
    for i in 0..20 {
        let edit = json!({"prompt": format!("Number {i} is"), "target": "odd", "guard": null});
        let reply = client.post("/edits", &edit).await;
        if reply.status != 201 {
            assert_eq!(problem(&reply), (507, Some("log_full")), "{}", reply.text);
            refused += 1;
        }
        if refused == 3 {
            break;
        }
    }
    assert_eq!(refused, 3, "the disk was not full");
    let taking_back = client.delete(&format!("/edits/{}", first["id"].as_str().unwrap())).await;
    assert_eq!(problem(&taking_back), (507, Some("log_full")));
    // Reading and generating do not need the disk.
    let during = client.newest().await;
    assert!(during["version"].as_u64() >= before["version"].as_u64());
    client.get("/edits").await.with_status(200);
    client.get("/readyz").await.with_status(200);
    client.post("/generate", &json!({"prompt": "One is", "max_tokens": 3})).await.with_status(200);

    fs::remove_file(ballast).unwrap();
    let after = client.edit("Two is", "due").await;
    assert_eq!(
        after["version"].as_u64(),
        during["version"].as_u64().map(|version| version + 1),
        "none was left half-way"
    );
    client.take_back(&first["id"]).await;
    let newest = client.newest().await;
    server.stop().await;
    files.verify().good();
    let server = Server::start(&files).await;
    assert_eq!(server.client.newest().await, newest);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_can_not_be_written_is_said_at_the_start_and_can_be_read() {
    let files = Files::tiny();
    let folder = files.database().parent().unwrap().to_owned();
    let Some(small) = Small::mount(&folder, 8 << 20) else { return };
    let server = Server::start(&files).await;
    server.client.edit("One is", "uno").await;
    server.stop().await;
    small.remount("ro");
    let refused = finish(amend().args(["serve", "--listen", "127.0.0.1:0"]).args(files.options())).refused();
    assert!(refused.to_lowercase().contains("read-only"), "{refused}");
    small.remount("rw");
    let server = Server::start(&files).await;
    server.client.edit("Two is", "due").await;
    server.stop().await;
}

/// Taken down in the middle of a backup to a disk that is too small: no file is left that looks like one.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_does_not_fit_leaves_nothing() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    for i in 0..30 {
        server.client.edit(&format!("Number {i} is"), "odd").await;
    }
    let away = Arc::clone(&files.folder);
    let Some(_small) = Small::mount(&away.path().join("small"), 64 << 10) else { return };
    let to = away.path().join("small/backup.db");
    let refused = finish(amend().arg("backup").arg(&to).args(["--database", &files.url()])).refused();
    assert!(refused.contains("full"), "{refused}");
    assert_eq!(fs::read_dir(away.path().join("small")).unwrap().count(), 0);
    let to = away.path().join("backup.db");
    let said = finish(amend().arg("backup").arg(&to).args(["--database", &files.url()])).good();
    assert!(said.contains("version 30 with 30 active edits"), "{said}");
    let newest = server.client.newest().await;
    assert!(said.contains(newest["digest"].as_str().unwrap()), "{said}");
    server.client.edit("One more is", "even").await;
    server.stop().await;

    // The machine is lost; what was backed up comes back, and is what it was.
    let digest = said.trim().rsplit(' ').next().unwrap();
    let other = files.afresh();
    let options = ["--database", &other.url(), "--digest", digest];
    finish(amend().arg("restore").arg(&to).args(options)).good();
    other.verify().good();
    let server = Server::start(&other).await;
    assert_eq!(server.client.newest().await, newest);
    server.stop().await;
    let again = finish(amend().arg("restore").arg(&to).args(options)).refused();
    assert!(again.contains("there already"), "{again}");
}
