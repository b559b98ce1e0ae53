//! Records in groups whose edits are active at the same time.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use super::{Candidate, Choice, EvaluateOptions, Figures, Inputs, Outcome, Request, SetReport, Subject, edited::under};
use crate::{
    editor::{Composition, Delta, EditorError, MatrixDelta},
    training::{TrainingError, parallel::Workers},
};

/// So many of a large group's first records have figures of their own: what the later edits left of the early ones.
const FIRST: usize = 100;

/// What measuring in groups needs.
pub(super) struct Groups<'a> {
    pub inputs: &'a Inputs<'a>,
    pub options: &'a EvaluateOptions,
    pub choice: &'a Choice<'a>,
    pub workers: &'a Workers,
    pub window: Range<usize>,
}

/// The edits of a group under one editor.
struct Edits {
    /// Those that were made, in order; dense ones as their sum.
    gathered: Vec<Delta>,
    /// By record: how long its edit took, and whether it could not be made.
    made: Vec<(f64, bool)>,
}

/// Records whose edits are active together.
struct Group {
    /// All of them.
    edited: Vec<usize>,
    /// Those that are measured, evenly from the first on.
    measured: Vec<usize>,
}

impl Groups<'_> {
    /// How many records are measured, counting each as often as it is.
    pub fn steps(&self) -> u64 {
        let records = |together: &usize| self.places(*together).len();
        let edited: usize = self.options.simultaneous.iter().map(records).sum();
        (self.all_places().len() + edited * self.inputs.candidates.len()) as u64
    }

    /// The outcome of every record that some group measures, without an edit.
    pub fn unedited(&self) -> Result<BTreeMap<usize, Outcome>, TrainingError> {
        let places: Vec<usize> = self.all_places().into_iter().collect();
        let base = self.inputs.model.base();
        let outcomes = self.each(&places, |place| self.subject(place)?.measure(base.as_ref()))?;
        Ok(places.into_iter().zip(outcomes).collect())
    }

    /// One editor's figures with `together` edits active at once.
    pub fn measure(
        &self,
        candidate: &Candidate,
        together: usize,
        unedited: &BTreeMap<usize, Outcome>,
    ) -> Result<SetReport, TrainingError> {
        let (groups, places) = (self.groups(together), self.places(together));
        let mut outcomes = Vec::with_capacity(places.len());
        if together == 1 {
            outcomes = self.each(&places, |place| self.alone(candidate, place, unedited))?;
        } else {
            for group in &groups {
                outcomes.extend(self.group(candidate, group)?);
            }
        }
        let early = groups.iter().flat_map(|group| {
            let end = group.edited[FIRST.min(group.edited.len()) - 1];
            group.measured.iter().map(move |place| *place <= end)
        });
        let all: Vec<&Outcome> = outcomes.iter().collect();
        let before: Vec<&Outcome> = places.iter().map(|place| &unedited[place]).collect();
        let first: Vec<&Outcome> =
            all.iter().zip(early).filter_map(|(outcome, early)| early.then_some(*outcome)).collect();
        Ok(SetReport {
            together,
            groups: groups.len(),
            figures: Figures::new(&all, &before),
            first_hundred: (together > FIRST).then(|| Figures::new(&first, &before).teacher_forced),
        })
    }

    /// As many groups of `together` records as it takes to measure what is asked for; at least one, and disjoint.
    fn groups(&self, together: usize) -> Vec<Group> {
        let places: Vec<usize> = self.window.clone().collect();
        let wanted = self.options.measured.unwrap_or(usize::MAX);
        let groups = wanted.div_ceil(together).min(places.len() / together);
        let each = (wanted / groups.max(1)).clamp(1, together);
        let group = |edited: &[usize]| {
            let measured = (0..each).map(|index| edited[index * together / each]).collect();
            Group { edited: edited.to_vec(), measured }
        };
        places.chunks_exact(together).take(groups).map(group).collect()
    }

    /// The records that are measured with `together` edits active.
    fn places(&self, together: usize) -> Vec<usize> {
        self.groups(together).into_iter().flat_map(|group| group.measured).collect()
    }

    fn all_places(&self) -> BTreeSet<usize> {
        self.options.simultaneous.iter().flat_map(|together| self.places(*together)).collect()
    }

    /// An edit that fails changes nothing, as in the service: its figures are the model's own.
    fn alone(
        &self,
        candidate: &Candidate,
        place: usize,
        unedited: &BTreeMap<usize, Outcome>,
    ) -> Result<Outcome, TrainingError> {
        let (delta, milliseconds) = self.delta(candidate, place)?;
        let base = self.inputs.model.base();
        let edited = delta.and_then(|delta| under(base, &candidate.editor.composition(), &[&delta]));
        let milliseconds = Some(milliseconds);
        match edited {
            Ok(edited) => Ok(Outcome { milliseconds, ..self.subject(place)?.measure(edited.as_ref())? }),
            Err(EditorError::NonFinite { .. }) => {
                Ok(Outcome { milliseconds, failed: true, ..unedited[&place].clone() })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn group(&self, candidate: &Candidate, group: &Group) -> Result<Vec<Outcome>, TrainingError> {
        let Edits { gathered, made } = self.edits(candidate, &group.edited)?;
        let gathered: Vec<&Delta> = gathered.iter().collect();
        let edited = under(self.inputs.model.base(), &candidate.editor.composition(), &gathered)?;
        let outcomes = self.each(&group.measured, |place| self.subject(place)?.measure(edited.as_ref()))?;
        let made = group.measured.iter().map(|place| made[place - group.edited[0]]);
        let noted = outcomes.into_iter().zip(made);
        Ok(noted.map(|(outcome, (ms, failed))| Outcome { milliseconds: Some(ms), failed, ..outcome }).collect())
    }

    /// Edits are made side by side, a few at a time: a dense change is as large as the matrices, and joins the others
    /// before the next are made.
    fn edits(&self, candidate: &Candidate, places: &[usize]) -> Result<Edits, TrainingError> {
        let composition = candidate.editor.composition();
        let (mut gathered, mut made) = (Vec::new(), Vec::with_capacity(places.len()));
        for places in places.chunks(4 * self.workers.count()) {
            for made_now in self.workers.map(places, |&place| self.delta(candidate, place)) {
                let (delta, milliseconds) = made_now?;
                made.push((milliseconds, delta.is_err()));
                match delta {
                    Ok(delta) => gather(&composition, &mut gathered, delta)?,
                    Err(EditorError::NonFinite { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(Edits { gathered, made })
    }

    fn delta(&self, candidate: &Candidate, place: usize) -> Result<(Result<Delta, EditorError>, f64), TrainingError> {
        let texts = self.choice.texts(place)?;
        Ok(Request::new(self.inputs.model, &texts.edit)?.delta(candidate.editor.as_ref()))
    }

    fn subject(&self, place: usize) -> Result<Subject<'_>, TrainingError> {
        Subject::new(self.inputs.model, self.choice.texts(place)?, self.options.max_new_tokens)
    }

    fn each(
        &self,
        places: &[usize],
        measure: impl Fn(usize) -> Result<Outcome, TrainingError> + Sync + Send,
    ) -> Result<Vec<Outcome>, TrainingError> {
        let measured = self.workers.map(places, |&place| {
            let outcome = measure(place);
            self.inputs.bar.inc(1);
            outcome.map_err(|error| TrainingError::Refused(format!("record {place}: {error}")))
        });
        measured.into_iter().collect()
    }
}

/// Keeps a change for composing; a dense one is added to what is there.
fn gather(composition: &Composition, gathered: &mut Vec<Delta>, delta: Delta) -> Result<(), EditorError> {
    let dense = delta.0.iter().any(|matrix| matches!(matrix, MatrixDelta::Dense(_)));
    let delta = match gathered.pop() {
        Some(sum) if dense => composition.compose(&[&sum, &delta])?,
        Some(other) => {
            gathered.push(other);
            delta
        }
        None => delta,
    };
    gathered.push(delta);
    Ok(())
}
