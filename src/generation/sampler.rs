//! From logits to the next token, and to the log-probabilities that a client may ask for.

use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};

use super::{error::GenerateError, request::GenerateRequest};

/// The highest temperature that a request may name.
const MAX_TEMPERATURE: f64 = 2.0;
/// Below this a temperature is taken as 0: dividing logits by less leaves the range of f32.
const MIN_TEMPERATURE: f64 = 1e-7;

/// How to choose tokens; checked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SamplerSettings {
    sampling: Sampling,
    seed: u64,
}

impl SamplerSettings {
    /// Reads `temperature`, `top_p`, `top_k` and `seed`; [`GenerateError::Invalid`] names the one out of range.
    pub fn new(request: &GenerateRequest) -> Result<Self, GenerateError> {
        let temperature = request.temperature.unwrap_or(0.0);
        if !(0.0..=MAX_TEMPERATURE).contains(&temperature) {
            return Err(GenerateError::invalid(
                "temperature",
                format!("must be from 0 to {MAX_TEMPERATURE}. Given: {temperature}"),
            ));
        }
        if let Some(p) = request.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return Err(GenerateError::invalid("top_p", format!("must be above 0 and at most 1. Given: {p}")));
        }
        if request.top_k == Some(0) {
            return Err(GenerateError::invalid("top_k", "must be at least 1. Given: 0"));
        }
        let sampling = match (request.top_k, request.top_p) {
            _ if temperature < MIN_TEMPERATURE => Sampling::ArgMax,
            (None, None) => Sampling::All { temperature },
            (Some(k), None) => Sampling::TopK { k, temperature },
            (None, Some(p)) => Sampling::TopP { p, temperature },
            (Some(k), Some(p)) => Sampling::TopKThenTopP { k, p, temperature },
        };
        Ok(Self { sampling, seed: request.seed.unwrap_or(0) })
    }
}

/// Chooses one sequence's tokens. It has a generator of its own, so what it draws depends on its seed and on its own
/// sequence, not on what else runs.
pub(super) struct Sampler(LogitsProcessor);

impl Sampler {
    pub fn new(settings: &SamplerSettings) -> Self {
        Self(LogitsProcessor::from_sampling(settings.seed, settings.sampling.clone()))
    }

    /// The next token. Logits that are not a number are an error: nothing drawn from them would mean anything.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, GenerateError> {
        if logits.is_empty() || logits.iter().any(|logit| logit.is_nan()) {
            return Err(GenerateError::Internal("the network gave logits that are not numbers".into()));
        }
        Tensor::from_slice(logits, logits.len(), &Device::Cpu)
            .and_then(|logits| self.0.sample(&logits))
            .map_err(|error| GenerateError::Internal(format!("sampling failed: {error}")))
    }
}

/// Log-probabilities (nats) under the raw logits, whatever the temperature: of `chosen`, and of the `n` most probable
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
mod tests {
    use super::*;

    fn settings(edit: impl FnOnce(&mut GenerateRequest)) -> Result<SamplerSettings, GenerateError> {
        let mut request = GenerateRequest::default();
        edit(&mut request);
        SamplerSettings::new(&request)
    }

    fn draws(settings: &SamplerSettings, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(settings);
        (0..n).map(|_| sampler.sample(logits).unwrap()).collect()
    }

    const LOGITS: [f32; 6] = [0.1, 2.0, 1.5, -1.0, 1.9, 0.0];

    #[test]
    fn greedy_without_a_temperature() {
        assert_eq!(draws(&settings(|_| ()).unwrap(), &LOGITS, 3), [1, 1, 1]);
        assert_eq!(draws(&settings(|r| r.temperature = Some(1e-9)).unwrap(), &LOGITS, 3), [1, 1, 1]);
    }

    #[test]
    fn top_k_and_top_p_bound_what_is_drawn() {
        let all = settings(|r| r.temperature = Some(1.0)).unwrap();
        let drawn = draws(&all, &LOGITS, 400);
        assert!((0..6).all(|id| drawn.contains(&id)), "every token comes at temperature 1");
        let top_k = settings(|r| (r.temperature, r.top_k) = (Some(1.0), Some(2))).unwrap();
        assert!(draws(&top_k, &LOGITS, 200).iter().all(|id| [1, 4].contains(id)));
        let top_p = settings(|r| (r.temperature, r.top_p) = (Some(1.0), Some(0.5))).unwrap();
        assert!(draws(&top_p, &LOGITS, 200).iter().all(|id| [1, 4].contains(id)));
        let both = settings(|r| (r.temperature, r.top_k, r.top_p) = (Some(1.0), Some(3), Some(0.2))).unwrap();
        assert!(draws(&both, &LOGITS, 200).iter().all(|id| *id == 1));
    }

    #[test]
    fn a_seed_fixes_the_draws() {
        let seeded =
            |seed| draws(&settings(|r| (r.temperature, r.seed) = (Some(1.0), Some(seed))).unwrap(), &LOGITS, 50);
        assert_eq!(seeded(7), seeded(7));
        assert_ne!(seeded(7), seeded(8));
    }

    #[test]
    fn ranges_are_refused_with_numbers() {
        let message = |edit: fn(&mut GenerateRequest)| settings(edit).unwrap_err().to_string();
        assert_eq!(message(|r| r.temperature = Some(-0.5)), "temperature: must be from 0 to 2. Given: -0.5");
        assert_eq!(message(|r| r.temperature = Some(f64::NAN)), "temperature: must be from 0 to 2. Given: NaN");
        assert_eq!(message(|r| r.top_p = Some(1.5)), "top_p: must be above 0 and at most 1. Given: 1.5");
        assert_eq!(message(|r| r.top_p = Some(0.0)), "top_p: must be above 0 and at most 1. Given: 0");
        assert_eq!(message(|r| r.top_k = Some(0)), "top_k: must be at least 1. Given: 0");
    }

    #[test]
    fn logits_that_are_not_numbers_are_an_error() {
        let mut sampler = Sampler::new(&settings(|_| ()).unwrap());
        assert!(matches!(sampler.sample(&[0.0, f32::NAN]), Err(GenerateError::Internal(_))));
        assert!(matches!(sampler.sample(&[]), Err(GenerateError::Internal(_))));
    }

    #[test]
    fn log_probs_are_a_log_softmax_best_first() {
        let logits = [1.0_f32.ln(), 5.0_f32.ln(), 2.0_f32.ln(), 2.0_f32.ln()];
        let (chosen, top) = log_probs(&logits, 0, 3);
        assert!((chosen - 0.1_f32.ln()).abs() < 1e-6);
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 3]);
        assert!((top[0].1 - 0.5_f32.ln()).abs() < 1e-6);
        assert_eq!(log_probs(&logits, 0, 0).1, []);
        assert_eq!(log_probs(&logits, 0, 9).1.len(), 4);
    }
}
