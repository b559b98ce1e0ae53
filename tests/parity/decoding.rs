//! Decoding with a cache, in a batch, and with the tail anywhere gives the logits of one plain pass.

use amend::model::{Extent, LoadOptions, Model, Passage, Projection, Rows, capture};
use candle_core::{Device, Tensor};
use proptest::prelude::*;
use serde_json::json;

use crate::common::{
    all_logits, assert_close, families, load_folder, random_ids, random_weights, smollm2, tiny_config,
};

/// Of the largest logit.
const TOLERANCE: f32 = 1e-4;

/// q/k norms, wide heads, grouped keys: everything that attention can have.
fn tiny(tail_blocks: usize) -> Model {
    let mut config = tiny_config("qwen3");
    config["head_dim"] = json!(16);
    load_folder(&config, &random_weights(&config, 3), tail_blocks)
}

fn vector(logits: Vec<f32>) -> Tensor {
    Tensor::new(logits, &Device::Cpu).unwrap()
}

/// Feeds `ids` in pieces that end at `ends`, and compares the logits at each end.
fn feed(model: &Model, ids: &[u32], ends: &[usize], want: &Tensor) {
    let mut sequence = model.start();
    for &end in ends {
        let fed = sequence.len();
        let logits = vector(model.forward(&mut sequence, &ids[fed..end], model.base().as_ref()).unwrap());
        assert_eq!(sequence.len(), end);
        let what = format!("{} tokens after {fed}", end - fed);
        assert_close(&what, &logits, &want.get(end - 1).unwrap(), TOLERANCE);
    }
}

#[test]
fn token_by_token_equals_one_pass_beyond_the_first_growth_of_the_cache() {
    let model = tiny(2);
    let ids = random_ids(96, 300, 1);
    let all = all_logits(&model, &ids);
    feed(&model, &ids, &(1..=300).collect::<Vec<_>>(), &all);
    feed(&model, &ids, &[250, 260, 261, 300], &all);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn any_split_equals_one_pass(cuts in prop::collection::btree_set(1usize..24, 0..8), seed in 0u64..1000) {
        let model = tiny(1);
        let ids = random_ids(96, 24, seed);
        let ends: Vec<usize> = cuts.into_iter().chain([24]).collect();
        feed(&model, &ids, &ends, &all_logits(&model, &ids));
    }
}

#[test]
fn interleaved_sequences_do_not_mix() {
    let model = tiny(2);
    let texts: Vec<Vec<u32>> = (0..3).map(|seed| random_ids(96, 20 + seed as usize, seed)).collect();
    let all: Vec<Tensor> = texts.iter().map(|ids| all_logits(&model, ids)).collect();
    let mut sequences: Vec<_> = texts.iter().map(|_| model.start()).collect();
    for end in [5, 6, 11, 18, 20] {
        for ((ids, all), sequence) in texts.iter().zip(&all).zip(&mut sequences) {
            let fed = sequence.len();
            let logits = vector(model.forward(sequence, &ids[fed..end], model.base().as_ref()).unwrap());
            assert_close("interleaved", &logits, &all.get(end - 1).unwrap(), TOLERANCE);
        }
    }
}

#[test]
fn a_ragged_batch_equals_each_alone() {
    let model = tiny(2);
    let texts: Vec<Vec<u32>> = [7, 1, 12, 3, 12].iter().map(|&n| random_ids(96, n, n as u64)).collect();
    let extents: Vec<Extent> = texts.iter().map(|ids| Extent::text(ids.len())).collect();
    let hidden = model.network().trunk(&texts.concat(), &extents, None).unwrap();
    let pass = |rows: Rows<'_>| {
        let base: &dyn Projection = model.base().as_ref();
        let top = model.network().tail(&hidden, &extents, rows, base, None).unwrap();
        model.network().logits(&top).unwrap()
    };
    let all = pass(Rows::All);
    let wanted: Vec<Vec<u32>> =
        texts.iter().map(|ids| if ids.len() > 6 { vec![0, 4, ids.len() as u32 - 1] } else { vec![0] }).collect();
    let some = pass(Rows::At(&wanted));
    let (mut start, mut row) = (0, 0);
    for (ids, wanted) in texts.iter().zip(&wanted) {
        let alone = all_logits(&model, ids);
        assert_close("all rows", &all.narrow(0, start, ids.len()).unwrap(), &alone, TOLERANCE);
        for &position in wanted {
            assert_close("a row", &some.get(row).unwrap(), &alone.get(position as usize).unwrap(), TOLERANCE);
            row += 1;
        }
        start += ids.len();
    }
}

#[test]
fn logits_do_not_depend_on_where_the_tail_begins() {
    let ids = random_ids(96, 16, 5);
    let want = all_logits(&tiny(1), &ids);
    for tail_blocks in 2..=3 {
        let model = tiny(tail_blocks);
        assert_eq!(model.editable().len(), 3 * tail_blocks);
        assert_close("in one pass", &all_logits(&model, &ids), &want, TOLERANCE);
        feed(&model, &ids, &[1, 9, 10, 16], &want);
    }
}

