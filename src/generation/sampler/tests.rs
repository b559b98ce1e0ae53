//! Sampling: what is drawn, what is never drawn, and what is refused.

use proptest::prelude::*;

use super::*;

fn settings(edit: impl FnOnce(&mut GenerateRequest)) -> Result<SamplerSettings, GenerateError> {
    let mut request = GenerateRequest::default();
    edit(&mut request);
    SamplerSettings::new(&request)
}

fn draws(settings: &SamplerSettings, logits: &[f32], n: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(settings, &[], 0);
    (0..n).map(|_| sampler.sample(logits).unwrap()).collect()
}

const LOGITS: [f32; 6] = [0.1, 2.0, 1.5, -1.0, 1.9, 0.0];

#[test]
fn greedy_without_a_temperature() {
    assert_eq!(draws(&settings(|_| ()).unwrap(), &LOGITS, 3), [1, 1, 1]);
    assert_eq!(draws(&settings(|r| r.temperature = Some(1e-9)).unwrap(), &LOGITS, 3), [1, 1, 1]);
    assert_eq!(draws(&settings(|_| ()).unwrap(), &[0.5, 1.0, 1.0], 1), [1], "the first of equal ones");
}

#[test]
fn top_k_top_p_and_min_p_bound_what_is_drawn() {
    let sampled = |edit: fn(&mut GenerateRequest)| {
        let settings = settings(|r| {
            r.temperature = Some(1.0);
            edit(r);
        });
        let mut drawn = draws(&settings.unwrap(), &LOGITS, 600);
        drawn.sort_unstable();
        drawn.dedup();
        drawn
    };
    assert_eq!(sampled(|_| ()), [0, 1, 2, 3, 4, 5], "every token comes at temperature 1");
    assert_eq!(sampled(|r| r.top_k = Some(2)), [1, 4]);
    assert_eq!(sampled(|r| r.top_p = Some(0.5)), [1, 4]);
    assert_eq!(sampled(|r| (r.top_k, r.top_p) = (Some(3), Some(0.2))), [1]);
    // 1.9 is 0.90 of the best, 1.5 is 0.61, 0.1 is 0.15.
    assert_eq!(sampled(|r| r.min_p = Some(0.5)), [1, 2, 4]);
    assert_eq!(sampled(|r| r.min_p = Some(0.8)), [1, 4]);
    assert_eq!(sampled(|r| r.min_p = Some(1.0)), [1]);
}

#[test]
fn draws_come_as_often_as_they_are_probable() {
    let settings = settings(|r| r.temperature = Some(0.7)).unwrap();
    let drawn = draws(&settings, &LOGITS, 20_000);
    let total: f32 = LOGITS.iter().map(|logit| (logit / 0.7).exp()).sum();
    for (id, logit) in LOGITS.iter().enumerate() {
        let expected = (logit / 0.7).exp() / total;
        let share = drawn.iter().filter(|drawn| **drawn as usize == id).count() as f32 / 20_000.0;
        assert!((share - expected).abs() < 0.015, "token {id}: {share} of {expected}");
    }
}

