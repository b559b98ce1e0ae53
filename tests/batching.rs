//! Many sequences in one pass: each gets the bits that it would get alone, whatever the others are, whichever versions
//! they are on, and in whatever pieces its prompt is read.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test panics when something is wrong, and says what it skips"
)]

mod common;

use std::sync::Arc;

use amend::model::{
    DenseMatrices, Feed, LoadOptions, Model, Passage, Projection, Sequence, TrunkState, capture,
    measure::{target_log_probs, target_log_probs_each},
};
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// Versions that differ from the base in the scale of every edited matrix.
fn versions(model: &Model) -> Vec<Arc<DenseMatrices>> {
    let scaled = |factor: f32| {
        let values = model.base().to_vecs().unwrap();
        let values = values.into_iter().map(|matrix| matrix.into_iter().map(|value| value * factor).collect());
        Arc::new(DenseMatrices::from_vecs(model.editable(), values.collect(), model.device()).unwrap())
    };
    vec![Arc::clone(model.base()), scaled(1.02), scaled(0.97)]
}

/// A text to read, and how many tokens to make after it.
#[derive(Clone)]
struct Text {
    ids: Vec<u32>,
    more: usize,
    version: usize,
}

fn texts(model: &Model, count: usize, longest: usize, rng: &mut ChaCha8Rng) -> Vec<Text> {
    let text = |number: usize| {
        let length = 1 + (number * number * 7) % longest;
        let ids = (0..length).map(|_| rng.random_range(0..model.tokenizer().vocab_size() as u32)).collect();
        Text { ids, more: 3 + number % 9, version: number % 3 }
    };
    (0..count).map(text).collect()
}

fn best(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32
}

/// The logits after the prompt and after each token that follows, the prompt in one piece and nothing beside it.
fn alone(model: &Model, text: &Text, versions: &[Arc<DenseMatrices>]) -> Vec<Vec<f32>> {
    let mut sequence = model.start();
    let mut next = text.ids.clone();
    let mut all = Vec::new();
    for _ in 0..text.more {
        let logits = model.forward(&mut sequence, &next, versions[text.version].as_ref()).unwrap();
        next = vec![best(&logits)];
        all.push(logits);
    }
    all
}

/// A text that is being read or made.
struct Running {
    text: usize,
    sequence: Sequence,
    read: usize,
    made: Vec<Vec<f32>>,
}

/// The same for all texts, joining and leaving at random, their prompts read in pieces of random length.
fn together(
    model: &Model,
    texts: &[Text],
    versions: &[Arc<DenseMatrices>],
    at_once: usize,
    rng: &mut ChaCha8Rng,
) -> Vec<Vec<Vec<f32>>> {
    let mut waiting: Vec<usize> = (0..texts.len()).collect();
    waiting.shuffle(rng);
    let mut running: Vec<Running> = Vec::new();
    let mut done = vec![Vec::new(); texts.len()];
    while !(waiting.is_empty() && running.is_empty()) {
        while running.len() < at_once && rng.random_bool(0.6) {
            let Some(text) = waiting.pop() else { break };
            running.push(Running { text, sequence: model.start(), read: 0, made: Vec::new() });
        }
        let ids: Vec<Vec<u32>> = running.iter().map(|one| next_ids(one, &texts[one.text], rng)).collect();
        let feeds = running.iter_mut().zip(&ids).map(|(one, ids)| {
            let text = &texts[one.text];
            one.read += if one.made.is_empty() { ids.len() } else { 0 };
            Feed {
                sequence: &mut one.sequence,
                ids,
                version: text.version as u64,
                weights: versions[text.version].as_ref(),
                logits: one.read == text.ids.len(),
            }
        });
        let answers = model.forward_batch(&mut feeds.collect::<Vec<_>>()).unwrap();
        for (one, answer) in running.iter_mut().zip(answers) {
            assert_eq!(answer.is_some(), one.read == texts[one.text].ids.len());
            one.made.extend(answer);
        }
        running.retain_mut(|one| {
            let going = one.made.len() < texts[one.text].more;
            if !going {
                done[one.text] = std::mem::take(&mut one.made);
            }
            going
        });
    }
    done
}

