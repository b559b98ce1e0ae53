//! One port for the whole life of the service: what it answers before its routes are there, and the change to them.

use std::sync::{Arc, OnceLock};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use tower::ServiceExt;

use super::{
    error::{Code, Problem},
    hardening, health, middleware, openai,
    peer::Proxies,
    readiness::Readiness,
};

/// Routes that come later. Until [`open`](Self::open), `/livez` answers 200, so that nobody takes a long replay for a
/// process that hangs, and everything else 503. Cloning shares it.
#[derive(Clone)]
pub struct Doors(Arc<Inner>);

struct Inner {
    starting: Router,
    service: OnceLock<Router>,
}

impl Doors {
    /// Closed; `readiness` says why.
    pub fn new(readiness: Readiness) -> Self {
        let starting = Router::new()
            .route("/livez", get(health::livez))
            .fallback(refuse)
            .method_not_allowed_fallback(refuse)
            .layer(from_fn(openai::envelope::rewrite))
            .layer(from_fn_with_state(Proxies::default(), middleware::identify))
            .layer(from_fn(hardening::harden))
            .with_state(readiness);
        Self(Arc::new(Inner { starting, service: OnceLock::new() }))
    }

    /// What is to be served from the start.
    pub fn router(&self) -> Router {
        Router::new().fallback(enter).with_state(self.clone())
    }

    /// Every request from now on goes to `service`. The first call counts.
    pub fn open(&self, service: Router) {
        let first = self.0.service.set(service).is_ok();
        debug_assert!(first, "doors open once");
    }
}

/// What connections above the limit are given: `/livez` is answered, so that nobody takes a crowd for a process that hangs,
/// and everything else is refused. Either way the connection ends with the answer.
pub fn crowded(connections: usize) -> Router {
    let refuse = move || async move {
        let detail = format!("{connections} connections are open, the most that are served at the same time");
        Problem::new(Code::TooManyConnections, detail).with("limit", connections)
    };
    Router::new()
        .route("/livez", get(health::livez))
        .fallback(refuse)
        .layer(from_fn(openai::envelope::rewrite))
        .layer(from_fn_with_state(Proxies::default(), middleware::identify))
        .layer(from_fn(hardening::harden))
        .layer(from_fn(close_after))
}

async fn close_after(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn enter(State(doors): State<Doors>, request: Request) -> Response {
    let routes = doors.0.service.get().unwrap_or(&doors.0.starting).clone();
    routes.oneshot(request).await.into_response()
}

async fn refuse(State(readiness): State<Readiness>) -> Problem {
    let refused = readiness.check().err();
    refused.unwrap_or_else(|| Problem::new(Code::NotReady, "the service is about to be ready"))
}