#[test]
fn a_seed_and_the_place_among_the_texts_fix_the_draws() {
    let seeded = |seed, choice| {
        let settings = settings(|r| (r.temperature, r.seed) = (Some(1.0), Some(seed))).unwrap();
        let mut sampler = Sampler::new(&settings, &[], choice);
        (0..50).map(|_| sampler.sample(&LOGITS).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(seeded(7, 0), seeded(7, 0));
    assert_ne!(seeded(7, 0), seeded(8, 0));
    assert_ne!(seeded(7, 0), seeded(7, 1));
    assert_eq!(seeded(7, 3), seeded(7, 3));
}

#[test]
fn penalties_move_tokens_that_came_before() {
    let chosen = |prompt: &[u32], edit: fn(&mut GenerateRequest)| {
        let mut sampler = Sampler::new(&settings(edit).unwrap(), prompt, 0);
        (0..4).map(|_| sampler.sample(&LOGITS).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(chosen(&[], |r| r.presence_penalty = Some(0.2)), [1, 4, 1, 1], "a token pays once");
    assert_eq!(chosen(&[], |r| r.frequency_penalty = Some(0.2)), [1, 4, 1, 4], "a token pays each time");
    assert_eq!(chosen(&[], |r| r.repetition_penalty = Some(1.5)), [1, 4, 2, 1]);
    assert_eq!(chosen(&[1, 1, 4], |r| r.repetition_penalty = Some(1.5)), [2, 1, 1, 1], "the prompt counts");
    assert_eq!(chosen(&[1, 4], |r| r.presence_penalty = Some(2.0)), [1, 4, 2, 0], "the prompt does not count");
    assert_eq!(chosen(&[4], |r| r.repetition_penalty = Some(0.5)), [4, 4, 4, 4], "below 1 it invites");
    assert_eq!(
        chosen(&[900], |r| r.repetition_penalty = Some(1.2)),
        [1, 4, 1, 1],
        "ids beyond the logits are left out"
    );
}

#[test]
fn ranges_are_refused_with_numbers() {
    let message = |edit: fn(&mut GenerateRequest)| settings(edit).unwrap_err().to_string();
    assert_eq!(message(|r| r.temperature = Some(-0.5)), "temperature: must be from 0 to 2. Given: -0.5");
    assert_eq!(message(|r| r.temperature = Some(f64::NAN)), "temperature: must be from 0 to 2. Given: NaN");
    assert_eq!(message(|r| r.top_p = Some(1.5)), "top_p: must be above 0 and at most 1. Given: 1.5");
    assert_eq!(message(|r| r.top_p = Some(0.0)), "top_p: must be above 0 and at most 1. Given: 0");
    assert_eq!(message(|r| r.top_k = Some(0)), "top_k: must be at least 1. Given: 0");
    assert_eq!(message(|r| r.min_p = Some(1.1)), "min_p: must be from 0 to 1. Given: 1.1");
    assert_eq!(
        message(|r| r.repetition_penalty = Some(0.0)),
        "repetition_penalty: must be above 0 and at most 10. Given: 0"
    );
    assert_eq!(message(|r| r.presence_penalty = Some(2.5)), "presence_penalty: must be from -2 to 2. Given: 2.5");
    assert_eq!(message(|r| r.frequency_penalty = Some(-3.0)), "frequency_penalty: must be from -2 to 2. Given: -3");
}

#[test]
fn logits_that_are_not_numbers_are_an_error() {
    let mut sampler = Sampler::new(&settings(|_| ()).unwrap(), &[], 0);
    for logits in [&[0.0, f32::NAN][..], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY; 2], &[]] {
        assert!(matches!(sampler.sample(logits), Err(GenerateError::Internal(_))), "{logits:?}");
    }
    assert_eq!(sampler.sample(&[f32::NEG_INFINITY, -5.0]).unwrap(), 1);
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// The candidates, against a plain sort of the whole vocabulary.
    #[test]
    fn candidates_are_the_head_of_the_sorted_vocabulary(
        logits in prop::collection::vec(-3.0f32..3.0, 2..1500),
        top_k in prop::option::of(1usize..1500),
        top_p in prop::option::of(0.05f64..0.999),
        min_p in prop::option::of(0.01f64..0.9),
        temperature in 0.3f64..1.5,
    ) {
        let settings = settings(|r| {
            (r.temperature, r.top_k, r.top_p, r.min_p) = (Some(temperature), top_k, top_p, min_p);
        }).unwrap();
        let mut kept = Candidates::new(&logits, temperature as f32, &settings).kept;
        kept.sort_unstable_by(better);
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weigh = |(id, logit): (usize, &f32)| (id as u32, ((logit - largest) / temperature as f32).exp());
        let mut sorted: Vec<(u32, f32)> = logits.iter().enumerate().map(weigh).collect();
        sorted.sort_by(better);
        prop_assert_eq!(&kept[..], &sorted[..kept.len()], "the best, and none left out between");
        prop_assert!(!kept.is_empty() && kept.len() <= top_k.unwrap_or(usize::MAX));
        let mass = |part: &[(u32, f32)]| part.iter().map(|(_, weight)| f64::from(*weight)).sum::<f64>();
        let head = &sorted[..top_k.unwrap_or(usize::MAX).min(sorted.len())];
        let enough = top_p.unwrap_or(1.0) * mass(head);
        let wide = |weight: f32| f64::from(weight) >= min_p.unwrap_or(0.0) * 0.9999;
        prop_assert!(kept.iter().all(|(_, weight)| wide(*weight)));
        prop_assert!(mass(&kept[..kept.len() - 1]) < enough * 1.0001, "no more than needed");
        let next = head.get(kept.len());
        prop_assert!(next.is_none_or(|(_, weight)| mass(&kept) > enough * 0.9999 || f64::from(*weight) < min_p.unwrap_or(0.0) * 1.0001));
    }
}
