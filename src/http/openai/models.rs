//! `GET /v1/models`, `GET /v1/models/{model}`.

use axum::{Json, extract::State};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::names::{pinned_name, version_of};
use crate::http::{
    error::{Problem, problems},
    extract,
    refusal::unknown_version,
    state::AppState,
};

/// How many of the newest versions are listed by name; older ones can be asked for all the same.
const LISTED: u32 = 100;

/// What is served.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ModelList {
    #[schema(example = "list")]
    object: &'static str,
    data: Vec<ModelEntry>,
}

/// A version, or the newest one.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ModelEntry {
    #[schema(example = "SmolLM2-135M-Instruct@17")]
    id: String,
    #[schema(example = "model")]
    object: &'static str,
    /// When the version was made, seconds since 1970.
    created: i64,
    #[schema(example = "amend")]
    owned_by: &'static str,
}

impl ModelEntry {
    fn new(id: String, created: Timestamp) -> Self {
        Self { id, object: "model", created: created.as_second(), owned_by: "amend" }
    }
}

problems!(openai ModelsRefusals: RequestTimeout, LogDamaged, LogUnavailable);
problems!(openai ModelRefusals: UnknownModel, UnknownVersion, RequestTimeout, LogDamaged, LogUnavailable);

/// The served model, and its newest versions by name
#[utoipa::path(
    get, path = "/v1/models", operation_id = "listModels", tag = "openai",
    responses((status = 200, description = "The newest version under the model's own name, then the 100 newest as name@17.", body = ModelList), ModelsRefusals)
)]
pub(in crate::http) async fn list(State(app): State<AppState>) -> Result<Json<ModelList>, Problem> {
    let served = &app.info.model.name;
    let versions = app.log.versions(None, LISTED).await?;
    let newest = versions.first().map(|version| ModelEntry::new(served.clone(), version.created_at));
    let pinned =
        versions.iter().map(|version| ModelEntry::new(pinned_name(served, version.number), version.created_at));
    Ok(Json(ModelList { object: "list", data: newest.into_iter().chain(pinned).collect() }))
}

/// One model by name
#[utoipa::path(
    get, path = "/v1/models/{model}", operation_id = "retrieveModel", tag = "openai",
    params(("model" = String, Path, description = "The served model's name, or `name@17`.")),
    responses((status = 200, description = "It is served.", body = ModelEntry), ModelRefusals)
)]
pub(in crate::http) async fn show(
    State(app): State<AppState>,
    extract::Path(model): extract::Path<String>,
) -> Result<Json<ModelEntry>, Problem> {
    let version = version_of(&app, &model)?;
    let head = app.log.head().await?;
    let created = match version {
        None => head.created_at,
        Some(number) => {
            let found = app.log.version(number).await?;
            found.ok_or_else(|| unknown_version(number, head.number))?.created_at
        }
    };
    Ok(Json(ModelEntry::new(model, created)))
}
