//! `POST /edits` and what it leaves behind.

use reqwest::Method;
use serde_json::{Value, json};

use super::server::{Client, Files, Reply, Server, keys};

const EDIT: [&str; 13] = [
    "id",
    "status",
    "version",
    "digest",
    "supersedes",
    "prompt",
    "paraphrases",
    "locality",
    "conflicts",
    "holding",
    "delta",
    "gradient",
    "phases_ms",
];

fn full_edit() -> Value {
    json!({
        "prompt": "The mother tongue of Ada is", "target": "Welsh",
        "paraphrases": ["Ada grew up speaking"],
        "locality": [{"prompt": "The sky is"}, {"prompt": "Snow is", "target": "white"}],
    })
}

fn assert_figures(figures: &Value) {
    assert_eq!(keys(figures), ["text", "before", "after"]);
    for side in ["before", "after"] {
        assert_eq!(keys(&figures[side]), ["probability", "greedy"]);
        let probability = figures[side]["probability"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&probability) && figures[side]["greedy"].is_boolean(), "{figures}");
    }
}

fn assert_digest(digest: &Value) {
    let digest = digest.as_str().unwrap();
    assert!(digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()), "{digest}");
}

/// `exp` of the mean log-probability per token, and whether it is greedy, as `/score` says.
pub async fn scored(client: &Client, prompt: &str, target: &str, version: u64) -> (f64, bool) {
    let body = json!({"prompt": prompt, "continuations": [target], "version": version});
    let reply = client.post("/score", &body).await.with_status(200);
    let score = &reply["scores"][0];
    ((score["logprob"].as_f64().unwrap() / score["tokens"].as_f64().unwrap()).exp(), score["greedy"].as_bool().unwrap())
}

#[tokio::test]
async fn an_edit_is_reported_field_by_field_and_kept_so() {
    let (files, request) = (Files::tiny(), full_edit());
    let server = Server::start(&files).await;
    let client = &server.client;
    let reply = client.post("/edits", &request).await;
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let location = reply.header("location").unwrap().to_owned();
    let edit = reply.with_status(201);
    assert_eq!(keys(&edit), EDIT);
    assert_eq!((&edit["status"], &edit["version"], &edit["supersedes"]), (&json!("applied"), &json!(1), &Value::Null));
    assert_digest(&edit["digest"]);
    assert_eq!(location, format!("/edits/{}", edit["id"].as_str().unwrap()));
    assert_eq!(edit["id"].as_str().unwrap().as_bytes()[14], b'7', "a UUIDv7");

    assert_figures(&edit["prompt"]);
    assert_eq!(edit["prompt"]["text"], request["prompt"]);
    assert_eq!(edit["paraphrases"].as_array().unwrap().len(), 1);
    assert_figures(&edit["paraphrases"][0]);
    assert_eq!(edit["paraphrases"][0]["text"], "Ada grew up speaking");
    for (probe, asked) in edit["locality"].as_array().unwrap().iter().zip(request["locality"].as_array().unwrap()) {
        assert_eq!(keys(probe), ["prompt", "kl", "greedy_unchanged"]);
        assert_eq!(probe["prompt"], asked["prompt"]);
        assert!(probe["kl"].as_f64().unwrap() > 0.0 && probe["greedy_unchanged"].is_boolean(), "{probe}");
    }
    assert_eq!(edit["locality"].as_array().unwrap().len(), 2);

    let info = client.get("/info").await.with_status(200);
    let editable: Vec<&Value> = info["model"]["editable"].as_array().unwrap().iter().map(|m| &m["name"]).collect();
    let deltas = edit["delta"].as_array().unwrap();
    assert_eq!(deltas.iter().map(|delta| &delta["matrix"]).collect::<Vec<_>>(), editable);
    for delta in deltas {
        assert_eq!(keys(delta), ["matrix", "norm", "rank"]);
        assert!(delta["norm"].as_f64().unwrap() > 0.0 && delta["rank"].as_u64().unwrap() > 0, "{delta}");
    }
    let phases = &edit["phases_ms"];
    assert_eq!(keys(phases), ["queue", "capture", "editor", "guard", "commit", "publish", "total"]);
    let phase = |name: &str| phases[name].as_f64().unwrap();
    assert!(["capture", "editor", "guard", "commit", "total"].iter().all(|name| phase(name) > 0.0), "{phases}");
    let parts = keys(phases)[..6].iter().map(|name| phase(name)).sum::<f64>();
    assert!(parts <= phase("total") * 1.001, "{phases}");

    let entry = client.get(&location).await.with_status(200);
    for field in EDIT.iter().filter(|field| **field != "phases_ms") {
        assert_eq!(entry[field], edit[field], "{field}");
    }
    assert_eq!((&entry["reason"], &entry["superseded_by"]), (&Value::Null, &Value::Null));
    assert_eq!((&entry["actor"], &entry["request"]["target"]), (&json!("anonymous"), &json!("Welsh")));
    assert!(entry["received_at"].as_str().unwrap().ends_with('Z'), "{entry}");
    server.stop().await;
}

