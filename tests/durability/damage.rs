//! Law 6: a changed past shows. The service does not start on it, `verify` names the row, and neither changes anything.

use std::{fs, path::Path};

use amend::editor::CompositionKind;
use serde_json::json;
use sqlx::{
    ConnectOptions, Connection, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode},
};

use super::{
    process::{Finished, amend, finish},
    server::{Files, Server},
    tiny,
};

fn serve(files: &Files) -> Finished {
    finish(amend().args(["serve", "--listen", "127.0.0.1:0"]).args(files.options()))
}

/// Three edits, the second of which is taken back; returns its id.
async fn log() -> (Files, String) {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    client.edit("One is", "uno").await;
    let two = client.edit("Two is", "due").await["id"].clone();
    let keyed = client.request(reqwest::Method::POST, "/edits").header("idempotency-key", "third");
    client.send(keyed.json(&json!({"prompt": "Three is", "target": "tre"}))).await.with_status(201);
    client.take_back(&two).await;
    server.stop().await;
    files.verify().good();
    (files, two.as_str().unwrap().to_owned())
}

async fn open(files: &Files) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(files.database()).journal_mode(SqliteJournalMode::Wal);
    options.connect().await.unwrap()
}

fn copy(files: &Files) -> Files {
    let copy = files.afresh();
    fs::create_dir_all(copy.database().parent().unwrap()).unwrap();
    fs::copy(files.database(), copy.database()).unwrap();
    copy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_row_is_named_and_nothing_starts_on_it() {
    let (files, two) = log().await;
    let edit = format!("edit {two}");
    let cases = [
        ("DROP TRIGGER edits_no_update", "UPDATE edits SET target = 'tri' WHERE target = 'due'", "table edits", &*edit),
        ("DROP TRIGGER edits_no_update", "UPDATE edits SET report = '{}' WHERE target = 'due'", "table edits", &edit),
        ("DROP TRIGGER entries_no_update", "UPDATE entries SET actor = 'eve' WHERE seq = 4", "table entries", "seq 4"),
        ("DROP TRIGGER entries_no_delete", "DELETE FROM entries WHERE seq = 9", "table versions", "version 4"),
        (
            "DROP TRIGGER versions_no_update",
            "UPDATE versions SET digest = set_digest WHERE number = 2",
            "table versions",
            "version 2",
        ),
        (
            "DROP TRIGGER version_changes_no_delete",
            "DELETE FROM version_changes WHERE version = 4",
            "table version_changes",
            "version 4",
        ),
        (
            "DROP TRIGGER idempotency_no_update",
            "UPDATE idempotency SET body = '{}'",
            "table idempotency",
            "key \"third\"",
        ),
        ("DROP TRIGGER identity_no_update", "UPDATE identity SET base_weights = empty_set", "table identity", "seq 1"),
    ];
    for (trigger, change, table, row) in cases {
        let changed = copy(&files);
        let mut database = open(&changed).await;
        sqlx::query("PRAGMA foreign_keys = OFF").execute(&mut database).await.unwrap();
        let refused = sqlx::query(change).execute(&mut database).await.unwrap_err().to_string();
        assert!(refused.contains("append-only"), "{change}: {refused}");
        sqlx::query(trigger).execute(&mut database).await.unwrap();
        assert_eq!(sqlx::query(change).execute(&mut database).await.unwrap().rows_affected(), 1, "{change}");
        database.close().await.unwrap();
        for error in [changed.verify().refused(), serve(&changed).refused()] {
            assert!(
                error.contains(&format!("the log is damaged: {table}, ")) && error.contains(row),
                "{change}: {error}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bit_of_a_contribution_counts() {
    let (files, two) = log().await;
    let mut database = open(&files).await;
    sqlx::query("DROP TRIGGER contributions_no_update").execute(&mut database).await.unwrap();
    let row =
        sqlx::query("SELECT c.seq, c.bytes FROM contributions c JOIN edits e ON e.seq = c.seq WHERE target = 'due'")
            .fetch_one(&mut database)
            .await
            .unwrap();
    let (seq, bytes): (i64, Vec<u8>) = (row.get(0), row.get(1));
    database.close().await.unwrap();
    for at in [0, bytes.len() / 2, bytes.len() - 1] {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        put(&files, seq, &flipped).await;
        for error in [files.verify().refused(), serve(&files).refused()] {
            assert!(error.contains("table contributions") && error.contains(&two), "byte {at}: {error}");
        }
    }
    put(&files, seq, &bytes[..bytes.len() - 4]).await;
    assert!(files.verify().refused().contains("table contributions"));
    put(&files, seq, &bytes).await;
    files.verify().good();
    Server::start(&files).await.stop().await;
}

async fn put(files: &Files, seq: i64, bytes: &[u8]) {
    let mut database = open(files).await;
    let update = sqlx::query("UPDATE contributions SET bytes = ? WHERE seq = ?").bind(bytes).bind(seq);
    update.execute(&mut database).await.unwrap();
    database.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_file_that_is_none_is_refused() {
    let (files, _) = log().await;
    let bytes = fs::read(files.database()).unwrap();
    let mut overwritten = bytes.clone();
    overwritten[4096..].fill(0xa5);
    for damaged in [b"not a database, but long enough to be taken for one at first sight".repeat(99), overwritten] {
        let copy = copy(&files);
        fs::write(copy.database(), damaged).unwrap();
        for error in [copy.verify().refused(), serve(&copy).refused()] {
            assert!(error.contains("amend.db") || error.contains("damaged"), "{error}");
        }
    }
    let half = copy(&files);
    fs::write(half.database(), &bytes[..bytes.len() / 2]).unwrap();
    half.verify().refused();
    serve(&half).refused();
}

#[test]
fn an_editor_that_is_not_whole_is_refused() {
    let files = Files::tiny();
    for (file, reason) in [("editor.safetensors", "is damaged"), ("editor.json", "editor.json")] {
        let mut damaged = files.afresh();
        damaged.editor = damaged.folder.path().join("editor");
        tiny::write_editor(&damaged.editor, &files.model, CompositionKind::Sum, 2);
        cut(&damaged.editor.join(file));
        let error = serve(&damaged).refused();
        assert!(error.contains(reason) && error.contains(&damaged.editor.display().to_string()), "{error}");
        assert!(!damaged.database().exists() || damaged.verify().status.code() == Some(1));
    }
    let mut other = files.afresh();
    other.model = other.folder.path().join("model");
    tiny::write_model(&other.model, 8);
    let error = serve(&other).refused();
    assert!(error.contains("trained"), "{error}");
}

#[test]
fn a_model_that_is_not_whole_is_refused() {
    let files = Files::tiny();
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        let mut damaged = files.afresh();
        damaged.model = damaged.folder.path().join("model");
        tiny::write_model(&damaged.model, 1);
        cut(&damaged.model.join(file));
        let error = serve(&damaged).refused();
        assert!(error.contains("model"), "{error}");
    }
}

/// Takes the last third away.
fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() * 2 / 3]).unwrap();
}
