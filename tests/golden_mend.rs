//! Parity with the reference network and losses on a tiny Llama, tensor by tensor (`golden/README.md` beside the data).
//!
//! `AMEND_GOLDEN` names another file of the same layout: other head counts, an untied output.

#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

mod common;

use std::collections::HashMap;

use amend::{
    digest::Digest,
    editor::{
        Editor, MatrixDelta,
        mend::{Mend, Network, PseudoFactors, Slot, slots},
        objective::weighted_kl,
    },
    model::{
        DenseMatrices, Extent, LoadOptions, Model, Passage, Projection, Rows,
        capture::{self, Captured, Factors, weighted_nll},
    },
    training::factored::{Factored, Owners, Side, Sides},
};
use candle_core::{Device, Tensor, Var};
use common::{assert_close, read_safetensors, relative_error, shared_file, write_folder};
use serde_json::{Value, json};

/// Factors and updates agree within this of the largest entry, gradients within [`GRADIENT`].
const VALUE: f32 = 1e-4;
const GRADIENT: f32 = 1e-3;

struct Golden {
    tensors: HashMap<String, Tensor>,
    names: Vec<String>,
    c_edit: f64,
    c_loc: f64,
    model: Model,
    _folder: tempfile::TempDir,
}

impl Golden {
    fn load() -> Option<Self> {
        let path = shared_file("AMEND_GOLDEN", "golden/mend_tiny_llama.safetensors")?;
        let (tensors, metadata) = read_safetensors(&path);
        let mut config: Value = serde_json::from_str(&metadata["config"]).unwrap();
        let names: Vec<String> = serde_json::from_str(&metadata["edited"]).unwrap();
        config["model_type"] = json!("llama");
        let folder = tempfile::tempdir().unwrap();
        let weights = tensors
            .iter()
            .filter(|(name, _)| name.starts_with("model."))
            .map(|(name, tensor)| (name.replace("model.lm_head", "lm_head"), tensor.clone()))
            .collect();
        write_folder(folder.path(), &config, &weights);
        let options = LoadOptions { tail_blocks: names.len() / 3, ..LoadOptions::default() };
        let model = Model::load(folder.path(), &options).unwrap();
        let loaded: Vec<&str> = model.editable().iter().map(|matrix| matrix.name.as_str()).collect();
        assert_eq!(loaded, names);
        let number = |key: &str| metadata[key].parse().unwrap();
        Some(Self { c_edit: number("cedit"), c_loc: number("cloc"), tensors, names, model, _folder: folder })
    }

    fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the golden file has no {name}"))
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        let ids: Vec<i64> = self.get(name).flatten_all().unwrap().to_vec1().unwrap();
        ids.into_iter().map(|id| u32::try_from(id).unwrap()).collect()
    }

    /// The passage `NAME.input_ids` with the labels of `NAME.labels`, which must be one run.
    fn passage(&self, name: &str) -> Passage {
        let labels: Vec<i64> = self.get(&format!("{name}.labels")).flatten_all().unwrap().to_vec1().unwrap();
        let start = labels.iter().position(|&label| label >= 0).unwrap();
        let end = labels.iter().rposition(|&label| label >= 0).unwrap() + 1;
        assert!(labels[start..end].iter().all(|&label| label >= 0));
        Passage::text(self.ids(&format!("{name}.input_ids")), start..end)
    }

    fn capture(&self, names: &[&str]) -> Vec<Captured> {
        let passages: Vec<Passage> = names.iter().map(|name| self.passage(name)).collect();
        let states = capture::read(&self.model, &passages).unwrap();
        capture::capture(&self.model, &states).unwrap()
    }

    fn editor_tensors(&self) -> HashMap<String, Tensor> {
        self.tensors
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix("editor.")?.to_owned(), tensor.clone())))
            .collect()
    }

    fn editor(&self, tensors: &HashMap<String, Tensor>) -> Mend {
        Mend::from_tensors(self.model.editable(), tensors, Digest::of(b"golden"), &Device::Cpu).unwrap()
    }
}

/// The rows of `u.NAME` and `delta.NAME` where both have a nonzero.
fn golden_rows(golden: &Golden, name: &str) -> (Tensor, Tensor) {
    let (u, delta) = (golden.get(&format!("u.{name}")), golden.get(&format!("delta.{name}")));
    let nonzero = |t: &Tensor, row: usize| t.get(row).unwrap().to_vec1::<f32>().unwrap().iter().any(|v| *v != 0.0);
    let keep: Vec<u32> =
        (0..u.dim(0).unwrap()).filter(|&row| nonzero(u, row) && nonzero(delta, row)).map(|row| row as u32).collect();
    let keep = Tensor::new(keep, &Device::Cpu).unwrap();
    (u.index_select(&keep, 0).unwrap(), delta.index_select(&keep, 0).unwrap())
}

