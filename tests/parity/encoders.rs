//! Networks with an encoder: any split of the answer, any batch, and any path gives what one plain pass gives.

use amend::model::{Extent, Kind, Model, Passage, Rows, capture, measure::target_log_probs};
use candle_core::{Device, Tensor, Var};

use crate::common::{assert_close, families, load_folder, random_ids};

/// Of the largest logit.
const TOLERANCE: f32 = 1e-4;
const VOCABULARY: usize = 96;

fn load(family: &str, tail_blocks: usize) -> Model {
    let (config, tensors) = families::tiny(family, 5);
    load_folder(&config, &tensors, tail_blocks)
}

/// A source of `source` ids and a text of `target`.
fn sequence(source: usize, target: usize, seed: u64) -> (Vec<u32>, Extent) {
    (random_ids(VOCABULARY, source + target, seed), Extent { source, target })
}

/// Logits of every row of the text, in one pass.
fn all_logits(model: &Model, ids: &[u32], extents: &[Extent]) -> Tensor {
    let hidden = model.network().trunk(ids, extents, None).unwrap();
    let top = model.network().tail(&hidden, extents, Rows::All, model.base().as_ref(), None).unwrap();
    model.network().logits(&top).unwrap()
}

#[test]
fn answers_decode_as_they_are_computed_in_one_pass() {
    for family in families::ENCODER_DECODERS {
        let (ids, extent) = sequence(13, 20, 3);
        let want = all_logits(&load(family, 1), &ids, &[extent]);
        for tail_blocks in [2, families::BLOCKS] {
            let model = load(family, tail_blocks);
            assert_eq!(model.kind(), Kind::EncoderDecoder);
            assert_close(family, &all_logits(&model, &ids, &[extent]), &want, TOLERANCE);
            for ends in [(14..=33).collect::<Vec<_>>(), vec![14, 19, 20, 33]] {
                let mut sequence = model.start();
                for end in ends {
                    let fed = sequence.len();
                    let logits = model.forward(&mut sequence, &ids[fed..end], model.base().as_ref()).unwrap();
                    let want = want.get(end - extent.source - 1).unwrap();
                    let what = format!("{family}, {} ids after {fed}", end - fed);
                    assert_close(&what, &Tensor::new(logits, &Device::Cpu).unwrap(), &want, TOLERANCE);
                }
            }
        }
    }
}

#[test]
fn a_ragged_batch_of_answers_equals_each_alone() {
    for family in families::ENCODER_DECODERS {
        let model = load(family, 2);
        let (texts, extents): (Vec<_>, Vec<_>) =
            [(7, 3), (12, 1), (1, 9), (12, 3)].iter().map(|&(s, t)| sequence(s, t, (s * t) as u64)).unzip();
        let together = all_logits(&model, &texts.concat(), &extents);
        let hidden = model.network().trunk(&texts.concat(), &extents, None).unwrap();
        // The path with gradients pads, the one without does not.
        let hidden = Var::from_tensor(&hidden).unwrap();
        let last = |extent: &Extent| vec![extent.source as u32, (extent.total() - 1) as u32];
        let wanted: Vec<Vec<u32>> = extents.iter().map(last).collect();
        let base = model.base().as_ref();
        let some = model.network().tail(hidden.as_tensor(), &extents, Rows::At(&wanted), base, None).unwrap();
        let some = model.network().logits(&some).unwrap();
        let mut start = 0;
        for (i, (ids, extent)) in texts.iter().zip(&extents).enumerate() {
            let alone = all_logits(&model, ids, &[*extent]);
            assert_close(family, &together.narrow(0, start, extent.target).unwrap(), &alone, TOLERANCE);
            assert_close(family, &some.get(2 * i).unwrap(), &alone.get(0).unwrap(), TOLERANCE);
            assert_close(family, &some.get(2 * i + 1).unwrap(), &alone.get(extent.target - 1).unwrap(), TOLERANCE);
            start += extent.target;
        }
    }
}

/// Law 1: an edit's factors are its own, whatever else is captured with it.
#[test]
fn factors_do_not_depend_on_the_batch() {
    for family in families::ENCODER_DECODERS.into_iter().chain(["bert"]) {
        let model = load(family, 2);
        let passage = |prompt: &str, target: &str| model.tokenizer().encode_passage(prompt, target).unwrap();
        let answers = if family == "bert" { ["red", "blue", "red"] } else { ["x", "far", "two words"] };
        let prompts = ["Paris?", "Who is there?", "A much longer text about nothing"];
        let passages: Vec<Passage> = prompts.iter().zip(answers).map(|(p, a)| passage(p, a)).collect();
        let capture =
            |passages: &[Passage]| capture::capture(&model, &capture::read(&model, passages).unwrap()).unwrap();
        let together = capture(&passages);
        for (passage, batched) in passages.iter().zip(&together) {
            let alone = &capture(std::slice::from_ref(passage))[0];
            assert!((alone.loss - batched.loss).abs() <= 1e-5 * alone.loss.abs(), "{family}");
            for (alone, batched) in alone.factors.iter().zip(&batched.factors) {
                assert_close(family, &batched.u, &alone.u, 1e-4);
                assert_close(family, &batched.delta, &alone.delta, 1e-4);
            }
        }
    }
}

#[test]
fn a_classifier_gives_each_text_the_label_it_gives_it_alone() {
    let model = load("bert", 2);
    assert_eq!((model.kind(), model.vocab_size()), (Kind::Classifier, 3));
    let open = |text: &str| model.tokenizer().encode_open(text).unwrap();
    let passages = [open("A text"), open("Another text, longer"), open("x")];
    let rows = |passages: &[Passage]| {
        let states = capture::read(&model, passages).unwrap();
        target_log_probs(&model, &states, model.base().as_ref()).unwrap()
    };
    let want = load("bert", families::BLOCKS);
    for (passage, together) in passages.iter().zip(rows(&passages)) {
        assert_eq!(together.dims(), [1, 3]);
        assert_close("alone", &together, &rows(std::slice::from_ref(passage))[0], TOLERANCE);
        let states = capture::read(&want, std::slice::from_ref(passage)).unwrap();
        let other = &target_log_probs(&want, &states, want.base().as_ref()).unwrap()[0];
        assert_close("another tail", &together, other, TOLERANCE);
    }
    let error = model.tokenizer().encode_passage("A text", "mauve").unwrap_err().to_string();
    assert_eq!(error, "\"mauve\" is none of the labels red, green, blue");
}

#[test]
fn a_prompt_and_an_answer_are_framed_as_the_family_wants_it() {
    let t5 = load("t5", 1);
    let passage = t5.tokenizer().encode_passage("ab", " c ").unwrap();
    let text = t5.tokenizer().encode("ab").unwrap();
    let answer = t5.tokenizer().encode("c").unwrap();
    assert_eq!(passage.ids, [text.as_slice(), &[1, 0], &answer, &[1]].concat());
    assert_eq!((passage.source, passage.target), (3, 4..6));
    let prompt = t5.tokenizer().encode_prompt("ab").unwrap();
    assert_eq!(prompt, [text.as_slice(), &[1, 0]].concat());

    let bart = load("bart", 1);
    let passage = bart.tokenizer().encode_passage("ab", "c").unwrap();
    assert_eq!(passage.ids, [text.as_slice(), &[2, 2, 0], &answer, &[2]].concat());
    assert_eq!((passage.source, passage.target), (3, 5..7));
}
