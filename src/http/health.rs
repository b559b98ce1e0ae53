//! Liveness, readiness and metrics. None of them goes through a queue.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    error::{Code, Problem, problems},
    state::AppState,
};

/// How long the log may take to answer a ping.
const PING: Duration = Duration::from_secs(1);

/// How the service is.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    #[schema(example = "ok")]
    status: &'static str,
}

problems!(LiveProblems: RequestTimeout);
problems!(ReadyProblems: RequestTimeout, NotReady, Draining, LogUnavailable);

/// Whether the process answers at all
#[utoipa::path(
    get, path = "/livez", operation_id = "livez", tag = "service",
    responses((status = 200, description = "It does.", body = Health, example = json!({"status": "ok"})), LiveProblems)
)]
pub(super) async fn livez() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether the service takes work
///
/// It does when the model is loaded, the log is replayed and answers, and the service is not shutting down.
#[utoipa::path(
    get, path = "/readyz", operation_id = "readyz", tag = "service",
    responses((status = 200, description = "It does.", body = Health, example = json!({"status": "ok"})), ReadyProblems)
)]
pub(super) async fn readyz(State(app): State<AppState>) -> Result<Json<Health>, Problem> {
    app.readiness.check()?;
    match tokio::time::timeout(PING, app.log.ping()).await {
        Ok(Ok(())) => Ok(Json(Health { status: "ok" })),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the log does not answer");
            Err(Problem::new(Code::LogUnavailable, "the log does not answer"))
        }
        Err(_) => {
            Err(Problem::new(Code::LogUnavailable, format!("the log did not answer within {} s", PING.as_secs())))
        }
    }
}

/// Metrics, for Prometheus
#[utoipa::path(
    get, path = "/metrics", operation_id = "metrics", tag = "service",
    responses(
        (status = 200, description = "Prometheus' text format.", content((String = "text/plain", example = "amend_version 1\n"))),
        LiveProblems,
    )
)]
pub(super) async fn metrics(State(app): State<AppState>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render()).into_response()
}
