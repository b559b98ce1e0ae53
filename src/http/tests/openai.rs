//! `/v1/...`: requests as OpenAI's clients write them, answers and errors as they read them.

use std::{sync::atomic::Ordering, time::Duration};

use axum::{body::Body, http::Request};
use serde_json::{Value, json};

use super::{Reply, World, doubles::fail, post_request};
use crate::{generation::GenerateError, http::HttpLimits, http::readiness::Readiness};

/// The `data:` lines of a stream, the last one `[DONE]` unless it failed.
fn chunks(text: &str) -> (Vec<Value>, bool) {
    let data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let done = data.last() == Some(&"[DONE]");
    let chunks = data.iter().take(data.len() - usize::from(done));
    (chunks.map(|chunk| serde_json::from_str(chunk).unwrap()).collect(), done)
}

/// The error of a refused request; fails unless it is whole.
#[track_caller]
fn refused(reply: &Reply, status: u16, code: &str) -> Value {
    let body = reply.json();
    assert_eq!(reply.status.as_u16(), status, "{body}");
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert!(reply.headers.contains_key("x-request-id"));
    let error = body["error"].clone();
    assert_eq!(error["code"], code, "{body}");
    assert!(error["message"].is_string() && error["type"].is_string() && error.get("param").is_some(), "{body}");
    error
}

