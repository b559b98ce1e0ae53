//! What an operator relies on: metrics, documentation, signals, locks, restarts and refusals at start.

use std::{collections::BTreeSet, path::Path};

use amend::editor::CompositionKind;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    generation::events,
    process::{amend, finish},
    server::{Files, Server},
    tiny,
};

#[tokio::test]
async fn metrics_have_every_name_and_count_by_matched_route() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    let edit = json!({"prompt": "Ada speaks", "target": "Welsh", "locality": [{"prompt": "Snow is"}]});
    let id = client.post("/edits", &edit).await.with_status(201)["id"].clone();
    client.take_back(&id).await;
    client.post("/generate", &json!({"prompt": "Ada speaks", "max_tokens": 5})).await.with_status(200);
    client.get("/versions/0").await.with_status(200);
    client.get("/secret/path").await.problem(404, "not_found");
    let reply = client.get("/metrics").await;
    assert!(reply.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let samples: BTreeSet<&str> = reply
        .text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, _)| name)
        .collect();
    for sample in [
        "amend_edits_total{outcome=\"applied\"}",
        "amend_edit_queue_depth",
        "amend_edit_queue_capacity",
        "amend_edit_success_probability_count",
        "amend_edit_locality_kl_count",
        "amend_active_edits",
        "amend_edits_checked",
        "amend_edits_holding",
        "amend_edits_check_version",
        "amend_edits_check_timestamp_seconds",
        "amend_edit_check_batch_seconds_count",
        "amend_canaries_checked",
        "amend_canaries_changed",
        "amend_version",
        "amend_versions_resident",
        "amend_version_leases",
        "amend_reverts_total{kind=\"take_back\"}",
        "amend_generate_requests_total{outcome=\"ok\"}",
        "amend_time_to_first_token_seconds_count",
        "amend_inter_token_seconds_count",
        "amend_tokens_total{kind=\"prompt\"}",
        "amend_tokens_total{kind=\"generated\"}",
        "amend_sequences{state=\"running\"}",
        "amend_sequences{state=\"waiting\"}",
        "amend_log_append_seconds_count",
        "amend_replay_seconds_count",
        "amend_http_requests_total{method=\"POST\",route=\"/edits\",status=\"201\"}",
        "amend_http_requests_total{method=\"DELETE\",route=\"/edits/{id}\",status=\"200\"}",
        "amend_http_requests_total{method=\"GET\",route=\"/versions/{n}\",status=\"200\"}",
        "amend_http_requests_total{method=\"GET\",route=\"unmatched\",status=\"404\"}",
        "amend_http_request_duration_seconds_count{method=\"POST\",route=\"/generate\"}",
        &format!("amend_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(samples.contains(sample), "{sample} is not in\n{}", reply.text);
    }
    for phase in ["queue", "capture", "editor", "guard", "commit", "publish", "total"] {
        let sample = format!("amend_edit_duration_seconds_count{{phase=\"{phase}\"}}");
        assert!(samples.contains(&*sample), "{sample} is not in\n{}", reply.text);
    }
    for secret in ["Ada", "secret", id.as_str().unwrap()] {
        assert!(!reply.text.contains(secret), "{secret} is in\n{}", reply.text);
    }
    let value = |name: &str| reply.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    assert_eq!((value("amend_version"), value("amend_active_edits")), (Some("2"), Some("0")));
    assert_eq!(value("amend_tokens_total{kind=\"generated\"}"), Some("5"));
    server.stop().await;
}

#[tokio::test]
async fn the_documentation_is_served_and_is_the_committed_one() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/openapi.json");
    let committed: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(client.get("/openapi.json").await.with_status(200), committed);
    let page = client.get("/docs").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html")));
    let files: Vec<&str> =
        page.text.split('"').filter(|part| part.starts_with("./") || part.ends_with(".js")).collect();
    assert!(files.len() >= 3, "{}", page.text);
    for file in files {
        assert!(!file.contains("//"), "{file} is on another host");
        assert_eq!(client.get(&format!("/docs/{}", file.trim_start_matches("./"))).await.status, 200, "{file}");
    }
    let initializer = client.get("/docs/swagger-initializer.js").await;
    assert!(initializer.text.contains("/openapi.json"), "{}", initializer.text);
    server.stop().await;
}

#[tokio::test]
async fn sigterm_lets_a_stream_end_well_and_takes_nothing_new() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = server.client.clone();
    let body = json!({"prompt": "Once", "max_tokens": 1500, "stream": true});
    let mut response = client.request(Method::POST, "/generate").json(&body).send().await.unwrap();
    let mut text = response.chunk().await.unwrap().unwrap().to_vec();
    server.terminate();
    // Until the stream ends, others are told that the service drains.
    let refused = loop {
        let reply = client.get("/readyz").await;
        if reply.status != 200 {
            break reply;
        }
    };
    assert!(refused.header("retry-after").is_some());
    refused.problem(503, "draining");
    client.post("/edits", &json!({"prompt": "Ada speaks", "target": "Welsh"})).await.problem(503, "draining");
    client.post("/generate", &json!({"prompt": "x"})).await.problem(503, "draining");
    assert_eq!(client.get("/livez").await.status, 200);
    while let Some(more) = response.chunk().await.unwrap() {
        text.extend_from_slice(&more);
    }
    let events = events(std::str::from_utf8(&text).unwrap());
    let (name, done) = events.last().unwrap();
    assert_eq!((name.as_str(), &done["usage"]["completion_tokens"]), ("done", &json!(1500)));
    let log = server.log();
    let status = server.ended().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

