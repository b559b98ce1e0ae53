//! Measuring the editor in training on records that it is not trained on, one edit at a time.

use serde::{Deserialize, Serialize};

use super::{
    TrainingError,
    batch::{self, BatchPlan, LocalityOutcome, Weights},
    cache::HiddenStates,
    corpus::Corpus,
    parallel::Workers,
};
use crate::{editor::mend::Mend, model::Model};

/// Edits per pass.
const BATCH: usize = 10;

/// Figures over the validation records.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Steps taken before it; filled in by the run.
    pub step: u64,
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
    /// alone: what runs are compared by, lower is better.
    pub loss: f64,
}

/// Validates on `records`; the "other" question of each is that of the record half the list away.
pub fn validate(
    model: &Model,
    states: &HiddenStates,
    mend: &Mend,
    records: &[usize],
    weights: Weights,
    workers: &Workers,
) -> Result<Validation, TrainingError> {
    let other = |place: usize| records[(place + records.len() / 2) % records.len()];
    let locality = (records.iter().enumerate())
        .flat_map(|(place, &record)| [record, other(place)].map(|r| (place as u32, Corpus::locality(r))))
        .collect();
    let plan = BatchPlan { edits: records.to_vec(), locality };
    let outcomes = workers.map(&plan.parts(BATCH), |part| {
        let captured = batch::capture_edits(model, states, &part.edits)?;
        batch::run(model, states, mend, part, &captured, weights)
    });
    let mut sums = Sums::default();
    for outcome in outcomes {
        sums.add(&outcome?);
    }
    Ok(sums.figures(records.len() as f64, weights))
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
    fn add(&mut self, outcome: &batch::BatchOutcome) {
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

    fn figures(&self, count: f64, weights: Weights) -> Validation {
        let nll = self.nll / count;
        let kl = self.kl.map(|sum| sum / count);
        Validation {
            step: 0,
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
