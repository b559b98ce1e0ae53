//! Health, metrics, info, documentation, request ids, and serving.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use axum::{body::Body, http::Request};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use super::{World, doubles::fail};
use crate::{
    edit_log::LogError,
    http::{ConnectionLimits, Doors, HttpLimits, Readiness, crowded, error::Code, serve},
};

#[tokio::test]
async fn liveness_waits_for_nothing() {
    let world = World::new();
    world.log.hangs.store(true, Ordering::SeqCst);
    world.readiness.drain();
    assert_eq!(world.get("/livez").await.ok(200), json!({"status": "ok"}));
}

#[tokio::test]
async fn readiness_follows_the_service_and_the_log() {
    let world = World::new();
    world.get("/readyz").await.ok(200);
    fail(&world.log.fails, || LogError::Storage("/secret/path".into()));
    let reply = world.get("/readyz").await;
    reply.problem(Code::LogUnavailable);
    assert!(!reply.text().contains("secret"));
    world.readiness.drain();
    world.get("/readyz").await.problem(Code::Draining);
}

#[tokio::test]
async fn a_log_that_hangs_is_not_waited_for() {
    let world = World::with_limits(HttpLimits::default());
    world.log.hangs.store(true, Ordering::SeqCst);
    let started = Instant::now();
    world.get("/readyz").await.problem(Code::LogUnavailable);
    assert_eq!(started.elapsed().as_secs(), 1);
}

#[tokio::test]
async fn work_is_refused_unless_ready_and_reading_is_not() {
    let draining = World::new();
    draining.readiness.drain();
    let starting = World::build(Readiness::new(), HttpLimits::default());
    starting.get("/readyz").await.problem(Code::NotReady);
    for (path, body) in [
        ("/edits", json!({"prompt": "p", "target": "t"})),
        ("/rollback", json!({"to_version": 0})),
        ("/generate", json!({"prompt": "p"})),
        ("/score", json!({"prompt": "p", "continuations": ["c"]})),
    ] {
        draining.post(path, &body).await.problem(Code::Draining);
        starting.post(path, &body).await.problem(Code::NotReady);
    }
    draining.get("/edits").await.ok(200);
    draining.get("/versions/1").await.ok(200);
}

#[tokio::test]
async fn before_the_routes_are_there_the_service_is_alive_and_not_ready() {
    let (mut world, readiness) = (World::new(), Readiness::new());
    let doors = Doors::new(readiness.clone());
    let full = std::mem::replace(&mut world.app, doors.router());
    assert_eq!(world.get("/livez").await.ok(200), json!({"status": "ok"}));
    for path in ["/readyz", "/info", "/edits", "/nowhere"] {
        world.get(path).await.problem(Code::NotReady);
    }
    world.delete("/livez").await.problem(Code::NotReady);
    world.post("/edits", &json!({"prompt": "p", "target": "t"})).await.problem(Code::NotReady);
    readiness.drain();
    world.get("/readyz").await.problem(Code::Draining);

    doors.open(full);
    world.get("/readyz").await.ok(200);
    world.get("/versions/1").await.ok(200);
    world.get("/nowhere").await.problem(Code::NotFound);
    let line = r#"amend_http_requests_total{method="GET",route="/versions/{n}",status="200"}"#;
    assert_eq!(world.counted(line), Some(1), "the matched route is known behind the doors too");
}

#[tokio::test]
async fn metrics_name_the_matched_route() {
    let world = World::new();
    world.get("/versions/1").await.ok(200);
    world.get("/versions/2").await.ok(200);
    world.get("/versions/77").await.problem(Code::UnknownVersion);
    world.get("/nowhere/secret").await.problem(Code::NotFound);
    let strange = Request::builder().method("BREW").uri("/edits").body(Body::empty()).unwrap();
    world.reply(strange).await.problem(Code::MethodNotAllowed);
    let counted = |method: &str, route: &str, status: u16| {
        world
            .counted(&format!("amend_http_requests_total{{method=\"{method}\",route=\"{route}\",status=\"{status}\"}}"))
    };
    assert_eq!(counted("GET", "/versions/{n}", 200), Some(2));
    assert_eq!(counted("GET", "/versions/{n}", 404), Some(1));
    assert_eq!(counted("GET", "unmatched", 404), Some(1));
    assert_eq!(counted("other", "/edits", 405), Some(1));
    let reply = world.get("/metrics").await;
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(
        reply.text().contains("amend_http_request_duration_seconds_count{method=\"GET\",route=\"/versions/{n}\"} 3")
    );
    assert!(!reply.text().contains("secret"));
}

#[tokio::test]
async fn the_health_of_the_edits_is_that_of_the_version_that_was_checked() {
    let world = World::new();
    let health = world.get("/health/edits").await.ok(200);
    assert_eq!(
        health,
        json!({"version": 2, "active": 2, "current": false, "checked": null, "checking": null, "failed": null})
    );
    *world.edits.checked.lock().unwrap() = Some(1);
    let health = world.get("/health/edits").await.ok(200);
    assert_eq!((&health["current"], &health["checked"]["version"]), (&json!(false), &json!(1)));
    assert_eq!((&health["checked"]["share"], &health["checked"]["holding"]), (&json!(0.75), &json!(3)));
    *world.edits.checked.lock().unwrap() = Some(2);
    assert_eq!(world.get("/health/edits").await.ok(200)["current"], true);
    fail(&world.log.fails, || LogError::Storage("/secret/path".into()));
    world.get("/health/edits").await.problem(Code::LogUnavailable);
}

