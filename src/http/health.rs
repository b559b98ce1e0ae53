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
    readiness::agrees,
    state::AppState,
};
use crate::writer::{ReplicaStatus, Role};

/// How long the log may take to answer a ping.
const PING: Duration = Duration::from_secs(1);

/// Seconds of lag from which on a follower says that it is behind.
const BEHIND: f64 = 5.0;

/// How the service is.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    #[schema(example = "ok")]
    status: &'static str,
}

problems!(LiveProblems: RequestTimeout);
problems!(ReadyProblems: RequestTimeout, NotReady, Draining, LogUnavailable, ReplicaBehind, ReplicaDiverged);

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
/// It does when the model is loaded, the log is replayed and answers, and the service is not shutting down. A replica that
/// follows is ready without an answer of the log, and says `behind`, until it is further behind than it was allowed to be.
#[utoipa::path(
    get, path = "/readyz", operation_id = "readyz", tag = "service",
    responses((status = 200, description = "It does.", body = Health, example = json!({"status": "ok"})), ReadyProblems)
)]
pub(super) async fn readyz(State(app): State<AppState>) -> Result<Json<Health>, Problem> {
    app.readiness.check()?;
    let status = app.replica.status();
    agrees(&status)?;
    if status.role == Role::Follower {
        return follows(&status, app.limits.max_lag);
    }
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

fn follows(status: &ReplicaStatus, most: Duration) -> Result<Json<Health>, Problem> {
    let lag = status.lag.as_secs_f64();
    if status.lag <= most {
        return Ok(Json(Health { status: if lag < BEHIND { "ok" } else { "behind" } }));
    }
    let most = most.as_secs_f64();
    let detail =
        format!("this replica was last known to have every version {lag:.1} s ago; it is ready up to {most} s");
    Err(Problem::new(Code::ReplicaBehind, detail)
        .with("lag_seconds", lag)
        .with("limit_seconds", most)
        .with("version", status.version))
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
    // Sets those that depend on when they are read.
    app.replica.status();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render()).into_response()
}
