//! Every way to be refused answers a problem document with its own code.

use std::{sync::atomic::Ordering, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{Request, header},
};
use futures::stream;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    World,
    doubles::{fail, id},
    post_request,
};
use crate::{
    edit_log::{EditStatus, LogError},
    generation::GenerateError,
    http::error::Code,
    writer::WriterError,
};

fn edit() -> Value {
    json!({"prompt": "p", "target": "t"})
}

#[tokio::test]
async fn routes_and_methods() {
    let world = World::new();
    world.get("/").await.problem(Code::NotFound);
    world.get("/edits/").await.problem(Code::NotFound);
    let put = Request::put("/edits").body(Body::empty()).unwrap();
    let reply = world.reply(put).await;
    reply.problem(Code::MethodNotAllowed);
    let allowed = reply.header("allow").unwrap();
    assert!(allowed.contains("GET") && allowed.contains("POST"), "{allowed}");
}

#[tokio::test]
async fn parameters() {
    let world = World::new();
    for path in [
        "/edits/no-uuid",
        "/versions/-1",
        "/versions/99999999999999999999",
        "/versions/1/diff",
        "/versions/1/diff?from=x",
        "/versions/%ff",
        "/edits?limit=0",
        "/edits?limit=201",
        "/edits?limit=many",
        "/edits?cursor=x",
        "/edits?cursor=18446744073709551615",
        "/edits?status=queued",
        "/edits?since=yesterday",
        "/edits?colour=red",
        "/versions?limit=1000",
    ] {
        world.get(path).await.problem(Code::InvalidParameter);
    }
    let problem = world.get("/edits?limit=201").await.json();
    assert_eq!((&problem["limit"], &problem["given"]), (&json!(200), &json!(201)));
    world.post("/edits?dry_run=perhaps", &edit()).await.problem(Code::InvalidParameter);
    world.delete("/edits/1").await.problem(Code::InvalidParameter);
}

#[tokio::test]
async fn headers() {
    let world = World::new();
    let long = "k".repeat(256);
    for (name, value) in [
        ("idempotency-key", long.as_str()),
        ("idempotency-key", ""),
        ("idempotency-key", "two words"),
        ("x-amend-actor", "ada lovelace"),
        ("x-amend-actor", "\u{e9}"),
        ("if-match", "7"),
    ] {
        let problem = world.post_with("/edits", &[(name, value)], &edit()).await.problem(Code::InvalidHeader);
        assert_eq!(problem["header"], name);
    }
    let both = json!({"to_version": 1, "expected_version": 2});
    world.post_with("/rollback", &[("if-match", "\"3\"")], &both).await.problem(Code::InvalidRequest);
}

#[tokio::test]
async fn bodies() {
    let world = World::new();
    for text in ["", "{", "{\"prompt\": \"p\",}", "nonsense", "\"\\ud800\"", &"[".repeat(5000)] {
        let reply = world.reply(post_request("/edits", &[], text.to_owned())).await;
        reply.problem(Code::MalformedJson);
    }
    for (body, names) in [
        (json!({"prompt": "p"}), "target"),
        (json!({"prompt": "p", "target": "t", "colour": "red"}), "colour"),
        (json!({"prompt": "p", "target": 3}), "target"),
        (json!({"prompt": "p", "target": "t", "locality": [{"prompt": 1}]}), "locality[0].prompt"),
        (json!({"prompt": "p", "target": "t", "guard": {"max_kl": "low"}}), "guard.max_kl"),
        (json!({"edits": []}), "edits"),
        (json!({"edits": [{"prompt": "p", "target": "t", "dry_run": true}]}), "dry_run"),
        (json!({"edits": [{"prompt": "p", "target": "t"}], "prompt": "p"}), "prompt"),
        (json!({"edits": 1}), "edits"),
        (json!([1]), "invalid"),
        (json!(null), "invalid"),
    ] {
        let problem = world.post("/edits", &body).await.problem(Code::InvalidRequest);
        assert!(problem["detail"].as_str().unwrap().contains(names), "{problem}");
    }
    assert!(world.edits.submissions.lock().unwrap().is_empty());
    for (path, body) in [("/rollback", json!({"to": 1})), ("/generate", json!({"seed": -1})), ("/score", json!({}))] {
        world.post(path, &body).await.problem(Code::InvalidRequest);
    }
}