#[tokio::test]
async fn what_was_accepted_has_its_turn_before_the_end() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = server.client.clone();
    let accepted = (0..40).map(|i| {
        let edit = json!({"prompt": format!("Number {i} is"), "target": "odd"});
        client.send(client.request(Method::POST, "/edits").header("prefer", "respond-async").json(&edit))
    });
    let accepted = futures::future::join_all(accepted).await;
    server.stop().await;
    let server = Server::start(&files).await;
    for reply in accepted {
        let location = reply.header("location").unwrap().to_owned();
        reply.with_status(202);
        assert_eq!(server.client.get(&location).await.with_status(200)["status"], "applied");
    }
    assert_eq!(server.client.newest().await["version"], 40);
    server.stop().await;
}

/// A stream that lasts longer than what is done to the service meanwhile.
async fn begun_stream(server: &Server) -> reqwest::Response {
    let body = json!({"prompt": "Once", "max_tokens": 4000, "stream": true});
    let response = server.client.request(Method::POST, "/generate").json(&body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    response
}

#[tokio::test]
async fn a_stream_that_outlasts_the_drain_ends_with_an_error_that_says_so() {
    let files = Files::tiny();
    let server = Server::start_with(&files, &["--drain-seconds", "0"]).await;
    let response = begun_stream(&server).await;
    server.terminate();
    let events = events(&response.text().await.unwrap());
    let (name, problem) = events.last().unwrap();
    assert_eq!((name.as_str(), &problem["code"]), ("error", &json!("draining")), "{problem}");
    assert_eq!(server.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let _stream = begun_stream(&server).await;
    server.terminate();
    while server.client.get("/readyz").await.status == 200 {}
    server.terminate();
    assert_eq!(server.ended().await.code(), Some(1));
}

#[tokio::test]
async fn a_second_process_on_the_same_database_is_told_who_holds_it() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let refused = finish(amend().args(["serve", "--listen", "127.0.0.1:0"]).args(files.options())).refused();
    assert!(refused.contains(&format!("process {} on host", server.id())), "{refused}");
    let occupied = server.client.server.trim_start_matches("http://").to_owned();
    let other = files.afresh();
    let refused = finish(amend().args(["serve", "--listen", &occupied]).args(other.options())).refused();
    assert!(refused.contains(&occupied), "{refused}");
    server.client.edit("Ada speaks", "Welsh").await;
    server.stop().await;
    Server::start(&files).await.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_everything_and_says_how_long_it_took() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = server.client.clone();
    let first = client.edit("One is", "uno").await;
    client.edit("Two is", "due").await;
    client.take_back(&first["id"]).await;
    client.edit("Two is", "deux").await;
    client.post("/rollback", &json!({"to_version": 2})).await.with_status(200);
    client.edit("Three is", "tre").await;
    let paths = ["/edits", "/versions", "/versions/2", "/versions/5", "/versions/6", "/versions/6/diff?from=4"];
    let ask = async |client: &super::server::Client| {
        let mut answers = Vec::new();
        for path in paths {
            answers.push(client.get(path).await.with_status(200));
        }
        for version in 0..=6 {
            let body = json!({"prompt": "Two is", "max_tokens": 12, "version": version});
            answers.push(client.post("/generate", &body).await.with_status(200));
        }
        answers
    };
    let before = ask(&client).await;
    server.stop().await;
    for options in [&[][..], &["--replay-every-version", "--resident-versions", "0"]] {
        let server = Server::start_with(&files, options).await;
        assert_eq!(ask(&server.client).await, before);
        let log = server.log();
        let replay = log.lines().find(|line| line.contains("log replayed and checked")).unwrap();
        let replay: Value = serde_json::from_str(replay).unwrap();
        assert_eq!((&replay["versions"], &replay["active"]), (&json!(6), &json!(3)), "{replay}");
        assert!(replay["seconds"].as_f64().unwrap() > 0.0, "{replay}");
        server.stop().await;
    }
}

#[tokio::test]
async fn a_log_is_not_opened_with_another_editor_or_model() {
    let mut files = Files::tiny();
    let server = Server::start(&files).await;
    server.client.edit("One is", "uno").await;
    server.stop().await;
    let serve =
        |files: &Files| finish(amend().args(["serve", "--listen", "127.0.0.1:0"]).args(files.options())).refused();

    files.editor = files.folder.path().join("other editor");
    tiny::write_editor(&files.editor, &files.model, CompositionKind::Sum, 3);
    for refused in [serve(&files), files.verify().refused()] {
        assert!(refused.contains("the log belongs to another editor"), "{refused}");
    }
    files.model = files.folder.path().join("other model");
    tiny::write_model(&files.model, 5);
    let refused = serve(&files);
    assert!(refused.contains("trained"), "{refused}");
    tiny::write_editor(&files.editor, &files.model, CompositionKind::Sum, 3);
    for refused in [serve(&files), files.verify().refused()] {
        assert!(refused.contains("the log belongs to another model"), "{refused}");
    }
}
