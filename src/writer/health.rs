//! What the last recheck of the active edits found.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{TargetFigures, figure};

/// How healthy the active edits are, as far as it was checked.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct EditsHealth {
    /// The last complete check; none before the first.
    pub checked: Option<CheckReport>,
    /// A check that is under way.
    pub checking: Option<CheckProgress>,
    /// Why the last check did not come to its end; another version is checked anew.
    pub failed: Option<String>,
}

/// A complete check of one version.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CheckReport {
    /// The version whose edits were scored.
    #[schema(example = 17)]
    pub version: u64,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// What the scoring took, without the waiting between its batches.
    pub milliseconds: f64,
    /// Active edits that were scored: all.
    pub edits: usize,
    /// Those whose target is what the model answers: each of its tokens is the most probable one.
    pub holding: usize,
    /// `holding / edits`; none where there are no edits.
    #[serde(serialize_with = "figure::serialize_option")]
    pub share: Option<f32>,
    /// Edits that do not hold, the newest first, at most 200 of them.
    pub lost: Vec<LostEdit>,
    pub canaries: Vec<CanaryDrift>,
}

/// An edit that does not hold.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct LostEdit {
    pub id: Uuid,
    pub prompt: String,
    pub target: String,
    pub now: TargetFigures,
    /// When it was applied.
    pub applied: Option<TargetFigures>,
}

/// How far a canary went from the base model.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CanaryDrift {
    pub prompt: String,
    pub expected: Option<String>,
    /// KL divergence from version 0 to the version that was checked, nats, mean over the measured positions.
    #[serde(serialize_with = "figure::serialize")]
    pub kl: f32,
    /// Whether the most probable tokens are those of version 0.
    pub greedy_unchanged: bool,
    /// The expected answer's figures in version 0 and in the version that was checked.
    pub base: Option<TargetFigures>,
    pub now: Option<TargetFigures>,
}

/// How far a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct CheckProgress {
    pub version: u64,
    /// Edits and canaries scored so far.
    pub done: usize,
    pub of: usize,
}
