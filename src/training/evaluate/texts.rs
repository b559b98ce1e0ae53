//! The texts that a record is measured on, and how those are drawn that are not its own.

use std::ops::Range;

use rand::{Rng, SeedableRng, seq::index::sample};
use rand_chacha::ChaCha8Rng;

use super::{EvaluateOptions, Inputs};
use crate::{
    model::{ModelError, Passage, tokenizer::Tokenizer},
    training::{TrainingError, dataset::Record},
};

/// Tokens of a window of running text. One window per edit: what an edit does to running text varies less within a text
/// than between edits and texts, and 500 edits see 63,500 tokens.
const WINDOW: usize = 128;
/// The stream of the generator that reserves records; the others belong to records.
const RESERVE_STREAM: u64 = u64::MAX;

/// What a text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The new answer after the prompt, and after the paraphrase.
    Prompt,
    Paraphrase,
    /// The record's own locality question with its answer, and another record's.
    Neighbour,
    Unrelated,
    /// The old answer after the prompt and the paraphrase, the new one after the neighbour: to compare with.
    OldOnPrompt,
    OldOnParaphrase,
    NewOnNeighbour,
}

/// The texts of one record.
pub(super) struct Texts {
    /// The edit itself.
    pub edit: Passage,
    /// All that have an answer, the edit's own first.
    pub answered: Vec<(Role, Passage)>,
    /// A window of running text, every token of it predicted but the first.
    pub window: Option<Passage>,
    /// The edit's prompt and its paraphrase, to be continued.
    pub open: [Vec<u32>; 2],
    /// What the continuation should begin with.
    pub target: String,
}

/// Draws the texts of each record.
pub(super) struct Choice<'a> {
    tokenizer: &'a Tokenizer,
    records: &'a [Record],
    /// Records whose questions may be drawn as unrelated ones.
    pool: Vec<usize>,
    unrelated: usize,
    /// What every text begins with, and the running text itself.
    opening: Vec<u32>,
    running: Option<Vec<u32>>,
    seed: u64,
}

impl<'a> Choice<'a> {
    pub fn new(inputs: &Inputs<'a>, options: &EvaluateOptions) -> Result<Self, TrainingError> {
        let tokenizer = inputs.model.tokenizer();
        let records = inputs.data.records.as_slice();
        let pool: Vec<usize> = (0..records.len()).filter(|place| !inputs.reserved.contains(place)).collect();
        if options.unrelated > 0 && pool.len() <= options.unrelated {
            let (have, want) = (pool.len().saturating_sub(1), options.unrelated);
            let why =
                format!("{want} prompts of other records are asked for each record; there are {have} to draw from");
            return Err(TrainingError::Refused(why));
        }
        let running = inputs.running_text.map(|text| tokenizer.encode(text)).transpose()?;
        if let Some(ids) = running.as_ref().filter(|ids| ids.len() < WINDOW) {
            let why = format!("the running text has {} tokens; a window has {WINDOW}", ids.len());
            return Err(TrainingError::Refused(why));
        }
        let opening = tokenizer.encode_prompt("")?;
        Ok(Self { tokenizer, records, pool, unrelated: options.unrelated, opening, running, seed: options.seed })
    }

    /// The texts of the record at `place`.
    pub fn texts(&self, place: usize) -> Result<Texts, ModelError> {
        let mut rng = generator(self.seed, place as u64);
        let record = &self.records[place];
        let passage = |prompt: &str, answer: &str| self.tokenizer.encode_passage(prompt, answer);
        let edit = passage(&record.prompt, &record.target)?;
        let mut answered = vec![
            (Role::Prompt, edit.clone()),
            (Role::Paraphrase, passage(&record.paraphrase, &record.target)?),
            (Role::Neighbour, passage(&record.locality_prompt, &record.locality_target)?),
        ];
        for other in self.others(place, &mut rng) {
            let other = &self.records[other];
            answered.push((Role::Unrelated, passage(&other.locality_prompt, &other.locality_target)?));
        }
        if let Some(old) = &record.old_target {
            answered.push((Role::OldOnPrompt, passage(&record.prompt, old)?));
            answered.push((Role::OldOnParaphrase, passage(&record.paraphrase, old)?));
            answered.push((Role::NewOnNeighbour, passage(&record.locality_prompt, &record.target)?));
        }
        let open = [&record.prompt, &record.paraphrase].map(|prompt| self.tokenizer.encode_prompt(prompt));
        let [prompt, paraphrase] = open;
        Ok(Texts {
            edit,
            answered,
            window: self.window(&mut rng),
            open: [prompt?, paraphrase?],
            target: record.target.trim().to_owned(),
        })
    }

    /// Different records, none of them that at `place`.
    fn others(&self, place: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let own = self.pool.binary_search(&place).ok();
        let available = self.pool.len() - usize::from(own.is_some());
        let drawn = sample(rng, available, self.unrelated.min(available));
        // The places from the record's own on move up by one.
        drawn.into_iter().map(|i| self.pool[i + usize::from(own.is_some_and(|own| i >= own))]).collect()
    }

    fn window(&self, rng: &mut ChaCha8Rng) -> Option<Passage> {
        let running = self.running.as_ref()?;
        let start = rng.random_range(0..=running.len() - WINDOW);
        let ids: Vec<u32> = self.opening.iter().chain(&running[start..start + WINDOW]).copied().collect();
        let target = self.opening.len() + 1..ids.len();
        Some(Passage::text(ids, target))
    }
}

/// Draws `count` of `records` records outside `window`, for an editor that needs texts of its own.
pub fn reserve(records: usize, window: &Range<usize>, count: usize, seed: u64) -> Result<Vec<usize>, TrainingError> {
    let outside: Vec<usize> = (0..records).filter(|place| !window.contains(place)).collect();
    if outside.len() < count {
        let why = format!(
            "{count} records beside the {} to edit are needed; the data has {} more",
            window.len(),
            outside.len()
        );
        return Err(TrainingError::Refused(why));
    }
    let drawn = sample(&mut generator(seed, RESERVE_STREAM), outside.len(), count);
    Ok(drawn.into_iter().map(|i| outside[i]).collect())
}

fn generator(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}
