//! `GET /info`: what runs here.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    error::{Problem, problems},
    paging::MAX_LIMIT,
    state::AppState,
};
use crate::{
    digest::Digest,
    writer::{ReplicaStatus, Role},
};

/// What runs here; filled once, at start.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ServiceInfo {
    /// The service's own version.
    #[schema(example = "0.1.0")]
    pub service_version: String,
    pub model: ModelInfo,
    pub editor: EditorInfo,
    #[serde(skip)]
    pub limits: ServiceLimits,
}

/// The base model.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ModelInfo {
    #[schema(example = "SmolLM2-135M-Instruct")]
    pub name: String,
    /// As its files name it.
    #[schema(example = "llama")]
    pub family: String,
    /// `causal` goes on with a text, `encoder_decoder` answers what its encoder reads, `classifier` gives a text a label.
    #[schema(example = "causal")]
    pub kind: &'static str,
    /// What the service does with it.
    #[schema(example = json!(["edits", "generate", "chat", "score"]))]
    pub capabilities: Vec<&'static str>,
    /// A classifier's labels by their numbers; any of them, by name or number, is what an edit of it can have as its target.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Digest of its files.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// Tokens.
    #[schema(example = 8192)]
    pub context_length: usize,
    /// Blocks below the frontier, which are the same for every version; of the encoder where there is one.
    #[schema(example = 27)]
    pub trunk_blocks: usize,
    /// Blocks above it, whose matrices are edited; of an encoder and of its decoder as many each.
    #[schema(example = 3)]
    pub tail_blocks: usize,
    /// The matrices that edits change, bottom up.
    pub editable: Vec<MatrixInfo>,
}

/// A matrix that edits change.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct MatrixInfo {
    #[schema(example = "model.layers.29.mlp.down_proj.weight")]
    pub name: String,
    /// Rows: the outputs.
    #[schema(example = 576)]
    pub d_out: usize,
    /// Columns: the inputs.
    #[schema(example = 1536)]
    pub d_in: usize,
}

/// The editor.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct EditorInfo {
    #[schema(example = "smollm2-135m-instruct")]
    pub name: String,
    #[schema(example = "mend")]
    pub method: String,
    /// Digest of its folder.
    #[schema(value_type = String)]
    pub digest: Digest,
}

/// Limits that the writer and the engine keep.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub struct ServiceLimits {
    /// Requests that may wait for the writer.
    #[schema(example = 64)]
    pub edit_queue: usize,
    /// Edits in one request.
    #[schema(example = 64)]
    pub edits_per_request: usize,
    /// Tokens of an edit's prompt, of each paraphrase and of each locality probe.
    #[schema(example = 512)]
    pub prompt_tokens: usize,
    /// Tokens of an edit's target.
    #[schema(example = 64)]
    pub target_tokens: usize,
    /// Tokens of the prompts and targets of a request's edits together.
    #[schema(example = 4096)]
    pub submission_tokens: usize,
    /// Bytes of each text of an edit.
    #[schema(example = 16384)]
    pub text_bytes: usize,
    /// Bytes of an edit's note.
    #[schema(example = 4096)]
    pub note_bytes: usize,
    /// Paraphrases of an edit.
    #[schema(example = 16)]
    pub paraphrases: usize,
    /// Locality probes of an edit.
    #[schema(example = 32)]
    pub locality: usize,
    /// Requests that may wait for the engine.
    #[schema(example = 64)]
    pub generate_queue: usize,
    /// The most that a generation may name as `max_tokens`.
    #[schema(example = 4096)]
    pub max_tokens: usize,
    /// Sequences that are decoded at the same time, and so texts of one generation.
    #[schema(example = 16)]
    pub sequences: usize,
    /// Tokens whose keys and values are kept for all generations together.
    #[schema(example = 32768)]
    pub kv_tokens: usize,
    /// Tokens of a prompt with one continuation to score.
    #[schema(example = 2048)]
    pub score_tokens: usize,
}

/// What runs here and where it stands.
#[derive(Serialize, ToSchema)]
pub(super) struct InfoResponse {
    #[serde(flatten)]
    info: ServiceInfo,
    /// The version that new requests run on.
    #[schema(example = 7)]
    version: u64,
    replica: ReplicaInfo,
    limits: Limits,
}

/// This process's place among those that share its log. One that shares it with nobody is the writer.
#[derive(Serialize, ToSchema)]
struct ReplicaInfo {
    role: Role,
    /// Over the bits of the edited matrices of `version`, as this process made them.
    #[schema(value_type = String)]
    digest: Digest,
    /// The newest version that it knows of.
    #[schema(example = 7)]
    newest_version: u64,
    /// How long ago it was last known to have every version: what it answers is at most so old. 0 for the writer.
    #[schema(example = 0.0)]
    lag_seconds: f64,
    /// Where the writer can be reached, as far as a follower knows it.
    writer: Option<String>,
    /// What of the log does not fit, if it is out of service for that.
    diverged: Option<String>,
}

/// The limits that depend on how the service was started, and the size of a page.
#[derive(Serialize, ToSchema)]
struct Limits {
    /// Bytes of a request's body.
    #[schema(example = 2_000_000)]
    body_bytes: usize,
    /// Seconds from a request to the head of its response.
    #[schema(example = 120.0)]
    request_seconds: f64,
    /// Rows of a page.
    #[schema(example = 200)]
    page: u32,
    #[serde(flatten)]
    service: ServiceLimits,
}

problems!(InfoProblems: RequestTimeout);

/// What runs here
#[utoipa::path(
    get, path = "/info", operation_id = "info", tag = "service",
    responses((status = 200, description = "Service, model, editor, version, place among the replicas, and limits.", body = InfoResponse), InfoProblems)
)]
pub(super) async fn info(State(app): State<AppState>) -> Result<Json<InfoResponse>, Problem> {
    let ReplicaStatus { role, version, digest, newest, lag, writer, diverged } = app.replica.status();
    let replica =
        ReplicaInfo { role, digest, newest_version: newest, lag_seconds: lag.as_secs_f64(), writer, diverged };
    let limits = Limits {
        body_bytes: app.limits.body_bytes,
        request_seconds: app.limits.request_time.as_secs_f64(),
        page: MAX_LIMIT,
        service: app.info.limits,
    };
    Ok(Json(InfoResponse { info: (*app.info).clone(), version, replica, limits }))
}
