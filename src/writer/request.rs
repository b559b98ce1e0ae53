//! What a client asks the writer for.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::figure;
use crate::{digest::Digest, edit_log::VersionKind};

/// One fact to change.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EditRequest {
    /// What the model is asked: the text that it is to continue, that its encoder reads, or that it gives a label. An active edit with the same prompt, after trimming, is superseded.
    #[schema(example = "The mother tongue of Danielle Darrieux is")]
    pub prompt: String,
    /// What it should answer; for a classifier the label that the prompt should get, by its name or its number.
    #[schema(example = "English")]
    pub target: String,
    /// Other ways to ask, measured before and after; they do not enter the edit.
    #[serde(default)]
    pub paraphrases: Vec<String>,
    /// Prompts whose answers should stay as they are, measured before and after.
    #[serde(default)]
    pub locality: Vec<LocalityProbe>,
    /// Limits for this edit; absent means the service's own, `null` switches the checks off.
    #[serde(default, skip_serializing_if = "Guard::is_default")]
    #[schema(value_type = Option<GuardLimits>)]
    pub guard: Guard,
    /// Anything worth keeping in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Which editor to use; the service has one, so this must be its name if given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub editor: Option<String>,
}

/// A prompt that an edit should not change.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LocalityProbe {
    #[schema(example = "The capital of France is")]
    pub prompt: String,
    /// The answer over whose tokens the change is measured; without it, the next token's distribution is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Which checks an edit must pass.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Guard {
    /// The service's own limits (field absent).
    #[default]
    #[serde(skip)]
    Default,
    /// These limits.
    Limits(GuardLimits),
    /// No checks (`null`).
    Off,
}

impl Guard {
    fn is_default(&self) -> bool {
        *self == Self::Default
    }
}

impl<'de> Deserialize<'de> for Guard {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // serde calls this only where the field is present, so `None` here is an explicit null.
        Ok(match Option::<GuardLimits>::deserialize(deserializer)? {
            Some(limits) => Self::Limits(limits),
            None => Self::Off,
        })
    }
}

/// What is done about something that a check has found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// It is not looked for.
    Off,
    /// The answer and the log name it.
    #[default]
    Warn,
    /// The edit is rejected, and the answer and the log name it.
    Reject,
}

/// Limits of the guard. A field left out keeps the service's own value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GuardLimits {
    /// The least probability per target token, after the edit, on its own prompt; 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "figure::serialize_option")]
    pub min_probability: Option<f32>,
    /// The most KL divergence (nats) from before to after that a locality probe may show.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "figure::serialize_option")]
    pub max_kl: Option<f32>,
    /// What is done where the edit would break active edits or canaries: `off`, `warn` or `reject`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_break: Option<Policy>,
    /// An active edit that held breaks when its target's probability falls below this share of what it was; 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "figure::serialize_option")]
    pub min_share: Option<f32>,
    /// What is done where the edit conflicts with an active one: `off`, `warn` or `reject`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_conflict: Option<Policy>,
}

/// Edits to be applied together, as one version, all or none.
#[derive(Debug, Clone)]
pub struct Submission {
    pub edits: Vec<EditRequest>,
    /// Compute and check, change nothing.
    pub dry_run: bool,
    pub actor: String,
    /// Fail with a conflict unless this is the newest version when the edit's turn comes.
    pub expected_version: Option<u64>,
    pub idempotency: Option<Idempotency>,
    /// Whether the answer has the shape of a batch (`{"edits": [...]}`), which matters for what is kept under the
    /// idempotency key.
    pub batch: bool,
    /// Whether the edits are made when nobody waits for the answer any more. Otherwise they are dropped, as long as nothing
    /// was computed for them.
    pub detached: bool,
}

/// A client's idempotency key and the digest of the request it came with.
#[derive(Debug, Clone)]
pub struct Idempotency {
    pub key: String,
    pub request: Digest,
}

/// A change of the set that computes nothing new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetChange {
    /// Take one edit back.
    TakeBack(uuid::Uuid),
    /// Restore the set of this version.
    Rollback(u64),
}

impl SetChange {
    /// The kind of version that it makes.
    pub fn kind(self) -> VersionKind {
        match self {
            Self::TakeBack(_) => VersionKind::TakeBack,
            Self::Rollback(_) => VersionKind::Rollback,
        }
    }
}