/// Every decoder-only family, the tail anywhere, in any pieces; windows are shorter than the text.
#[test]
fn families_decode_what_they_compute_in_one_pass() {
    for family in families::CAUSAL {
        let (config, tensors) = families::tiny(family, 5);
        let ids = random_ids(96, 30, 9);
        let want = all_logits(&load_folder(&config, &tensors, 1), &ids);
        for tail_blocks in [2, families::BLOCKS] {
            let model = load_folder(&config, &tensors, tail_blocks);
            assert_close(family, &all_logits(&model, &ids), &want, TOLERANCE);
            feed(&model, &ids, &(1..=30).collect::<Vec<_>>(), &want);
            feed(&model, &ids, &[9, 10, 17, 30], &want);
        }
    }
}

/// Row by row, as serving computes, and in padded batches, as gradients need it.
#[test]
fn families_compute_the_same_with_and_without_a_gradient() {
    for family in families::CAUSAL {
        let (config, tensors) = families::tiny(family, 5);
        let model = load_folder(&config, &tensors, 2);
        let texts: Vec<Vec<u32>> = [12, 30, 1].iter().map(|&n| random_ids(96, n, n as u64)).collect();
        let extents: Vec<Extent> = texts.iter().map(|ids| Extent::text(ids.len())).collect();
        let hidden = model.network().trunk(&texts.concat(), &extents, None).unwrap();
        let tail =
            |hidden: &Tensor| model.network().tail(hidden, &extents, Rows::All, model.base().as_ref(), None).unwrap();
        let variable = candle_core::Var::from_tensor(&hidden).unwrap();
        assert_close(family, &tail(variable.as_tensor()), &tail(&hidden), TOLERANCE);
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_numbers() {
    let model = tiny(1);
    let mut sequence = model.start();
    let base = model.base().as_ref();
    let error = model.forward(&mut sequence, &[], base).unwrap_err().to_string();
    assert_eq!(error, "the text to continue is empty");
    model.forward(&mut sequence, &random_ids(96, 500, 1), base).unwrap();
    let error = model.forward(&mut sequence, &random_ids(96, 13, 1), base).unwrap_err().to_string();
    assert_eq!(error, "too long: 513 tokens, the limit is 512");
    assert_eq!(sequence.len(), 500);
    model.forward(&mut sequence, &random_ids(96, 12, 1), base).unwrap();
    assert!(model.forward(&mut model.start(), &[96], base).is_err(), "an id outside the vocabulary");
}

/// Rounding activations to 8 bits turns a difference in the last bit into a whole step now and then, and some blocks later
/// into one of the first digits. So in a quantized trunk a row has to have the same bits whatever it is computed with; what
/// is left in the logits is the tail's, in f32.
#[test]
fn a_quantized_trunk_gives_the_same_bits_in_pieces_and_in_a_batch() {
    let Some(path) = smollm2() else { return };
    let model = Model::load(&path, &LoadOptions::default()).unwrap();
    let encode = |text: &str| model.tokenizer().encode_prompt(text).unwrap();
    let texts = [
        encode("The quick brown fox jumps over the lazy dog near the old mill."),
        encode("The capital of France is"),
        encode("1, 2, 3, 4, 5, 6, 7, 8,"),
    ];
    let extents: Vec<Extent> = texts.iter().map(|ids| Extent::text(ids.len())).collect();
    let trunk = |ids: &[u32], extents: &[Extent]| model.network().trunk(ids, extents, None).unwrap();
    let batch = trunk(&texts.concat(), &extents);
    let mut start = 0;
    for ids in &texts {
        let alone = trunk(ids, &[Extent::text(ids.len())]);
        assert_close("in a batch", &batch.narrow(0, start, ids.len()).unwrap(), &alone, 0.0);
        start += ids.len();
    }

    let ids = &texts[0];
    let decode = |ends: &[usize]| {
        let mut sequence = model.start();
        let mut logits = Vec::new();
        for &end in ends {
            let fed = sequence.len();
            logits = model.forward(&mut sequence, &ids[fed..end], model.base().as_ref()).unwrap();
        }
        vector(logits)
    };
    let whole = decode(&[ids.len()]);
    assert_close("token by token", &decode(&(1..=ids.len()).collect::<Vec<_>>()), &whole, TOLERANCE);
    assert_close("in two pieces", &decode(&[5, ids.len()]), &whole, TOLERANCE);
}

/// Law 1: an edit's factors are its own, whatever else is captured with it.
#[test]
fn a_quantized_models_factors_do_not_depend_on_the_batch() {
    let Some(path) = smollm2() else { return };
    let model = Model::load(&path, &LoadOptions::default()).unwrap();
    let passage = |prompt: &str, target: &str| model.tokenizer().encode_passage(prompt, target).unwrap();
    let passages = [
        passage("The mother tongue of Danielle Darrieux is", "English"),
        passage("Paris is", "the capital of Italy"),
        passage("The Eiffel Tower stands in the middle of", "Rome"),
    ];
    let capture = |passages: &[Passage]| capture::capture(&model, &capture::read(&model, passages).unwrap()).unwrap();
    let together = capture(&passages);
    for (passage, batched) in passages.iter().zip(&together) {
        let alone = &capture(std::slice::from_ref(passage))[0];
        assert!((alone.loss - batched.loss).abs() <= 1e-5 * alone.loss);
        for (alone, batched) in alone.factors.iter().zip(&batched.factors) {
            assert_close("u", &batched.u, &alone.u, 1e-5);
            assert_close("delta", &batched.delta, &alone.delta, 1e-5);
        }
    }
}
