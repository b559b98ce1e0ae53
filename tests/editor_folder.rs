//! An editor's folder: what is written comes back, and what does not belong or is damaged is refused with the reason.

#![allow(clippy::unwrap_used, reason = "a test panics when something is wrong")]

mod common;

use std::{collections::HashMap, path::Path, sync::Arc};

use amend::{
    digest::Digest,
    editor::{
        self, Delta, Editor, Manifest, MatrixDelta,
        folder::{self, BaseModel, MANIFEST, TENSORS},
        mend::{METHOD, Mend},
    },
    model::{
        LoadOptions, Model, TrunkState,
        capture::{self, Captured},
    },
    training::{Recipe, trainable::Trainable},
};
use candle_core::{DType, Tensor};
use common::{assert_close, random_weights, tiny_config, tiny_llama, write_folder};
use serde_json::{Value, json};
use tempfile::TempDir;

const RANK: usize = 6;

fn recipe() -> Recipe {
    Recipe { rank: RANK, seed: 3, ..Recipe::default() }
}

struct Bench {
    model: Model,
    mend: Mend,
    folder: TempDir,
    _model_folder: TempDir,
}

impl Bench {
    /// A model, and the folder of an editor of which no tensor is as it began.
    fn new() -> Self {
        let (model_folder, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let model = tiny_llama(model_folder.path());
        let mut trainable = Trainable::new(model.editable(), &recipe()).unwrap();
        let (_, captured) = edit(&model);
        let whitening = model.editable().iter().map(|matrix| {
            let shift = Tensor::randn(0f32, 0.1, (matrix.d_in, matrix.d_in), model.device()).unwrap();
            (Tensor::eye(matrix.d_in, DType::F32, model.device()).unwrap() + shift).unwrap()
        });
        trainable.whiten(whitening.collect());
        trainable.observe(&captured.iter().cloned().map(Arc::new).collect::<Vec<_>>()).unwrap();
        for (name, variable, _) in trainable.variables(1.0, 1.0) {
            let shift = Tensor::randn(0f32, 0.1, variable.shape(), model.device()).unwrap();
            let moved = (variable.as_tensor() + shift).unwrap();
            variable.set(&moved).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let mend = trainable.mend().unwrap();
        let bench = Self { model, mend, folder, _model_folder: model_folder };
        bench.write(&bench.mend.to_tensors().unwrap());
        bench
    }

    fn write(&self, tensors: &HashMap<String, Tensor>) {
        let mut manifest = Manifest {
            method: METHOD.to_owned(),
            name: "test".to_owned(),
            base_model: BaseModel { name: self.model.name().to_owned(), digest: self.model.digest() },
            matrices: self.model.editable().iter().map(|matrix| matrix.name.clone()).collect(),
            tail_blocks: 2,
            rank: RANK,
            composition: recipe().composition,
            tensors_digest: Digest::of(b""),
            training: Value::Null,
            figures: Value::Null,
        };
        folder::write(self.folder.path(), &mut manifest, tensors).unwrap();
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn refusal(&self) -> String {
        editor::load(self.path(), &self.model).err().expect("it is refused").to_string()
    }

    /// Changes `editor.json`.
    fn manifest(&self, change: impl FnOnce(&mut Value)) {
        let path = self.path().join(MANIFEST);
        let mut manifest: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut manifest);
        std::fs::write(path, manifest.to_string()).unwrap();
    }
}

fn edit(model: &Model) -> (Vec<TrunkState>, Vec<Captured>) {
    let passage = model.tokenizer().encode_passage("Paris is in", "Italy").unwrap();
    let states = capture::read(model, &[passage]).unwrap();
    let captured = capture::capture(model, &states).unwrap();
    (states, captured)
}

fn delta(editor: &dyn Editor, model: &Model) -> Delta {
    let (states, captured) = edit(model);
    editor.edit(model, &states[0], &captured[0]).unwrap()
}

#[test]
fn what_was_written_comes_back() {
    let bench = Bench::new();
    let (manifest, loaded) = editor::load(bench.path(), &bench.model).unwrap();
    assert_eq!((manifest.method.as_str(), manifest.rank, loaded.method()), ("mend", RANK, "mend"));
    assert_eq!(loaded.digest(), manifest.tensors_digest);
    let (before, after) = (delta(&bench.mend, &bench.model), delta(loaded.as_ref(), &bench.model));
    for (before, after) in before.0.iter().zip(&after.0) {
        let (MatrixDelta::Joint { left, right, keys }, MatrixDelta::Joint { left: l, right: r, keys: k }) =
            (before, after)
        else {
            panic!("an editor with ridges gives rows of a joint solve")
        };
        for (name, got, want) in [("left", l, left), ("right", r, right), ("keys", k, keys)] {
            assert_close(name, got, want, 0.0);
        }
    }
}

#[test]
fn another_model_is_refused_with_both_digests() {
    let bench = Bench::new();
    let folder = tempfile::tempdir().unwrap();
    let config = tiny_config("llama");
    write_folder(folder.path(), &config, &random_weights(&config, 2));
    let other = Model::load(folder.path(), &LoadOptions { tail_blocks: 2, ..LoadOptions::default() }).unwrap();
    let error = editor::load(bench.path(), &other).err().unwrap().to_string();
    let (own, loaded) = (bench.model.digest(), other.digest());
    let want = format!("was trained on model {own}, but the loaded model is {loaded}");
    assert!(error.ends_with(&want), "{error}");
}

#[test]
fn a_damaged_tensors_file_is_refused_with_both_digests() {
    let bench = Bench::new();
    let path = bench.path().join(TENSORS);
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for damaged in [flipped, whole[..whole.len() / 2].to_vec(), Vec::new()] {
        std::fs::write(&path, &damaged).unwrap();
        let error = bench.refusal();
        let (found, said) = (Digest::of(&damaged), Digest::of(&whole));
        let want = format!("editor.safetensors is damaged: its digest is {found}, editor.json says {said}");
        assert!(error.ends_with(&want), "{error}");
    }
}

#[test]
fn an_edited_manifest_is_refused() {
    let refused = |change: &dyn Fn(&mut Value), why: &str| {
        let bench = Bench::new();
        bench.manifest(change);
        let error = bench.refusal();
        assert!(error.starts_with(&format!("editor {}: ", bench.path().display())), "{error}");
        assert!(error.contains(why), "{error:?} does not say {why:?}");
    };
    let swap = |manifest: &mut Value| manifest["matrices"].as_array_mut().unwrap().swap(0, 1);
    refused(&swap, "but the model was loaded with");
    refused(&|manifest| manifest["matrices"] = json!(["model.layers.0.mlp.up_proj.weight"]), "it edits");
    refused(&|manifest| manifest["method"] = json!("rome"), "method \"rome\" is not known");
    refused(&|manifest| drop(manifest.as_object_mut().unwrap().remove("rank")), "editor.json: missing field `rank`");
    refused(&|manifest| manifest["tensors_digest"] = json!("zz"), "editor.json: ");
    refused(&|manifest| *manifest = json!([]), "editor.json: ");
}

#[test]
fn another_tail_is_refused() {
    let bench = Bench::new();
    let options = LoadOptions { tail_blocks: 1, ..LoadOptions::default() };
    let model = Model::load(bench._model_folder.path(), &options).unwrap();
    let error = editor::load(bench.path(), &model).err().unwrap().to_string();
    assert!(error.contains("but the model was loaded with"), "{error}");
}

#[test]
fn files_that_are_not_there_are_named() {
    for name in [TENSORS, MANIFEST] {
        let bench = Bench::new();
        std::fs::remove_file(bench.path().join(name)).unwrap();
        let error = bench.refusal();
        assert!(error.contains(&format!("{name}: ")), "{error}");
    }
    let bench = Bench::new();
    let nowhere = bench.path().join("nowhere");
    let error = editor::load(&nowhere, &bench.model).err().unwrap().to_string();
    assert!(error.contains("nowhere: editor.json: "), "{error}");
}

/// Files that are whole, but of something else.
#[test]
fn tensors_that_do_not_fit_are_named() {
    let bench = Bench::new();
    let refused = |change: &dyn Fn(&mut HashMap<String, Tensor>), why: &str| {
        let mut tensors = bench.mend.to_tensors().unwrap();
        change(&mut tensors);
        bench.write(&tensors);
        let error = bench.refusal();
        assert!(error.ends_with(why), "{error:?} does not end with {why:?}");
    };
    for name in ["net.32x48.mlp.layers.1.v", "net.48x32.mlp.layers.0.u", "net.32x48.u_mean", "edit_lrs"] {
        refused(&|tensors| drop(tensors.remove(name)), &format!("tensor {name:?} is missing"));
    }
    let shorten = |tensors: &mut HashMap<String, Tensor>| {
        let shorter = tensors["edit_lrs"].narrow(0, 0, 5).unwrap();
        tensors.insert("edit_lrs".to_owned(), shorter.copy().unwrap());
    };
    refused(&shorten, "tensor \"edit_lrs\" has shape [5], expected [6]");
}
