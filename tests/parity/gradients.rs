//! The factors of an edit are the gradient of the loss that a version of the weights has: along it, and against it, the loss
//! that is measured on the way without gradients changes as the factors say. For every family and every edited matrix, those of
//! an encoder too, whatever recorded values are there.

use amend::model::{
    DenseMatrices, Model, TrunkState,
    capture::{self, Captured},
    measure::{score_target, target_log_probs},
};
use candle_core::Tensor;

use crate::common::{families, load_folder};

/// How much the loss should change each way, nats: far above the rounding of f32, far below where its curve shows.
const CHANGE: f64 = 5e-3;
/// Of the change.
const TOLERANCE: f64 = 0.02;

/// Mean negative log-likelihood per token of the target.
fn loss(model: &Model, state: &TrunkState, weights: &DenseMatrices) -> f64 {
    let log_probs = target_log_probs(model, std::slice::from_ref(state), weights).unwrap();
    let score = score_target(&log_probs[0], state.passage.target_ids()).unwrap();
    -f64::from(score.logprob) / score.tokens as f64
}

/// The base weights with one matrix moved.
fn moved(model: &Model, matrix: usize, by: &Tensor) -> DenseMatrices {
    let mut tensors = model.base().tensors().to_vec();
    tensors[matrix] = (&tensors[matrix] + by).unwrap();
    DenseMatrices::new(tensors)
}

fn compare(family: &str, model: &Model, state: &TrunkState, captured: &Captured) {
    assert!((loss(model, state, model.base()) - f64::from(captured.loss)).abs() < 1e-4, "{family}");
    for (matrix, (named, factors)) in model.editable().iter().zip(&captured.factors).enumerate() {
        let gradient = factors.delta.t().unwrap().matmul(&factors.u).unwrap();
        let square = f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        assert!(square > 1e-8, "{family}: nothing arrives at {}", named.name);
        let step = (gradient * (CHANGE / square)).unwrap();
        let ways = [1.0, -1.0].map(|sign| loss(model, state, &moved(model, matrix, &(&step * sign).unwrap())));
        let change = (ways[0] - ways[1]) / 2.0;
        let error = (change - CHANGE).abs() / CHANGE;
        assert!(error < TOLERANCE, "{family}, {}: {change} for {CHANGE}", named.name);
    }
}

#[test]
fn a_step_along_the_factors_changes_the_loss_as_they_say() {
    for family in families::CAUSAL.into_iter().chain(families::ENCODER_DECODERS).chain(["bert"]) {
        let (config, tensors) = families::tiny(family, 5);
        let model = load_folder(&config, &tensors, 2);
        let target = if family == "bert" { "blue" } else { "far away" };
        let passages =
            ["Who is there?", "Paris"].map(|prompt| model.tokenizer().encode_passage(prompt, target).unwrap());
        let states = capture::read(&model, &passages).unwrap();
        for (state, captured) in states.iter().zip(&capture::capture(&model, &states).unwrap()) {
            compare(family, &model, state, captured);
        }
    }
}
