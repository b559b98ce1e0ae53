//! What an evaluation says, as JSON has it.

use serde::{Deserialize, Serialize};

use super::{Figures, Matches};
use crate::digest::Digest;

/// What the figures depend on beside model, editors and data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluateOptions {
    /// Records passed over first.
    pub offset: usize,
    /// Records to edit.
    pub records: usize,
    /// Numbers of edits that are active at once.
    pub simultaneous: Vec<usize>,
    /// How many records are measured for each of these numbers, evenly from each group; all of them if not given.
    #[serde(default)]
    pub measured: Option<usize>,
    /// Prompts of other records per record.
    pub unrelated: usize,
    /// Most tokens of an answer in the free-running match.
    pub max_new_tokens: usize,
    /// Of everything that is drawn.
    pub seed: u64,
}

/// The figures of every editor on the same records, and what they were measured on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub model: ModelReport,
    pub data: DataReport,
    pub options: EvaluateOptions,
    /// Records that were measured at the same time; the milliseconds depend on it.
    pub threads: usize,
    /// The model as it is.
    pub unedited: Figures,
    pub editors: Vec<EditorReport>,
}

/// The model that was edited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelReport {
    pub name: String,
    pub digest: Digest,
}

/// What it was measured on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataReport {
    /// Of the files of records.
    pub digest: Digest,
    /// Place of the first record that was edited.
    pub first: usize,
    /// Records that were edited: those asked for, or as many as there were.
    pub records: usize,
    /// Digest of the running text, if there was one.
    pub running_text: Option<Digest>,
}

/// One editor's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EditorReport {
    /// A folder, or a method's word.
    pub name: String,
    pub method: String,
    /// How its edits become one change: `sum`, `joint`.
    pub composition: String,
    pub digest: Digest,
    /// What it was started with, where no folder says it.
    #[serde(default)]
    pub options: serde_json::Value,
    /// One for each number of edits that are active at once.
    pub sets: Vec<SetReport>,
}

/// Figures with so many edits active at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetReport {
    pub together: usize,
    /// Disjoint groups of that many records, over which the figures are.
    pub groups: usize,
    pub figures: Figures,
    /// In groups of more than a hundred: exact matches on the first hundred of each.
    pub first_hundred: Option<Matches>,
}
