//! The factors of the records' edits at `W0`. The base model is frozen, so they never change (law 1): where an edit keeps
//! only the rows at its answer, which are few, they are captured once and stay in memory (about 100 KB a record for a
//! model of width 576 with three editable blocks).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{TrainingError, cache::HiddenStates, corpus::Corpus, parallel::Workers};
use crate::model::{
    Model,
    capture::{self, Captured},
};

/// Edits captured in one pass.
const PASS: usize = 8;

/// Captures, and remembers what is small enough.
pub struct FactorCache<'a> {
    model: &'a Model,
    states: Arc<HiddenStates>,
    /// Only the rows at the answers are wanted, and kept.
    at_answers: bool,
    kept: Mutex<HashMap<usize, Arc<Captured>>>,
}

impl<'a> FactorCache<'a> {
    /// Of the records behind `states`.
    pub fn new(model: &'a Model, states: Arc<HiddenStates>, at_answers: bool) -> Self {
        Self { model, states, at_answers, kept: Mutex::default() }
    }

    /// The factors of these records' edits, in order.
    pub fn of(&self, records: &[usize], workers: &Workers) -> Result<Vec<Arc<Captured>>, TrainingError> {
        let mut found: HashMap<usize, Arc<Captured>> = {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            records.iter().filter_map(|record| Some((*record, Arc::clone(kept.get(record)?)))).collect()
        };
        let mut missing: Vec<usize> = records.iter().filter(|record| !found.contains_key(record)).copied().collect();
        missing.sort_unstable();
        missing.dedup();
        let passes: Vec<&[usize]> = missing.chunks(PASS).collect();
        let captured = workers.map(&passes, |records| self.capture(records));
        for (records, captured) in passes.into_iter().zip(captured) {
            found.extend(records.iter().copied().zip(captured?));
        }
        if self.at_answers {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend(missing.iter().map(|record| (*record, Arc::clone(&found[record]))));
        }
        Ok(records.iter().map(|record| Arc::clone(&found[record])).collect())
    }

    fn capture(&self, records: &[usize]) -> Result<Vec<Arc<Captured>>, TrainingError> {
        let read = records.iter().map(|&record| self.states.state(Corpus::prompt(record)));
        let captured = capture::capture(self.model, &read.collect::<Result<Vec<_>, _>>()?)?;
        let kept = captured.into_iter().map(|captured| match self.at_answers {
            true => Ok(Arc::new(captured.at_answers()?)),
            false => Ok(Arc::new(captured)),
        });
        kept.collect()
    }
}
