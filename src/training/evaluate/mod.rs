//! Measuring editors on records, one edit at a time from `W0`, several editors on the same texts.
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
//! The trunk reads every text once for all editors. Records are spread over threads, with candle on one thread each, so
//! the milliseconds are those of one thread of a machine whose other threads are as busy: what one may expect when edits
//! are computed side by side, and more than a single edit takes that has the machine for itself.

mod edited;
mod figures;
mod free_running;
mod record;
mod report;
mod texts;

use std::ops::Range;

use indicatif::ProgressBar;

pub use edited::Edited;
pub use figures::{CounterFact, Figures, Locality, Matches, Mean, Milliseconds, RunningText, Share};
pub use report::{DataReport, EditorReport, EvaluateOptions, ModelReport, Report};
pub use texts::reserve;

use super::{TrainingError, dataset::Dataset, parallel::Workers};
use crate::{digest::Digest, editor::Editor, model::Model};
use record::{Outcome, Subject};
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
    /// As long as the [`window`].
    pub bar: &'a ProgressBar,
}

/// The records that `options` name: those from the offset on, as many as there are and asked for.
pub fn window(records: usize, options: &EvaluateOptions) -> Result<Range<usize>, TrainingError> {
    let EvaluateOptions { offset, records: wanted, .. } = *options;
    if offset >= records {
        let why = format!("the data has {records} records; none is left after the offset of {offset}");
        return Err(TrainingError::Refused(why));
    }
    Ok(offset..records.min(offset.saturating_add(wanted)))
}

/// Measures every candidate, and the model without an edit, on the same records.
pub fn evaluate(inputs: &Inputs<'_>, options: &EvaluateOptions) -> Result<Report, TrainingError> {
    let window = window(inputs.data.records.len(), options)?;
    let choice = Choice::new(inputs, options)?;
    let places: Vec<usize> = window.clone().collect();
    let measured = Workers::new(inputs.threads)?.map(&places, |&place| {
        let outcomes = measure_record(inputs, options, &choice, place);
        inputs.bar.inc(1);
        outcomes.map_err(|error| TrainingError::Refused(format!("record {place}: {error}")))
    });
    inputs.bar.finish_and_clear();
    let measured = measured.into_iter().collect::<Result<Vec<_>, _>>()?;
    let column = |index: usize| -> Vec<&Outcome> { measured.iter().map(|outcomes| &outcomes[index]).collect() };
    let unedited = column(0);
    let candidates = inputs.candidates.iter().enumerate();
    Ok(Report {
        model: ModelReport { name: inputs.model.name().to_owned(), digest: inputs.model.digest() },
        data: DataReport {
            digest: inputs.data.digest,
            first: window.start,
            records: window.len(),
            running_text: inputs.running_text.map(|text| Digest::of(text.as_bytes())),
        },
        options: *options,
        threads: inputs.threads,
        unedited: Figures::new(&unedited, &unedited),
        editors: candidates
            .map(|(index, candidate)| EditorReport {
                name: candidate.name.clone(),
                method: candidate.editor.method().to_owned(),
                digest: candidate.editor.digest(),
                options: candidate.options.clone(),
                figures: Figures::new(&column(index + 1), &unedited),
            })
            .collect(),
    })
}

/// The outcomes of one record: without an edit, then under each candidate's.
fn measure_record(
    inputs: &Inputs<'_>,
    options: &EvaluateOptions,
    choice: &Choice<'_>,
    place: usize,
) -> Result<Vec<Outcome>, TrainingError> {
    let subject = Subject::new(inputs.model, choice.texts(place)?, options.max_new_tokens)?;
    let unedited = subject.measure(inputs.model.base().as_ref())?;
    let edited = inputs.candidates.iter().map(|candidate| subject.edit(candidate.editor.as_ref(), &unedited));
    std::iter::once(Ok(unedited.clone())).chain(edited).collect()
}
