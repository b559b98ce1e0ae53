//! HTTP metrics, by matched route. A request lasts until its body ends, so that a stream counts as long as it flows, and its
//! span ends with it; a client that leaves before that counts as status 499.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{Request, State},
    http::Method,
    middleware::Next,
    response::Response,
};
use http_body::{Frame, SizeHint};

use super::{middleware::route, trace::Traced};
use crate::telemetry::Metrics;

/// What a client that left early is counted as; never sent.
const CLIENT_LEFT: u16 = 499;

/// Measures one request.
pub(super) async fn measure(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let mut timing = Timing {
        metrics,
        method: method(request.method()),
        route: route(&request).to_owned(),
        status: CLIENT_LEFT,
        started: Instant::now(),
        traced: None,
    };
    let response = next.run(request).await;
    let (mut parts, body) = response.into_parts();
    timing.traced = parts.extensions.remove();
    let status = parts.status.as_u16();
    if body.is_end_stream() {
        timing.status = status;
    }
    Response::from_parts(parts, Body::new(Measured { body, status, timing: Some(timing) }))
}

/// A method's name as a label. Others than the usual are one label, so that clients can not make up new ones.
fn method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// Counts its request when dropped; as left by the client, unless told that it ended.
struct Timing {
    metrics: Metrics,
    method: &'static str,
    route: String,
    status: u16,
    started: Instant,
    /// Its span ends with it.
    traced: Option<Traced>,
}

impl Drop for Timing {
    fn drop(&mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        let status = self.status.to_string();
        self.metrics.http_requests.with_label_values(&[self.method, self.route.as_str(), status.as_str()]).inc();
        self.metrics.http_request_duration.with_label_values(&[self.method, self.route.as_str()]).observe(seconds);
    }
}

/// A body that ends its request's timing when it ends.
struct Measured {
    body: Body,
    /// What was sent in the head.
    status: u16,
    timing: Option<Timing>,
}

impl Measured {
    fn ended(&mut self) {
        if let Some(mut timing) = self.timing.take() {
            timing.status = self.status;
        }
    }
}

impl HttpBody for Measured {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let over = matches!(polled, Poll::Ready(None | Some(Err(_))));
        // A server need not poll again after the last frame, so the end is noticed with it.
        if over || (polled.is_ready() && self.body.is_end_stream()) {
            self.ended();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
