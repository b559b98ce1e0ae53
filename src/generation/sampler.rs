//! From logits to the next token, and to the log-probabilities that a client may ask for.
//!
//! The order is: penalties, temperature, top-k, top-p, min-p, the draw. Every step is a function of the logits, the
//! sequence's own tokens and its own generator, so what is drawn does not depend on what else runs. candle's processor
//! has neither penalties nor min-p, and sorts the whole vocabulary for top-p.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{error::GenerateError, request::GenerateRequest};

/// The highest temperature that a request may name.
const MAX_TEMPERATURE: f64 = 2.0;
/// Below this a temperature is taken as 0: dividing logits by less leaves the range of f32.
const MIN_TEMPERATURE: f64 = 1e-7;
/// The highest repetition penalty that a request may name.
const MAX_REPETITION: f64 = 10.0;
/// The largest presence or frequency penalty, of either sign.
const MAX_PENALTY: f64 = 2.0;
/// How many of the most probable tokens are sorted at first to find where top-p ends; eight times more each time that
/// they do not reach it.
const HEAD: usize = 128;

/// How to choose tokens; checked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SamplerSettings {
    /// None takes the most probable token.
    temperature: Option<f32>,
    top_k: usize,
    top_p: f64,
    min_p: f32,
    repetition: f32,
    presence: f32,
    frequency: f32,
    seed: u64,
}

impl SamplerSettings {
    /// Reads the sampling fields; [`GenerateError::Invalid`] names the first one that is out of range.
    pub fn new(request: &GenerateRequest) -> Result<Self, GenerateError> {
        let temperature = in_range("temperature", request.temperature, 0.0, MAX_TEMPERATURE)?.unwrap_or(0.0);
        let top_p = above_zero("top_p", request.top_p, 1.0)?.unwrap_or(1.0);
        if request.top_k == Some(0) {
            return Err(GenerateError::invalid("top_k", "must be at least 1. Given: 0"));
        }
        let min_p = in_range("min_p", request.min_p, 0.0, 1.0)?.unwrap_or(0.0);
        let repetition = above_zero("repetition_penalty", request.repetition_penalty, MAX_REPETITION)?.unwrap_or(1.0);
        let penalty =
            |field, value| in_range(field, value, -MAX_PENALTY, MAX_PENALTY).map(|value| value.unwrap_or(0.0));
        Ok(Self {
            temperature: (temperature >= MIN_TEMPERATURE).then_some(temperature as f32),
            top_k: request.top_k.unwrap_or(usize::MAX),
            top_p,
            min_p: min_p as f32,
            repetition: repetition as f32,
            presence: penalty("presence_penalty", request.presence_penalty)? as f32,
            frequency: penalty("frequency_penalty", request.frequency_penalty)? as f32,
            seed: request.seed.unwrap_or(0),
        })
    }

    fn counts_tokens(&self) -> bool {
        self.repetition != 1.0 || self.presence != 0.0 || self.frequency != 0.0
    }
}

fn in_range(field: &str, value: Option<f64>, least: f64, most: f64) -> Result<Option<f64>, GenerateError> {
    match value.filter(|value| !(least..=most).contains(value)) {
        Some(value) => Err(GenerateError::invalid(field, format!("must be from {least} to {most}. Given: {value}"))),
        None => Ok(value),
    }
}

fn above_zero(field: &str, value: Option<f64>, most: f64) -> Result<Option<f64>, GenerateError> {
    match value.filter(|value| !(*value > 0.0 && *value <= most)) {
        Some(value) => {
            Err(GenerateError::invalid(field, format!("must be above 0 and at most {most}. Given: {value}")))
        }
        None => Ok(value),
    }
}

/// Chooses one text's tokens. It has a generator of its own, so what it draws depends on its seed, on its own tokens and
/// on which of the request's texts it is, not on what else runs.
pub(super) struct Sampler {
    settings: SamplerSettings,
    rng: ChaCha8Rng,
    /// How often the text has each token; kept only where a penalty asks for it, as `prompt` is.
    generated: BTreeMap<u32, u32>,
    prompt: BTreeSet<u32>,
}

impl Sampler {
    /// `prompt` is what the text continues; `choice` says which of the request's texts it is.
    pub fn new(settings: &SamplerSettings, prompt: &[u32], choice: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
        rng.set_stream(choice as u64);
        let prompt = if settings.repetition == 1.0 { BTreeSet::new() } else { prompt.iter().copied().collect() };
        Self { settings: settings.clone(), rng, generated: BTreeMap::new(), prompt }
    }