fn chat(more: &Value) -> Value {
    let mut body = json!({"model": "tiny", "messages": [{"role": "user", "content": "a b"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn completion(more: &Value) -> Value {
    let mut body = json!({"model": "tiny", "prompt": "a b"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn a_completion() {
    let world = World::new();
    let reply = world.post("/v1/completions", &completion(&json!({"logprobs": 1}))).await;
    assert_eq!(reply.header("x-amend-version"), Some("1"));
    let body = reply.ok(200);
    assert!(body["id"].as_str().unwrap().starts_with("cmpl-") && body["created"].as_i64().unwrap() > 1_700_000_000);
    assert_eq!((&body["object"], &body["model"]), (&json!("text_completion"), &json!("tiny")));
    assert_eq!(body["system_fingerprint"], "v1");
    assert_eq!(body["usage"], json!({"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}));
    let logprobs = json!({"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5, "b": -2.0}], "text_offset": [0]});
    let choice = json!({"index": 0, "text": "a b", "logprobs": logprobs, "finish_reason": "stop"});
    assert_eq!(body["choices"], json!([choice]));
    let asked = world.generates.requests.lock().unwrap()[0].clone();
    assert_eq!((asked.max_tokens, asked.temperature, asked.version), (Some(16), Some(1.0), None));
}

#[tokio::test]
async fn a_chat_answer() {
    let world = World::new();
    let body = world.post("/v1/chat/completions", &chat(&json!({"logprobs": true, "top_logprobs": 1}))).await.ok(200);
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((&body["object"], &body["system_fingerprint"]), (&json!("chat.completion"), &json!("v1")));
    let choice = &body["choices"][0];
    assert_eq!(choice["message"], json!({"role": "assistant", "content": "a b", "refusal": null}));
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("stop")));
    let alternative = json!({"token": "b", "logprob": -2.0, "bytes": [98]});
    let token = json!({"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [alternative]});
    assert_eq!(choice["logprobs"], json!({"content": [token]}));
    let asked = world.generates.requests.lock().unwrap()[0].clone();
    assert!(asked.open_ended && asked.max_tokens.is_none());
}

#[tokio::test]
async fn every_parameter_reaches_the_engine() {
    let world = World::new();
    let parameters = json!({"model": "tiny@2", "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "n": 2,
        "presence_penalty": 0.2, "frequency_penalty": 0.3, "repetition_penalty": 1.1, "seed": -1, "stop": "x",
        "max_tokens": 9, "logit_bias": {}, "user": "u", "metadata": {"a": "b"}, "store": false});
    world.post("/v1/completions", &completion(&parameters)).await.ok(200);
    let mut more = parameters.clone();
    more["stop"] = json!(["x", "y"]);
    more["messages"] = json!([
        {"role": "developer", "content": "d"},
        {"role": "assistant", "content": null, "refusal": null, "tool_calls": []},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "n"},
    ]);
    more["tools"] = json!([]);
    more["response_format"] = json!({"type": "text"});
    world.post("/v1/chat/completions", &chat(&more)).await.ok(200);
    let requests = world.generates.requests.lock().unwrap().clone();
    for asked in &requests {
        assert_eq!(
            (asked.version, asked.temperature, asked.top_p, asked.top_k),
            (Some(2), Some(0.5), Some(0.9), Some(7))
        );
        assert_eq!((asked.min_p, asked.n, asked.max_tokens, asked.seed), (Some(0.1), Some(2), Some(9), Some(u64::MAX)));
        assert_eq!((asked.presence_penalty, asked.frequency_penalty), (Some(0.2), Some(0.3)));
        assert_eq!(asked.repetition_penalty, Some(1.1));
    }
    assert_eq!((&requests[0].stop, &requests[1].stop), (&vec!["x".to_owned()], &vec!["x".to_owned(), "y".to_owned()]));
    let messages: Vec<(String, String)> =
        requests[1].messages.clone().unwrap().into_iter().map(|m| (m.role, m.content)).collect();
    let message = |role: &str, content: &str| (role.to_owned(), content.to_owned());
    assert_eq!(messages, [message("system", "d"), message("assistant", ""), message("user", "ab")]);
}

#[tokio::test]
async fn without_a_seed_requests_differ() {
    let world = World::new();
    for _ in 0..2 {
        world.post("/v1/completions", &completion(&json!({}))).await.ok(200);
    }
    let requests = world.generates.requests.lock().unwrap().clone();
    assert_ne!(requests[0].seed, requests[1].seed);
}

#[tokio::test]
async fn several_prompts_run_on_the_version_of_the_first() {
    let world = World::new();
    let body = world.post("/v1/completions", &completion(&json!({"prompt": ["a", "b c", "d"]}))).await.ok(200);
    let choices = body["choices"].as_array().unwrap();
    let texts: Vec<_> = choices.iter().map(|c| (c["index"].as_u64().unwrap(), c["text"].as_str().unwrap())).collect();
    assert_eq!(texts, [(0, "a"), (1, "b c"), (2, "d")]);
    assert_eq!(body["usage"]["total_tokens"], 12);
    let versions: Vec<_> = world.generates.requests.lock().unwrap().iter().map(|asked| asked.version).collect();
    assert_eq!(versions, [None, Some(1), Some(1)]);

    let ids = completion(&json!({"prompt": [[1, 2], [3]]}));
    world.post("/v1/completions", &ids).await.ok(200);
    let asked = world.generates.requests.lock().unwrap()[4].clone();
    assert_eq!(asked.prompt_ids, Some(vec![3]));

    let streamed =
        completion(&json!({"prompt": ["a b", "c"], "stream": true, "stream_options": {"include_usage": true}}));
    let (chunks, done) = chunks(&world.post("/v1/completions", &streamed).await.text());
    let mut texts = [String::new(), String::new()];
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        texts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
    }
    assert_eq!((texts, done), (["a b".to_owned(), "c".to_owned()], true));
    assert_eq!(chunks.last().unwrap()["usage"]["total_tokens"], 8);
}

#[tokio::test]
async fn completion_chunks() {
    let world = World::new();
    let reply = world.post("/v1/completions", &completion(&json!({"stream": true, "logprobs": 0}))).await;
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert_eq!((reply.header("x-accel-buffering"), reply.header("x-amend-version")), (Some("no"), Some("1")));
    let (chunks, done) = chunks(&reply.text());
    assert!(done && chunks.len() == 3, "{chunks:?}");
    for chunk in &chunks {
        assert_eq!((&chunk["object"], &chunk["system_fingerprint"]), (&json!("text_completion"), &json!("v1")));
        assert_eq!((&chunk["id"], chunk.get("usage")), (&chunks[0]["id"], None));
    }
    let choice = |i: usize| chunks[i]["choices"][0].clone();
    assert_eq!((&choice(0)["text"], &choice(1)["text"]), (&json!("a "), &json!("b")));
    assert_eq!((&choice(1)["logprobs"]["text_offset"], &choice(1)["finish_reason"]), (&json!([2]), &Value::Null));
    assert_eq!((&choice(2)["text"], &choice(2)["finish_reason"]), (&json!(""), &json!("stop")));
}

#[tokio::test]
async fn chat_chunks() {
    let world = World::new();
    let asked = chat(&json!({"stream": true, "stream_options": {"include_usage": true}}));
    let (chunks, done) = chunks(&world.post("/v1/chat/completions", &asked).await.text());
    assert!(done && chunks.len() == 5, "{chunks:?}");
    let deltas: Vec<_> = chunks[..4].iter().map(|chunk| chunk["choices"][0]["delta"].clone()).collect();
    let expected =
        [json!({"role": "assistant", "content": ""}), json!({"content": "a "}), json!({"content": "b"}), json!({})];
    assert_eq!(deltas, expected);
    assert!(chunks[..4].iter().all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["usage"].is_null()));
    assert_eq!(chunks[3]["choices"][0]["finish_reason"], "stop");
    let usage = json!({"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4});
    assert_eq!((&chunks[4]["choices"], &chunks[4]["usage"]), (&json!([]), &usage));
}

#[tokio::test]
async fn a_stream_that_fails_ends_with_the_error() {
    let world = World::new();
    world.generates.breaks.store(true, Ordering::SeqCst);
    let reply = world.post("/v1/chat/completions", &chat(&json!({"stream": true}))).await;
    let (chunks, done) = chunks(&reply.text());
    let error = &chunks.last().unwrap()["error"];
    assert_eq!((&error["code"], &error["type"], done), (&json!("internal"), &json!("server_error"), false));
    assert!(!reply.text().contains("secret"), "the cause is the operator's");
}

#[tokio::test]
async fn models_are_listed_and_found() {
    let world = World::new();
    let list = world.get("/v1/models").await.ok(200);
    assert_eq!(list["object"], "list");
    let names: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["tiny", "tiny@2", "tiny@1", "tiny@0"]);
    for name in ["tiny", "tiny@0", "tiny%402"] {
        let model = world.get(&format!("/v1/models/{name}")).await.ok(200);
        assert_eq!((&model["object"], &model["owned_by"]), (&json!("model"), &json!("amend")));
        assert_eq!(model["created"], 1_767_323_045);
    }
    for name in ["other", "tiny@3", "tiny@", "tiny@+1", "tiny@x", "tiny2"] {
        refused(&world.get(&format!("/v1/models/{name}")).await, 404, "model_not_found");
    }
}

#[tokio::test]
async fn what_can_not_be_carried_out_is_refused_by_name() {
    let world = World::new();
    let cases = [
        (json!({"colour": "red"}), "colour"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"stop": 1}), "stop"),
        (json!({"logit_bias": {"1": 2}}), "logit_bias"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
    ];
    for (more, names) in &cases {
        for (path, body) in [("/v1/completions", completion(more)), ("/v1/chat/completions", chat(more))] {
            let error = refused(&world.post(path, &body).await, 400, "invalid_request");
            assert!(error["message"].as_str().unwrap().contains(names), "{error}");
            assert_eq!(error["type"], "invalid_request_error");
        }
    }
    for (more, param) in [
        (json!({"prompt": 5}), "prompt"),
        (json!({"prompt": vec!["a"; 257]}), "prompt"),
        (json!({"echo": true}), "echo"),
        (json!({"suffix": "x"}), "suffix"),
        (json!({"best_of": 3}), "best_of"),
    ] {
        let error = refused(&world.post("/v1/completions", &completion(&more)).await, 400, "invalid_request");
        assert_eq!(error["param"], param);
    }
    for (more, param) in [
        (json!({"tools": [{"type": "function"}]}), "tools"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"modalities": ["audio"]}), "modalities"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"max_tokens": 1, "max_completion_tokens": 2}), "max_completion_tokens"),
        (json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "messages[0].content[0]"),
        (json!({"messages": [{"role": "assistant", "tool_calls": [1]}]}), "messages[0].tool_calls"),
    ] {
        let error = refused(&world.post("/v1/chat/completions", &chat(&more)).await, 400, "invalid_request");
        assert_eq!(error["param"], param);
    }
    let no_prompts = completion(&json!({"prompt": []}));
    refused(&world.post("/v1/completions", &no_prompts).await, 400, "invalid_request");
    assert!(world.generates.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn errors_have_the_envelope_whoever_answers_them() {
    let world = World::new();
    refused(&world.get("/v1/engines").await, 404, "not_found");
    refused(&world.get("/v1/completions").await, 405, "method_not_allowed");
    refused(&world.reply(post_request("/v1/completions", &[], "{")).await, 400, "malformed_json");
    let plain = Request::post("/v1/completions").header("content-type", "text/plain").body(Body::from("{}")).unwrap();
    refused(&world.reply(plain).await, 415, "unsupported_media_type");
    let large = completion(&json!({"user": "x".repeat(20_000)}));
    let error = refused(&world.post("/v1/completions", &large).await, 413, "payload_too_large");
    assert_eq!(error["limit"], 10_000, "the numbers stand beside the sentence");
    let other =
        refused(&world.post("/v1/completions", &completion(&json!({"model": "gpt-4"}))).await, 404, "model_not_found");
    assert_eq!(other["param"], "model");

    type Make = fn() -> GenerateError;
    let cases: [(Make, u16, &str, &str); 5] = [
        (
            || GenerateError::QueueFull { capacity: 4, retry_after: Duration::from_secs(7) },
            429,
            "queue_full",
            "rate_limit_error",
        ),
        (|| GenerateError::UnknownVersion { number: 9, newest: 2 }, 404, "model_not_found", "invalid_request_error"),
        (
            || GenerateError::ContextExceeded { prompt_tokens: 60, max_tokens: 9, limit: 64 },
            400,
            "context_length_exceeded",
            "invalid_request_error",
        ),
        (|| GenerateError::ShuttingDown, 503, "draining", "server_error"),
        (|| GenerateError::Internal("secret".into()), 500, "internal", "server_error"),
    ];
    for (make, status, code, kind) in cases {
        fail(&world.generates.refuses, make);
        for stream in [false, true] {
            let reply = world.post("/v1/chat/completions", &chat(&json!({"stream": stream}))).await;
            assert_eq!(refused(&reply, status, code)["type"], kind);
            assert!(!reply.text().contains("secret"));
            assert_eq!(reply.header("retry-after").is_some(), matches!(status, 429 | 503));
        }
    }
    let starting = World::build(Readiness::new(), HttpLimits::default());
    refused(&starting.post("/v1/completions", &completion(&json!({}))).await, 503, "not_ready");
    let doors = crate::http::Doors::new(Readiness::new()).router();
    let closed = tower::ServiceExt::oneshot(doors, post_request("/v1/completions", &[], "{}")).await.unwrap();
    let body = axum::body::to_bytes(closed.into_body(), usize::MAX).await.unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["error"]["code"], "not_ready");
}
