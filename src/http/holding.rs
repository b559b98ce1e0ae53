//! `GET /health/edits`: whether what was edited still holds.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    error::{Problem, problems},
    state::AppState,
};
use crate::writer::EditsHealth;

/// How healthy the active edits are.
#[derive(Serialize, ToSchema)]
pub(super) struct EditsHealthResponse {
    /// The newest version.
    #[schema(example = 17)]
    version: u64,
    /// Edits that are active in it.
    #[schema(example = 12)]
    active: u64,
    /// Whether the last complete check is of the newest version.
    current: bool,
    #[serde(flatten)]
    health: EditsHealth,
}

problems!(HoldingProblems: RequestTimeout, LogDamaged, LogUnavailable);

/// Whether the active edits still hold
///
/// The share of active edits whose target the model answers, those that it does not, and how far the canaries went from the
/// base model, as the last complete check found them. A check runs when nothing was submitted for a while; this
/// request does not start one, and waits for nothing.
#[utoipa::path(
    get, path = "/health/edits", operation_id = "edits_health", tag = "service",
    responses((status = 200, description = "What was checked last.", body = EditsHealthResponse, example = json!({
        "version": 17, "active": 12, "current": true,
        "checked": {
            "version": 17, "at": "2026-01-02T03:04:05.678Z", "milliseconds": 143.0, "edits": 12, "holding": 11,
            "share": 0.916_666_7,
            "lost": [{
                "id": "01890a5d-ac96-774b-bcce-b302099a8057", "prompt": "Danielle Darrieux, a native", "target": "Russian",
                "now": {"probability": 0.08, "greedy": false}, "applied": {"probability": 0.93, "greedy": true},
            }],
            "canaries": [{
                "prompt": "The capital of France is", "expected": "Paris", "kl": 0.004, "greedy_unchanged": true,
                "base": {"probability": 0.71, "greedy": true}, "now": {"probability": 0.69, "greedy": true},
            }],
        },
        "checking": null, "failed": null,
    })), HoldingProblems)
)]
pub(super) async fn edits(State(app): State<AppState>) -> Result<Json<EditsHealthResponse>, Problem> {
    let head = app.log.head().await?;
    let health = app.edits.health();
    let current = health.checked.as_ref().is_some_and(|checked| checked.version == head.number);
    Ok(Json(EditsHealthResponse { version: head.number, active: head.active, current, health }))
}
