//! Versions: what is in one, how two differ, going back to one.

use std::collections::BTreeSet;

use axum::{
    Json,
    extract::{OriginalUri, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    auth::Actor,
    error::{Problem, problems},
    extract::{JsonValue, Path, Query, shape},
    headers, idempotency,
    paging::{self, DEFAULT_LIMIT},
    reach::{self, AtLeast},
    readiness::Admitted,
    refusal::unknown_version,
    state::AppState,
};
use crate::{
    digest::Digest,
    edit_log::{VersionKind, VersionRow},
    writer::{Answer, Idempotency, SetChange, VersionReport},
};

/// How many edits of a difference are read at once.
const READS_AT_ONCE: usize = 16;

/// A version, in a list.
#[derive(Serialize, ToSchema)]
pub(super) struct VersionSummary {
    version: u64,
    /// Digest over the bits of its edited matrices.
    #[schema(value_type = String)]
    digest: Digest,
    /// Digest over base, editor, composition and the contributions of the active edits.
    #[schema(value_type = String)]
    set_digest: Digest,
    kind: VersionKind,
    /// How many edits are active in it.
    active: u64,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    actor: String,
}

/// A version.
#[derive(Serialize, ToSchema)]
pub(super) struct VersionEntry {
    version: u64,
    /// Digest over the bits of its edited matrices.
    #[schema(value_type = String)]
    digest: Digest,
    /// Digest over base, editor, composition and the contributions of the active edits.
    #[schema(value_type = String)]
    set_digest: Digest,
    kind: VersionKind,
    /// The edits that are active in it.
    active_edits: BTreeSet<Uuid>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    actor: String,
}

/// Versions, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct VersionPage {
    versions: Vec<VersionSummary>,
    /// `cursor` of the next page; null on the last.
    next_cursor: Option<String>,
}

/// How the sets of two versions differ.
#[derive(Serialize, ToSchema)]
pub(super) struct VersionDiff {
    from: u64,
    to: u64,
    /// Active in `to`, not in `from`.
    added: Vec<DiffEntry>,
    /// Active in `from`, not in `to`.
    removed: Vec<DiffEntry>,
}

/// An edit in a difference.
#[derive(Serialize, ToSchema)]
pub(super) struct DiffEntry {
    id: Uuid,
    prompt: String,
    target: String,
}

/// One page of versions.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// Where the page begins: `next_cursor` of the page before. Opaque.
    cursor: Option<String>,
    /// The oldest version that may answer: the request waits for it, and is answered 409 if it does not come in time.
    min_version: Option<u64>,
    /// Page size, 1 to 200.
    #[serde(default = "default_limit")]
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: u32,
}

fn default_limit() -> u32 {
    DEFAULT_LIMIT
}

/// The version to compare with.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DiffQuery {
    /// The other version; older or newer.
    from: u64,
    /// The oldest version that may answer: the request waits for it, and is answered 409 if it does not come in time.
    min_version: Option<u64>,
}

/// Which set to restore.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RollbackRequest {
    /// The version whose set the new version has; 0 takes every edit back.
    #[schema(example = 3)]
    to_version: u64,
    /// Refuse unless this is the newest version when the request's turn comes.
    #[serde(default)]
    expected_version: Option<u64>,
}

problems!(ListProblems: InvalidParameter, RequestTimeout, VersionNotReached, LogDamaged, LogUnavailable);
problems!(ShowProblems: InvalidParameter, UnknownVersion, RequestTimeout, VersionNotReached, LogDamaged, LogUnavailable);
problems!(RollbackProblems: MalformedJson, MalformedBody, InvalidHeader, UnknownVersion, ContributionDropped, RequestTimeout,
    VersionConflict, PayloadTooLarge, UnsupportedMediaType, InvalidRequest, AccumulatorOverflow, IdempotencyKeyReused,
    QueueFull, LogDamaged, NotReady, Draining, LogUnavailable, LogFull);

/// List versions, newest first
#[utoipa::path(
    get, path = "/versions", operation_id = "list_versions", tag = "versions",
    params(PageQuery),
    responses(
        (status = 200, description = "One page.", body = VersionPage,
            example = json!({"versions": [super::openapi::examples::version_summary()], "next_cursor": null})),
        ListProblems,
    )
)]
pub(super) async fn list(
    State(app): State<AppState>,
    Query(query): Query<PageQuery>,
) -> Result<Json<VersionPage>, Problem> {
    reach::at_least(&app, query.min_version).await?;
    let before = paging::before(query.cursor.as_deref())?;
    let rows = app.log.versions(before, paging::limit(query.limit)?).await?;
    // Numbers have no gaps and begin at 0, so there is more exactly if the page does not end there.
    let next_cursor = rows.last().filter(|row| row.number > 0).map(|row| paging::cursor(row.number));
    Ok(Json(VersionPage { versions: rows.into_iter().map(VersionSummary::from).collect(), next_cursor }))
}

