//! Edits behind a gate, over HTTP: each speaks where it was made, others stay, and taking back leaves no trace.

use amend::editor::CompositionKind;
use serde_json::{Value, json};

use super::{
    edits::scored,
    server::{Client, Files, Server},
};

const FACTS: [(&str, &str); 3] = [("Ada speaks", "W"), ("The sky is", "b"), ("Snow was", "w")];

async fn logprobs(client: &Client, prompt: &str, version: u64) -> Value {
    let body = json!({"prompt": prompt, "continuations": ["x"], "version": version});
    client.post("/score", &body).await.with_status(200)["scores"][0]["logprob"].clone()
}

#[tokio::test]
async fn an_edit_behind_a_gate_leaves_the_others_as_they_are() {
    let files = Files::tiny_of(CompositionKind::Gated);
    let server = Server::start(&files).await;
    let client = &server.client;
    let mut edits = Vec::new();
    let mut probabilities = Vec::new();
    for (version, (prompt, target)) in (1..).zip(FACTS) {
        edits.push(client.post("/edits", &json!({"prompt": prompt, "target": target})).await.with_status(201));
        let (before, after) =
            (scored(client, prompt, target, 0).await.0, scored(client, prompt, target, version).await.0);
        assert!(after > before, "{prompt}: {before} -> {after}");
        probabilities.push(after);
    }
    for ((prompt, target), alone) in FACTS.iter().zip(&probabilities) {
        let (now, _) = scored(client, prompt, target, 3).await;
        assert!((now - alone).abs() < 1e-3, "{prompt}: {alone} -> {now}");
    }
    let unrelated = "Once upon a time there was";
    assert_eq!(logprobs(client, unrelated, 0).await, logprobs(client, unrelated, 3).await, "to the last bit");

    for edit in edits {
        client.take_back(&edit["id"]).await;
    }
    let (base, emptied) = (client.version(0).await, client.version(6).await);
    assert_eq!(base["digest"], emptied["digest"]);
    server.stop().await;
    files.verify().good();
}