#[test]
fn golden_factors_and_loss() {
    let Some(golden) = Golden::load() else { return };
    let captured = &golden.capture(&["edit"])[0];
    let loss = Tensor::new(&[captured.loss], &Device::Cpu).unwrap();
    assert_close("edit.loss", &loss, golden.get("edit.loss"), VALUE);
    for (name, factors) in golden.names.iter().zip(&captured.factors) {
        let (u, delta) = golden_rows(&golden, name);
        assert_close(&format!("u.{name}"), &factors.u, &u, VALUE);
        assert_close(&format!("delta.{name}"), &factors.delta, &delta, VALUE);
    }
}

#[test]
fn golden_batch_gives_each_edit_its_own_factors() {
    let Some(golden) = Golden::load() else { return };
    let names = ["warm3", "edit", "warm0", "outer", "warm1"];
    let together = golden.capture(&names);
    for (name, batched) in names.iter().zip(&together) {
        let alone = &golden.capture(&[name])[0];
        assert!((alone.loss - batched.loss).abs() <= 1e-5 * alone.loss.abs());
        for (alone, batched) in alone.factors.iter().zip(&batched.factors) {
            assert_close(name, &batched.u, &alone.u, 1e-5);
            assert_close(name, &batched.delta, &alone.delta, 1e-5);
        }
    }
}

#[test]
fn golden_statistics() {
    let Some(golden) = Golden::load() else { return };
    let (slots, shapes) = slots(golden.model.editable());
    let mut editor = golden.editor(&golden.editor_tensors());
    for (network, &shape) in editor.networks.iter_mut().zip(&shapes) {
        network.statistics = amend::editor::mend::Statistics::new(shape);
    }
    for name in ["warm0", "warm1", "warm2", "warm3"] {
        for (slot, factors) in slots.iter().zip(&golden.capture(&[name])[0].factors) {
            editor.networks[slot.network].statistics.update(&factors.u, &factors.delta).unwrap();
        }
    }
    let ours = editor.to_tensors().unwrap();
    for &(d_in, d_out) in &shapes {
        for part in ["u_mean", "v_mean", "u_std", "v_std", "u_s", "v_s", "k"] {
            let name = format!("net.{d_in}x{d_out}.{part}");
            let got = ours[&name].to_dtype(candle_core::DType::F32).unwrap();
            assert_close(&name, &got, golden.get(&format!("editor.{name}")), VALUE);
        }
    }
}

#[test]
fn golden_pseudo_factors_and_updates() {
    let Some(golden) = Golden::load() else { return };
    let editor = golden.editor(&golden.editor_tensors());
    let captured = &golden.capture(&["edit"])[0];
    let pseudo = editor.transform(&captured.factors).unwrap();
    let states = capture::read(&golden.model, &[golden.passage("edit")]).unwrap();
    let delta = editor.edit(&golden.model, &states[0], captured).unwrap();
    for ((name, pseudo), delta) in golden.names.iter().zip(&pseudo).zip(&delta.0) {
        assert_close(name, &pseudo.u, golden.get(&format!("pseudo_u.{name}")), VALUE);
        assert_close(name, &pseudo.delta, golden.get(&format!("pseudo_delta.{name}")), VALUE);
        let MatrixDelta::LowRank { left, right } = delta else { panic!("MEND's update is low-rank") };
        let update = left.t().unwrap().matmul(right).unwrap();
        assert_close(name, &update, golden.get(&format!("update.{name}")), VALUE);
    }
}

/// Logits at every position.
fn logits(golden: &Golden, name: &str, weights: &dyn Projection) -> Tensor {
    let ids = golden.ids(&format!("{name}.input_ids"));
    let hidden = golden.model.network().trunk(&ids, &[Extent::text(ids.len())], None).unwrap();
    let top = golden.model.network().tail(&hidden, &[Extent::text(ids.len())], Rows::All, weights, None).unwrap();
    golden.model.network().logits(&top).unwrap()
}

