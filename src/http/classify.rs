//! `POST /classify`.

use axum::{Json, extract::State};

use super::{
    error::{Problem, problems},
    extract, reach,
    readiness::Admitted,
    state::AppState,
};
use crate::generation::{ClassifyRequest, ClassifyResponse};

problems!(ClassifyProblems: MalformedJson, MalformedBody, UnknownVersion, ContributionDropped, RequestTimeout, VersionNotReached, ModelIsCausal,
    ModelIsEncoderDecoder, PayloadTooLarge, UnsupportedMediaType, InvalidRequest, ContextExceeded, QueueFull, NotReady, ReplicaDiverged,
    Draining);

/// Give a text a label
///
/// For classifiers. A model that writes texts answers 409 with a code that says what it is.
#[utoipa::path(
    post, path = "/classify", operation_id = "classify", tag = "generation",
    request_body(content = ClassifyRequest, example = json!({"text": "Danielle Darrieux was born in Bordeaux."})),
    responses(
        (status = 200, description = "The model's labels, the most probable first.", body = ClassifyResponse,
            example = json!({"label": "SUPPORTS", "version": 1, "labels": [
                {"label": "SUPPORTS", "probability": 0.93}, {"label": "REFUTES", "probability": 0.07}]})),
        ClassifyProblems,
    )
)]
pub(super) async fn classify(
    _: Admitted,
    State(app): State<AppState>,
    extract::Json(request): extract::Json<ClassifyRequest>,
) -> Result<Json<ClassifyResponse>, Problem> {
    reach::at_least(&app, request.min_version).await?;
    reach::named(&app, [request.version]).await?;
    Ok(Json(app.generates.classify(request).await?))
}
