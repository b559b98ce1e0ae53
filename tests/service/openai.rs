//! `/v1/...` of a running service: with OpenAI's own Python client, and without.

use std::{path::Path, process::Command};

use amend::editor::CompositionKind;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    process::finish,
    python,
    server::{Files, Server},
    tiny,
};

/// The release of the client that the test is written for.
const CLIENT: &str = "openai==3.57.0";

/// The tiny model with a template for conversations.
fn files() -> Files {
    let mut files = Files::tiny();
    let template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: ";
    let config = json!({"chat_template": template});
    std::fs::write(files.model.join("tokenizer_config.json"), config.to_string()).unwrap();
    // The editor names the model's files by their digest.
    files.editor = files.folder.path().join("editor of the talking model");
    tiny::write_editor(&files.editor, &files.model, CompositionKind::Sum, 2);
    files
}

#[tokio::test]
async fn openais_python_client_gets_what_it_expects() {
    let Some(python) = tokio::task::spawn_blocking(|| python::with(CLIENT, "openai")).await.unwrap() else { return };
    let files = files();
    let server = Server::start(&files).await;
    server.client.edit("Ada speaks", "Welsh").await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/service/openai_client.py");
    let address = server.client.server.clone();
    let done =
        tokio::task::spawn_blocking(move || finish(Command::new(python).arg(script).arg(address))).await.unwrap();
    assert!(done.good().contains("all as its client expects"));
    server.stop().await;
}

#[tokio::test]
async fn versions_are_models() {
    let files = files();
    let server = Server::start(&files).await;
    let client = &server.client;
    client.edit("Ada speaks", "Welsh").await;
    client.edit("Ada speaks", "Irish").await;
    let list = client.get("/v1/models").await.with_status(200);
    let names: Vec<&str> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    let name = names[0];
    assert_eq!(names[1..], [format!("{name}@2"), format!("{name}@1"), format!("{name}@0")]);
    for (model, version) in [(names[0], 2), (names[2], 1), (names[3], 0)] {
        let asked = json!({"model": model, "prompt": "Ada speaks", "max_tokens": 20, "temperature": 0});
        let body = client.post("/v1/completions", &asked).await.with_status(200);
        assert_eq!(body["system_fingerprint"], format!("v{version}"));
        let plain = json!({"prompt": "Ada speaks", "max_tokens": 20, "version": version});
        let plain = client.post("/generate", &plain).await.with_status(200);
        assert_eq!(body["choices"][0]["text"], plain["text"], "the same as /generate says");
    }
    let asked = json!({"model": format!("{name}@3"), "prompt": "x"});
    let error = client.post("/v1/completions", &asked).await.with_status(404)["error"].clone();
    assert_eq!((&error["code"], &error["newest"]), (&json!("model_not_found"), &json!(2)));
    server.stop().await;
}

#[tokio::test]
async fn a_chat_is_what_the_template_makes_of_it() {
    let files = files();
    let server = Server::start(&files).await;
    let client = &server.client;
    let name = client.get("/v1/models").await.with_status(200)["data"][0]["id"].clone();
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]);
    let asked = json!({"model": name, "messages": messages, "max_tokens": 30, "temperature": 0.8, "seed": 3, "stop": ["\u{1}"]});
    let chat = client.post("/v1/chat/completions", &asked).await.with_status(200);
    let prompt = "system: Be brief.\nuser: Hi\nassistant: ";
    let plain = json!({"prompt": prompt, "max_tokens": 30, "temperature": 0.8, "seed": 3, "stop": ["\u{1}"]});
    let plain = client.post("/generate", &plain).await.with_status(200);
    assert_eq!(chat["choices"][0]["message"]["content"], plain["text"]);
    assert_eq!(chat["usage"]["prompt_tokens"], prompt.len());

    let mut streamed = asked.clone();
    streamed["stream"] = json!(true);
    let reply = client.post("/v1/chat/completions", &streamed).await;
    let data: Vec<&str> = reply.text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let (last, chunks) = data.split_last().unwrap();
    assert_eq!((reply.status, *last), (200, "[DONE]"));
    let delta = |chunk: &&str| serde_json::from_str::<Value>(chunk).unwrap()["choices"][0]["delta"]["content"].clone();
    let text: String = chunks.iter().map(delta).filter_map(|piece| piece.as_str().map(str::to_owned)).collect();
    assert_eq!(json!(text), plain["text"]);

    let open = json!({"model": name, "messages": [{"role": "user", "content": "x".repeat(4000)}], "seed": 1});
    let body = client.post("/v1/chat/completions", &open).await.with_status(200);
    assert_eq!(body["usage"]["total_tokens"], tiny::CONTEXT, "without a limit the context is filled");
    client.send(client.request(Method::DELETE, "/v1/models")).await.with_status(405);
    server.stop().await;
}
