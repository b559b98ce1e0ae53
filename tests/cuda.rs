//! What a GPU computes beside what a CPU does: of every family the logits, a decoding that goes on from a cache, and the
//! factors of an edit; and the base weights' bits, which digests are of. Compiled with the feature `cuda` alone, and run where
//! there is a GPU:
//!
//!     cargo nextest run --features cuda --test cuda
//!     AMEND_DEVICE=cuda cargo nextest run --features cuda --test service     # the whole service on it

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

mod common;

use std::path::Path;

use amend::model::{LoadOptions, Model, capture};
use candle_core::{Device, Tensor};
use common::{assert_close, families, write_folder};

/// Of the largest entry. Products are added up in another order, and a GPU's may be rounded to fewer bits on the way.
const TOLERANCE: f32 = 5e-3;
const TAIL_BLOCKS: usize = 2;

/// The same on a CPU and on the first GPU.
fn pair(path: &Path, tail_blocks: usize) -> [Model; 2] {
    [Device::Cpu, Device::new_cuda_with_stream(0).unwrap()]
        .map(|device| Model::load(path, &LoadOptions { tail_blocks, device }).unwrap())
}

fn here(tensor: &Tensor) -> Tensor {
    tensor.to_device(&Device::Cpu).unwrap()
}

/// The logits after a text that is read in two pieces.
fn logits(model: &Model, ids: &[u32], first: usize) -> Tensor {
    let mut sequence = model.start();
    let base = model.base();
    model.forward(&mut sequence, &ids[..first], base.as_ref()).unwrap();
    let logits = model.forward(&mut sequence, &ids[first..], base.as_ref()).unwrap();
    Tensor::new(logits, &Device::Cpu).unwrap()
}

fn compare(what: &str, path: &Path, tail_blocks: usize, target: &str, tolerance: f32) {
    let [cpu, gpu] = pair(path, tail_blocks);
    assert_eq!(cpu.base().to_vecs().unwrap(), gpu.base().to_vecs().unwrap(), "{what}: the base weights");
    let passages = ["Who is there?", "Paris"].map(|prompt| cpu.tokenizer().encode_passage(prompt, target).unwrap());
    let captured =
        [&cpu, &gpu].map(|model| capture::capture(model, &capture::read(model, &passages).unwrap()).unwrap());
    for (want, got) in captured[0].iter().zip(&captured[1]) {
        assert!(
            (want.loss - got.loss).abs() <= tolerance * want.loss.abs().max(1.0),
            "{what}: {} {}",
            want.loss,
            got.loss
        );
        for (matrix, (want, got)) in cpu.editable().iter().zip(want.factors.iter().zip(&got.factors)) {
            assert_close(&format!("{what}, u of {}", matrix.name), &here(&got.u), &want.u, tolerance);
            assert_close(&format!("{what}, delta of {}", matrix.name), &here(&got.delta), &want.delta, tolerance);
        }
    }
    if cpu.kind() == amend::model::Kind::Causal {
        let ids = &passages[0].ids;
        let first = ids.len() / 2;
        assert_close(&format!("{what}, logits"), &logits(&gpu, ids, first), &logits(&cpu, ids, first), tolerance);
    }
}

#[test]
fn every_family_computes_the_same_on_a_gpu() {
    for family in families::CAUSAL.into_iter().chain(families::ENCODER_DECODERS).chain(["bert"]) {
        let (config, tensors) = families::tiny(family, 5);
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), &config, &tensors);
        let target = if family == "bert" { "blue" } else { "far away" };
        compare(family, folder.path(), TAIL_BLOCKS, target, TOLERANCE);
    }
}

/// The trunk is multiplied as it is stored on both, and both round what enters a product to 8 bits, each in its own way: two
/// right answers differ by some hundredths.
#[test]
fn a_quantized_model_computes_much_the_same_on_a_gpu() {
    let Some(path) = common::smollm2() else { return };
    compare("SmolLM2", &path, 3, " Wellington", 0.1);
}

/// The writer and the engine compute at the same time.
#[test]
fn threads_do_not_disturb_each_other_on_a_gpu() {
    let Some(path) = common::smollm2() else { return };
    let [_, model] = pair(&path, 3);
    let passage = model.tokenizer().encode_passage("The capital of New Zealand is", " Wellington").unwrap();
    let factors = || {
        let states = capture::read(&model, std::slice::from_ref(&passage)).unwrap();
        let captured = capture::capture(&model, &states).unwrap().remove(0);
        captured.factors.iter().map(|factors| here(&factors.delta)).collect::<Vec<_>>()
    };
    let continued = || logits(&model, &passage.ids, 3);
    let (alone, text) = (factors(), continued());
    std::thread::scope(|scope| {
        let decoding = scope.spawn(|| (0..50).for_each(|_| assert_close("logits", &continued(), &text, 1e-4)));
        for _ in 0..50 {
            for (got, want) in factors().iter().zip(&alone) {
                assert_close("delta", got, want, 1e-4);
            }
        }
        decoding.join().unwrap();
    });
}
