//! Every named point of the service (`amend::faults`) with every kind of fault: an error, a panic, the end of the process.
//! What was acknowledged is there afterwards with its digest, what was not is there whole or not at all, and the writer
//! goes on.

use amend::faults::Point;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    process::{amend, finish},
    server::{Client, Files, Reply, Server},
};

const KINDS: [&str; 3] = ["error", "panic", "abort"];
/// What the edit under which the fault happens is asked to be repeated by.
const KEY: &str = "the-same-again";

/// Whether this build has faults; says so where it has none.
fn has_faults() -> bool {
    if !cfg!(debug_assertions) {
        eprintln!("skipped: this build has no debug assertions, and so no faults");
    }
    cfg!(debug_assertions)
}

/// What must have become of a change when its fault is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Answered as usual: the fault was made up for.
    Done,
    /// Answered with this status and code, and not there.
    Refused(u16, &'static str),
    /// Answered with 500, and there.
    Unanswered,
    /// The process died; the change is there.
    DiedWith,
    /// The process died; the change is not there.
    DiedWithout,
}

/// A change under which the fault happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Edit,
    TakeBack,
    RollBack,
}

fn fate(point: Point, kind: &str, act: Act) -> Fate {
    let durable = matches!(point, Point::CommitDone | Point::Publish);
    let commits = durable || matches!(point, Point::CommitBegin | Point::CommitRows);
    match kind {
        "abort" if durable => Fate::DiedWith,
        "abort" => Fate::DiedWithout,
        // A commit that failed and is in the log all the same is taken up.
        "error" if durable => Fate::Done,
        "error" if commits => Fate::Refused(503, "log_unavailable"),
        "panic" if durable => Fate::Unanswered,
        "panic" if act != Act::Edit => Fate::Refused(500, "internal"),
        _ => Fate::Refused(500, "edit_failed"),
    }
}

/// A service with two edits behind it, whose fault is due at the change that is made next.
struct Scene {
    files: Files,
    server: Server,
    first: Value,
    second: Value,
}

impl Scene {
    /// The points are passed once by each edit, so the third time is the next change's. Capture, editor and guard are not
    /// passed by other changes.
    async fn set(point: Point, kind: &str) -> Self {
        let files = Files::tiny();
        let server = Server::start_in(&files, ("AMEND_FAULT", &format!("{}:{kind}:3", point.name()))).await;
        let first = server.client.edit("One is", "uno").await;
        let second = server.client.edit("Two is", "due").await;
        Self { files, server, first, second }
    }

    fn send(&self, act: Act) -> impl Future<Output = reqwest::Result<Reply>> {
        let client = self.server.client.clone();
        let request = match act {
            Act::Edit => third(&client),
            Act::TakeBack => client.request(Method::DELETE, &format!("/edits/{}", self.first["id"].as_str().unwrap())),
            Act::RollBack => client.request(Method::POST, "/rollback").json(&json!({"to_version": 1})),
        };
        async move { client.try_send(request.header("idempotency-key", KEY)).await }
    }
}

fn third(client: &Client) -> reqwest::RequestBuilder {
    client.request(Method::POST, "/edits").json(&json!({"prompt": "Three is", "target": "tre", "guard": null}))
}

