//! `POST /score`.

use axum::{Json, extract::State};

use super::{
    error::{Problem, problems},
    extract, reach,
    readiness::Admitted,
    state::AppState,
};
use crate::generation::{ScoreRequest, ScoreResponse};

problems!(ScoreProblems: MalformedJson, MalformedBody, UnknownVersion, ContributionDropped, RequestTimeout, VersionNotReached, PayloadTooLarge,
    UnsupportedMediaType, InvalidRequest, UnknownLabel, ContextExceeded, QueueFull, NotReady, ReplicaDiverged, Draining);

/// Log-probabilities of given continuations
#[utoipa::path(
    post, path = "/score", operation_id = "score", tag = "generation",
    request_body(content = ScoreRequest, example = json!({"prompt": "The mother tongue of Danielle Darrieux is",
        "continuations": ["French", "English"]})),
    responses(
        (status = 200, description = "One score for each continuation, in order.", body = ScoreResponse,
            example = json!({"version": 1, "scores": [
                {"continuation": "French", "logprob": -4.2, "tokens": 1, "greedy": false},
                {"continuation": "English", "logprob": -0.1, "tokens": 1, "greedy": true}]})),
        ScoreProblems,
    )
)]
pub(super) async fn score(
    _: Admitted,
    State(app): State<AppState>,
    extract::Json(request): extract::Json<ScoreRequest>,
) -> Result<Json<ScoreResponse>, Problem> {
    reach::at_least(&app, request.min_version).await?;
    reach::named(&app, [request.version]).await?;
    Ok(Json(app.generates.score(request).await?))
}
