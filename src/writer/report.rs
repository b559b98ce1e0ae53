//! What the writer answers: the figures of an edit, and of the version it made. The log keeps the same shape.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Conflict, HoldingReport, figure};
use crate::digest::Digest;

/// How an edit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReportStatus {
    /// It is part of a version.
    Applied,
    /// It was a dry run and would have been applied.
    DryRun,
    /// The guard refused it.
    Rejected,
}

/// The result of one edit.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EditReport {
    pub id: Uuid,
    pub status: ReportStatus,
    /// The version that it made; the version it was tried on, for one that was not applied.
    pub version: u64,
    /// Digest over the bits of the edited matrices with this edit, 64 hexadecimal digits: the version's, or what it
    /// would have been for an edit that was not applied.
    #[schema(value_type = String)]
    pub digest: Digest,
    /// The active edit with the same prompt that this one replaced.
    pub supersedes: Option<Uuid>,
    /// The target's fate on the edit's own prompt.
    pub prompt: TargetReport,
    /// The same on each paraphrase.
    pub paraphrases: Vec<TargetReport>,
    pub locality: Vec<LocalityReport>,
    /// Active edits that it conflicts with.
    #[serde(default)]
    pub conflicts: Vec<Conflict>,
    /// What it does to active edits and canaries; none where that was switched off.
    #[serde(default)]
    pub holding: Option<HoldingReport>,
    /// What it adds to each edited matrix.
    pub delta: Vec<DeltaReport>,
    /// How the gradient that it was made from is spread in each edited matrix.
    #[serde(default)]
    pub gradient: Vec<GradientReport>,
    pub phases_ms: PhasesMs,
    /// Why it was rejected, with the numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The target on one prompt, before (on the version the edit was applied to) and after.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TargetReport {
    pub text: String,
    pub before: TargetFigures,
    pub after: TargetFigures,
}

/// How a model likes a target.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TargetFigures {
    /// `exp` of the mean log-probability per target token.
    #[serde(serialize_with = "figure::serialize")]
    pub probability: f32,
    /// Whether the target's token is the most probable one at each of its positions.
    pub greedy: bool,
}

/// What an edit did to a bystander.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LocalityReport {
    pub prompt: String,
    /// KL divergence from before to after, nats, mean over the measured positions.
    #[serde(serialize_with = "figure::serialize")]
    pub kl: f32,
    /// Whether the most probable token stayed the same at each measured position.
    pub greedy_unchanged: bool,
}

/// What an edit adds to one matrix.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeltaReport {
    #[schema(example = "model.layers.29.mlp.down_proj.weight")]
    pub matrix: String,
    /// Frobenius norm.
    #[serde(serialize_with = "figure::serialize")]
    pub norm: f32,
    /// How many rank-one terms it is the sum of.
    pub rank: usize,
}

/// The gradient of the answer's loss in one matrix, at the base weights, by its singular values `s_i`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GradientReport {
    #[schema(example = "model.layers.29.mlp.down_proj.weight")]
    pub matrix: String,
    /// Frobenius norm, `sqrt(sum s_i^2)`.
    #[serde(serialize_with = "figure::serialize")]
    pub norm: f32,
    /// `sum s_i`.
    #[serde(serialize_with = "figure::serialize")]
    pub nuclear_norm: f32,
    /// `exp(-sum p_i ln p_i)` with `p_i = s_i / sum s_j`: in how many directions the gradient points.
    #[serde(serialize_with = "figure::serialize")]
    pub effective_rank: f32,
}

/// Wall-clock milliseconds of each phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PhasesMs {
    /// Waiting for the writer.
    pub queue: f64,
    /// Trunk forward, tail forward and backward; shared by the edits captured together.
    pub capture: f64,
    /// The editor's network, and the spread of its gradient.
    pub editor: f64,
    /// Composing the new weights, their digest, and all measurements on them, of other edits and canaries too.
    pub guard: f64,
    /// The log's transaction; 0 in the answer to an edit that was not applied, absent in what the log keeps, which is
    /// written before it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<f64>,
    /// Swapping the current version; like `commit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish: Option<f64>,
    pub total: f64,
}

/// A version made by taking back or rolling back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionReport {
    pub version: u64,
    #[schema(value_type = String)]
    pub digest: Digest,
}

/// The result of a batch: one version, all or nothing.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BatchReport {
    pub version: u64,
    #[schema(value_type = String)]
    pub digest: Digest,
    pub edits: Vec<EditReport>,
}

impl BatchReport {
    /// Phases that were not gone through took no time: a fresh answer has a number for each.
    pub(super) fn name_every_phase(&mut self) {
        for edit in &mut self.edits {
            edit.phases_ms.commit.get_or_insert(0.0);
            edit.phases_ms.publish.get_or_insert(0.0);
        }
    }
}
