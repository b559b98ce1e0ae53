//! What edits do to others, over HTTP: breaks, canaries, conflicts, and the health of the active edits. Figures are held
//! against those that `/score` finds.

use std::time::{Duration, Instant};

use amend::editor::CompositionKind;
use serde_json::{Value, json};

use super::{
    edits::scored,
    process::PATIENCE,
    server::{Client, Files, Server, keys},
};

const FACTS: [(&str, &str); 4] = [("Ada speaks", "W"), ("The sky is", "b"), ("Snow was", "w"), ("One and one", "2")];

/// Waits for a complete check of the newest version.
async fn health(client: &Client) -> Value {
    let begun = Instant::now();
    loop {
        let health = client.get("/health/edits").await.with_status(200);
        if health["current"] == true {
            return health;
        }
        assert!(begun.elapsed() < PATIENCE && health["failed"].is_null(), "{health}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn canaries(files: &Files) -> String {
    let path = files.folder.path().join("canaries.jsonl");
    let lines = "{\"prompt\": \"Rome is\", \"expected\": \"old\"}\n{\"prompt\": \"Oslo was\"}\n";
    std::fs::write(&path, lines).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn the_health_of_the_edits_is_what_score_finds() {
    let files = Files::tiny_of(CompositionKind::Joint);
    let canaries = canaries(&files);
    let options = ["--recheck-idle", "0.05", "--canaries", &canaries];
    let server = Server::start_with(&files, &options).await;
    let client = &server.client;
    let empty = health(client).await;
    assert_eq!(keys(&empty), ["version", "active", "current", "checked", "checking", "failed"]);
    assert_eq!((&empty["active"], &empty["checked"]["share"]), (&json!(0), &Value::Null));
    for canary in empty["checked"]["canaries"].as_array().unwrap() {
        assert_eq!((&canary["kl"], &canary["greedy_unchanged"]), (&json!(0.0), &json!(true)), "{canary}");
    }
    let mut edits = Vec::new();
    for (prompt, target) in FACTS {
        edits.push(client.post("/edits", &json!({"prompt": prompt, "target": target})).await.with_status(201));
    }
    let sick = health(client).await;
    let checked = &sick["checked"];
    assert_eq!((&sick["version"], &checked["version"], &checked["edits"]), (&json!(4), &json!(4), &json!(4)));
    let mut lost = Vec::new();
    for ((prompt, target), edit) in FACTS.iter().zip(&edits) {
        let (probability, greedy) = scored(client, prompt, target, 4).await;
        if !greedy {
            lost.push((edit["id"].clone(), probability));
        }
    }
    assert_eq!(checked["holding"].as_u64().unwrap() as usize, FACTS.len() - lost.len());
    assert_eq!(checked["share"].as_f64().unwrap(), (FACTS.len() - lost.len()) as f64 / FACTS.len() as f64);
    lost.reverse();
    let named = checked["lost"].as_array().unwrap();
    assert_eq!(named.len(), lost.len());
    for (named, (id, probability)) in named.iter().zip(&lost) {
        assert_eq!(&named["id"], id);
        assert!((named["now"]["probability"].as_f64().unwrap() - probability).abs() < 1e-3, "{named} {probability}");
        let applied = edits.iter().find(|edit| edit["id"] == *id).unwrap();
        assert_eq!(named["applied"], applied["prompt"]["after"]);
    }
    let (with_answer, open) = (&checked["canaries"][0], &checked["canaries"][1]);
    for (side, version) in [("base", 0), ("now", 4)] {
        let (probability, _) = scored(client, "Rome is", "old", version).await;
        assert!((with_answer[side]["probability"].as_f64().unwrap() - probability).abs() < 1e-3, "{with_answer}");
    }
    assert!(with_answer["kl"].as_f64().unwrap() > 0.0 && open["kl"].as_f64().unwrap() > 0.0);
    assert_eq!((&open["expected"], &open["now"]), (&Value::Null, &Value::Null));
    let metrics = client.get("/metrics").await.text;
    let value = |name: &str| metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    assert_eq!(value("amend_edits_checked"), Some("4"));
    assert_eq!(value("amend_edits_holding"), Some(checked["holding"].to_string().as_str()));
    assert_eq!((value("amend_edits_check_version"), value("amend_canaries_checked")), (Some("4"), Some("2")));
    assert!(value("amend_canary_kl{stat=\"max\"}").unwrap().parse::<f64>().unwrap() > 0.0);
    // The same edits are found again by another process.
    server.stop().await;
    let server = Server::start_with(&files, &options).await;
    let again = health(&server.client).await;
    assert_eq!((&again["checked"]["lost"], &again["checked"]["canaries"]), (&checked["lost"], &checked["canaries"]));
    server.stop().await;
}

/// Names the breaks that the figures of `/score` make of some edits, from one version to the next.
async fn breaks(client: &Client, edits: &[(Value, &str, &str)], versions: [u64; 2]) -> Vec<Value> {
    let mut broken = Vec::new();
    for (id, prompt, target) in edits {
        let (before, was_greedy) = scored(client, prompt, target, versions[0]).await;
        let (after, greedy) = scored(client, prompt, target, versions[1]).await;
        if was_greedy && (!greedy || after < 0.999 * before) {
            broken.push(id.clone());
        }
    }
    broken
}

#[tokio::test]
async fn an_edit_names_the_active_edits_that_it_breaks() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    let mut active: Vec<(Value, &str, &str)> = Vec::new();
    let guard = json!({"min_share": 0.999, "on_conflict": "off"});
    let mut found = 0;
    for (version, (prompt, target)) in FACTS.into_iter().chain([("ada speaks", "q"), ("The sea is", "z")]).enumerate() {
        let request = json!({"prompt": prompt, "target": target, "guard": guard});
        let edit = client.post("/edits", &request).await.with_status(201);
        let holding = &edit["holding"];
        assert_eq!(keys(holding), ["edits_checked", "canaries_checked", "broken_edits", "broken_canaries"]);
        assert_eq!(holding["edits_checked"], active.len());
        let mut named: Vec<Value> =
            holding["broken_edits"].as_array().unwrap().iter().map(|broken| broken["edit"].clone()).collect();
        let mut expected = breaks(client, &active, [version as u64, version as u64 + 1]).await;
        named.sort_by_key(Value::to_string);
        expected.sort_by_key(Value::to_string);
        assert_eq!(named, expected, "{holding}");
        found += named.len();
        let entry = client.get(&format!("/edits/{}", edit["id"].as_str().unwrap())).await.with_status(200);
        assert_eq!((&entry["holding"], &entry["conflicts"]), (holding, &json!([])));
        active.push((edit["id"].clone(), prompt, target));
    }
    assert!(found > 0, "none of these edits holds, or none breaks another");
    // The last of them again, by a service that would not have it.
    client.take_back(&active[5].0).await;
    client.take_back(&active[4].0).await;
    let mut refused = 0;
    for (prompt, target) in [("ada speaks", "q"), ("The sea is", "z")] {
        let guard = json!({"min_share": 0.999, "on_conflict": "off", "on_break": "reject"});
        let request = json!({"prompt": prompt, "target": target, "guard": guard});
        let newest = client.newest().await;
        let reply = client.post("/edits", &request).await;
        if reply.status == 201 {
            assert_eq!(reply.body["holding"]["broken_edits"], json!([]));
            continue;
        }
        refused += 1;
        let problem = reply.problem(422, "breaks_edits");
        let broken = &problem["report"]["holding"]["broken_edits"][0];
        assert!(problem["detail"].as_str().unwrap().contains(broken["edit"].as_str().unwrap()), "{problem}");
        assert_eq!(keys(broken), ["edit", "prompt", "target", "reason", "before", "after"]);
        assert_eq!(client.newest().await, newest);
        let path = format!("/edits/{}", problem["report"]["id"].as_str().unwrap());
        let entry = client.get(&path).await.with_status(200);
        assert_eq!((&entry["status"], &entry["holding"]), (&json!("rejected"), &problem["report"]["holding"]));
    }
    assert!(refused > 0, "nothing was refused");
    let metrics = client.get("/metrics").await.text;
    assert!(metrics.contains("amend_edit_breaks_total{kind=\"edit\"}"), "{metrics}");
    server.stop().await;
}

#[tokio::test]
async fn a_canary_that_would_move_refuses_an_edit() {
    let files = Files::tiny();
    let canaries = canaries(&files);
    let server = Server::start_with(&files, &["--canaries", &canaries, "--guard-on-break", "reject"]).await;
    let client = &server.client;
    let mut request = json!({"prompt": "Ada speaks", "target": "Welsh", "guard": {"max_kl": 0.0}});
    let problem = client.post("/edits", &request).await.problem(422, "breaks_edits");
    let holding = &problem["report"]["holding"];
    assert_eq!((&holding["canaries_checked"], &holding["edits_checked"]), (&json!(2), &json!(0)));
    let broken = holding["broken_canaries"].as_array().unwrap();
    assert_eq!(broken.len(), 2, "{holding}");
    for canary in broken {
        assert_eq!(keys(canary), ["prompt", "expected", "reason", "kl", "before", "after"]);
        assert!(canary["kl"].as_f64().unwrap() > 0.0, "{canary}");
    }
    assert!(problem["detail"].as_str().unwrap().contains("\"Rome is\""), "{problem}");
    assert_eq!(client.newest().await["version"], 0);
    request["guard"] = json!({"max_kl": 0.0, "on_break": "warn"});
    let edit = client.post("/edits", &request).await.with_status(201);
    assert_eq!(edit["holding"], *holding, "the same, with a warning");
    request["guard"] = json!({"on_break": "never"});
    let problem = client.post("/edits", &request).await.problem(422, "invalid_request");
    assert!(problem["detail"].as_str().unwrap().contains("on_break"), "{problem}");
    server.stop().await;
}

#[tokio::test]
async fn conflicts_are_reported_alike_before_and_after_a_restart_and_can_refuse() {
    let files = Files::tiny_of(CompositionKind::Joint);
    let options = ["--conflict-similarity", "0"];
    let server = Server::start_with(&files, &options).await;
    let client = &server.client;
    let first = client.post("/edits", &json!({"prompt": "Ada speaks", "target": "Welsh"})).await.with_status(201);
    assert_eq!(first["conflicts"], json!([]));
    client.post("/edits", &json!({"prompt": "Snow was", "target": "white"})).await.with_status(201);
    let ask = json!({"prompt": "Ada, who speaks", "target": "French", "dry_run": true, "guard": {"on_break": "off"}});
    let tried = client.post("/edits", &ask).await.with_status(200);
    assert_eq!(tried["holding"], Value::Null);
    let conflicts = tried["conflicts"].as_array().unwrap();
    let paraphrases: Vec<_> = conflicts.iter().filter(|conflict| conflict["reason"] == "paraphrase").collect();
    assert_eq!(paraphrases.len(), 2, "at this threshold all are: {tried}");
    let similarity = |conflict: &Value| conflict["similarity"].as_f64().unwrap();
    assert!(similarity(paraphrases[0]) >= similarity(paraphrases[1]), "{tried}");
    for conflict in paraphrases {
        assert_eq!(keys(conflict), ["edit", "reason", "similarity", "prompt", "target", "same_target"]);
        assert!((0.0..=1.0).contains(&similarity(conflict)), "{conflict}");
        assert_eq!(conflict["same_target"], false);
    }
    server.stop().await;
    let server = Server::start_with(&files, &options).await;
    let client = &server.client;
    assert_eq!(client.post("/edits", &ask).await.with_status(200)["conflicts"], tried["conflicts"]);
    let mut refusing = ask.clone();
    refusing["guard"] = json!({"on_conflict": "reject"});
    refusing["dry_run"] = json!(false);
    let problem = client.post("/edits", &refusing).await.problem(422, "conflicting_edit");
    assert_eq!(problem["report"]["conflicts"], tried["conflicts"]);
    assert_eq!(client.newest().await["version"], 2);
    server.stop().await;
    let strict = Server::start_with(&files, &["--conflict-similarity", "1"]).await;
    let tried = strict.client.post("/edits", &ask).await.with_status(200);
    let paraphrases = tried["conflicts"].as_array().unwrap().iter().filter(|c| c["reason"] == "paraphrase");
    assert_eq!(paraphrases.count(), 0, "{tried}");
    strict.stop().await;
}

#[tokio::test]
async fn the_spread_of_an_edits_gradient_is_in_the_answer_and_in_the_log() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    let edit = client.post("/edits", &json!({"prompt": "Ada speaks", "target": "Welsh"})).await.with_status(201);
    let matrices: Vec<&Value> = edit["delta"].as_array().unwrap().iter().map(|delta| &delta["matrix"]).collect();
    let gradient = edit["gradient"].as_array().unwrap();
    assert_eq!(gradient.iter().map(|gradient| &gradient["matrix"]).collect::<Vec<_>>(), matrices);
    for (gradient, delta) in gradient.iter().zip(edit["delta"].as_array().unwrap()) {
        assert_eq!(keys(gradient), ["matrix", "norm", "nuclear_norm", "effective_rank"]);
        let figure = |name: &str| gradient[name].as_f64().unwrap();
        // Rounding to f32 leaves a little on either side.
        assert!(figure("norm") > 0.0 && figure("nuclear_norm") >= 0.9999 * figure("norm"), "{gradient}");
        let rank = delta["rank"].as_f64().unwrap();
        assert!(figure("effective_rank") >= 0.9999 && figure("effective_rank") <= rank * 1.0001, "{gradient} {delta}");
    }
    let entry = client.get(&format!("/edits/{}", edit["id"].as_str().unwrap())).await.with_status(200);
    assert_eq!(entry["gradient"], edit["gradient"]);
    server.stop().await;
}
