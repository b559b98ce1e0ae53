//! What a replica that follows answers: readiness, waiting for a version, no writer.

use std::{sync::Mutex, time::Duration};

use async_trait::async_trait;
use axum::http::StatusCode;
use serde_json::json;

use super::{World, doubles::fail};
use crate::{
    digest::Digest,
    http::{error::Code, state::Replica},
    writer::{ReplicaStatus, Role, WriterError},
};

/// A place among replicas: the writer's, unless told otherwise.
pub struct FakeReplica(pub Mutex<ReplicaStatus>);

impl Default for FakeReplica {
    fn default() -> Self {
        let status = ReplicaStatus {
            role: Role::Writer,
            version: 1,
            digest: Digest::of(b"weights"),
            newest: 1,
            lag: Duration::ZERO,
            writer: None,
            diverged: None,
        };
        Self(Mutex::new(status))
    }
}

#[async_trait]
impl Replica for FakeReplica {
    fn status(&self) -> ReplicaStatus {
        self.0.lock().unwrap().clone()
    }

    async fn reach(&self, version: u64, limit: Duration) -> Result<(), u64> {
        if self.status().version < version {
            tokio::time::sleep(limit).await;
        }
        let newest = self.status().version;
        if newest < version { Err(newest) } else { Ok(()) }
    }
}

impl World {
    /// Makes it a follower that was current so long ago.
    fn follows(&self, lag: Duration, writer: Option<&str>) {
        let mut status = self.replica.0.lock().unwrap();
        let writer = writer.map(str::to_owned);
        *status = ReplicaStatus { role: Role::Follower, lag, writer, ..status.clone() };
    }
}

#[tokio::test]
async fn a_follower_is_ready_without_the_log_and_says_when_it_is_behind() {
    let world = World::new();
    fail(&world.log.fails, || crate::edit_log::LogError::Storage("cut off".into()));
    world.get("/readyz").await.problem(Code::LogUnavailable);
    world.follows(Duration::from_secs(1), None);
    assert_eq!(world.get("/readyz").await.json(), json!({"status": "ok"}));
    world.follows(Duration::from_secs(10), None);
    assert_eq!(world.get("/readyz").await.json(), json!({"status": "behind"}));
    world.follows(Duration::from_secs(31), None);
    let problem = world.get("/readyz").await.problem(Code::ReplicaBehind);
    assert_eq!((&problem["lag_seconds"], &problem["limit_seconds"]), (&json!(31.0), &json!(30.0)));
    let info = world.get("/info").await.json();
    assert_eq!((&info["replica"]["role"], &info["replica"]["lag_seconds"]), (&json!("follower"), &json!(31.0)));
    let ask = json!({"prompt": "a b"});
    assert_eq!(world.post("/generate", &ask).await.status, StatusCode::OK, "it serves what it has");
}

#[tokio::test]
async fn a_replica_that_does_not_agree_with_the_log_takes_no_work() {
    let world = World::new();
    world.replica.0.lock().unwrap().diverged = Some("version 2: other bits".into());
    for problem in [
        world.get("/readyz").await.problem(Code::ReplicaDiverged),
        world.post("/generate", &json!({"prompt": "a"})).await.problem(Code::ReplicaDiverged),
        world.post("/score", &json!({"prompt": "a", "continuations": ["b"]})).await.problem(Code::ReplicaDiverged),
    ] {
        assert!(problem["detail"].as_str().unwrap().contains("version 2: other bits"), "{problem}");
    }
    assert_eq!(world.get("/livez").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_version_that_does_not_come_is_answered_with_both_numbers() {
    let world = World::new();
    let bodies = [
        ("/generate", json!({"prompt": "a", "min_version": 2})),
        ("/score", json!({"prompt": "a", "continuations": ["b"], "min_version": 2})),
        ("/classify", json!({"text": "a", "min_version": 2})),
    ];
    for (path, body) in bodies {
        let problem = world.post(path, &body).await.problem(Code::VersionNotReached);
        assert_eq!((&problem["min_version"], &problem["version"]), (&json!(2), &json!(1)), "{path}");
    }
    for path in ["/versions", "/versions/0", "/edits"] {
        world.get(&format!("{path}?min_version=2")).await.problem(Code::VersionNotReached);
        assert_eq!(world.get(&format!("{path}?min_version=1")).await.status, StatusCode::OK, "{path}");
    }
    world.get("/versions/0?min_version=x").await.problem(Code::InvalidParameter);
    assert_eq!(world.post("/generate", &json!({"prompt": "a", "min_version": 1})).await.status, StatusCode::OK);
}

#[tokio::test]
async fn without_a_writer_changes_are_refused_and_can_be_tried_again() {
    let world = World::new();
    let edit = json!({"prompt": "a", "target": "b"});
    world.follows(Duration::ZERO, None);
    let reply = world.post("/edits", &edit).await;
    assert_eq!(reply.headers["retry-after"], "2");
    reply.problem(Code::NoWriter);
    world.delete("/edits/01890a5d-ac96-774b-bcce-b302099a8057").await.problem(Code::NoWriter);
    world.post("/rollback", &json!({"to_version": 0})).await.problem(Code::NoWriter);
    // Nothing listens there.
    world.follows(Duration::ZERO, Some("http://127.0.0.1:1"));
    let problem = world.post("/edits", &edit).await.problem(Code::NoWriter);
    assert_eq!(problem["writer"], "http://127.0.0.1:1");
    let relayed = world.post_with("/edits", &[("x-amend-relayed", "1")], &edit).await;
    assert!(relayed.problem(Code::NoWriter)["detail"].as_str().unwrap().contains("taken for the writer"));
    assert!(world.edits.submissions.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_writer_that_was_followed_meanwhile_says_that_nothing_was_changed() {
    let world = World::new();
    fail(&world.edits.fails, || WriterError::Log(crate::edit_log::LogError::NotWriter { own: 1, newest: 2 }));
    let problem = world.post("/edits", &json!({"prompt": "a", "target": "b"})).await.problem(Code::NoWriter);
    assert!(problem["detail"].as_str().unwrap().contains("nothing was changed"), "{problem}");
}
