//! The routes from outside, over doubles of the other rooms.

mod access;
mod doubles;
mod edits;
mod errors;
mod generate;
mod openai;
mod replicas;
mod service;
mod versions;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode, header},
    response::Response,
};
use doubles::{FakeEdits, FakeGenerates, FakeLog};
use replicas::FakeReplica;
use serde_json::Value;
use tower::ServiceExt;

use super::{
    access::{Admits, Gate},
    error::{Code, PROBLEM_JSON},
    info::{EditorInfo, MatrixInfo, ModelInfo, ServiceInfo, ServiceLimits},
    peer::Proxies,
    rates::RateLimits,
    readiness::Readiness,
    relay::Relay,
    router::router,
    state::{AppState, HttpLimits},
    streams::Streams,
};
use crate::{digest::Digest, telemetry::Metrics};

/// A service over doubles.
struct World {
    app: Router,
    log: Arc<FakeLog>,
    edits: Arc<FakeEdits>,
    generates: Arc<FakeGenerates>,
    replica: Arc<FakeReplica>,
    metrics: Metrics,
    readiness: Readiness,
}

/// An answer, read to its end.
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl World {
    fn new() -> Self {
        Self::with_limits(HttpLimits {
            body_bytes: 10_000,
            request_time: Duration::from_millis(200),
            version_wait: Duration::from_millis(20),
            ..HttpLimits::default()
        })
    }

    fn with_limits(limits: HttpLimits) -> Self {
        let readiness = Readiness::new();
        readiness.ready();
        Self::build(readiness, limits)
    }

    fn build(readiness: Readiness, limits: HttpLimits) -> Self {
        Self::behind(Gate::new(Admits::Anyone, RateLimits::default()), readiness, limits)
    }

    fn behind(gate: Gate, readiness: Readiness, limits: HttpLimits) -> Self {
        let (log, edits, generates, replica) = (Arc::default(), Arc::default(), Arc::default(), Arc::default());
        let metrics = Metrics::new();
        let mut world = Self { app: Router::new(), log, edits, generates, replica, metrics, readiness };
        world.app = router(world.state(gate, limits));
        world
    }

    fn state(&self, gate: Gate, limits: HttpLimits) -> AppState {
        AppState {
            edits: self.edits.clone(),
            generates: self.generates.clone(),
            log: self.log.clone(),
            replica: self.replica.clone(),
            relay: Relay::new(self.replica.clone(), &limits),
            metrics: self.metrics.clone(),
            info: Arc::new(service_info()),
            readiness: self.readiness.clone(),
            limits,
            streams: Streams::new(2),
            gate,
            proxies: Proxies::default(),
            log_bodies: false,
        }
    }

    async fn send(&self, request: Request<Body>) -> Response {
        self.app.clone().oneshot(request).await.unwrap()
    }

    async fn reply(&self, request: Request<Body>) -> Reply {
        let (parts, body) = self.send(request).await.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
        Reply { status: parts.status, headers: parts.headers, body }
    }

    async fn get(&self, path: &str) -> Reply {
        self.reply(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn delete(&self, path: &str) -> Reply {
        self.reply(Request::delete(path).body(Body::empty()).unwrap()).await
    }

    async fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_with(path, &[], body).await
    }

    async fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
        self.reply(post_request(path, headers, body.to_string())).await
    }

    /// The value of a counter line in `/metrics`.
    fn counted(&self, line: &str) -> Option<u64> {
        let text = self.metrics.render();
        let line = text.lines().find_map(|candidate| candidate.strip_prefix(line))?;
        line.trim().parse().ok()
    }
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The body of a 2xx answer.
    #[track_caller]
    fn ok(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        self.json()
    }

    /// The body of a problem with this code; checks everything that a problem document must have.
    #[track_caller]
    fn problem(&self, code: Code) -> Value {
        assert_eq!(self.header("content-type"), Some(PROBLEM_JSON), "{} {}", self.status, self.text());
        let body = self.json();
        assert_eq!(body["code"], code.as_str(), "{body}");
        assert_eq!(self.status, code.status(), "{body}");
        assert_eq!(body["status"], code.status().as_u16());
        assert_eq!(body["type"], format!("urn:amend:problem:{}", code.as_str()));
        assert_eq!(body["title"], code.title());
        assert!(body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{body}");
        assert!(self.headers.contains_key("x-request-id"));
        let retry = matches!(self.status.as_u16(), 429 | 503);
        assert_eq!(self.headers.contains_key(header::RETRY_AFTER), retry, "{body}");
        body
    }
}

fn post_request(path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    request.body(body.into()).unwrap()
}

fn service_info() -> ServiceInfo {
    ServiceInfo {
        service_version: "0.1.0".into(),
        model: ModelInfo {
            name: "tiny".into(),
            family: "llama".into(),
            kind: "causal",
            capabilities: vec!["edits", "generate", "score"],
            labels: Vec::new(),
            trunk_blocks: 2,
            tail_blocks: 1,
            digest: Digest::of(b"model"),
            context_length: 64,
            editable: vec![MatrixInfo { name: "down".into(), d_out: 4, d_in: 8 }],
        },
        editor: EditorInfo { name: "tiny".into(), method: "mend".into(), digest: Digest::of(b"editor") },
        limits: ServiceLimits { edit_queue: 64, edits_per_request: 16, generate_queue: 32, ..ServiceLimits::default() },
    }
}
