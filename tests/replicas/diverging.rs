//! A replica that does not make what the log says goes out of service, and never writes.

use std::time::Duration;

use amend::{
    digest::Digest,
    edit_log::{EditLog, NewVersion, Removal, Seat, VersionKind, postgres::PostgresLog},
};
use serde_json::json;

use super::{
    process::finish,
    server::Server,
    setting::{Setting, metric, reached, replica, until},
};

/// Takes the writer's place and commits the next version with weights that nobody makes.
async fn lie(url: &str) {
    let log = PostgresLog::open(url).await.unwrap();
    let seat = log.seat(None);
    while seat.take().await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let head = log.head().await.unwrap();
    let edit = log.active_set(head.number).await.unwrap().into_iter().next().unwrap();
    let version = NewVersion {
        number: head.number + 1,
        kind: VersionKind::TakeBack,
        actor: "another machine".into(),
        digest: Digest::of(b"other bits"),
        set_digest: log.version(0).await.unwrap().unwrap().set_digest,
        edits: Vec::new(),
        restored: Vec::new(),
        removed: vec![Removal { edit, superseded_by: None }],
        idempotency: None,
    };
    log.commit(version).await.unwrap();
    seat.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_that_differs_takes_a_replica_out_of_service() {
    let Some(setting) = Setting::new() else { return };
    let writer = Server::start(&setting.files).await;
    let follower = Server::start(&setting.files).await;
    let client = &follower.client;
    writer.client.edit("Rome is", "red").await;
    reached(client, 1).await;
    // While it is stopped, it can not take the place that the writer leaves.
    follower.pause();
    writer.kill();
    lie(&setting.files.url()).await;
    follower.resume();
    until("it is out of service", async || client.get("/readyz").await.status == 503).await;
    let refused = client.get("/readyz").await.problem(503, "replica_diverged");
    assert!(refused["detail"].as_str().unwrap().contains("version 2: the log has digest"), "{refused}");
    assert_eq!(refused["version"], 1);
    assert_eq!(metric(client, "amend_replica_diverged").await, 1.0);
    client.post("/generate", &json!({"prompt": "Rome is"})).await.problem(503, "replica_diverged");
    client.get("/livez").await.with_status(200);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let place = replica(client).await;
    assert_eq!((&place["role"], &place["digest"].is_string()), (&json!("follower"), &true), "it never writes");
    assert!(place["diverged"].as_str().unwrap().contains("version 2"), "{place}");
    // Neither does one that starts.
    assert!(setting.files.verify().refused().contains("version 2"));
    let mut serve = super::process::amend();
    serve.args(["serve", "--listen", "127.0.0.1:0"]).args(setting.files.options());
    assert!(finish(&mut serve).refused().contains("version 2"));
}
