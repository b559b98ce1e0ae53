//! Followers have the writer's versions, bit for bit, hand changes on to it, and wait for what was just written.

use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    collector::{Collector, hex, one},
    process::{amend, finish},
    server::{Client, Server},
    setting::{Setting, metric, reached, replica},
};

#[tokio::test(flavor = "multi_thread")]
async fn followers_have_every_version_and_its_digest() {
    let Some(setting) = Setting::new() else { return };
    let (writer, followers) = setting.with_followers(2).await;
    for (server, role) in [(&writer, "writer"), (&followers[0], "follower"), (&followers[1], "follower")] {
        assert_eq!(replica(&server.client).await["role"], role);
        assert_eq!(metric(&server.client, "amend_writer").await, f64::from(u8::from(role == "writer")));
    }
    assert_eq!(replica(&followers[0].client).await["writer"], writer.client.server);

    let rome = writer.client.edit("Rome is", "red").await;
    writer.client.edit("Oslo is", "cold").await;
    writer.client.edit("Rome is", "blue").await;
    writer.client.post("/rollback", &json!({"to_version": 1})).await.with_status(200);
    writer.client.take_back(&rome["id"]).await;
    let newest = writer.client.newest().await;
    assert_eq!(newest["version"], 5);
    let written = |client: &Client| {
        let ask = client.request(Method::POST, "/generate");
        let ask = ask.json(&json!({"prompt": "Rome is", "max_tokens": 12, "min_version": 5}));
        let client = client.clone();
        async move { client.send(ask).await.with_status(200) }
    };
    let expected = written(&writer.client).await;
    for follower in &followers {
        assert_eq!(reached(&follower.client, 5).await, newest["digest"].as_str().unwrap());
        assert_eq!(written(&follower.client).await, expected);
        // One that is in memory of none of them.
        let older = json!({"prompt": "Rome is", "max_tokens": 12, "version": 2});
        let answers = [&writer, follower].map(|server| server.client.clone());
        let [mine, its] = [answers[0].post("/generate", &older).await, answers[1].post("/generate", &older).await];
        assert_eq!(mine.with_status(200), its.with_status(200));
        assert!(metric(&follower.client, "amend_follower_apply_seconds_count").await >= 1.0);
        assert!(metric(&follower.client, "amend_follower_lag_seconds").await < 5.0);
        assert_eq!(metric(&follower.client, "amend_follower_lag_versions").await, 0.0);
        assert_eq!(follower.client.get("/readyz").await.with_status(200), json!({"status": "ok"}));
    }

    // One that comes later has all of them at its start.
    let late = Server::start_with(&setting.files, &["--role", "follower"]).await;
    assert_eq!(replica(&late.client).await["digest"], newest["digest"]);
    drop((late, followers));
    writer.stop().await;
    setting.files.verify().good();
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_at_a_follower_go_to_the_writer() {
    let Some(setting) = Setting::new() else { return };
    let (writer, followers) = setting.with_followers(1).await;
    let follower = &followers[0].client;
    let edit = follower.edit("Rome is", "red").await;
    assert_eq!((&edit["status"], &edit["version"]), (&json!("applied"), &json!(1)));
    assert_eq!(writer.client.newest().await["digest"], edit["digest"]);
    let ask = |key: &str| {
        let body = json!({"prompt": "Oslo is", "target": "cold", "guard": null});
        follower.request(Method::POST, "/edits").header("idempotency-key", key).json(&body)
    };
    let first = follower.send(ask("k")).await;
    assert!(first.header("location").unwrap().starts_with("/edits/"));
    let id = first.header("x-request-id").unwrap().to_owned();
    assert!(!id.is_empty());
    let again = follower.send(ask("k")).await;
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.with_status(201)["id"], first.with_status(201)["id"]);
    // Errors come through as they are.
    follower.post("/edits", &json!({"prompt": "", "target": "x"})).await.problem(422, "invalid_request");
    let conflict = json!({"prompt": "a", "target": "b", "expected_version": 1});
    let conflict = follower.post("/edits", &conflict).await.problem(409, "version_conflict");
    assert_eq!(conflict["current"], 2);
    let mut long = follower.request(Method::POST, "/edits").header("content-type", "application/json");
    long = long.body(vec![b' '; 3_000_000]);
    follower.send(long).await.problem(413, "payload_too_large");
    // What is asked for asynchronously is found at the follower at once, where the writer alone knows it.
    let queued = follower.request(Method::POST, "/edits").header("prefer", "respond-async");
    let queued = queued.json(&json!({"prompt": "Bern is", "target": "old", "guard": null}));
    let queued = follower.send(queued).await.with_status(202);
    let shown = follower.get(&format!("/edits/{}", queued["ids"][0].as_str().unwrap())).await.with_status(200);
    assert!(["queued", "running", "applied"].contains(&shown["status"].as_str().unwrap()), "{shown}");
    let unknown = "01890a5d-ac96-774b-bcce-b302099a8057";
    follower.get(&format!("/edits/{unknown}")).await.problem(404, "unknown_edit");
    follower.get("/health/edits").await.with_status(200);
    assert_eq!(follower.take_back(&edit["id"]).await["version"], 4);
    let back = follower.post("/rollback", &json!({"to_version": 0})).await.with_status(200);
    assert_eq!((&back["version"], &back["digest"]), (&json!(5), &writer.client.version(0).await["digest"]));
    drop(followers);
    writer.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_at_a_follower_is_one_trace_across_both() {
    let Some(setting) = Setting::new() else { return };
    let collector = Collector::start().await;
    let traced = ["--otlp-endpoint", &collector.endpoint];
    let writer = Server::start_with(&setting.files, &traced).await;
    let follower = Server::start_with(&setting.files, &[&traced[..], &["--role", "follower"]].concat()).await;
    let edit = json!({"prompt": "Rome is", "target": "red", "guard": null});
    let reply = follower.client.post("/edits", &edit).await;
    let name = reply.header("traceparent").unwrap().to_owned();
    reply.with_status(201);
    follower.stop().await;
    writer.stop().await;
    let trace = collector.trace(name.split('-').nth(1).unwrap());
    let asked = trace.iter().find(|span| span.parent_span_id.is_empty()).unwrap();
    assert_eq!((hex(&asked.span_id).as_str(), asked.name.as_str()), (name.split('-').nth(2).unwrap(), "POST /edits"));
    let relay = one(&trace, "relay");
    assert_eq!((&relay.parent_span_id, relay.kind()), (&asked.span_id, SpanKind::Client));
    let written = trace.iter().find(|span| span.parent_span_id == relay.span_id).unwrap();
    assert_eq!((written.name.as_str(), written.kind()), ("POST /edits", SpanKind::Server));
    assert_eq!(one(&trace, "commit").parent_span_id, written.span_id);
    assert_eq!(trace.len(), 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_a_request_is_handed_on_with_it() {
    let Some(setting) = Setting::new() else { return };
    let file = setting.files.folder.path().join("KEYS");
    let new = |name: &str, scope: &str| {
        let mut command = amend();
        command.args(["keys", "new", "--name", name, "--scope", scope, "--file"]).arg(&file);
        finish(&mut command).good().trim().to_owned()
    };
    let (editor, reader) = (new("ana", "edit"), new("bob", "read"));
    let keys = ["--keys", file.to_str().unwrap()];
    let writer = Server::start_with(&setting.files, &keys).await;
    let follower = Server::start_with(&setting.files, &[&keys[..], &["--role", "follower"]].concat()).await;
    let edit = |key: &str| {
        let body = json!({"prompt": "Rome is", "target": "red", "guard": null});
        follower.client.request(Method::POST, "/edits").bearer_auth(key).json(&body)
    };
    follower.client.send(edit("nobody")).await.problem(401, "unauthenticated");
    follower.client.send(edit(&reader)).await.problem(403, "insufficient_scope");
    let edit = follower.client.send(edit(&editor)).await.with_status(201);
    let show = writer.client.request(Method::GET, &format!("/edits/{}", edit["id"].as_str().unwrap()));
    let shown = writer.client.send(show.bearer_auth(&reader)).await.with_status(200);
    assert_eq!(shown["actor"], "ana", "the key's name is the actor, at whatever replica it was shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_waits_for_the_version_that_it_asks_for() {
    let Some(setting) = Setting::new() else { return };
    let writer = Server::start(&setting.files).await;
    let options = ["--role", "follower", "--version-wait", "0.5"];
    let follower = Server::start_with(&setting.files, &options).await;
    // Read your writes, at another replica than the one that took them, time and again.
    for round in 1..=10u64 {
        let edit = writer.client.edit(&format!("prompt {round}"), "red").await;
        let ask = json!({"prompt": "Rome is", "max_tokens": 2, "min_version": edit["version"]});
        let answer = follower.client.post("/generate", &ask).await.with_status(200);
        assert!(answer["version"].as_u64().unwrap() >= round, "{answer}");
        let named = json!({"prompt": "Rome is", "continuations": ["red"], "version": edit["version"]});
        assert_eq!(follower.client.post("/score", &named).await.with_status(200)["version"], round);
    }
    let info = follower.client.get("/info").await.with_status(200);
    let model = &info["model"]["name"];
    let asks: [(&str, Value); 4] = [
        ("/generate", json!({"prompt": "Rome is", "min_version": 11})),
        ("/generate", json!({"prompt": "Rome is", "min_version": 11, "stream": true})),
        ("/score", json!({"prompt": "Rome is", "continuations": ["red"], "min_version": 11})),
        ("/v1/completions", json!({"model": model, "prompt": "Rome is", "min_version": 11})),
    ];
    for (path, body) in asks {
        let begun = Instant::now();
        let reply = follower.client.post(path, &body).await;
        assert!(begun.elapsed() >= Duration::from_millis(500), "{path} did not wait");
        assert_eq!(reply.status, 409, "{path}: {}", reply.text);
        if path.starts_with("/v1") {
            assert_eq!(reply.body["error"]["code"], "version_not_reached", "{}", reply.text);
        } else {
            let problem = reply.problem(409, "version_not_reached");
            assert_eq!((&problem["min_version"], &problem["version"]), (&json!(11), &json!(10)));
        }
    }
    for path in ["/versions", "/versions/1", "/versions/1/diff?from=0", "/edits"] {
        let and = if path.contains('?') { '&' } else { '?' };
        follower.client.get(&format!("{path}{and}min_version=10")).await.with_status(200);
        follower.client.get(&format!("{path}{and}min_version=11")).await.problem(409, "version_not_reached");
    }
    // What no replica has is not waited for.
    let begun = Instant::now();
    let unknown = json!({"prompt": "Rome is", "version": 99});
    follower.client.post("/generate", &unknown).await.problem(404, "unknown_version");
    assert!(begun.elapsed() < Duration::from_millis(500));
}
