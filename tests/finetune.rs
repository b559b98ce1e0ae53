//! Fine-tuning on a tiny random Llama.

#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

mod common;

use amend::{
    editor::{
        Delta, Editor, EditorError, MatrixDelta,
        finetune::{Finetune, FinetuneOptions},
    },
    model::{
        DenseMatrices, Model, Passage, Projection,
        capture::{self, TrunkState},
        measure::{TargetScore, divergence, score_target, target_log_probs},
    },
};
use candle_core::Tensor;
use common::tiny_llama;

/// Steps large enough for weights of one half.
const OPTIONS: FinetuneOptions = FinetuneOptions { learning_rate: 0.01, max_steps: 100, kl_weight: 10.0 };

struct Tiny {
    model: Model,
    _folder: tempfile::TempDir,
}

impl Tiny {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { model: tiny_llama(folder.path()), _folder: folder }
    }

    fn passage(&self, prompt: &str, target: &str) -> Passage {
        self.model.tokenizer().encode_passage(prompt, target).unwrap()
    }

    fn state(&self, passage: &Passage) -> TrunkState {
        capture::read(&self.model, std::slice::from_ref(passage)).unwrap().remove(0)
    }

    fn edit(&self, editor: &Finetune, passage: &Passage) -> Result<Delta, EditorError> {
        let state = self.state(passage);
        let captured = capture::capture(&self.model, std::slice::from_ref(&state)).unwrap().remove(0);
        editor.edit(&self.model, &state, &captured)
    }

    fn edited(&self, delta: &Delta) -> DenseMatrices {
        let pairs = self.model.base().tensors().iter().zip(dense(delta));
        DenseMatrices::new(pairs.map(|(base, delta)| (base + delta).unwrap()).collect())
    }

    fn log_probs(&self, passage: &Passage, weights: &dyn Projection) -> Tensor {
        target_log_probs(&self.model, &[self.state(passage)], weights).unwrap().remove(0)
    }

    fn score(&self, passage: &Passage, weights: &dyn Projection) -> TargetScore {
        score_target(&self.log_probs(passage, weights), passage.target_ids()).unwrap()
    }
}

fn dense(delta: &Delta) -> impl Iterator<Item = &Tensor> {
    delta.0.iter().map(|delta| match delta {
        MatrixDelta::Dense(dense) => dense,
        MatrixDelta::LowRank { .. } | MatrixDelta::Joint { .. } => panic!("fine-tuning's delta is dense"),
    })
}

#[test]
fn the_target_becomes_greedy_and_its_loss_falls() {
    let tiny = Tiny::new();
    for (prompt, target) in [("The capital of France is", "Rome"), ("A", "b"), ("Howard Glacier is located in", "Asia")]
    {
        let passage = tiny.passage(prompt, target);
        let before = tiny.score(&passage, tiny.model.base().as_ref());
        assert!(!before.greedy, "{prompt}: there must be something to learn");
        let delta = tiny.edit(&Finetune::new(OPTIONS), &passage).unwrap();
        let after = tiny.score(&passage, &tiny.edited(&delta));
        assert!(after.greedy, "{prompt}");
        assert!(after.logprob > before.logprob, "{prompt}: {before:?} to {after:?}");
    }
}

#[test]
fn a_target_that_is_greedy_needs_no_step() {
    let tiny = Tiny::new();
    let prompt = tiny.model.tokenizer().encode_prompt("The sky is").unwrap();
    let logits = tiny.model.forward(&mut tiny.model.start(), &prompt, tiny.model.base().as_ref()).unwrap();
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
    let ids: Vec<u32> = prompt.iter().copied().chain([best]).collect();
    let target = prompt.len()..ids.len();
    let passage = Passage::text(ids, target);
    let delta = tiny.edit(&Finetune::new(OPTIONS), &passage).unwrap();
    for dense in dense(&delta) {
        assert_eq!(dense.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
    }
}

/// Adam's first step goes by the rate against the sign of the gradient, which the captured factors give.
#[test]
fn the_first_step_goes_down_the_captured_gradient() {
    let tiny = Tiny::new();
    let passage = tiny.passage("The capital of France is", "Rome");
    let state = tiny.state(&passage);
    let captured = capture::capture(&tiny.model, &[state]).unwrap().remove(0);
    let options = FinetuneOptions { max_steps: 1, ..OPTIONS };
    // At W0 the divergence is at its minimum, so it does not matter in the first step.
    let still = tiny.passage("Rome is", "old");
    for editor in [Finetune::new(options), Finetune::with_kl(options, &tiny.model, &[still]).unwrap()] {
        let delta = tiny.edit(&editor, &passage).unwrap();
        for (delta, factors) in dense(&delta).zip(&captured.factors) {
            let gradient = factors.delta.t().unwrap().matmul(&factors.u).unwrap().flatten_all().unwrap();
            let moved = delta.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (gradient, moved) in gradient.to_vec1::<f32>().unwrap().into_iter().zip(moved) {
                if gradient.abs() > 1e-4 {
                    let want = -0.01 * gradient.signum();
                    assert!((moved - want).abs() < 1e-4, "{moved} for a gradient of {gradient}");
                }
            }
        }
    }
}

#[test]
fn the_divergence_in_the_loss_keeps_texts_still() {
    let tiny = Tiny::new();
    let still: Vec<Passage> =
        [("Rome is the capital of", "Italy"), ("The river Seine flows through", "Paris"), ("Two and two make", "four")]
            .map(|(prompt, answer)| tiny.passage(prompt, answer))
            .into();
    let passage = tiny.passage("The capital of France is", "Rome");
    let kl = |editor: &Finetune| {
        let edited = tiny.edited(&tiny.edit(editor, &passage).unwrap());
        assert!(tiny.score(&passage, &edited).greedy, "{}", editor.method());
        let base = tiny.model.base().as_ref();
        let moved = |text| divergence(&tiny.log_probs(text, base), &tiny.log_probs(text, &edited)).unwrap().kl;
        still.iter().map(moved).sum::<f32>()
    };
    let without = kl(&Finetune::new(OPTIONS));
    let with = kl(&Finetune::with_kl(OPTIONS, &tiny.model, &still).unwrap());
    assert!(with < 0.7 * without, "{with} with the divergence in the loss, {without} without");
}

#[test]
fn the_digest_names_options_and_texts() {
    let tiny = Tiny::new();
    let still = [tiny.passage("Rome is", "old"), tiny.passage("Paris is", "old")];
    let with = |passages| Finetune::with_kl(OPTIONS, &tiny.model, passages).unwrap();
    let digests = [
        Finetune::new(OPTIONS).digest(),
        Finetune::new(FinetuneOptions { max_steps: 5, ..OPTIONS }).digest(),
        with(&still[..1]).digest(),
        with(&still).digest(),
    ];
    for (i, digest) in digests.iter().enumerate() {
        assert!(!digests[..i].contains(digest));
    }
    assert_eq!(Finetune::new(OPTIONS).digest(), digests[0]);
    assert!(Finetune::with_kl(OPTIONS, &tiny.model, &[]).is_err());
}

#[test]
fn a_passage_without_a_target_is_refused() {
    let tiny = Tiny::new();
    let passage = tiny.passage("The capital of France is", "Rome");
    let captured = capture::capture(&tiny.model, &[tiny.state(&passage)]).unwrap().remove(0);
    let open = tiny.state(&Passage::open(passage.ids));
    let error = Finetune::new(OPTIONS).edit(&tiny.model, &open, &captured).unwrap_err();
    assert!(error.to_string().contains("target"), "{error}");
}
