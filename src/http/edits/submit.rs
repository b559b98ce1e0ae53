//! `POST /edits`.

use axum::{
    Json,
    extract::{OriginalUri, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::body::{EditsBody, Order};
use crate::{
    edit_log::IdempotencyRow,
    http::{
        auth::Actor,
        error::{Problem, problems},
        extract::{JsonValue, Query},
        headers::{self, PREFERENCE_APPLIED},
        idempotency,
        readiness::Admitted,
        state::{AppState, Submitted},
    },
    writer::{Answer, BatchReport, EditReport, Idempotency, Submission},
};

/// How an edit is submitted.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct SubmitQuery {
    /// Compute and check, change nothing; the same as `dry_run` in the body.
    #[serde(default)]
    dry_run: bool,
}

/// The edit's report, or the batch's.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes either report; the schema is all that is used")]
pub(in crate::http) enum SubmitReport {
    One(Box<EditReport>),
    Many(BatchReport),
}

/// What an edit that is not awaited answers.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct Accepted {
    /// In the order of the request. Each can be read at `/edits/{id}` while it waits and once it is in the log. An edit that
    /// left no entry, because the request was refused after it was queued (a version conflict, a key that already has an
    /// answer) or the service stopped before it, is not found there.
    ids: Vec<Uuid>,
    #[schema(example = "queued")]
    status: &'static str,
}

problems!(SubmitProblems: MalformedJson, MalformedBody, InvalidParameter, InvalidHeader, RequestTimeout,
    VersionConflict, PayloadTooLarge, UnsupportedMediaType, InvalidRequest, UnknownLabel, GuardRejected, BreaksEdits,
    ConflictingEdit, AccumulatorOverflow, IdempotencyKeyReused, QueueFull, EditFailed, LogDamaged, NotReady, Draining,
    LogUnavailable, LogFull);

/// Change a fact, or several together
///
/// The answer comes when the edit is in the log and visible to new requests. `Prefer: respond-async` asks for an answer
/// as soon as it is queued (a dry run is always awaited, since it leaves nothing to look up later). A request whose client
/// leaves, or whose time is over, while it still waits in the queue is dropped, unless it asked for that.
#[utoipa::path(
    post, path = "/edits", operation_id = "submit_edits", tag = "edits",
    params(
        SubmitQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "Names the request, so that it can be sent again: if it made a version, the answer recorded with that version is given again, and nothing is done twice. Other answers (a dry run, a rejection, a failure) are not kept: sent again, such a request is carried out anew. 1 to 255 visible ASCII characters."),
        ("If-Match" = Option<String>, Header, description = "The newest version must be this one, in double quotes; the same as `expected_version`."),
        ("Prefer" = Option<String>, Header, description = "`respond-async`: answer 202 once the edit is queued."),
        ("x-amend-actor" = Option<String>, Header, description = "Who asks; 1 to 128 visible ASCII characters. Where keys are needed, the key's name counts instead."),
    ),
    request_body(content = EditsBody, examples(
        ("one edit" = (value = json!({"prompt": "The mother tongue of Danielle Darrieux is", "target": "English",
            "paraphrases": ["Danielle Darrieux spoke the language"], "locality": [{"prompt": "The capital of France is"}]}))),
        ("a batch" = (value = json!({"edits": [{"prompt": "The mother tongue of Danielle Darrieux is", "target": "English"},
            {"prompt": "The Eiffel Tower is in", "target": "Rome", "guard": null}], "expected_version": 3}))),
    )),
    responses(
        (status = 201, description = "Applied: a new version.", body = SubmitReport, headers(
            ("Location" = String, description = "The edit, or the version of a batch."),
            ("Idempotent-Replayed" = String, description = "`true` if the answer was recorded earlier."),
        ), example = json!(super::super::openapi::examples::edit_report())),
        (status = 200, description = "A dry run: the figures, and nothing changed.", body = SubmitReport),
        (status = 202, description = "Queued.", body = Accepted, headers(
            ("Location" = String, description = "The first edit."),
            ("Preference-Applied" = String, description = "`respond-async`"),
        ), example = json!({"ids": ["01890a5d-ac96-774b-bcce-b302099a8057"], "status": "queued"})),
        SubmitProblems,
    )
)]
pub(in crate::http) async fn submit(
    _: Admitted,
    State(app): State<AppState>,
    Actor(actor): Actor,
    Query(query): Query<SubmitQuery>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    JsonValue(body): JsonValue,
) -> Result<Response, Problem> {
    let asked = idempotency::read(&headers, "POST", &uri, &body)?;
    if let Some(row) = idempotency::recorded(app.log.as_ref(), asked.as_ref()).await? {
        return idempotency::replay(row);
    }
    let Order { edits, dry_run, expected_version, batch } = EditsBody::read(body)?.order()?;
    let dry_run = dry_run || query.dry_run;
    let expected_version = headers::expected_version(&headers, expected_version)?;
    let count = edits.len();
    let detached = headers::prefers_async(&headers) && !dry_run;
    let idempotency = asked.clone();
    let submission = Submission { edits, dry_run, actor, expected_version, idempotency, batch, detached };
    let submitted = app.edits.submit(submission).await?;
    debug_assert_eq!(submitted.ids.len(), count, "each edit has an id");
    if detached {
        return match answered_meanwhile(&app, asked.as_ref(), &submitted.ids).await? {
            Some(row) => idempotency::replay(row),
            None => Ok(accepted(submitted)),
        };
    }
    match submitted.done.await? {
        Answer::Recorded(row) => idempotency::replay(row),
        Answer::Fresh(report) => done(&report, batch, dry_run),
    }
}

/// The answer to the same request, if it was recorded between the first look at the log and this submission: the writer
/// will give it again, and the ids that were just drawn will never be edits. No second look is needed: the writer takes
/// no other request under the key while this one waits. An answer about the very same ids is this submission's own.
async fn answered_meanwhile(
    app: &AppState,
    asked: Option<&Idempotency>,
    ids: &[Uuid],
) -> Result<Option<IdempotencyRow>, Problem> {
    let row = idempotency::recorded(app.log.as_ref(), asked).await?;
    let own = ids.first().map(ToString::to_string);
    Ok(row.filter(|row| idempotency::first_edit(&row.body) != own.as_deref()))
}

/// 202; the edits go on by themselves.
fn accepted(submitted: Submitted) -> Response {
    let location = submitted.ids.first().and_then(|id| HeaderValue::try_from(format!("/edits/{id}")).ok());
    let mut headers = HeaderMap::new();
    headers.extend(location.map(|location| (header::LOCATION, location)));
    headers.insert(PREFERENCE_APPLIED, HeaderValue::from_static("respond-async"));
    (StatusCode::ACCEPTED, headers, Json(Accepted { ids: submitted.ids, status: "queued" })).into_response()
}

fn done(report: &BatchReport, batch: bool, dry_run: bool) -> Result<Response, Problem> {
    let body = match report.edits.first() {
        _ if batch => json!(report),
        Some(edit) => json!(edit),
        None => return Err(Problem::internal("the writer answered a single edit with no report")),
    };
    if dry_run {
        return Ok(Json(body).into_response());
    }
    Ok(created(body))
}

fn created(body: Value) -> Response {
    let location = idempotency::location(&body);
    let mut response = (StatusCode::CREATED, Json(body)).into_response();
    response.headers_mut().extend(location.map(|location| (header::LOCATION, location)));
    response
}
