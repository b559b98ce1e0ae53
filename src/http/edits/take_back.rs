//! `DELETE /edits/{id}`.

use axum::{
    extract::{OriginalUri, State},
    http::HeaderMap,
    response::Response,
};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    http::{
        auth::Actor,
        error::{Problem, problems},
        extract::Path,
        headers, idempotency,
        readiness::Admitted,
        state::AppState,
        versions::{Change, change},
    },
    writer::{SetChange, VersionReport},
};

problems!(TakeBackProblems: InvalidParameter, InvalidHeader, UnknownEdit, RequestTimeout, VersionConflict,
    EditNotActive, AccumulatorOverflow, IdempotencyKeyReused, QueueFull, LogDamaged, NotReady, Draining, LogUnavailable,
    LogFull);

/// Take one edit back
///
/// Makes a new version without it, whose weights are bit for bit those of the remaining set. The edit stays in the log.
#[utoipa::path(
    delete, path = "/edits/{id}", operation_id = "take_back_edit", tag = "edits",
    params(
        ("id" = Uuid, Path, description = "The edit; it must be active."),
        ("Idempotency-Key" = Option<String>, Header, description = "Names the request, so that it can be sent again: the answer recorded with the version that it made is then given again."),
        ("If-Match" = Option<String>, Header, description = "The newest version must be this one, in double quotes."),
        ("x-amend-actor" = Option<String>, Header, description = "Who asks; 1 to 128 visible ASCII characters. Where keys are needed, the key's name counts instead."),
    ),
    responses(
        (status = 200, description = "Taken back: a new version.", body = VersionReport,
            example = json!(super::super::openapi::examples::version_report())),
        TakeBackProblems,
    )
)]
pub(in crate::http) async fn take_back(
    _: Admitted,
    State(app): State<AppState>,
    Actor(actor): Actor,
    Path(id): Path<Uuid>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let idempotency = idempotency::read(&headers, "DELETE", &uri, &Value::Null)?;
    let expected_version = headers::if_match(&headers)?;
    change(&app, Change { change: SetChange::TakeBack(id), actor, expected_version, idempotency }).await
}
