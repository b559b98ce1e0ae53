//! The check that an editor trains at all: after 100 steps on 16 fixed edits every edit and every paraphrase is right, and
//! the neighbours' answers have hardly moved. With a rectifier that passes no gradient at 0 nothing but the step sizes
//! would be trained, which can not reach both.
//!
//! Reads `../shared/data` and the real model; passes as skipped, with a message, where one is absent.

#![allow(clippy::unwrap_used, reason = "a test panics when something is wrong")]

mod common;

use std::sync::atomic::AtomicBool;

use amend::{
    editor::CompositionKind,
    model::{Kind, LoadOptions, Model},
    training::{
        LocalityMix, Recipe, RunOptions,
        dataset::{self, Incomplete},
        trainer::{self, Inputs},
    },
};
use common::{shared_file, smollm2};

const EDITS: usize = 16;
const STEPS: u64 = 100;

#[test]
fn sixteen_edits_are_learned_in_a_hundred_steps_without_moving_their_neighbours() {
    let Some(model) = smollm2() else { return };
    let Some(data) = shared_file("AMEND_COUNTERFACT_VAL", "data/counterfact/counterfact-val.json") else { return };
    let model = Model::load(&model, &LoadOptions::default()).unwrap();
    let mut records = dataset::load(&[data], Kind::Causal, Incomplete::Refused).unwrap();
    records.records.truncate(EDITS);
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe {
        rank: 128,
        composition: CompositionKind::Sum,
        whitening: None,
        whitening_paraphrases: 0.0,
        initial_step_size: 1e-4,
        simultaneous: vec![1],
        edits_per_step: EDITS,
        learning_rate: 1e-3,
        lr_scale_rate: 1e-2,
        clip: 1.0,
        edit_weight: 0.1,
        locality_weight: 1.0,
        locality_mix: LocalityMix { neighbour: 1.0, other: 0.0, text: 0.0 },
        steps: STEPS,
        warmup: 5,
        seed: 0,
    };
    let options = RunOptions {
        out: folder.path().join("out"),
        cache: folder.path().join("cache"),
        validate_every: STEPS,
        validation_records: EDITS,
        patience: 100,
        resume: false,
        from: Vec::new(),
        max_minutes: None,
        threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(2),
    };
    let stop = AtomicBool::new(false);
    let inputs = Inputs { model: &model, train: &records, validation: &records, running_text: None, stop: &stop };
    let summary = trainer::train(&inputs, &recipe, &options).unwrap();
    let last = summary.history.validations.last().unwrap();
    assert_eq!(last.step, STEPS);
    let figures = last.sets[0];
    assert_eq!((figures.prompt, figures.paraphrase), (1.0, 1.0), "{figures:?}");
    assert!(figures.neighbour_kl < 0.01, "{figures:?}");
}