    /// The next token. Logits that are not a number are an error: nothing drawn from them would mean anything.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, GenerateError> {
        let finite = |logit: &f32| logit.is_finite() || *logit == f32::NEG_INFINITY;
        if !logits.iter().all(finite) || logits.iter().all(|logit| *logit == f32::NEG_INFINITY) {
            return Err(GenerateError::Internal("the network gave logits that are not numbers".into()));
        }
        let logits = self.penalised(logits);
        let id = match self.settings.temperature {
            None => best(&logits),
            Some(temperature) => self.draw(&logits, temperature),
        };
        if self.settings.counts_tokens() {
            *self.generated.entry(id).or_default() += 1;
        }
        Ok(id)
    }

    fn penalised<'l>(&self, logits: &'l [f32]) -> Cow<'l, [f32]> {
        let settings = &self.settings;
        if !settings.counts_tokens() || (self.generated.is_empty() && self.prompt.is_empty()) {
            return Cow::Borrowed(logits);
        }
        let mut logits = logits.to_vec();
        let only_prompt = self.prompt.iter().filter(|id| !self.generated.contains_key(id));
        for id in only_prompt.chain(self.generated.keys()) {
            // The tokenizer may know ids that the network does not.
            let Some(logit) = logits.get_mut(*id as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / settings.repetition } else { *logit * settings.repetition };
        }
        for (id, count) in &self.generated {
            logits[*id as usize] -= settings.presence + settings.frequency * *count as f32;
        }
        Cow::Owned(logits)
    }

    fn draw(&mut self, logits: &[f32], temperature: f32) -> u32 {
        let candidates = Candidates::new(logits, temperature, &self.settings);
        let mut left = self.rng.random::<f64>() * candidates.total;
        for (id, weight) in &candidates.kept {
            left -= f64::from(*weight);
            if left < 0.0 {
                return *id;
            }
        }
        // Rounding can leave a little.
        candidates.kept.last().map_or_else(|| best(logits), |(id, _)| *id)
    }
}

/// Tokens that may be drawn, with weights in proportion to their probabilities.
struct Candidates {
    kept: Vec<(u32, f32)>,
    total: f64,
}

impl Candidates {
    fn new(logits: &[f32], temperature: f32, settings: &SamplerSettings) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: f32| ((logit - largest) / temperature).exp();
        let mut kept: Vec<(u32, f32)> =
            logits.iter().enumerate().map(|(id, logit)| (id as u32, weight(*logit))).collect();
        if settings.top_k < kept.len() {
            kept.select_nth_unstable_by(settings.top_k - 1, better);
            kept.truncate(settings.top_k);
            kept.sort_unstable_by(better);
        }
        if settings.top_p < 1.0 {
            keep_mass(&mut kept, settings.top_p);
        }
        if settings.min_p > 0.0 {
            // The largest weight is 1.
            kept.retain(|(_, weight)| *weight >= settings.min_p);
        }
        let total = kept.iter().map(|(_, weight)| f64::from(*weight)).sum();
        Self { kept, total }
    }
}

/// Best first, equal ones by id.
fn better(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps the fewest of the best whose weights reach the share `p` of all.
fn keep_mass(kept: &mut Vec<(u32, f32)>, p: f64) {
    let enough = p * kept.iter().map(|(_, weight)| f64::from(*weight)).sum::<f64>();
    let mut head = HEAD;
    loop {
        let sorted = head.min(kept.len());
        if sorted < kept.len() {
            kept.select_nth_unstable_by(sorted, better);
        }
        kept[..sorted].sort_unstable_by(better);
        let mut mass = 0.0;
        let reached = kept[..sorted].iter().position(|(_, weight)| {
            mass += f64::from(*weight);
            mass >= enough
        });
        match reached {
            Some(last) => return kept.truncate(last + 1),
            None if sorted == kept.len() => return,
            None => head *= 8,
        }
    }
}

/// The most probable token, of equal ones the first.
fn best(logits: &[f32]) -> u32 {
    let first_best = |best: (usize, f32), (id, logit): (usize, &f32)| if *logit > best.1 { (id, *logit) } else { best };
    logits.iter().enumerate().fold((0, f32::NEG_INFINITY), first_best).0 as u32
}

/// Log-probabilities (nats) under the raw logits, whatever the sampling: of `chosen`, and of the `n` most probable
/// tokens, best first, equal ones by id.
pub(super) fn log_probs(logits: &[f32], chosen: u32, n: usize) -> (f32, Vec<(u32, f32)>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    let log_total = f64::from(max) + sum.ln();
    let log_prob = |id: u32| (f64::from(logits[id as usize]) - log_total) as f32;
    let better = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let n = n.min(logits.len());
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if n > 0 && n < ids.len() {
        ids.select_nth_unstable_by(n - 1, better);
    }
    ids.truncate(n);
    ids.sort_unstable_by(better);
    (log_prob(chosen), ids.into_iter().map(|id| (id, log_prob(id))).collect())
}

#[cfg(test)]
mod tests;
