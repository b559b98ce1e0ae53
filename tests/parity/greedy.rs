//! What a real model writes, greedily, equals what candle-transformers' `quantized_llama` writes from the same file.
//!
//! Skipped, with a message, where the file is absent.

use amend::model::{LoadOptions, Model};
use candle_core::{Device, Tensor, quantized::gguf_file::Content};
use candle_transformers::models::quantized_llama::ModelWeights;

use crate::common::smollm2;

/// Tokens of a continuation, unless it ends before.
const STEPS: usize = 12;

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
    best.map_or(0, |(id, _)| id as u32)
}

/// How much the best logit is above the second.
fn margin(logits: &[f32]) -> f32 {
    let mut sorted = logits.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted[0] - sorted[1]
}

struct Pair {
    model: Model,
    oracle: ModelWeights,
}

impl Pair {
    fn load() -> Option<Self> {
        let path = smollm2()?;
        let mut file = std::fs::File::open(&path).unwrap();
        let content = Content::read(&mut file).unwrap();
        Some(Self {
            oracle: ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap(),
            model: Model::load(&path, &LoadOptions::default()).unwrap(),
        })
    }

    /// The greedy continuation of `prompt` by logits that `next` gives for the newest ids, and their least margin.
    fn continue_by(&self, prompt: &str, mut next: impl FnMut(&[u32], usize) -> Vec<f32>) -> (Vec<u32>, f32) {
        let mut ids = self.model.tokenizer().encode_prompt(prompt).unwrap();
        let (start, mut fed, mut least) = (ids.len(), 0, f32::INFINITY);
        for _ in 0..STEPS {
            let logits = next(&ids[fed..], fed);
            (fed, least) = (ids.len(), least.min(margin(&logits)));
            ids.push(argmax(&logits));
            if self.model.tokenizer().is_end(argmax(&logits)) {
                break;
            }
        }
        (ids.split_off(start), least)
    }

    fn ours(&self, prompt: &str) -> (Vec<u32>, f32) {
        let mut sequence = self.model.start();
        let next = |ids: &[u32], _| self.model.forward(&mut sequence, ids, self.model.base().as_ref()).unwrap();
        self.continue_by(prompt, next)
    }

    fn theirs(&self, prompt: &str) -> (Vec<u32>, f32) {
        let mut oracle = self.oracle.clone();
        oracle.clear_kv_cache();
        self.continue_by(prompt, |ids, past| {
            let input = Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            oracle.forward(&input, past).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        })
    }
}

#[test]
fn screen() {
    let Some(pair) = Pair::load() else { return };
    let text = std::fs::read_to_string("/tmp/probe/candidates.txt").unwrap();
    let mut rows: Vec<_> = text.lines().map(|line| line.replace("\\n", "\n")).map(|p| (pair.ours(&p), p)).collect();
    rows.sort_by(|a, b| b.0 .1.total_cmp(&a.0 .1));
    for ((ids, least), prompt) in rows {
        eprintln!("{least:.3} {:2} {prompt:?} -> {:?}", ids.len(), pair.model.tokenizer().decode(&ids).unwrap());
    }
}
