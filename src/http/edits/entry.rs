//! An edit as http shows it: the log's row, or one that is not in the log yet.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    digest::Digest,
    edit_log::{EditRow, EditStatus},
    http::error::Problem,
    writer::{
        Conflict, DeltaReport, GradientReport, HoldingReport, LocalityReport, PendingEdit, PendingState, TargetReport,
    },
};

/// Where an edit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::http) enum EditState {
    /// Waiting for the writer.
    Queued,
    /// Being computed.
    Running,
    /// Active in the newest version.
    Applied,
    /// Taken back by a request or a rollback.
    TakenBack,
    /// Replaced by a later edit of the same prompt.
    Superseded,
    /// Refused by the guard.
    Rejected,
    /// Not computed, because of an error.
    Failed,
}

impl From<EditStatus> for EditState {
    fn from(status: EditStatus) -> Self {
        match status {
            EditStatus::Applied => Self::Applied,
            EditStatus::TakenBack => Self::TakenBack,
            EditStatus::Superseded => Self::Superseded,
            EditStatus::Rejected => Self::Rejected,
            EditStatus::Failed => Self::Failed,
        }
    }
}

/// An edit: what was asked, where it stands, and its figures as far as they were taken.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct EditEntry {
    id: Uuid,
    status: EditState,
    /// Why it was rejected or failed.
    reason: Option<String>,
    actor: String,
    #[schema(value_type = String, format = DateTime)]
    received_at: Timestamp,
    /// The request as received.
    #[schema(value_type = Object)]
    request: Value,
    /// The edit that superseded it.
    superseded_by: Option<Uuid>,
    #[serde(flatten)]
    figures: Figures,
}

/// The figures of a report; absent for an edit that did not get so far.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
struct Figures {
    /// The version that first contained it, or that it was tried on.
    #[serde(default)]
    version: Option<u64>,
    /// Digest over the bits of that version's edited matrices.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    digest: Option<Digest>,
    /// The active edit with the same prompt that it replaced.
    #[serde(default)]
    supersedes: Option<Uuid>,
    #[serde(default)]
    prompt: Option<TargetReport>,
    #[serde(default)]
    paraphrases: Vec<TargetReport>,
    #[serde(default)]
    locality: Vec<LocalityReport>,
    /// Active edits that it conflicted with.
    #[serde(default)]
    conflicts: Vec<Conflict>,
    /// What it did to active edits and canaries.
    #[serde(default)]
    holding: Option<HoldingReport>,
    #[serde(default)]
    delta: Vec<DeltaReport>,
    /// How its gradient was spread in each matrix.
    #[serde(default)]
    gradient: Vec<GradientReport>,
    #[serde(default)]
    phases_ms: Option<PhasesReached>,
}

/// Wall-clock milliseconds of each phase that the edit reached.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
struct PhasesReached {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queue: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    capture: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    editor: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    guard: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    commit: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    publish: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    total: Option<f64>,
}

impl TryFrom<EditRow> for EditEntry {
    type Error = Problem;

    fn try_from(row: EditRow) -> Result<Self, Problem> {
        let figures: Option<Figures> = serde_json::from_value(row.report)
            .map_err(|error| Problem::internal(format!("the report of edit {} can not be read: {error}", row.id)))?;
        let mut figures = figures.unwrap_or_default();
        figures.version = row.version.or(figures.version);
        Ok(Self {
            id: row.id,
            status: row.status.into(),
            reason: row.reason,
            actor: row.actor,
            received_at: row.received_at,
            request: row.request,
            superseded_by: row.superseded_by,
            figures,
        })
    }
}

impl From<PendingEdit> for EditEntry {
    fn from(edit: PendingEdit) -> Self {
        Self {
            id: edit.id,
            status: match edit.state {
                PendingState::Queued => EditState::Queued,
                PendingState::Running => EditState::Running,
            },
            reason: None,
            actor: edit.actor,
            received_at: edit.received_at,
            request: json!({"prompt": edit.prompt, "target": edit.target}),
            superseded_by: None,
            figures: Figures::default(),
        }
    }
}