#[tokio::test]
async fn info_says_what_runs() {
    let world = World::new();
    let info = world.get("/info").await.ok(200);
    assert_eq!((&info["version"], &info["replica"]["role"]), (&json!(1), &json!("writer")));
    assert_eq!(info["service_version"], "0.1.0");
    assert_eq!(info["model"]["editable"], json!([{"name": "down", "d_out": 4, "d_in": 8}]));
    assert_eq!((&info["model"]["context_length"], &info["editor"]["method"]), (&json!(64), &json!("mend")));
    assert_eq!((&info["limits"]["body_bytes"], &info["limits"]["edit_queue"]), (&json!(10_000), &json!(64)));
}

#[tokio::test]
async fn the_documentation_is_served_from_the_binary() {
    let world = World::new();
    let document = world.get("/openapi.json").await.ok(200);
    assert_eq!(document, serde_json::to_value(crate::http::document()).unwrap());
    let redirect = world.get("/docs").await;
    assert_eq!((redirect.status.as_u16(), redirect.header("location")), (303, Some("/docs/")));
    let page = world.get("/docs/").await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    let initializer = world.get("/docs/swagger-initializer.js").await;
    assert!(initializer.text().contains("/openapi.json"), "{}", initializer.text());
    world.get("/docs/no-such-file").await.problem(Code::NotFound);
}

#[tokio::test]
async fn a_request_id_is_taken_over_or_given() {
    let world = World::new();
    let with_id = |id: &str| Request::get("/livez").header("x-request-id", id).body(Body::empty()).unwrap();
    assert_eq!(world.reply(with_id("abc-1")).await.header("x-request-id"), Some("abc-1"));
    let given = world.get("/livez").await.header("x-request-id").unwrap().to_owned();
    assert!(uuid::Uuid::parse_str(&given).is_ok());
    let long = "x".repeat(4000);
    assert_ne!(world.reply(with_id(&long)).await.header("x-request-id"), Some(long.as_str()));
}

#[tokio::test]
async fn serving_ends_when_told() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async move {
        let _ = stopped.await;
    };
    let server =
        tokio::spawn(serve(listener, world.app.clone(), crowded(1), ConnectionLimits::default(), None, shutdown));
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET /livez HTTP/1.1\r\nhost: amend\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert_eq!(world.counted(r#"amend_http_requests_total{method="GET",route="/livez",status="200"}"#), Some(1));
    stop.send(()).unwrap();
    server.await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

/// A service with these limits on a port of its own, which ends with the test.
async fn listening(limits: ConnectionLimits) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = World::new().app;
    tokio::spawn(serve(listener, app, crowded(limits.connections), limits, None, std::future::pending()));
    address
}

/// Sends `head` and reads until the other side closes.
async fn talk(address: std::net::SocketAddr, head: &str) -> String {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_connection_that_does_not_finish_its_head_or_asks_nothing_is_closed() {
    let head_time = Duration::from_millis(200);
    let address = listening(ConnectionLimits { head_time, ..ConnectionLimits::default() }).await;
    for (head, answered) in
        [("", false), ("GET /livez HTTP/1.1\r\nhost: am", false), ("GET /livez HTTP/1.1\r\nhost: amend\r\n\r\n", true)]
    {
        let begun = Instant::now();
        let answer = talk(address, head).await;
        assert_eq!(answer.contains("200 OK"), answered, "{head:?}: {answer}");
        assert!(begun.elapsed() >= head_time && begun.elapsed() < Duration::from_secs(20), "{head:?}");
    }
}

#[tokio::test]
async fn a_crowd_of_connections_is_refused_and_does_not_hide_that_the_service_lives() {
    let address = listening(ConnectionLimits { connections: 2, ..ConnectionLimits::default() }).await;
    let _held = [TcpStream::connect(address).await.unwrap(), TcpStream::connect(address).await.unwrap()];
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: amend\r\n\r\n");
    let refused = talk(address, &get("/edits")).await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("\"too_many_connections\""), "{refused}");
    assert!(refused.contains("\"limit\":2") && refused.to_ascii_lowercase().contains("retry-after"), "{refused}");
    let openai = talk(address, &get("/v1/models")).await;
    assert!(openai.starts_with("HTTP/1.1 503") && openai.contains("{\"error\":{"), "{openai}");
    assert!(talk(address, &get("/livez")).await.starts_with("HTTP/1.1 200"));
    drop(_held);
    let begun = Instant::now();
    while !talk(address, "GET /edits HTTP/1.1\r\nhost: amend\r\nconnection: close\r\n\r\n").await.contains("200 OK") {
        assert!(begun.elapsed() < Duration::from_secs(20), "places are never free again");
    }
}

#[tokio::test]
async fn only_so_many_generations_are_streamed_at_once() {
    let world = World::new();
    world.generates.stalls.store(true, Ordering::SeqCst);
    let body = json!({"prompt": "one two", "stream": true});
    let stream = || world.send(super::post_request("/generate", &[], body.to_string()));
    let (first, second) = (stream().await, stream().await);
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200));
    assert_eq!(world.post("/generate", &body).await.problem(Code::TooManyStreams)["limit"], 2);
    let chat = json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": true});
    assert_eq!(world.post("/v1/chat/completions", &chat).await.status, 429);
    world.post("/generate", &json!({"prompt": "one"})).await.ok(200);
    drop(first);
    assert_eq!(stream().await.status(), 200, "its place is free again");
}