fn next_ids(one: &Running, text: &Text, rng: &mut ChaCha8Rng) -> Vec<u32> {
    match one.made.last() {
        Some(logits) => vec![best(logits)],
        None => {
            let piece = rng.random_range(1..=(text.ids.len() - one.read).min(40));
            text.ids[one.read..one.read + piece].to_vec()
        }
    }
}

fn check(model: &Model, count: usize, longest: usize, seed: u64) {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let (versions, texts) = (versions(model), texts(model, count, longest, rng));
    let expected: Vec<_> = texts.iter().map(|text| alone(model, text, &versions)).collect();
    let got = together(model, &texts, &versions, 12, rng);
    for (number, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert_eq!(got.len(), expected.len(), "text {number}");
        for (step, (got, expected)) in got.iter().zip(expected).enumerate() {
            assert!(got == expected, "text {number} of {} tokens, step {step}", texts[number].ids.len());
        }
    }
    let differ = |version: usize| Text { version, ..texts[1].clone() };
    assert!(alone(model, &differ(0), &versions) != alone(model, &differ(1), &versions), "versions make a difference");
}

#[test]
fn a_tiny_model_gives_each_its_own_bits() {
    let folder = tempfile::tempdir().unwrap();
    check(&common::tiny_llama(folder.path()), 60, 130, 1);
}

#[test]
fn a_model_with_biases_and_norms_of_heads_gives_each_its_own_bits() {
    for family in ["qwen2", "qwen3"] {
        let config = common::tiny_config(family);
        check(&common::load_folder(&config, &common::random_weights(&config, 4), 1), 30, 70, 2);
    }
}

#[test]
fn the_quantized_model_gives_each_its_own_bits() {
    let Some(path) = common::smollm2() else { return };
    let model = Model::load(&path, &LoadOptions::default()).unwrap();
    check(&model, 24, 90, 3);
}

#[test]
fn a_fork_goes_its_own_way_and_what_is_taken_back_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let model = common::tiny_llama(folder.path());
    let weights = model.base().as_ref();
    let ids = common::random_ids(256, 50, 1);
    let mut whole = model.start();
    let expected = model.forward(&mut whole, &ids, weights).unwrap();

    let mut first = model.start();
    model.forward(&mut first, &ids[..30], weights).unwrap();
    let mut fork = first.fork().unwrap();
    model.forward(&mut first, &common::random_ids(256, 9, 2), weights).unwrap();
    assert!(model.forward(&mut fork, &ids[30..], weights).unwrap() == expected);
    first.truncate(30).unwrap();
    assert_eq!(first.len(), 30);
    assert!(model.forward(&mut first, &ids[30..], weights).unwrap() == expected);
}

#[test]
fn targets_under_several_weights_get_what_each_gets_alone() {
    let folder = tempfile::tempdir().unwrap();
    let model = common::tiny_llama(folder.path());
    let versions = versions(&model);
    let passages: Vec<Passage> = [(9, 2), (5, 3), (12, 1)]
        .into_iter()
        .map(|(prompt, target)| Passage::text(common::random_ids(256, prompt + target, 7), prompt..prompt + target))
        .collect();
    let states = capture::read(&model, &passages).unwrap();
    let sets: [(&[TrunkState], &dyn Projection); 3] =
        [(&states, versions[1].as_ref()), (&[], versions[0].as_ref()), (&states[1..], versions[2].as_ref())];
    let together = target_log_probs_each(&model, &sets).unwrap();
    for ((states, weights), together) in sets.into_iter().zip(together) {
        let alone = target_log_probs(&model, states, weights).unwrap();
        assert_eq!(alone.len(), together.len());
        for (alone, together) in alone.iter().zip(&together) {
            common::assert_close("log-probabilities", together, alone, 1e-6);
        }
    }
    assert!(target_log_probs_each(&model, &[(&[], versions[0].as_ref())]).unwrap()[0].is_empty());
}