#[tokio::test]
async fn bodies_that_are_too_large_or_of_another_kind() {
    let world = World::new();
    let long = json!({"prompt": "p".repeat(20_000), "target": "t"}).to_string();
    let given = long.len();
    let announced = post_request("/edits", &[("content-length", &given.to_string())], long.clone());
    let problem = world.reply(announced).await.problem(Code::PayloadTooLarge);
    assert_eq!((&problem["limit"], &problem["given"]), (&json!(10_000), &json!(given)));
    let chunks = stream::iter(
        long.into_bytes().chunks(1000).map(|c| Ok::<_, String>(Bytes::from(c.to_vec()))).collect::<Vec<_>>(),
    );
    let streamed = post_request("/edits", &[], Body::from_stream(chunks));
    world.reply(streamed).await.problem(Code::PayloadTooLarge);
    let broken = Body::from_stream(stream::iter([Ok(Bytes::from_static(b"{")), Err("gone".to_owned())]));
    world.reply(post_request("/edits", &[], broken)).await.problem(Code::MalformedBody);
    for kind in [Some("text/plain"), Some("application/x-www-form-urlencoded"), None] {
        let mut request = Request::post("/edits");
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let reply = world.reply(request.body(Body::from(edit().to_string())).unwrap()).await;
        reply.problem(Code::UnsupportedMediaType);
    }
    let request = Request::post("/edits").header(header::CONTENT_TYPE, "Application/JSON; charset=utf-8");
    world.reply(request.body(Body::from(edit().to_string())).unwrap()).await.ok(201);
}

#[tokio::test]
async fn what_the_writer_refuses() {
    type Make = fn() -> WriterError;
    let cases: [(Make, Code, &str); 13] = [
        (|| WriterError::QueueFull { capacity: 64, retry_after: Duration::from_secs(7) }, Code::QueueFull, "capacity"),
        (|| WriterError::Invalid { field: "prompt".into(), message: "empty".into() }, Code::InvalidRequest, "field"),
        (|| WriterError::Failed { id: id(1), message: "not finite".into() }, Code::EditFailed, "id"),
        (|| WriterError::VersionConflict { expected: 6, current: 7 }, Code::VersionConflict, "current"),
        (|| WriterError::UnknownEdit(id(1)), Code::UnknownEdit, "id"),
        (|| WriterError::UnknownVersion { number: 9, newest: 7 }, Code::UnknownVersion, "newest"),
        (|| WriterError::NotActive { id: id(1), status: EditStatus::TakenBack }, Code::EditNotActive, "edit_status"),
        (|| WriterError::IdempotencyMismatch { key: "k".into() }, Code::IdempotencyKeyReused, "detail"),
        (|| WriterError::Overflow { matrix: "down".into(), limit: 8.0 }, Code::AccumulatorOverflow, "matrix"),
        (|| WriterError::ShuttingDown, Code::Draining, "detail"),
        (|| WriterError::Log(LogError::Full), Code::LogFull, "detail"),
        (|| WriterError::Log(LogError::Storage("io".into())), Code::LogUnavailable, "detail"),
        (|| WriterError::Internal("secret".into()), Code::Internal, "detail"),
    ];
    for (error, code, member) in cases {
        let world = World::new();
        fail(&world.edits.refuses, error);
        fail(&world.edits.fails, error);
        let delete = format!("/edits/{}", id(1));
        for reply in [
            world.post("/edits", &edit()).await,
            world.post("/rollback", &json!({"to_version": 1})).await,
            world.delete(&delete).await,
        ] {
            let problem = reply.problem(code);
            assert!(!problem[member].is_null(), "{problem}");
            assert!(!reply.text().contains("secret"));
            if code == Code::QueueFull {
                assert_eq!(reply.header("retry-after"), Some("7"));
            }
        }
    }
}

