//! `GET /edits` and `GET /edits/{id}`.

use axum::{Json, extract::State};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::entry::EditEntry;
use crate::{
    edit_log::{EditQuery, EditStatus},
    http::{
        error::{Code, Problem, problems},
        extract::{Path, Query},
        paging::{self, DEFAULT_LIMIT},
        reach::{self, AtLeast},
        state::AppState,
    },
};

/// Which edits to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct ListQuery {
    /// Where the page begins: `next_cursor` of the page before. Opaque.
    cursor: Option<String>,
    /// The oldest version that may answer: the request waits for it, and is answered 409 if it does not come in time.
    min_version: Option<u64>,
    /// Page size, 1 to 200.
    #[serde(default = "default_limit")]
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: u32,
    /// Only edits that stand so.
    status: Option<EditStatus>,
    /// Only edits whose prompt or target contains this, ignoring ASCII case.
    text: Option<String>,
    /// Only edits that this actor asked for.
    actor: Option<String>,
    /// Only edits received at this time or later, RFC 3339.
    #[param(value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
    /// Only edits received before this time, RFC 3339.
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
}

fn default_limit() -> u32 {
    DEFAULT_LIMIT
}

/// Edits, newest first.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct EditPage {
    edits: Vec<EditEntry>,
    /// `cursor` of the next page; null on the last.
    next_cursor: Option<String>,
}

problems!(ListProblems: InvalidParameter, RequestTimeout, VersionNotReached, LogDamaged, LogUnavailable);
problems!(ShowProblems: InvalidParameter, UnknownEdit, RequestTimeout, VersionNotReached, LogDamaged, LogUnavailable);

/// List edits, newest first
///
/// Edits that are in the log: applied, taken back, superseded, rejected or failed. One that still waits is found by its
/// id.
#[utoipa::path(
    get, path = "/edits", operation_id = "list_edits", tag = "edits",
    params(ListQuery),
    responses(
        (status = 200, description = "One page.", body = EditPage,
            example = json!({"edits": [super::super::openapi::examples::edit_entry()], "next_cursor": "41"})),
        ListProblems,
    )
)]
pub(in crate::http) async fn list(
    State(app): State<AppState>,
    Query(query): Query<ListQuery>,
) -> Result<Json<EditPage>, Problem> {
    reach::at_least(&app, query.min_version).await?;
    let query = EditQuery {
        status: query.status,
        text: query.text,
        actor: query.actor,
        since: query.since,
        until: query.until,
        before: paging::before(query.cursor.as_deref())?,
        limit: paging::limit(query.limit)?,
    };
    let page = app.log.edits(&query).await?;
    let edits = page.items.into_iter().map(EditEntry::try_from).collect::<Result<_, _>>()?;
    Ok(Json(EditPage { edits, next_cursor: page.next.map(paging::cursor) }))
}

/// Show one edit
///
/// Also one that is still queued or running.
#[utoipa::path(
    get, path = "/edits/{id}", operation_id = "show_edit", tag = "edits",
    params(("id" = Uuid, Path, description = "The edit."), AtLeast),
    responses(
        (status = 200, description = "The edit.", body = EditEntry,
            example = json!(super::super::openapi::examples::edit_entry())),
        ShowProblems,
    )
)]
pub(in crate::http) async fn show(
    State(app): State<AppState>,
    Path(id): Path<Uuid>,
    Query(AtLeast { min_version }): Query<AtLeast>,
) -> Result<Json<EditEntry>, Problem> {
    reach::at_least(&app, min_version).await?;
    // Asked in this order, an edit that moves from the queue to the log in between is still found.
    if let Some(pending) = app.edits.pending(id) {
        return Ok(Json(pending.into()));
    }
    match app.log.edit(id).await? {
        Some(row) => Ok(Json(row.try_into()?)),
        None => Err(Problem::new(Code::UnknownEdit, format!("there is no edit {id}")).with("id", id)),
    }
}