/// One point, one kind of fault, one change.
async fn case(point: Point, kind: &str, act: Act) {
    let what = format!("{} {kind} {act:?}", point.name());
    let scene = Scene::set(point, kind).await;
    let before = scene.server.client.newest().await;
    assert_eq!((&before["version"], &before["digest"]), (&json!(2), &scene.second["digest"]), "{what}");
    let fate = fate(point, kind, act);
    let answered = scene.send(act).await;
    let there = matches!(fate, Fate::Done | Fate::Unanswered | Fate::DiedWith);
    let mut server = scene.server;
    match (fate, answered) {
        (Fate::Done, Ok(reply)) => {
            assert!(reply.status < 300, "{what}: {}", reply.text);
            assert_eq!(reply.body["version"], 3, "{what}");
        }
        (Fate::Refused(status, code), Ok(reply)) => {
            let problem = reply.problem(status, code);
            if code == "edit_failed" {
                recorded(&server.client, &problem["id"]).await;
            }
        }
        (Fate::Unanswered, Ok(reply)) => drop(reply.problem(500, "internal")),
        (Fate::DiedWith | Fate::DiedWithout, Err(_)) => {
            let status = server.ended().await;
            assert!(!status.success(), "{what}: {status}");
            scene.files.verify().good();
            server = Server::start(&scene.files).await;
        }
        (fate, answered) => panic!("{what}: {fate:?}, but {answered:?}"),
    }
    let after = server.client.newest().await;
    if there {
        assert_eq!(after["version"], 3, "{what}");
        assert_ne!(after["digest"], before["digest"], "{what}");
    } else {
        assert_eq!(after, before, "{what}: nothing changed");
    }
    goes_on(&server, &scene.first, act, there, &what).await;
    server.stop().await;
    scene.files.verify().good();
    // From the start again: the log alone says the same.
    let server = Server::start(&scene.files).await;
    let base = server.client.version(0).await;
    let emptied = server.client.post("/rollback", &json!({"to_version": 0})).await.with_status(200);
    assert_eq!(emptied["digest"], base["digest"], "{what}");
    server.stop().await;
}

/// An edit that failed is in the log under its id, with the reason.
async fn recorded(client: &Client, id: &Value) {
    let edit = client.get(&format!("/edits/{}", id.as_str().unwrap())).await.with_status(200);
    assert_eq!(edit["status"], "failed");
    assert!(edit["reason"].as_str().unwrap().contains("was asked for at"), "{edit}");
}

