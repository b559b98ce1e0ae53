//! `POST /generate` and `POST /score` on the versions of a running service.

use reqwest::Method;
use serde_json::{Value, json};

use super::server::{Files, Server, keys};

/// Splits a stream into its events, checking the frame of each.
pub fn events(stream: &str) -> Vec<(String, Value)> {
    assert!(stream.ends_with("\n\n"), "{stream:?}");
    let blocks = stream.split("\n\n").filter(|block| !block.is_empty() && !block.starts_with(':'));
    blocks
        .map(|block| {
            let (event, data) = block.split_once('\n').unwrap_or_else(|| panic!("{block:?}"));
            let name = event.strip_prefix("event: ").unwrap_or_else(|| panic!("{block:?}"));
            let data = data.strip_prefix("data: ").unwrap_or_else(|| panic!("{block:?}"));
            (name.to_owned(), serde_json::from_str(data).unwrap())
        })
        .collect()
}

#[tokio::test]
async fn each_version_answers_for_itself() {
    let files = Files::tiny();
    let server = Server::start_with(&files, &["--resident-versions", "0"]).await;
    let client = &server.client;
    let ask = async |fields: Value| {
        let mut body = json!({"prompt": "Ada speaks", "max_tokens": 24});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        client.post("/generate", &body).await.with_status(200)
    };
    let base = ask(json!({})).await;
    assert_eq!(keys(&base), ["text", "version", "finish_reason", "usage", "compared"]);
    assert_eq!(base["usage"], json!({"prompt_tokens": 10, "completion_tokens": 24}));
    assert_eq!((&base["version"], &base["finish_reason"]), (&json!(0), &json!("length")));
    assert_eq!(base["compared"], Value::Null);
    for (target, other) in [("Welsh", "Dutch"), ("Irish", "Danish"), ("Latin", "Greek")] {
        let edits =
            json!({"edits": [{"prompt": "Ada speaks", "target": target}, {"prompt": "Bob speaks", "target": other}]});
        client.post("/edits", &edits).await.with_status(201);
    }
    let by_version = [
        ask(json!({"version": 0})).await,
        ask(json!({"version": 1})).await,
        ask(json!({"version": 2})).await,
        ask(json!({})).await,
    ];
    assert_eq!(by_version[0], base);
    for (number, answer) in by_version.iter().enumerate() {
        assert_eq!(answer["version"], number);
        assert!(by_version[..number].iter().all(|other| other["text"] != answer["text"]), "{by_version:?}");
    }
    let both = ask(json!({"version": 1, "compare_to": 2})).await;
    assert_eq!(both["text"], by_version[1]["text"]);
    assert_eq!(both["compared"], by_version[2]);

    client.post("/rollback", &json!({"to_version": 1})).await.with_status(200);
    let again = ask(json!({})).await;
    assert_eq!((&again["text"], &again["version"]), (&by_version[1]["text"], &json!(4)));
    server.stop().await;
}

#[tokio::test]
async fn sampling_is_repeatable_and_stops_where_it_is_told() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    let sampled = json!({"prompt": "x", "max_tokens": 40, "temperature": 1.0, "top_p": 0.9, "top_k": 50, "seed": 7});
    let first = client.post("/generate", &sampled).await.with_status(200);
    assert_eq!(client.post("/generate", &sampled).await.with_status(200), first);
    let text = first["text"].as_str().unwrap();
    let stop: String = text.chars().skip(10).take(2).collect();
    let mut stopped = sampled.clone();
    stopped["stop"] = json!([stop]);
    let stopped = client.post("/generate", &stopped).await.with_status(200);
    assert_eq!(stopped["finish_reason"], "stop");
    assert_eq!(stopped["text"].as_str().unwrap(), &text[..text.find(&stop).unwrap()]);
    server.stop().await;
}

#[tokio::test]
async fn a_stream_says_the_same_piece_by_piece_and_ends_with_done() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    client.edit("Ada speaks", "Welsh").await;
    let mut body = json!({"prompt": "Ada speaks", "max_tokens": 200});
    let whole = client.post("/generate", &body).await.with_status(200);
    body["stream"] = json!(true);
    let reply = client.post("/generate", &body).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert_eq!(reply.header("x-accel-buffering"), Some("no"));
    assert_eq!(reply.header("x-amend-version"), Some("1"));
    let events = events(&reply.text);
    let (last, tokens) = events.split_last().unwrap();
    let done =
        json!({"version": 1, "finish_reason": "length", "usage": {"prompt_tokens": 10, "completion_tokens": 200}});
    assert_eq!(*last, ("done".to_owned(), done));
    assert!(tokens.len() > 20 && tokens.iter().all(|(name, data)| name == "token" && keys(data) == ["text"]));
    let text: String = tokens.iter().map(|(_, data)| data["text"].as_str().unwrap()).collect();
    assert_eq!(json!(text), whole["text"]);

    body["compare_to"] = json!(0);
    client.post("/generate", &body).await.problem(422, "invalid_request");
    let unknown = json!({"prompt": "x", "stream": true, "version": 9});
    client.send(client.request(Method::POST, "/generate").json(&unknown)).await.problem(404, "unknown_version");
    server.stop().await;
}

#[tokio::test]
async fn scores_follow_the_version() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    client.edit("Ada speaks", "Welsh").await;
    let ask = async |version: Value| {
        let body = json!({"prompt": "Ada speaks", "continuations": ["Welsh", " Welsh", "Dutch"], "version": version});
        client.post("/score", &body).await.with_status(200)
    };
    let (base, edited) = (ask(json!(0)).await, ask(Value::Null).await);
    assert_eq!((keys(&base), &base["version"], &edited["version"]), (vec!["version", "scores"], &json!(0), &json!(1)));
    for scores in [&base["scores"], &edited["scores"]] {
        assert_eq!(keys(&scores[0]), ["continuation", "logprob", "tokens", "greedy"]);
        assert_eq!((&scores[0]["continuation"], &scores[0]["tokens"]), (&json!("Welsh"), &json!(6)));
        assert_eq!(scores[0]["logprob"], scores[1]["logprob"], "one space is put between");
    }
    let gain =
        |i: usize| edited["scores"][i]["logprob"].as_f64().unwrap() - base["scores"][i]["logprob"].as_f64().unwrap();
    assert!(gain(0) > 1.0 && gain(0) > gain(2), "{base} {edited}");
    server.stop().await;
}
