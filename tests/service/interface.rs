//! The running service against the document that describes it: schemathesis makes requests from the document, good and bad
//! ones, and holds every answer against it. `AMEND_EXAMPLES` says how many for each route at most.

use std::{path::Path, process::Command};

use super::{
    process::{amend, finish},
    python,
    server::{Files, Server},
};

/// The release that the test is written for.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";
/// Enough to meet every field; continuous integration has a minute for all.
const EXAMPLES: u64 = 10;

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_as_the_document_says() {
    let python = tokio::task::spawn_blocking(|| python::with(SCHEMATHESIS, "schemathesis"));
    let Some(python) = python.await.unwrap() else { return };
    let examples = std::env::var("AMEND_EXAMPLES").map_or(EXAMPLES, |text| text.parse().unwrap());
    let files = Files::tiny();
    let keys = files.folder.path().join("keys");
    let key = finish(amend().args(["keys", "new", "--name", "tester", "--scope", "admin", "--file"]).arg(&keys)).good();
    let server =
        Server::start_with(&files, &["--keys", keys.to_str().unwrap(), "--recheck-idle", "0", "--version-wait", "0.1"])
            .await;
    let edit = serde_json::json!({"prompt": "Ada speaks", "target": "Welsh", "guard": null});
    let request = server.client.request(reqwest::Method::POST, "/edits").bearer_auth(key.trim()).json(&edit);
    server.client.send(request).await.with_status(201);
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut run = Command::new(python);
    run.current_dir(files.folder.path()).env("AMEND_API_KEY", key.trim());
    run.env("SCHEMATHESIS_HOOKS", here.join("tests/service/schemathesis_hooks.py"));
    run.args(["-m", "schemathesis.cli", "--config-file"]).arg(here.join("tests/service/schemathesis.toml"));
    run.arg("run").arg(here.join("openapi/openapi.json"));
    run.args(["--url", &server.client.server, "--max-examples", &examples.to_string(), "--no-color"]);
    run.args(["--phases", "examples,coverage,fuzzing", "--seed", "1", "--generation-database", "none"]);
    run.args(["--continue-on-failure"]);
    let done = tokio::task::spawn_blocking(move || finish(&mut run)).await.unwrap();
    println!("{}", done.stdout);
    let log = server.log();
    server.stop().await;
    assert!(done.status.success(), "{}\n{}\nthe service said:\n{log}", done.stdout, done.stderr);
    Files::verify(&files).good();
}