#[test]
fn golden_edited_logits() {
    let Some(golden) = Golden::load() else { return };
    let updated = golden
        .names
        .iter()
        .zip(golden.model.base().tensors())
        .map(|(name, base)| (base + golden.get(&format!("update.{name}"))).unwrap())
        .collect();
    let edited = DenseMatrices::new(updated);
    let check = |what: &str, got: Tensor, want: &str| {
        assert_close(what, &got.unsqueeze(0).unwrap(), golden.get(want), VALUE);
    };
    check("outer", logits(&golden, "outer", &edited), "outer.logits");
    check("locality", logits(&golden, "locality", &edited), "locality.logits");
    check("base", logits(&golden, "locality", golden.model.base().as_ref()), "locality.base_logits");
}

/// The editor with every trained tensor a variable, and those variables by name.
fn trainable(golden: &Golden) -> (Mend, HashMap<String, Var>) {
    let mut tensors = golden.editor_tensors();
    let mut variables = HashMap::new();
    for (name, tensor) in &mut tensors {
        if name.contains("mlp.layers") || name == "edit_lrs" {
            let variable = Var::from_tensor(tensor).unwrap();
            *tensor = variable.as_tensor().clone();
            variables.insert(name.clone(), variable);
        }
    }
    (golden.editor(&tensors), variables)
}

/// The sides of one edit, number 0.
fn sides(editor: &Mend, factors: &[Factors]) -> Sides {
    let pseudo = editor.transform(factors).unwrap();
    let side = |(matrix, pseudo): (usize, &PseudoFactors)| {
        let none = vec![0; pseudo.u.dim(0).unwrap()];
        let owners = Owners { edits: none.clone(), sets: none };
        Side::new(pseudo, &editor.learning_rate(matrix).unwrap(), owners).unwrap()
    };
    Sides { matrices: pseudo.iter().enumerate().map(side).collect(), gating: None }
}

#[test]
fn golden_losses_and_gradients() {
    let Some(golden) = Golden::load() else { return };
    let (editor, variables) = trainable(&golden);
    let sides = sides(&editor, &golden.capture(&["edit"])[0].factors);
    let edited = |name: &str| {
        let length = golden.ids(&format!("{name}.input_ids")).len();
        let factored = Factored::new(golden.model.base(), &sides, &[0], |_| vec![length]);
        logits(&golden, name, &factored)
    };

    let outer = golden.passage("outer");
    let rows = Tensor::new(outer.predicting(), &Device::Cpu).unwrap();
    let predicting = edited("outer").index_select(&rows, 0).unwrap();
    let weights = vec![1.0 / outer.target.len() as f32; outer.target.len()];
    let (_, edit) = weighted_nll(&predicting, outer.target_ids(), &weights).unwrap();
    let base = golden.get("locality.base_logits").squeeze(0).unwrap();
    let positions = base.dim(0).unwrap();
    let (_, locality) = weighted_kl(&edited("locality"), &base, &vec![1.0 / positions as f32; positions]).unwrap();
    let total = ((&edit * golden.c_edit).unwrap() + (&locality * golden.c_loc).unwrap()).unwrap();
    for (name, loss) in [("edit", &edit), ("locality", &locality), ("total", &total)] {
        assert_close(name, &loss.reshape(1).unwrap(), golden.get(&format!("loss.{name}")), VALUE);
    }

    let gradients = total.backward().unwrap();
    let mut compared = 0;
    for (name, want) in golden.tensors.iter().filter_map(|(name, t)| Some((name.strip_prefix("grad.")?, t))) {
        let got = gradients.get(&variables[name]).unwrap_or_else(|| panic!("no gradient reaches {name}"));
        let error = relative_error(got, want);
        assert!(error <= GRADIENT, "grad.{name}: relative error {error}");
        compared += 1;
    }
    assert_eq!(compared, variables.len(), "a gradient of every parameter is compared");
}

#[test]
fn golden_slots_follow_the_order_of_the_matrices() {
    let Some(golden) = Golden::load() else { return };
    let (slots, _) = slots(golden.model.editable());
    let blocks = golden.names.len() / 3;
    for block in 0..blocks {
        assert_eq!(slots[3 * block], Slot { network: 0, mode: 2 * block });
        assert_eq!(slots[3 * block + 1], Slot { network: 0, mode: 2 * block + 1 });
        assert_eq!(slots[3 * block + 2], Slot { network: 1, mode: block });
    }
    let editor = golden.editor(&golden.editor_tensors());
    assert!(editor.networks.iter().all(|network: &Network| network.layers.len() == 2));
}
