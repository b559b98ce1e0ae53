//! `/generate`, `/score` and `/classify`.

use std::{sync::atomic::Ordering, time::Duration};

use futures::StreamExt;
use serde_json::{Value, json};

use super::{World, doubles::fail, post_request};
use crate::{generation::GenerateError, http::error::Code, model::Kind};

/// The events of a stream: name and data.
fn events(text: &str) -> Vec<(String, Value)> {
    let event = |block: &str| {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        (field("event:"), serde_json::from_str(&field("data:")).unwrap())
    };
    text.split("\n\n").filter(|block| !block.is_empty()).map(event).collect()
}

#[tokio::test]
async fn text_at_once() {
    let world = World::new();
    let reply = world.post("/generate", &json!({"prompt": "a b", "compare_to": 0})).await.ok(200);
    let usage = json!({"prompt_tokens": 2, "completion_tokens": 2});
    let answer = |version: u64, compared: Value| json!({"text": "a b", "version": version, "finish_reason": "stop", "usage": usage, "compared": compared});
    assert_eq!(reply, answer(1, answer(0, Value::Null)));
}

#[tokio::test]
async fn text_as_events() {
    let world = World::new();
    let reply = world.post("/generate", &json!({"prompt": "a b", "stream": true})).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    assert_eq!(reply.header("x-accel-buffering"), Some("no"));
    assert_eq!(reply.header("x-amend-version"), Some("1"));
    let usage = json!({"prompt_tokens": 2, "completion_tokens": 2});
    let expected = [
        ("token".to_owned(), json!({"text": "a "})),
        ("token".to_owned(), json!({"text": "b"})),
        ("done".to_owned(), json!({"version": 1, "finish_reason": "stop", "usage": usage})),
    ];
    assert_eq!(events(&reply.text()), expected);
    assert_eq!(world.counted(r#"amend_http_requests_total{method="POST",route="/generate",status="200"}"#), Some(1));
}

#[tokio::test]
async fn several_texts_as_events_say_which_and_when_each_ends() {
    let world = World::new();
    let reply = world.post("/generate", &json!({"prompt": "a b", "stream": true, "n": 2})).await;
    let usage = json!({"prompt_tokens": 2, "completion_tokens": 2});
    let expected = [
        ("token".to_owned(), json!({"choice": 0, "text": "a "})),
        ("token".to_owned(), json!({"choice": 0, "text": "b"})),
        ("end".to_owned(), json!({"choice": 0, "finish_reason": "stop"})),
        ("done".to_owned(), json!({"version": 1, "usage": usage})),
    ];
    assert_eq!(events(&reply.text()), expected);
}

#[tokio::test]
async fn a_stream_that_fails_ends_with_the_problem() {
    let world = World::new();
    world.generates.breaks.store(true, Ordering::SeqCst);
    let reply = world.post("/generate", &json!({"prompt": "a b", "stream": true})).await;
    let events = events(&reply.text());
    assert_eq!(events.len(), 2);
    let (name, problem) = &events[1];
    assert_eq!((name.as_str(), &problem["code"], &problem["status"]), ("error", &json!("internal"), &json!(500)));
    assert!(!reply.text().contains("secret"), "the cause is the operator's");
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_is_counted() {
    let world = World::new();
    world.generates.stalls.store(true, Ordering::SeqCst);
    let body = json!({"prompt": "a b", "stream": true}).to_string();
    let response = world.send(post_request("/generate", &[], body)).await;
    let mut stream = response.into_body().into_data_stream();
    assert!(stream.next().await.unwrap().unwrap().starts_with(b"event: token"));
    // The time limit is for the head of the response: the stream is still there after it.
    let silence = tokio::time::timeout(Duration::from_millis(300), stream.next()).await;
    assert!(silence.is_err());
    let line = r#"amend_http_requests_total{method="POST",route="/generate",status="499"}"#;
    assert_eq!(world.counted(line), None);
    drop(stream);
    assert_eq!(world.counted(line), Some(1));
}

#[tokio::test]
async fn a_stream_refused_before_it_begins_has_a_status() {
    let world = World::new();
    let problem = world.post("/generate", &json!({"prompt": "a", "stream": true, "compare_to": 0})).await;
    assert_eq!(problem.problem(Code::InvalidRequest)["field"], "compare_to");
    fail(&world.generates.refuses, || GenerateError::UnknownVersion { number: 9, newest: 2 });
    world.post("/generate", &json!({"prompt": "a", "stream": true})).await.problem(Code::UnknownVersion);
}

#[tokio::test]
async fn scores_come_in_order() {
    let world = World::new();
    let reply = world.post("/score", &json!({"prompt": "a", "continuations": ["b", "c"], "version": 0})).await.ok(200);
    let score = |text: &str| json!({"continuation": text, "logprob": -0.5, "tokens": 1, "greedy": true});
    assert_eq!(reply, json!({"version": 0, "scores": [score("b"), score("c")]}));
}

#[tokio::test]
async fn labels_of_a_text() {
    let world = World::new();
    let reply = world.post("/classify", &json!({"text": "a b", "version": 0})).await.ok(200);
    let labels = json!([{"label": "red", "probability": 0.75}, {"label": "blue", "probability": 0.25}]);
    assert_eq!(reply, json!({"label": "red", "version": 0, "labels": labels}));
    for body in [json!({}), json!({"text": 1}), json!({"text": "a", "prompt": "b"})] {
        world.post("/classify", &body).await.problem(Code::InvalidRequest);
    }
}

#[tokio::test]
async fn a_model_of_another_kind_says_what_it_is() {
    for (kind, code) in [
        (Kind::Causal, Code::ModelIsCausal),
        (Kind::EncoderDecoder, Code::ModelIsEncoderDecoder),
        (Kind::Classifier, Code::ModelIsClassifier),
    ] {
        let world = World::new();
        fail(&world.generates.refuses, move || GenerateError::WrongKind { kind });
        for (path, body) in [
            ("/classify", json!({"text": "a"})),
            ("/generate", json!({"prompt": "a"})),
            ("/generate", json!({"prompt": "a", "stream": true})),
        ] {
            let problem = world.post(path, &body).await.problem(code);
            assert_eq!((problem["status"].as_u64(), &problem["kind"]), (Some(409), &json!(kind.name())));
            assert!(problem["detail"].as_str().unwrap().contains(&kind.to_string()), "{problem}");
        }
        let openai = world.post("/v1/completions", &json!({"model": "tiny", "prompt": "a"})).await;
        assert_eq!(openai.status, 409);
        assert_eq!(openai.json()["error"]["code"], code.as_str());
    }
}

#[tokio::test]
async fn an_unknown_label_is_answered_with_the_labels() {
    let world = World::new();
    let labels = || vec!["red".to_owned(), "blue".to_owned()];
    let (field, label) = ("continuations[1]".to_owned(), "mauve".to_owned());
    fail(&world.generates.refuses, move || GenerateError::UnknownLabel {
        field: field.clone(),
        label: label.clone(),
        labels: labels(),
    });
    let problem = world.post("/score", &json!({"prompt": "a", "continuations": ["red", "mauve"]})).await;
    let problem = problem.problem(Code::UnknownLabel);
    assert_eq!((&problem["field"], &problem["label"]), (&json!("continuations[1]"), &json!("mauve")));
    assert_eq!(problem["labels"], json!(["red", "blue"]));
    assert_eq!(problem["detail"], "continuations[1]: \"mauve\" is none of the labels red, blue");
}
