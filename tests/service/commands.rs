//! The other commands: beside a running service, and on its files when it has stopped.

use std::{path::Path, process::Command};

use serde_json::{Value, json};

use super::{
    process::{amend, finish, interrupt_at},
    server::{Files, Server},
};

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_read_the_log_beside_the_service() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = server.client.clone();
    let one = client.edit("One is", "uno").await;
    let two = client.edit("Two is", "due").await;
    let (id, url, address) = (one["id"].as_str().unwrap(), files.url(), client.server.as_str());
    let run = |args: &[&str]| finish(amend().args(args));

    let listed = json_of(&run(&["edits", "list", "--database", &url, "--output", "json"]).good());
    let ids: Vec<&Value> = listed["edits"].as_array().unwrap().iter().map(|edit| &edit["id"]).collect();
    assert_eq!(ids, [&two["id"], &one["id"]]);
    let text = run(&["edits", "list", "--database", &url]).good();
    assert!(text.contains(id) && text.contains("Two is"), "{text}");
    let shown = json_of(&run(&["edits", "show", id, "--database", &url, "--output", "json"]).good());
    assert_eq!((&shown["report"]["prompt"], &shown["status"]), (&one["prompt"], &json!("applied")));
    let versions = json_of(&run(&["versions", "--database", &url, "--output", "json"]).good());
    assert_eq!(versions["versions"][0]["digest"], two["digest"]);

    assert_eq!(run(&["health", "--server", address]).good(), "ready\n");
    let generated =
        run(&["generate", "--server", address, "--prompt", "One is", "--max-tokens", "9", "--output", "json"]).good();
    let asked = client.post("/generate", &json!({"prompt": "One is", "max_tokens": 9})).await.with_status(200);
    assert_eq!(json_of(&generated), asked);
    let clean = files.verify().good();
    assert!(clean.starts_with("clean: 6 entries, 2 versions, 2 edits active"), "{clean}");

    let reverted = run(&["edits", "revert", id, "--server", address, "--actor", "ops"]).good();
    let newest = client.newest().await;
    assert!(reverted.contains(newest["digest"].as_str().unwrap()) && reverted.contains("version 3"), "{reverted}");
    assert_eq!(newest["actor"], "ops");
    let again = run(&["edits", "revert", id, "--server", address]).refused();
    assert!(again.contains("edit_not_active"), "{again}");
    server.stop().await;
    let unreachable = run(&["health", "--server", address]).refused();
    assert!(unreachable.contains("no answer from"), "{unreachable}");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_work_on_the_files_when_no_service_runs() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let base = server.client.version(0).await;
    let id = server.client.edit("One is", "uno").await["id"].as_str().unwrap().to_owned();
    let asked = json!({"prompt": "One is", "max_tokens": 9, "compare_to": 0});
    let asked = server.client.post("/generate", &asked).await.with_status(200);
    let held = finish(amend().args(["edits", "revert", &id]).args(files.options())).refused();
    assert!(held.contains(&format!("process {}", server.id())), "{held}");
    server.stop().await;

    let here = |args: &[&str]| finish(amend().args(args).args(files.options()));
    let args = ["generate", "--prompt", "One is", "--max-tokens", "9", "--compare-to", "0", "--output", "json"];
    assert_eq!(json_of(&here(&args).good()), asked);
    let reverted = here(&["edits", "revert", &id]).good();
    assert!(reverted.contains(base["digest"].as_str().unwrap()), "{reverted}");
    let clean = files.verify().good();
    assert!(clean.starts_with("clean: 5 entries, 2 versions, 0 edits active"), "{clean}");
    let unknown = here(&["edits", "revert", "01890a5d-ac96-774b-bcce-b302099a8057"]).refused();
    assert!(unknown.contains("there is no edit"), "{unknown}");
}

#[test]
fn openapi_prints_the_committed_document() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/openapi.json");
    assert_eq!(finish(amend().arg("openapi")).good(), std::fs::read_to_string(path).unwrap());
}

#[test]
fn what_is_missing_is_named() {
    let files = Files::tiny();
    let verify = files.verify().refused();
    assert!(verify.contains("there is no database at"), "{verify}");
    assert!(!files.database().exists());
    let mut no_model = files.afresh();
    no_model.model = files.folder.path().join("nowhere");
    let serve = finish(amend().args(["serve", "--listen", "127.0.0.1:0"]).args(no_model.options())).refused();
    assert!(serve.contains("nowhere"), "{serve}");
    let mut no_editor = files.afresh();
    no_editor.editor = files.folder.path().join("nowhere");
    let serve = finish(amend().args(["serve", "--listen", "127.0.0.1:0"]).args(no_editor.options())).refused();
    assert!(serve.contains("nowhere"), "{serve}");
    let usage = finish(amend().args(["serve", "--guard-min-probability", "2"]));
    assert_eq!(usage.status.code(), Some(2), "{usage:?}");
}

#[test]
fn options_that_do_not_fit_each_other_are_refused_before_anything_is_opened() {
    let files = Files::tiny();
    let mut nothing = files.afresh();
    nothing.model = files.folder.path().join("nowhere");
    let options = ["--max-tokens-limit", "10", "--default-max-tokens", "11"];
    let refused = finish(amend().args(["serve", "--listen", "127.0.0.1:0"]).args(options).args(nothing.options()));
    let error = refused.refused();
    assert!(error.contains("default_max_tokens: must be at most 10") && error.contains("Given: 11"), "{error}");
    assert!(!nothing.database().exists());
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_gpu_that_this_program_can_not_use_is_refused() {
    let files = Files::tiny();
    let serve =
        |device| finish(amend().args(["serve", "--listen", "127.0.0.1:0", "--device", device]).args(files.options()));
    let refused = serve("cuda:1").refused();
    assert!(refused.contains("--device cuda:1") && refused.contains("--features cuda"), "{refused}");
    assert!(!files.database().exists());
    let usage = serve("gpu");
    assert_eq!(usage.status.code(), Some(2), "{usage:?}");
    assert!(usage.stderr.contains("none of cpu, cuda, cuda:N"), "{usage:?}");
}

/// A model that is a pipe: a command that opens it waits there, so the signal comes in the middle of its work.
#[test]
fn an_interrupt_ends_offline_commands_with_a_word() {
    let files = Files::tiny();
    let pipe = files.folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let data = files.folder.path().join("data.json");
    let record = json!({"src": "p", "rephrase": "q", "alt": "a", "answers": ["b"], "loc": "l", "loc_ans": "c"});
    std::fs::write(&data, json!([record]).to_string()).unwrap();
    let data = data.to_str().unwrap();
    let commands: [(&[&str], &str); 2] = [
        (&["verify"], "the log was not checked to its end; nothing was changed"),
        (&["eval", "--data", data], "no record was measured; no figures were written"),
    ];
    for (args, words) in commands {
        let mut command = amend();
        command.args(args).arg("--editor").arg(&files.editor).arg("--model").arg(&pipe);
        let ended = interrupt_at(&pipe, &mut command);
        assert_eq!(ended.status.code(), Some(130), "{ended:?}");
        assert!(ended.stderr.contains(&format!("interrupted: {words}")), "{ended:?}");
    }
}
