//! The texts that training reads: of every record its prompt, its paraphrase and its locality question, each with its
//! answer, and windows of running text.

use rand::{Rng, SeedableRng, seq::index::sample};
use rand_chacha::ChaCha8Rng;

use super::{TrainingError, cache::Text, dataset::Record};
use crate::model::{Kind, ModelError, Passage, tokenizer::Tokenizer};

/// Tokens of a window of running text.
const WINDOW: usize = 48;
/// Positions watched in a window.
const WATCHED_IN_WINDOW: usize = 2;
/// Positions watched in a locality question beside those that predict its answer.
const WATCHED_BESIDE_ANSWER: usize = 1;
/// Texts of a record.
const PER_RECORD: usize = 3;

/// Refuses running text for a model that does not go on with texts.
pub fn check_running_text(kind: Kind, running_text: Option<&str>) -> Result<(), TrainingError> {
    match running_text {
        Some(_) if kind != Kind::Causal => {
            let why = format!("running text is for models that continue texts, and this is {kind}");
            Err(TrainingError::Refused(why))
        }
        _ => Ok(()),
    }
}

/// Texts in order: three per record, then the windows.
#[derive(Debug, Clone, Default)]
pub struct Corpus {
    pub texts: Vec<Text>,
    records: usize,
}

impl Corpus {
    /// Encodes `records` and up to `windows` windows of `running_text`. `seed` decides which positions are watched.
    pub fn new(
        tokenizer: &Tokenizer,
        records: &[Record],
        running_text: Option<&str>,
        windows: usize,
        seed: u64,
    ) -> Result<Self, TrainingError> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut texts = Vec::with_capacity(records.len() * PER_RECORD + windows);
        for record in records {
            let passage = |prompt: &str, answer: &str| {
                let refused =
                    |error: ModelError| TrainingError::Refused(format!("the record of {:?}: {error}", record.prompt));
                tokenizer.encode_passage(prompt, answer).map_err(refused)
            };
            let unwatched = |passage| Text { passage, watched: Vec::new() };
            texts.push(unwatched(passage(&record.prompt, &record.target)?));
            texts.push(unwatched(passage(&record.paraphrase, &record.target)?));
            let locality = passage(&record.locality_prompt, &record.locality_target)?;
            texts.push(watch_locality(locality, &mut rng));
        }
        if let Some(text) = running_text {
            texts.extend(windows_of(&tokenizer.encode(text)?, windows, &mut rng));
        }
        Ok(Self { texts, records: records.len() })
    }

    /// The prompt with the target.
    pub fn prompt(record: usize) -> usize {
        record * PER_RECORD
    }

    /// The paraphrase with the target.
    pub fn paraphrase(record: usize) -> usize {
        record * PER_RECORD + 1
    }

    /// The locality question with its answer.
    pub fn locality(record: usize) -> usize {
        record * PER_RECORD + 2
    }

    /// A window of running text.
    pub fn window(&self, window: usize) -> usize {
        self.records * PER_RECORD + window
    }

    /// How many windows there are.
    pub fn windows(&self) -> usize {
        self.texts.len() - self.records * PER_RECORD
    }
}

/// What an encoder reads has no prediction to watch.
fn watch_locality(passage: Passage, rng: &mut ChaCha8Rng) -> Text {
    let answer = passage.predicting();
    let before = answer[0] as usize - passage.source;
    let beside = sample(rng, before, WATCHED_BESIDE_ANSWER.min(before)).into_iter();
    let mut watched: Vec<u32> = beside.map(|position| (passage.source + position) as u32).collect();
    watched.sort_unstable();
    watched.extend(answer);
    Text { passage, watched }
}

fn windows_of(ids: &[u32], count: usize, rng: &mut ChaCha8Rng) -> Vec<Text> {
    let Some(last) = ids.len().checked_sub(WINDOW).filter(|last| *last > 0) else { return Vec::new() };
    (0..count)
        .map(|_| {
            let start = rng.random_range(0..last);
            let mut watched: Vec<u32> =
                sample(rng, WINDOW, WATCHED_IN_WINDOW).into_iter().map(|position| position as u32).collect();
            watched.sort_unstable();
            Text { passage: Passage::open(ids[start..start + WINDOW].to_vec()), watched }
        })
        .collect()
}
