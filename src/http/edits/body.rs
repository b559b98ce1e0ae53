//! The body of `POST /edits`: one edit, or several to be applied together.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    http::{
        error::{Code, Problem},
        extract::shape,
    },
    writer::{EditRequest, Guard, GuardLimits, LocalityProbe},
};

/// One edit, or `edits`: several that become one version, all or none. Which of the two is told by `edits`.
#[derive(ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum EditsBody {
    One(Box<SingleEdit>),
    Many(EditBatch),
}

/// One fact to change, and how.
// Its fields are those of `EditRequest`, not a flattened one: serde can not refuse unknown fields through `flatten`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct SingleEdit {
    /// What the model is asked. An active edit with the same prompt, after trimming, is superseded.
    #[schema(example = "The mother tongue of Danielle Darrieux is")]
    prompt: String,
    /// What it should answer.
    #[schema(example = "English")]
    target: String,
    /// Other ways to ask, measured before and after; they do not enter the edit.
    #[serde(default)]
    paraphrases: Vec<String>,
    /// Prompts whose answers should stay as they are, measured before and after.
    #[serde(default)]
    locality: Vec<LocalityProbe>,
    /// Limits for this edit; absent means the service's own, `null` switches the checks off.
    #[serde(default)]
    #[schema(value_type = Option<GuardLimits>)]
    guard: Guard,
    /// Anything worth keeping in the log.
    #[serde(default)]
    note: Option<String>,
    /// Which editor to use; the service has one, so this must be its name if given.
    #[serde(default)]
    editor: Option<String>,
    /// Compute and check, change nothing.
    #[serde(default)]
    dry_run: bool,
    /// Refuse unless this is the newest version when the edit's turn comes.
    #[serde(default)]
    expected_version: Option<u64>,
}

/// Edits that become one version together, all or none.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct EditBatch {
    #[schema(min_items = 1)]
    edits: Vec<EditRequest>,
    /// Compute and check, change nothing.
    #[serde(default)]
    dry_run: bool,
    /// Refuse unless this is the newest version when the batch's turn comes.
    #[serde(default)]
    expected_version: Option<u64>,
}

/// What a body asks for, whichever of its two shapes it has.
pub(super) struct Order {
    pub edits: Vec<EditRequest>,
    pub dry_run: bool,
    pub expected_version: Option<u64>,
    pub batch: bool,
}

impl EditsBody {
    /// Reads either shape; 422 names the field that does not fit.
    pub fn read(value: Value) -> Result<Self, Problem> {
        match value.get("edits") {
            Some(_) => shape(value).map(Self::Many),
            None => shape(value).map(|edit| Self::One(Box::new(edit))),
        }
    }

    /// What it asks for. A batch has at least one edit.
    pub fn order(self) -> Result<Order, Problem> {
        match self {
            Self::One(one) => {
                let SingleEdit { dry_run, expected_version, .. } = *one;
                Ok(Order { edits: vec![one.edit()], dry_run, expected_version, batch: false })
            }
            Self::Many(EditBatch { edits, .. }) if edits.is_empty() => {
                let detail = "edits: must hold at least 1 edit. Given: 0";
                Err(Problem::new(Code::InvalidRequest, detail).with("field", "edits"))
            }
            Self::Many(EditBatch { edits, dry_run, expected_version }) => {
                Ok(Order { edits, dry_run, expected_version, batch: true })
            }
        }
    }
}

impl SingleEdit {
    fn edit(self) -> EditRequest {
        EditRequest {
            prompt: self.prompt,
            target: self.target,
            paraphrases: self.paraphrases,
            locality: self.locality,
            guard: self.guard,
            note: self.note,
            editor: self.editor,
        }
    }
}