/// The change is asked for again, and another one after it. The versions are then the same whatever the fault was.
async fn goes_on(server: &Server, first: &Value, act: Act, there: bool, what: &str) {
    let client = &server.client;
    let again = match act {
        Act::Edit => client.send(third(client).header("idempotency-key", KEY)).await,
        Act::TakeBack => {
            let path = format!("/edits/{}", first["id"].as_str().unwrap());
            client.send(client.request(Method::DELETE, &path).header("idempotency-key", KEY)).await
        }
        Act::RollBack => {
            let request = client.request(Method::POST, "/rollback").json(&json!({"to_version": 1}));
            client.send(request.header("idempotency-key", KEY)).await
        }
    };
    assert_eq!(again.header("idempotent-replayed"), there.then_some("true"), "{what}: {again:?}");
    assert!(again.status < 300, "{what}: {again:?}");
    assert_eq!(again.body["version"], 3, "{what}");
    let version = client.version(3).await;
    assert_eq!(version["digest"], again.body["digest"], "{what}");
    let active = version["active_edits"].as_array().unwrap().len();
    assert_eq!(active, if act == Act::Edit { 3 } else { 1 }, "{what}");
    let next = client.edit("Four is", "quattro").await;
    assert_eq!(next["version"], 4, "{what}: no version was left out or is there twice");
    client.post("/generate", &json!({"prompt": "Four is", "max_tokens": 2})).await.with_status(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_on_the_way_of_an_edit_loses_nothing() {
    let points = [
        Point::Capture,
        Point::Editor,
        Point::Guard,
        Point::CommitBegin,
        Point::CommitRows,
        Point::CommitDone,
        Point::Publish,
    ];
    for point in points.into_iter().filter(|_| has_faults()) {
        for kind in KINDS {
            Box::pin(case(point, kind, Act::Edit)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_while_edits_are_taken_back_loses_nothing() {
    let points = [Point::CommitBegin, Point::CommitRows, Point::CommitDone, Point::Publish];
    for point in points.into_iter().filter(|_| has_faults()) {
        for kind in KINDS {
            for act in [Act::TakeBack, Act::RollBack] {
                Box::pin(case(point, kind, act)).await;
            }
        }
    }
}

/// An edit that the guard rejects is written down too. Where that fails, it leaves no entry, and nothing else changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_fault_while_a_rejected_edit_is_recorded_loses_nothing() {
    let rejected = json!({"prompt": "Never is", "target": "certain", "guard": {"min_probability": 1.0}});
    for kind in KINDS.into_iter().filter(|_| has_faults()) {
        let files = Files::tiny();
        let mut server = Server::start_in(&files, ("AMEND_FAULT", &format!("record:{kind}"))).await;
        let first = server.client.edit("One is", "uno").await;
        let client = server.client.clone();
        let answered = client.try_send(client.request(Method::POST, "/edits").json(&rejected)).await;
        let entries = match (kind, answered) {
            ("error", Ok(reply)) => {
                reply.problem(503, "log_unavailable");
                1
            }
            // The panic is what the edit failed of, and that is written down.
            ("panic", Ok(reply)) => {
                recorded(&client, &reply.problem(500, "edit_failed")["id"]).await;
                2
            }
            ("abort", Err(_)) => {
                assert!(!server.ended().await.success());
                server = Server::start(&files).await;
                1
            }
            (kind, answered) => panic!("{kind}: {answered:?}"),
        };
        let client = &server.client;
        let listed = client.get("/edits").await.with_status(200);
        assert_eq!(listed["edits"].as_array().unwrap().len(), entries, "{kind}: {listed}");
        assert_eq!(client.newest().await["digest"], first["digest"], "{kind}");
        client.post("/edits", &rejected).await.problem(422, "guard_rejected");
        assert_eq!(client.edit("Two is", "due").await["version"], 2, "{kind}");
        server.stop().await;
        files.verify().good();
    }
}

/// A start that is interrupted while it replays changes nothing: the next one has everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_fault_while_the_log_is_replayed_loses_nothing() {
    if !has_faults() {
        return;
    }
    let files = Files::tiny();
    let server = Server::start(&files).await;
    for (prompt, target) in [("One is", "uno"), ("Two is", "due"), ("Three is", "tre")] {
        server.client.edit(prompt, target).await;
    }
    let newest = server.client.newest().await;
    server.stop().await;
    for kind in KINDS {
        for version in 1..=3 {
            let mut serve = amend();
            serve.args(["serve", "--listen", "127.0.0.1:0"]).args(files.options());
            let ended = finish(serve.env("AMEND_FAULT", format!("replay:{kind}:{version}")));
            assert!(!ended.status.success(), "{ended:?}");
            if kind != "abort" {
                assert!(ended.refused().contains("was asked for at replay"), "{kind}");
            }
        }
    }
    files.verify().good();
    let server = Server::start(&files).await;
    assert_eq!(server.client.newest().await, newest);
    assert_eq!(server.client.edit("Four is", "quattro").await["version"], 4);
    server.stop().await;
}

/// An older version that could not be made again is the affair of the request that wanted it.
#[tokio::test(flavor = "multi_thread")]
async fn a_fault_while_an_older_version_is_made_again_is_its_requests() {
    for kind in KINDS.into_iter().filter(|_| has_faults()) {
        let files = Files::tiny();
        let mut server = Server::start_in(&files, ("AMEND_FAULT", &format!("rebuild:{kind}"))).await;
        // More than are kept in memory, so that the first has to be made again.
        for number in 1..=8 {
            server.client.edit(&format!("Number {number} is"), "odd").await;
        }
        let client = server.client.clone();
        let old = json!({"prompt": "Number 1 is", "max_tokens": 3, "version": 1});
        let answered = client.try_send(client.request(Method::POST, "/generate").json(&old)).await;
        match (kind, answered) {
            ("error" | "panic", Ok(reply)) => assert!(reply.status >= 500, "{kind}: {reply:?}"),
            ("abort", Err(_)) => {
                assert!(!server.ended().await.success());
                server = Server::start(&files).await;
            }
            (kind, answered) => panic!("{kind}: {answered:?}"),
        }
        let client = &server.client;
        assert_eq!(client.post("/generate", &old).await.with_status(200)["version"], 1, "{kind}");
        assert_eq!(client.edit("One more is", "even").await["version"], 9, "{kind}");
        server.stop().await;
        files.verify().good();
    }
}
