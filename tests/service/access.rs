//! Keys on the running service: made on the command line, asked for over HTTP, taken away by a signal, named in the log; and
//! what is let out in logs.

use std::{fs, path::PathBuf, time::Instant};

use reqwest::Method;
use serde_json::json;

use super::{
    process::{PATIENCE, amend, finish, signal},
    server::{Files, Reply, Server},
};

fn key_file(files: &Files) -> PathBuf {
    files.folder.path().join("keys")
}

/// `amend keys new`: the secret that it prints.
fn new_key(files: &Files, name: &str, scopes: &str) -> String {
    let file = key_file(files);
    let made = finish(amend().args(["keys", "new", "--name", name, "--scope", scopes, "--file"]).arg(file)).good();
    assert!(made.starts_with("amend_") && made.lines().count() == 1, "{made}");
    made.trim().to_owned()
}

async fn ask(server: &Server, method: Method, path: &str, key: &str) -> Reply {
    server.client.send(server.client.request(method, path).bearer_auth(key)).await
}

/// Asks until the answer has this status: a signal is not waited for.
async fn until(server: &Server, path: &str, key: &str, status: u16) {
    let begun = Instant::now();
    while ask(server, Method::GET, path, key).await.status != status {
        assert!(begun.elapsed() < PATIENCE, "{path} is never answered {status}");
    }
}

#[tokio::test]
async fn keys_open_what_their_scopes_say_until_they_are_taken_away() {
    let files = Files::tiny();
    let editor = new_key(&files, "ci", "edit,read");
    let reader = new_key(&files, "grafana", "read");
    let keys = key_file(&files).display().to_string();
    let server = Server::start_with(&files, &["--keys", &keys, "--listen", "0.0.0.0:0"]).await;
    let client = &server.client;
    let wrong = format!("{editor}0");
    let edit = json!({"prompt": "Ada speaks", "target": "Welsh", "guard": null});
    client.post("/edits", &edit).await.problem(401, "unauthenticated");
    let post = |key| client.send(client.request(Method::POST, "/edits").bearer_auth(key).json(&edit));
    post(&reader).await.problem(403, "insufficient_scope");
    post(&wrong).await.problem(401, "unauthenticated");
    let id = post(&editor).await.with_status(201)["id"].clone();
    let entry = ask(&server, Method::GET, &format!("/edits/{}", id.as_str().unwrap()), &reader).await.with_status(200);
    assert_eq!(entry["actor"], "ci");
    client.get("/livez").await.with_status(200);
    client.get("/metrics").await.problem(401, "unauthenticated");

    // On the command line the key comes from the environment, and the log names its holder.
    let revert = |key: &str| {
        let mut command = amend();
        command.args(["edits", "revert", id.as_str().unwrap(), "--server", &client.server, "--actor", "root"]);
        finish(command.env("AMEND_API_KEY", key))
    };
    assert!(revert(&reader).refused().contains("insufficient_scope"));
    revert(&editor).good();
    let newest = ask(&server, Method::GET, "/versions/2", &reader).await.with_status(200);
    assert_eq!(newest["actor"], "ci");

    // A file that can not be read changes nothing; one without the key takes it away; one with a new one lets it in.
    let good = fs::read_to_string(&keys).unwrap();
    fs::write(&keys, format!("{good}nonsense\n")).unwrap();
    signal("HUP", server.id());
    fs::write(&keys, good.lines().filter(|line| !line.starts_with("grafana")).fold(String::new(), |a, b| a + b + "\n"))
        .unwrap();
    let metrics = new_key(&files, "prometheus", "metrics");
    signal("HUP", server.id());
    until(&server, "/edits", &reader, 401).await;
    until(&server, "/metrics", &metrics, 200).await;
    ask(&server, Method::GET, "/edits", &editor).await.with_status(200);
    ask(&server, Method::GET, "/edits", &metrics).await.problem(403, "insufficient_scope");
    let log = server.log();
    for secret in [&editor, &reader, &metrics] {
        assert!(!log.contains(secret.as_str()) && !log.contains(&secret[6..]), "{log}");
    }
    server.stop().await;
}

#[tokio::test]
async fn other_machines_are_not_let_in_without_keys_unless_told() {
    let files = Files::tiny();
    let serve = |options: &[&str]| finish(amend().arg("serve").args(options).args(files.options())).refused();
    let refused = serve(&["--listen", "0.0.0.0:0"]);
    assert!(refused.contains("--keys") && refused.contains("--allow-unauthenticated"), "{refused}");
    assert!(!files.database().exists(), "nothing was begun");
    let missing = key_file(&files).display().to_string();
    assert!(serve(&["--keys", &missing]).contains(&missing));
    let server = Server::start_with(&files, &["--listen", "0.0.0.0:0", "--allow-unauthenticated"]).await;
    server.client.edit("Ada speaks", "Welsh").await;
    server.stop().await;
}

#[tokio::test]
async fn a_rate_is_kept_on_the_running_service() {
    let files = Files::tiny();
    let server = Server::start_with(&files, &["--rate-limit", "edit=1,generate=100"]).await;
    server.client.edit("Ada speaks", "Welsh").await;
    let edit = json!({"prompt": "Bob speaks", "target": "Irish"});
    let refused = server.client.post("/edits", &edit).await;
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.problem(429, "rate_limited")["limit_per_minute"], 1);
    server.client.post("/generate", &json!({"prompt": "Ada", "max_tokens": 1})).await.with_status(200);
    server.stop().await;
}

#[tokio::test]
async fn prompts_and_targets_are_in_the_log_only_when_asked_for() {
    let files = Files::tiny();
    let talk = async |server: &Server| {
        let client = &server.client;
        client.edit("Ada Xylophone speaks", "Yiddishword").await;
        client.post("/generate", &json!({"prompt": "Ada Xylophone", "max_tokens": 2})).await.with_status(200);
        client.get("/edits?text=Xylophone").await.with_status(200);
        client.post("/edits", &json!({"prompt": "Ada Xylophone", "target": ""})).await.problem(422, "invalid_request");
        let forwarded = client.request(Method::GET, "/info").header("x-forwarded-for", "203.0.113.9");
        client.send(forwarded).await.with_status(200);
    };
    let quiet = Server::start_with(&files, &["--log-level", "amend=trace,info"]).await;
    talk(&quiet).await;
    let log = log_with(&quiet, r#""route":"/info""#).await;
    assert!(log.contains("answered") && log.contains("127.0.0.1"), "{log}");
    for secret in ["Xylophone", "Yiddishword", "203.0.113.9"] {
        assert!(!log.contains(secret), "{secret} is in\n{log}");
    }
    quiet.stop().await;
    let files = files.afresh();
    let options = ["--log-prompts", "--log-level", "amend=debug,info", "--trusted-proxies", "127.0.0.1"];
    let told = Server::start_with(&files, &options).await;
    talk(&told).await;
    let log = log_with(&told, "203.0.113.9").await;
    for asked in ["Xylophone", "Yiddishword", "203.0.113.9"] {
        assert!(log.contains(asked), "{asked} is not in\n{log}");
    }
    told.stop().await;
}

/// The server's log once this is in it: an answer may be here before its line is.
async fn log_with(server: &Server, text: &str) -> String {
    for _ in 0..200 {
        if server.log().contains(text) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    server.log()
}
