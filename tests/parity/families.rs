//! Parity with Hugging Face's PyTorch implementations of families that load (`golden/README.md` beside the data): logits,
//! loss, and the gradients that the captured factors make up.

use std::collections::HashMap;

use amend::model::{Passage, capture};
use candle_core::{IndexOp, Tensor};
use serde_json::Value;

use crate::common::{all_logits, assert_close, load_folder, read_safetensors, shared_file};

/// Of the largest entry.
const VALUE: f32 = 1e-4;
const GRADIENT: f32 = 1e-3;

struct Input {
    /// Its real ids: the file pads on the right.
    ids: Vec<u32>,
    labels: Vec<i64>,
}

fn inputs(tensors: &HashMap<String, Tensor>) -> Vec<Input> {
    let rows = |name: &str| tensors[name].to_vec2::<i64>().unwrap();
    let (ids, labels, mask) = (rows("input_ids"), rows("labels"), rows("attention_mask"));
    (0..ids.len())
        .map(|row| {
            let length = mask[row].iter().filter(|&&real| real == 1).count();
            let real = |values: &[i64]| values[..length].to_vec();
            Input { ids: real(&ids[row]).iter().map(|&id| id as u32).collect(), labels: real(&labels[row]) }
        })
        .collect()
}

impl Input {
    /// The passage of which the labels are the target; they must be one run.
    fn passage(&self) -> Passage {
        let start = self.labels.iter().position(|&label| label >= 0).unwrap();
        let end = self.labels.iter().rposition(|&label| label >= 0).unwrap() + 1;
        assert!(self.labels[start..end].iter().all(|&label| label >= 0));
        Passage { ids: self.ids.clone(), target: start..end }
    }
}

#[test]
fn golden_qwen2_logits_loss_and_gradients() {
    let Some(path) = shared_file("AMEND_GOLDEN_QWEN2", "golden/families/qwen2.safetensors") else { return };
    let (tensors, metadata) = read_safetensors(&path);
    let config: Value = serde_json::from_str(&metadata["config"]).unwrap();
    let edited: Vec<String> = serde_json::from_str(&metadata["edited"]).unwrap();
    let weights = tensors
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("weight.")?.to_owned(), tensor.clone())))
        .collect();
    let model = load_folder(&config, &weights, edited.len() / 3);
    let names: Vec<&str> = model.editable().iter().map(|matrix| matrix.name.as_str()).collect();
    assert_eq!(names, edited);

    let inputs = inputs(&tensors);
    for (row, input) in inputs.iter().enumerate() {
        let want = tensors["logits"].i((row, ..input.ids.len())).unwrap();
        assert_close(&format!("logits {row}"), &all_logits(&model, &input.ids), &want, VALUE);
    }

    let passages: Vec<Passage> = inputs.iter().map(Input::passage).collect();
    let captured = capture::capture(&model, &capture::read(&model, &passages).unwrap()).unwrap();
    // The file's loss is the mean over the label tokens of both inputs, a passage's the mean over its own.
    let total: usize = passages.iter().map(|passage| passage.target.len()).sum();
    let shares: Vec<f64> = passages.iter().map(|passage| passage.target.len() as f64 / total as f64).collect();
    let loss: f64 = captured.iter().zip(&shares).map(|(captured, share)| f64::from(captured.loss) * share).sum();
    let loss = Tensor::new(&[loss as f32], model.device()).unwrap();
    assert_close("loss", &loss, &tensors["loss"], VALUE);
    for (matrix, name) in edited.iter().enumerate() {
        let gradients = captured.iter().zip(&shares).map(|(captured, share)| {
            let factors = &captured.factors[matrix];
            (factors.delta.t().unwrap().matmul(&factors.u).unwrap() * *share).unwrap()
        });
        let gradient = gradients.reduce(|sum, part| (sum + part).unwrap()).unwrap();
        assert_close(name, &gradient, &tensors[&format!("grad.{name}")], GRADIENT);
    }
}
