//! One file of the folder, and what is compared with it.

use std::{cell::Cell, collections::HashMap};

use amend::model::{
    Model, Passage,
    capture::{self, Captured, Factors},
};
use candle_core::{IndexOp, Tensor};
use serde_json::Value;

use crate::common::{assert_close, load_folder, read_safetensors, relative_error, shared_file};

/// Of the largest entry.
const TOLERANCE: f32 = 1e-4;

/// A family's tiny model as PyTorch computed it, and the same model loaded.
pub struct Golden {
    pub tensors: HashMap<String, Tensor>,
    pub edited: Vec<String>,
    pub model: Model,
    family: String,
    /// The largest relative error that was seen.
    worst: Cell<f32>,
}

impl Golden {
    /// None, said aloud, where the folder or the family's file in it is absent.
    pub fn load(family: &str) -> Option<Self> {
        let path = shared_file("AMEND_GOLDEN_FAMILIES", "golden/families")?.join(format!("{family}.safetensors"));
        if !path.exists() {
            println!("skipped: {} is absent", path.display());
            return None;
        }
        let (tensors, metadata) = read_safetensors(&path);
        let config: Value = serde_json::from_str(&metadata["config"]).unwrap();
        let edited: Vec<String> = serde_json::from_str(&metadata["edited"]).unwrap();
        let weights = tensors
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix("weight.")?.to_owned(), tensor.clone())))
            .collect();
        let model = load_folder(&config, &weights, tail_blocks(&edited));
        let names: Vec<&str> = model.editable().iter().map(|matrix| matrix.name.as_str()).collect();
        assert_eq!(names, edited, "the editable frontier");
        Some(Self { tensors, edited, model, family: family.to_owned(), worst: Cell::default() })
    }

    /// Fails unless `got` is within the tolerance of `want`'s largest entry.
    pub fn close(&self, what: &str, got: &Tensor, want: &Tensor) {
        assert_close(what, got, want, TOLERANCE);
        self.worst.set(self.worst.get().max(relative_error(got, want)));
    }

    /// Says how close everything was.
    pub fn report(&self) {
        println!("{}: relative error {:.1e}", self.family, self.worst.get());
    }

    /// Whole numbers of a tensor, one vector per input.
    pub fn integers(&self, name: &str) -> Vec<Vec<i64>> {
        self.tensors[name].to_vec2().unwrap()
    }

    /// The real ids of every input: padding stands on the right.
    pub fn inputs(&self) -> Vec<Vec<u32>> {
        let masks = self.integers("attention_mask");
        let real = |(ids, mask): (Vec<i64>, &Vec<i64>)| {
            let length = mask.iter().filter(|&&real| real == 1).count();
            assert!(mask[..length].iter().all(|&real| real == 1), "padding stands on the right");
            ids[..length].iter().map(|&id| u32::try_from(id).unwrap()).collect()
        };
        self.integers("input_ids").into_iter().zip(&masks).map(real).collect()
    }

    /// Rows `[n, d]` of a tensor `[inputs, positions, d]`: the first `lengths` of each input. `padding` says what the
    /// others must be.
    pub fn real_rows(&self, name: &str, lengths: &[usize], padding: Padding) -> Tensor {
        let padded = &self.tensors[name];
        assert_eq!(padded.dim(0).unwrap(), lengths.len(), "{name}: as many inputs as there are");
        let width = padded.dim(1).unwrap();
        let mut rows = Vec::new();
        for (input, &length) in lengths.iter().enumerate() {
            rows.push(padded.i((input, ..length)).unwrap());
            if padding == Padding::Zero && length < width {
                let rest = padded.i((input, length..)).unwrap().abs().unwrap().max_all().unwrap();
                assert_eq!(rest.to_scalar::<f32>().unwrap(), 0.0, "{name}: padding has no gradient");
            }
        }
        Tensor::cat(&rows, 0).unwrap()
    }

    /// Compares every edited matrix's factors, one row per position of `lengths`, and the gradient that they make up.
    pub fn compare_factors(&self, factors: &[Factors], lengths: impl Fn(&str) -> Vec<usize>) {
        assert_eq!(factors.len(), self.edited.len());
        for (name, factors) in self.edited.iter().zip(factors) {
            let lengths = lengths(name);
            let u = self.real_rows(&format!("u.{name}"), &lengths, Padding::Anything);
            let delta = self.real_rows(&format!("delta.{name}"), &lengths, Padding::Zero);
            self.close(&format!("u.{name}"), &factors.u, &u);
            self.close(&format!("delta.{name}"), &factors.delta, &delta);
            self.compare_gradient(name, &factors.delta.t().unwrap().matmul(&factors.u).unwrap());
        }
    }

    /// Compares a gradient `[d_out, d_in]` with the file's, which has the matrix's own layout.
    pub fn compare_gradient(&self, name: &str, gradient: &Tensor) {
        // GPT-2's weights are Conv1Ds: `[d_in, d_out]`.
        let own = if self.family == "gpt2" { gradient.t().unwrap().contiguous().unwrap() } else { gradient.clone() };
        self.close(&format!("grad.{name}"), &own, &self.tensors[&format!("grad.{name}")]);
    }

    /// Compares loss and gradients by the capture of edits. A passage's loss is the mean over its own labels, the file's the
    /// mean over all.
    pub fn compare_capture(&self, passages: &[Passage]) {
        let states = capture::read(&self.model, passages).unwrap();
        let captured = capture::capture(&self.model, &states).unwrap();
        let total: usize = passages.iter().map(|passage| passage.target.len()).sum();
        let shares: Vec<f64> = passages.iter().map(|passage| passage.target.len() as f64 / total as f64).collect();
        self.compare_loss(captured.iter().zip(&shares).map(|(one, share)| f64::from(one.loss) * share).sum());
        for (matrix, name) in self.edited.iter().enumerate() {
            let gradient = |(one, share): (&Captured, &f64)| {
                let factors = &one.factors[matrix];
                (factors.delta.t().unwrap().matmul(&factors.u).unwrap() * *share).unwrap()
            };
            let sum = captured.iter().zip(&shares).map(gradient).reduce(|sum, part| (sum + part).unwrap()).unwrap();
            self.compare_gradient(name, &sum);
        }
    }

    /// Compares a loss.
    pub fn compare_loss(&self, loss: f64) {
        let loss = Tensor::new(&[loss as f32], self.model.device()).unwrap();
        self.close("loss", &loss, &self.tensors["loss"]);
    }
}

/// What a tensor has at padded positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    Zero,
    Anything,
}

/// How many blocks of a stack the edited matrices lie in: names are `STACK.NUMBER.REST`.
fn tail_blocks(edited: &[String]) -> usize {
    let place = |name: &String| {
        let number = name.split('.').position(|part| part.parse::<usize>().is_ok()).unwrap();
        name.split('.').take(number + 1).collect::<Vec<_>>().join(".")
    };
    let mut blocks: Vec<String> = edited.iter().map(place).collect();
    blocks.dedup();
    let stack = |block: &String| block.rsplit_once('.').map(|(stack, _)| stack.to_owned());
    let first = stack(&blocks[0]);
    blocks.iter().filter(|block| stack(block) == first).count()
}
