//! Measuring editors on records, with one edit active at a time or many at once, several editors on the same texts.
//!
//! | what | on what |
//! |---|---|
//! | exact match, teacher-forced | the target after the prompt (efficacy) and after the paraphrase (generalization) |
//! | exact match, free-running | the same two prompts, continued greedily: the text begins with the target |
//! | CounterFact's scores | P(new) > P(old) on prompt and paraphrase, P(old) > P(new) on the neighbour |
//! | locality | greedy answer unchanged, KL(base \|\| edited): the record's own neighbour, and other records' |
//! | perplexity | one window of running text per edit, before and after |
//! | milliseconds | from the edit's token ids to its delta: trunk, capture, editor |
//!
//! Targets are joined to their prompts by one space and encoded separately. A probability is the exponential of the mean
//! log-probability per token. Everything that is drawn (the unrelated prompts, the windows) is a function of the seed
//! and the record alone, so that a part of a file gives the figures that it gives within the whole.
//!
//! With `k` edits active at once, the records are taken in groups of `k`, one after another; a rest that fills no group is
//! left out. Every record's texts are then measured under the composed edits of its group.
//!
//! The trunk reads every text once for all editors. Records are spread over threads, with candle on one thread each, so
//! the milliseconds are those of one thread of a machine whose other threads are as busy: what one may expect when edits
//! are computed side by side, and more than a single edit takes that has the machine for itself.

mod edited;
mod figures;
mod free_running;
mod group;
mod plot;
mod record;
mod report;
mod texts;

use std::ops::Range;

use indicatif::ProgressBar;

pub use edited::Edited;
pub use figures::{CounterFact, Figures, Locality, Matches, Mean, Milliseconds, RunningText, Share};
pub use plot::plot;
pub use report::{DataReport, EditorReport, EvaluateOptions, ModelReport, Report, SetReport};
pub use texts::reserve;

use super::{TrainingError, dataset::Dataset, parallel::Workers};
use crate::{digest::Digest, editor::Editor, model::Model};
use group::Groups;
use record::{Outcome, Request, Subject};
use texts::Choice;

/// An editor and what to call it.
pub struct Candidate {
    /// For the table: a folder, or a method's word.
    pub name: String,
    pub editor: Box<dyn Editor>,
    /// What it was started with, where no folder says it.
    pub options: serde_json::Value,
}

/// What an evaluation needs from outside.
pub struct Inputs<'a> {
    pub model: &'a Model,
    pub data: &'a Dataset,
    pub running_text: Option<&'a str>,
    pub candidates: &'a [Candidate],
    /// Records that a candidate has seen ([`reserve`]): their prompts are not drawn as unrelated ones.
    pub reserved: &'a [usize],
    pub threads: usize,
    /// Moved by one for each record measured.
    pub bar: &'a ProgressBar,
}

/// The records that `options` name: those from the offset on, as many as there are and asked for.
pub fn window(records: usize, options: &EvaluateOptions) -> Result<Range<usize>, TrainingError> {
    let EvaluateOptions { offset, records: wanted, .. } = *options;
    if offset >= records {
        let why = format!("the data has {records} records; none is left after the offset of {offset}");
        return Err(TrainingError::Refused(why));
    }
    let window = offset..records.min(offset.saturating_add(wanted));
    match options.simultaneous.iter().find(|together| **together > window.len()) {
        Some(together) => Err(TrainingError::Refused(format!(
            "{together} edits at once are asked for, but only {} records are measured",
            window.len()
        ))),
        None => Ok(window),
    }
}

/// Measures every candidate, and the model without an edit, on the same records.
pub fn evaluate(inputs: &Inputs<'_>, options: &EvaluateOptions) -> Result<Report, TrainingError> {
    let window = window(inputs.data.records.len(), options)?;
    let choice = Choice::new(inputs, options)?;
    let workers = Workers::new(inputs.threads)?;
    let groups = Groups { inputs, options, choice: &choice, workers: &workers, window: window.clone() };
    inputs.bar.set_length(groups.steps());
    let unedited = groups.unedited()?;
    let editors = inputs.candidates.iter().map(|candidate| {
        let sets = options.simultaneous.iter().map(|&together| groups.measure(candidate, together, &unedited));
        Ok(EditorReport {
            name: candidate.name.clone(),
            method: candidate.editor.method().to_owned(),
            composition: candidate.editor.composition().name().to_owned(),
            digest: candidate.editor.digest(),
            options: candidate.options.clone(),
            sets: sets.collect::<Result<_, _>>()?,
        })
    });
    let editors = editors.collect::<Result<_, TrainingError>>()?;
    inputs.bar.finish_and_clear();
    let unedited: Vec<&Outcome> = unedited.values().collect();
    Ok(Report {
        model: ModelReport { name: inputs.model.name().to_owned(), digest: inputs.model.digest() },
        data: DataReport {
            digest: inputs.data.digest,
            first: window.start,
            records: window.len(),
            running_text: inputs.running_text.map(|text| Digest::of(text.as_bytes())),
        },
        options: options.clone(),
        threads: inputs.threads,
        unedited: Figures::new(&unedited, &unedited),
        editors,
    })
}