/// Show one version
#[utoipa::path(
    get, path = "/versions/{n}", operation_id = "show_version", tag = "versions",
    params(("n" = u64, Path, description = "The version; 0 is the base model."), AtLeast),
    responses(
        (status = 200, description = "The version.", body = VersionEntry,
            example = json!(super::openapi::examples::version_entry())),
        ShowProblems,
    )
)]
pub(super) async fn show(
    State(app): State<AppState>,
    Path(n): Path<u64>,
    Query(AtLeast { min_version }): Query<AtLeast>,
) -> Result<Json<VersionEntry>, Problem> {
    reach::at_least(&app, min_version).await?;
    let row = find(&app, n).await?;
    let active_edits = app.log.active_set(n).await?;
    debug_assert_eq!(active_edits.len() as u64, row.active, "the log counts what is active");
    let VersionRow { number, kind, actor, created_at, digest, set_digest, .. } = row;
    Ok(Json(VersionEntry { version: number, digest, set_digest, kind, active_edits, created_at, actor }))
}

/// Compare the sets of two versions
#[utoipa::path(
    get, path = "/versions/{n}/diff", operation_id = "diff_versions", tag = "versions",
    params(("n" = u64, Path, description = "The version."), DiffQuery),
    responses(
        (status = 200, description = "What `n` has and `from` has not, and the reverse.", body = VersionDiff,
            example = json!({"from": 3, "to": 4, "removed": [], "added": [{"id": "01890a5d-ac96-774b-bcce-b302099a8057",
                "prompt": "The mother tongue of Danielle Darrieux is", "target": "English"}]})),
        ShowProblems,
    )
)]
pub(super) async fn diff(
    State(app): State<AppState>,
    Path(n): Path<u64>,
    Query(DiffQuery { from, min_version }): Query<DiffQuery>,
) -> Result<Json<VersionDiff>, Problem> {
    reach::at_least(&app, min_version).await?;
    find(&app, n).await?;
    find(&app, from).await?;
    let after = app.log.active_set(n).await?;
    let before = app.log.active_set(from).await?;
    let added = describe(&app, after.difference(&before).copied().collect()).await?;
    let removed = describe(&app, before.difference(&after).copied().collect()).await?;
    Ok(Json(VersionDiff { from, to: n, added, removed }))
}

/// Restore the set of an earlier version
///
/// Makes a new version with that set; the versions in between stay in the log.
#[utoipa::path(
    post, path = "/rollback", operation_id = "rollback", tag = "versions",
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "Names the request, so that it can be sent again: the answer recorded with the version that it made is then given again."),
        ("If-Match" = Option<String>, Header, description = "The newest version must be this one, in double quotes; the same as `expected_version`."),
        ("x-amend-actor" = Option<String>, Header, description = "Who asks; 1 to 128 visible ASCII characters. Where keys are needed, the key's name counts instead."),
    ),
    request_body(content = RollbackRequest, example = json!({"to_version": 3})),
    responses(
        (status = 200, description = "Rolled back: a new version.", body = VersionReport,
            example = json!(super::openapi::examples::version_report())),
        RollbackProblems,
    )
)]
pub(super) async fn rollback(
    _: Admitted,
    State(app): State<AppState>,
    Actor(actor): Actor,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    JsonValue(body): JsonValue,
) -> Result<Response, Problem> {
    let idempotency = idempotency::read(&headers, "POST", &uri, &body)?;
    let RollbackRequest { to_version, expected_version } = shape(body)?;
    let expected_version = headers::expected_version(&headers, expected_version)?;
    change(&app, Change { change: SetChange::Rollback(to_version), actor, expected_version, idempotency }).await
}

/// A change of the set and its circumstances.
pub(super) struct Change {
    pub change: SetChange,
    pub actor: String,
    pub expected_version: Option<u64>,
    pub idempotency: Option<Idempotency>,
}

/// Has the writer change the set, unless the answer is recorded already.
pub(super) async fn change(app: &AppState, asked: Change) -> Result<Response, Problem> {
    if let Some(row) = idempotency::recorded(app.log.as_ref(), asked.idempotency.as_ref()).await? {
        return idempotency::replay(row);
    }
    match app.edits.change(asked.change, asked.actor, asked.expected_version, asked.idempotency).await? {
        Answer::Recorded(row) => idempotency::replay(row),
        Answer::Fresh(report) => Ok(Json(report).into_response()),
    }
}

async fn find(app: &AppState, number: u64) -> Result<VersionRow, Problem> {
    match app.log.version(number).await? {
        Some(row) => Ok(row),
        None => Err(unknown_version(number, app.log.head().await?.number)),
    }
}

async fn describe(app: &AppState, ids: Vec<Uuid>) -> Result<Vec<DiffEntry>, Problem> {
    stream::iter(ids)
        .map(|id| async move {
            let row = app.log.edit(id).await?;
            let row = row.ok_or_else(|| Problem::internal(format!("edit {id} is active but not in the log")))?;
            Ok(DiffEntry { id, prompt: row.prompt, target: row.target })
        })
        .buffered(READS_AT_ONCE)
        .try_collect()
        .await
}

impl From<VersionRow> for VersionSummary {
    fn from(row: VersionRow) -> Self {
        let VersionRow { number, kind, actor, created_at, digest, set_digest, active, .. } = row;
        Self { version: number, digest, set_digest, kind, active, created_at, actor }
    }
}