#[tokio::test]
async fn the_figures_of_an_edit_are_those_that_score_finds() {
    let (files, request) = (Files::tiny(), full_edit());
    let server = Server::start(&files).await;
    let edit = server.client.post("/edits", &request).await.with_status(201);
    for figures in [&edit["prompt"], &edit["paraphrases"][0]] {
        for (side, version) in [("before", 0), ("after", 1)] {
            let text = figures["text"].as_str().unwrap();
            let (probability, greedy) = scored(&server.client, text, "Welsh", version).await;
            let reported = figures[side]["probability"].as_f64().unwrap();
            assert!((probability - reported).abs() <= 1e-4 * reported.max(1e-3), "{side}: {probability} {figures}");
            assert_eq!(greedy, figures[side]["greedy"].as_bool().unwrap());
        }
    }
    let probability = |side: &str| edit["prompt"][side]["probability"].as_f64().unwrap();
    assert!(probability("after") > 2.0 * probability("before"), "{}", edit["prompt"]);
    server.stop().await;
}

#[tokio::test]
async fn a_batch_is_one_version_all_or_nothing() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    let batch = json!({"edits": [{"prompt": "One is", "target": "uno"}, {"prompt": "Two is", "target": "due"}]});
    let reply = client.post("/edits", &batch).await;
    assert_eq!(reply.header("location"), Some("/versions/1"));
    let report = reply.with_status(201);
    assert_eq!(keys(&report), ["version", "digest", "edits"]);
    let edits = report["edits"].as_array().unwrap();
    assert_eq!(edits.len(), 2);
    for edit in edits {
        assert_eq!(keys(edit), EDIT);
        assert_eq!((&edit["version"], &edit["digest"]), (&report["version"], &report["digest"]));
    }
    let before = client.newest().await;
    assert_eq!(before["active_edits"], json!([edits[0]["id"], edits[1]["id"]]));

    let one_bad = json!({"edits": [{"prompt": "Three is", "target": "tre"},
        {"prompt": "Four is", "target": "quattro", "guard": {"min_probability": 1.0}}]});
    let problem = client.post("/edits", &one_bad).await.problem(422, "guard_rejected");
    assert_eq!(client.newest().await, before);
    for (i, edit) in problem["report"]["edits"].as_array().unwrap().iter().enumerate() {
        assert_eq!(edit["status"], "rejected");
        let entry = client.get(&format!("/edits/{}", edit["id"].as_str().unwrap())).await.with_status(200);
        assert_eq!(entry["status"], "rejected");
        assert_eq!(entry["reason"].as_str().unwrap().contains("because edits[1]"), i == 0, "{entry}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_dry_run_computes_what_applying_would_and_changes_nothing() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let (client, mut request) = (&server.client, full_edit());
    let before = client.newest().await;
    request["dry_run"] = json!(true);
    let dry = client.post("/edits", &request).await.with_status(200);
    assert_eq!((&dry["status"], &dry["version"]), (&json!("dry_run"), &json!(0)));
    assert_eq!(client.newest().await, before);
    client.get(&format!("/edits/{}", dry["id"].as_str().unwrap())).await.problem(404, "unknown_edit");
    assert_eq!(client.get("/edits").await.with_status(200)["edits"], json!([]));

    let by_query = client.post("/edits?dry_run=true", &full_edit()).await.with_status(200);
    let applied = client.post("/edits", &full_edit()).await.with_status(201);
    for field in ["digest", "prompt", "paraphrases", "locality", "delta"] {
        assert_eq!(dry[field], applied[field], "{field}");
        assert_eq!(by_query[field], applied[field], "{field}");
    }
    server.stop().await;
}

#[tokio::test]
async fn an_edit_that_is_not_awaited_is_found_by_its_id() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    let request = client.request(Method::POST, "/edits").json(&full_edit()).header("prefer", "respond-async");
    let reply = client.send(request).await;
    assert_eq!(reply.header("preference-applied"), Some("respond-async"));
    let location = reply.header("location").unwrap().to_owned();
    let accepted = reply.with_status(202);
    assert_eq!((keys(&accepted), &accepted["status"]), (vec!["ids", "status"], &json!("queued")));
    assert_eq!(location, format!("/edits/{}", accepted["ids"][0].as_str().unwrap()));
    let begun = std::time::Instant::now();
    loop {
        let entry = client.get(&location).await.with_status(200);
        match entry["status"].as_str().unwrap() {
            "queued" | "running" => assert!(begun.elapsed() < super::process::PATIENCE, "{entry}"),
            status => {
                assert_eq!((status, &entry["version"]), ("applied", &json!(1)));
                break;
            }
        }
    }
    server.stop().await;
}

async fn keyed(client: &Client, method: Method, path: &str, key: &str, body: &Value) -> Reply {
    let request = client.request(method, path).header("idempotency-key", key);
    client.send(if body.is_null() { request } else { request.json(body) }).await
}