#[tokio::test]
async fn what_the_engine_refuses() {
    type Make = fn() -> GenerateError;
    let cases: [(Make, Code); 6] = [
        (|| GenerateError::QueueFull { capacity: 8, retry_after: Duration::ZERO }, Code::QueueFull),
        (
            || GenerateError::Invalid { field: "top_p".into(), message: "must be at most 1. Given: 2".into() },
            Code::InvalidRequest,
        ),
        (|| GenerateError::UnknownVersion { number: 9, newest: 7 }, Code::UnknownVersion),
        (|| GenerateError::ContextExceeded { prompt_tokens: 60, max_tokens: 9, limit: 64 }, Code::ContextExceeded),
        (|| GenerateError::ShuttingDown, Code::Draining),
        (|| GenerateError::Internal("secret".into()), Code::Internal),
    ];
    for (error, code) in cases {
        let world = World::new();
        fail(&world.generates.refuses, error);
        for reply in [
            world.post("/generate", &json!({"prompt": "p"})).await,
            world.post("/generate", &json!({"prompt": "p", "stream": true})).await,
            world.post("/score", &json!({"prompt": "p", "continuations": ["c"]})).await,
        ] {
            reply.problem(code);
            assert!(!reply.text().contains("secret"));
        }
    }
}

#[tokio::test]
async fn what_the_log_refuses() {
    type Make = fn() -> LogError;
    let damaged: Make =
        || LogError::Damaged { table: "entries", row: "17".into(), why: "the hash does not fit".into() };
    let cases: [(Make, Code); 4] = [
        (damaged, Code::LogDamaged),
        (|| LogError::ReadOnly, Code::LogUnavailable),
        (|| LogError::Storage("io".into()), Code::LogUnavailable),
        (|| LogError::Full, Code::LogFull),
    ];
    for (error, code) in cases {
        let world = World::new();
        fail(&world.log.fails, error);
        for path in ["/edits", "/versions", "/versions/1", "/versions/1/diff?from=0"] {
            world.get(path).await.problem(code);
        }
        world.get(&format!("/edits/{}", id(1))).await.problem(code);
        let key = [("idempotency-key", "k")];
        world.post_with("/edits", &key, &edit()).await.problem(code);
    }
    let world = World::new();
    world.get(&format!("/edits/{}", id(77))).await.problem(Code::UnknownEdit);
}

#[tokio::test]
async fn time_and_panics() {
    let world = World::new();
    world.edits.hangs.store(true, Ordering::SeqCst);
    let problem = world.post("/edits", &edit()).await.problem(Code::RequestTimeout);
    assert_eq!(problem["limit_seconds"], 0.2);
    let world = World::new();
    world.edits.panics.store(true, Ordering::SeqCst);
    let reply = world.post("/edits", &edit()).await;
    reply.problem(Code::Internal);
    assert!(!reply.text().contains("told to panic"));
    assert_eq!(world.counted(r#"amend_http_requests_total{method="POST",route="/edits",status="500"}"#), Some(1));
}

/// Any JSON, with the field names that the routes know among others.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        Just("prompt".to_owned()),
        Just("target".to_owned()),
        Just("edits".to_owned()),
        Just("guard".to_owned()),
        Just("locality".to_owned()),
        Just("stream".to_owned()),
        Just("dry_run".to_owned()),
        Just("to_version".to_owned()),
        Just("continuations".to_owned()),
        Just("messages".to_owned()),
        ".{0,6}",
    ];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((name.clone(), inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_body_makes_the_service_fail(json in any_json(), bytes in prop::collection::vec(any::<u8>(), 0..64), cut in any::<prop::sample::Index>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new();
            let text = json.to_string().into_bytes();
            let cut = text[..cut.index(text.len() + 1)].to_vec();
            for path in ["/edits", "/rollback", "/generate", "/score"] {
                for body in [text.clone(), cut.clone(), bytes.clone()] {
                    let reply = world.reply(post_request(path, &[], body)).await;
                    assert!(reply.status.as_u16() < 500, "{path} {}: {json}", reply.text());
                    if reply.status.is_client_error() {
                        assert!(reply.json()["code"].is_string(), "{}", reply.text());
                    }
                }
            }
        });
    }

    #[test]
    fn no_path_makes_the_service_fail(path in "[!-~]{0,40}") {
        let Ok(uri) = format!("/{path}").parse::<axum::http::Uri>() else { return Ok(()) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new();
            let reply = world.reply(Request::get(uri).body(Body::empty()).unwrap()).await;
            assert!(reply.status.as_u16() < 500, "{}", reply.text());
        });
    }
}
