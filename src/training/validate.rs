//! Measuring the editor in training on records that it is not trained on, with one edit or more active at a time.

use serde::{Deserialize, Serialize};

use super::{
    TrainingError,
    batch::{self, BatchPlan, LocalityOutcome, PartOutcome, Weights},
    cache::HiddenStates,
    compose,
    corpus::Corpus,
    factored::CutSides,
    factors::FactorCache,
    parallel::Workers,
};
use crate::{editor::mend::Mend, model::Model};

/// Edits per pass.
const BATCH: usize = 10;

/// Figures over the validation records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Steps taken before it.
    pub step: u64,
    /// Mean of the losses below: what runs are compared by, lower is better.
    pub loss: f64,
    /// One for each number of edits that are active together.
    pub sets: Vec<SetFigures>,
}

impl Validation {
    /// Mean of a figure over the numbers of edits.
    pub fn mean(&self, figure: fn(&SetFigures) -> f64) -> f64 {
        self.sets.iter().map(figure).sum::<f64>() / self.sets.len().max(1) as f64
    }
}

/// Figures over the validation records in sets of one size.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SetFigures {
    /// Edits that are active together.
    pub together: usize,
    /// Share of edits whose target is greedy on the prompt, teacher-forced.
    pub prompt: f64,
    /// The same on the paraphrase.
    pub paraphrase: f64,
    /// Mean target NLL over prompts and paraphrases, nats.
    pub nll: f64,
    /// Mean KL on the record's own locality question, nats.
    pub neighbour_kl: f64,
    /// Share of those whose greedy answer is unchanged.
    pub neighbour_unchanged: f64,
    /// The same on another record's.
    pub other_kl: f64,
    pub other_unchanged: f64,
    /// The weighted sum of both, with neighbours and others in equal parts and at the positions that predict the answer
    /// alone.
    pub loss: f64,
}

/// What a validation needs beside the editor.
pub struct Validator<'a> {
    pub model: &'a Model,
    pub states: &'a HiddenStates,
    pub factors: &'a FactorCache<'a>,
    /// The records to validate on.
    pub records: &'a [usize],
    /// Numbers of edits that are active together.
    pub together: &'a [usize],
    pub weights: Weights,
    pub workers: &'a Workers,
}

impl Validator<'_> {
    /// Validates after `step` steps.
    pub fn validate(&self, mend: &Mend, step: u64) -> Result<Validation, TrainingError> {
        let sets = self.together.iter().map(|&size| self.in_sets(mend, size)).collect::<Result<Vec<_>, _>>()?;
        let mut validation = Validation { step, loss: 0.0, sets };
        validation.loss = validation.mean(|set| set.loss);
        Ok(validation)
    }

    /// In sets of `size`; the "other" question of each record is that of the record half the list away.
    fn in_sets(&self, mend: &Mend, size: usize) -> Result<SetFigures, TrainingError> {
        let records = self.records;
        let other = |place: usize| records[(place + records.len() / 2) % records.len()];
        let locality = (records.iter().enumerate())
            .flat_map(|(place, &record)| [record, other(place)].map(|r| (place as u32, Corpus::locality(r))))
            .collect();
        let plan = BatchPlan::new(records.to_vec(), size, locality);
        let captured = self.factors.of(records, self.workers)?;
        let sides = self.workers.run(|| {
            let sides = compose::sides(mend, &captured, &plan.sets)?;
            Ok::<_, TrainingError>(CutSides::new(sides)?)
        })?;
        let outcomes = self.workers.map(&plan.parts(BATCH), |part| {
            batch::run(self.model, self.states, &sides.of_sets(&part.range())?, part, self.weights)
        });
        let mut sums = Sums::default();
        for outcome in outcomes {
            sums.add(&outcome?);
        }
        Ok(sums.figures(size, records.len() as f64, self.weights))
    }
}

#[derive(Default)]
struct Sums {
    prompt: f64,
    paraphrase: f64,
    nll: f64,
    /// Neighbour, other.
    kl: [f64; 2],
    unchanged: [f64; 2],
}

impl Sums {
    fn add(&mut self, outcome: &PartOutcome) {
        self.prompt += outcome.prompts.iter().filter(|target| target.exact).count() as f64;
        self.paraphrase += outcome.paraphrases.iter().filter(|target| target.exact).count() as f64;
        let targets = outcome.prompts.iter().chain(&outcome.paraphrases);
        self.nll += targets.map(|target| f64::from(target.nll)).sum::<f64>() / 2.0;
        for pair in outcome.locality.chunks_exact(2) {
            for (kind, LocalityOutcome { kl, unchanged }) in pair.iter().enumerate() {
                self.kl[kind] += f64::from(*kl);
                self.unchanged[kind] += f64::from(u8::from(*unchanged));
            }
        }
    }

    fn figures(&self, together: usize, count: f64, weights: Weights) -> SetFigures {
        let nll = self.nll / count;
        let kl = self.kl.map(|sum| sum / count);
        SetFigures {
            together,
            prompt: self.prompt / count,
            paraphrase: self.paraphrase / count,
            nll,
            neighbour_kl: kl[0],
            neighbour_unchanged: self.unchanged[0] / count,
            other_kl: kl[1],
            other_unchanged: self.unchanged[1] / count,
            loss: weights.edit * nll + weights.locality * (kl[0] + kl[1]) / 2.0,
        }
    }
}