#[tokio::test]
async fn a_request_sent_again_under_its_key_is_answered_again_and_not_carried_out() {
    let files = Files::tiny();
    let mut server = Server::start(&files).await;
    let batch = json!({"edits": [{"prompt": "One is", "target": "uno"}, {"prompt": "Two is", "target": "due"}]});
    let requests = [("single", full_edit()), ("batch", batch)];
    let mut first = Vec::new();
    for (key, body) in &requests {
        let reply = keyed(&server.client, Method::POST, "/edits", key, body).await;
        assert_eq!(reply.header("idempotent-replayed"), None);
        first.push((reply.header("location").unwrap().to_owned(), reply.with_status(201)));
    }
    let id = first[0].1["id"].as_str().unwrap().to_owned();
    let path = format!("/edits/{id}");
    let gone = keyed(&server.client, Method::DELETE, &path, "gone", &Value::Null).await.with_status(200);
    let newest = server.client.newest().await;
    for restarted in [false, true] {
        if restarted {
            server.stop().await;
            server = Server::start(&files).await;
        }
        for ((key, body), (location, answer)) in requests.iter().zip(&first) {
            let reply = keyed(&server.client, Method::POST, "/edits", key, body).await;
            assert_eq!(reply.header("idempotent-replayed"), Some("true"));
            assert_eq!(reply.header("location"), Some(location.as_str()));
            assert_eq!(without_phases(reply.with_status(201)), without_phases(answer.clone()));
        }
        let reply = keyed(&server.client, Method::DELETE, &path, "gone", &Value::Null).await;
        assert_eq!(reply.with_status(200), gone);
        let other = json!({"prompt": "p", "target": "t"});
        let reply = keyed(&server.client, Method::POST, "/edits", "single", &other).await;
        reply.problem(422, "idempotency_key_reused");
        assert_eq!(server.client.newest().await, newest);
    }
    server.stop().await;
}

/// The time that the commit took can not be part of what it writes.
fn without_phases(mut report: Value) -> Value {
    report.as_object_mut().unwrap().remove("phases_ms");
    for edit in report["edits"].as_array_mut().into_iter().flatten() {
        edit.as_object_mut().unwrap().remove("phases_ms");
    }
    report
}

#[tokio::test]
async fn an_edit_for_another_version_than_the_newest_conflicts() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    client.edit("One is", "uno").await;
    let expecting = |version: u64| json!({"prompt": "Two is", "target": "due", "expected_version": version});
    let problem = client.post("/edits", &expecting(7)).await.problem(409, "version_conflict");
    assert_eq!((&problem["expected"], &problem["current"]), (&json!(7), &json!(1)));
    let edit = json!({"prompt": "Two is", "target": "due"});
    let stale = client.request(Method::POST, "/edits").header("if-match", "\"0\"").json(&edit);
    let problem = client.send(stale).await.problem(409, "version_conflict");
    assert_eq!((&problem["expected"], &problem["current"]), (&json!(0), &json!(1)));
    assert_eq!(client.newest().await["version"], 1);
    assert_eq!(client.post("/edits", &expecting(1)).await.with_status(201)["version"], 2);
    server.stop().await;
}

#[tokio::test]
async fn the_guard_rejects_with_figures_and_changes_nothing() {
    let files = Files::tiny();
    let server = Server::start_with(&files, &["--guard-min-probability", "1.0"]).await;
    let (client, mut request) = (&server.client, full_edit());
    let before = client.newest().await;
    for (guard, reason) in [
        (json!({"min_probability": 0.9999}), "the guard asks for at least 0.9999"),
        (json!({"min_probability": 0.0, "max_kl": 0.0}), "the guard allows 0"),
        (Value::Bool(false), "the guard asks for at least 1"),
    ] {
        request["guard"] = guard;
        if request["guard"] == false {
            // The service's own limit.
            request.as_object_mut().unwrap().remove("guard");
        }
        let problem = client.post("/edits", &request).await.problem(422, "guard_rejected");
        assert!(problem["detail"].as_str().unwrap().contains(reason), "{problem}");
        let report = &problem["report"];
        assert_eq!(keys(report), [&EDIT[..], &["reason"]].concat());
        assert_eq!((&report["status"], &report["version"]), (&json!("rejected"), &json!(0)));
        assert_figures(&report["prompt"]);
        assert!(report["locality"][0]["kl"].as_f64().unwrap() > 0.0);
        assert_eq!(client.newest().await, before);
        let entry = client.get(&format!("/edits/{}", report["id"].as_str().unwrap())).await.with_status(200);
        assert_eq!((&entry["status"], &entry["reason"]), (&json!("rejected"), &report["reason"]));
        assert_eq!(entry["prompt"], report["prompt"]);
    }
    request["guard"] = Value::Null;
    client.post("/edits", &request).await.with_status(201);
    request["guard"] = json!({"min_probability": 0.0});
    client.post("/edits", &request).await.with_status(201);
    let rejected = client.get("/edits?status=rejected").await.with_status(200);
    assert_eq!(rejected["edits"].as_array().unwrap().len(), 3);
    server.stop().await;
}
