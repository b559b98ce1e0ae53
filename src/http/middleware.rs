//! What happens to every request: an id and a span, a time limit, and no error that is not a problem document.

use std::{any::Any, time::Duration};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tracing::Instrument;
use uuid::Uuid;

use super::{
    error::{Code, PROBLEM_JSON, Problem},
    peer::Proxies,
    trace::Traced,
};
use crate::panics;

/// Names a request in logs and in its answer.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that is taken over from a client.
const REQUEST_ID_MAX: usize = 128;

/// Gives the request an id, the client's own if it is presentable, and a span, which takes up the client's trace. The span says
/// what was asked for and from where, never what it contained.
pub(super) async fn identify(State(proxies): State<Proxies>, mut request: Request, next: Next) -> Response {
    let own = request.headers().get(&REQUEST_ID).filter(|id| presentable(id)).cloned();
    let id = own.unwrap_or_else(fresh_id);
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let span = tracing::info_span!(
        "request",
        method = %request.method(),
        route = route(&request),
        id = id.to_str().unwrap_or_default(),
        client = proxies.client(&request).map(tracing::field::display),
        status = tracing::field::Empty,
        trace_id = tracing::field::Empty,
    );
    let traced = Traced::take_up(&span, request.headers());
    if let Some(traced) = &traced {
        span.record("trace_id", traced.id());
    }
    let mut response = next.run(request).instrument(span.clone()).await;
    span.record("status", i64::from(response.status().as_u16()));
    span.in_scope(|| tracing::debug!("answered"));
    response.headers_mut().insert(REQUEST_ID, id);
    if let Some(traced) = traced {
        traced.answer(response.headers_mut());
        // Until the body ends.
        response.extensions_mut().insert(traced);
    }
    response
}

/// The matched pattern, never the path that was asked for.
pub(super) fn route(request: &Request) -> &str {
    request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str)
}

fn presentable(id: &HeaderValue) -> bool {
    (1..=REQUEST_ID_MAX).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

fn fresh_id() -> HeaderValue {
    HeaderValue::try_from(Uuid::now_v7().to_string()).expect("a UUID is visible ASCII")
}

/// Answers 408 when the head of the response takes longer than `limit`. A stream's body may take longer.
pub(super) async fn time_limit(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let seconds = limit.as_secs_f64();
            let detail = format!(
                "no answer within {seconds} s; what still waited is dropped, an edit that was being made goes on"
            );
            Problem::new(Code::RequestTimeout, detail).with("limit_seconds", seconds).into_response()
        }
    }
}

/// A panic in a handler, as 500. The message goes to the operator's log.
#[expect(clippy::needless_pass_by_value, reason = "the layer calls it so")]
pub(super) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    Problem::internal(format!("a handler panicked: {}", panics::message(panic.as_ref()))).into_response()
}

/// Turns an error that some library answered in plain text into a problem document; its other headers stay.
pub(super) async fn only_problems(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    let content_type = response.headers().get(header::CONTENT_TYPE);
    let is_problem = content_type.is_some_and(|given| given.as_bytes() == PROBLEM_JSON.as_bytes());
    if is_problem || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let problem = match Code::ALL.iter().find(|code| code.status() == status) {
        Some(code) => Problem::new(*code, code.title()),
        None if status.is_client_error() => Problem::new(Code::MalformedBody, status.to_string()),
        None => Problem::internal(status),
    };
    let mut answer = problem.into_response();
    for (name, value) in response.headers() {
        if ![header::CONTENT_TYPE, header::CONTENT_LENGTH].contains(name) {
            answer.headers_mut().insert(name, value.clone());
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, http::StatusCode, middleware::from_fn, routing::get};
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_plain_text_error_becomes_a_problem_and_keeps_its_headers() {
        let plain = || async { (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "7")], "slow down") };
        let app = Router::new().route("/", get(plain)).layer(from_fn(only_problems));
        let response = app.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
        assert_eq!(response.headers()[header::RETRY_AFTER], "7");
    }
}
