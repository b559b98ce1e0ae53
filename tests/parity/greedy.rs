//! What a real model writes, greedily, equals what candle-transformers' `quantized_llama` writes from the same file.
//!
//! Skipped, with a message, where the file is absent.

use amend::model::{LoadOptions, Model};
use candle_core::{Device, Tensor, quantized::gguf_file::Content};
use candle_transformers::models::quantized_llama::ModelWeights;

use crate::common::{all_logits, smollm2};

/// Tokens of a continuation, unless it ends before.
const STEPS: usize = 12;
/// The same where candle, which is slow, takes no part.
const LONG: usize = 40;

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

/// A turn of the user, as the model's chat template writes it.
fn chat(message: &str) -> String {
    format!("<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n")
}

/// Fixed texts of many kinds, chosen among 167 for this alone: at no step of the continuation are the two best tokens
/// closer than 0.4. Both sides round activations to 8 bits, and in another way (the tail here not at all), which moves a
/// difference of logits by about 0.15; closer than that, which token wins says nothing about either.
fn decided() -> Vec<String> {
    let plain = [
        "5, 10, 15, 20, 25,",
        "10, 9, 8, 7, 6,",
        "First, second, third, fourth,",
        "Chapter 1\nChapter 2\nChapter 3\nChapter 4\n",
        "Where is the Eiffel Tower located?",
        "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer The slings and arrows of \
         outrageous",
        "Licensed under the Apache License, Version 2.0 (the \"License\");\nyou may not use this file except in",
        "Copyright (c) 2023\n\nAll rights",
        "try:\n    value = int(text)\nexcept ValueError as",
        "import torch\nimport torch.nn as",
        "#include <stdio.h>\n\nint main() {\n    printf(\"Hello",
        "<ul>\n<li>One</li>\n<li>Two</li>\n",
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n    <meta charset=",
    ];
    let asked = [
        "What is the capital of France?",
        "What is the capital of Russia?",
        "Who was the first president of the United States?",
        "Who wrote Romeo and Juliet?",
        "List the first five letters of the alphabet.",
        "Write a function in Python that returns the factorial of a number.",
        "Summarize: The cat sat on the mat.",
    ];
    plain.map(str::to_owned).into_iter().chain(asked.map(chat)).collect()
}

#[test]
fn greedy_continuations_of_twenty_prompts_equal_candles() {
    let Some(pair) = Pair::load() else { return };
    let prompts = decided();
    assert_eq!(prompts.len(), 20);
    for prompt in prompts {
        let ((ours, _), (theirs, margin)) = (pair.ours(&prompt), pair.theirs(&prompt));
        let text = |ids: &[u32]| pair.model.tokenizer().decode(ids).unwrap();
        assert_eq!(ours, theirs, "{prompt:?} (margin {margin}): {:?}, candle {:?}", text(&ours), text(&theirs));
    }
}

/// Texts that were not chosen.
const ANY: [&str; 10] = [
    "The capital of France is",
    "The largest planet in the solar system is",
    "Water boils at a temperature of",
    "The mother tongue of Danielle Darrieux is",
    "def fibonacci(n):\n",
    "Once upon a time, there was a",
    "red, orange, yellow, green,",
    "How do I bake a cake?",
    "The sun rises in the",
    "The stock market fell today because",
];

/// Decoding uses the head in the file's precision, an edit's report the one in f32: where a report says that a target is
/// greedy, this is what is generated.
#[test]
fn what_is_decoded_is_what_the_f32_head_chooses() {
    let Some(path) = smollm2() else { return };
    let model = Model::load(&path, &LoadOptions::default()).unwrap();
    for prompt in ANY {
        let mut ids = model.tokenizer().encode_prompt(prompt).unwrap();
        let (start, mut sequence) = (ids.len(), model.start());
        for _ in 0..LONG {
            let fed = sequence.len();
            let logits = model.forward(&mut sequence, &ids[fed..], model.base().as_ref()).unwrap();
            ids.push(argmax(&logits));
        }
        let all = all_logits(&model, &ids).to_vec2::<f32>().unwrap();
        let chosen: Vec<u32> = all[start - 1..ids.len() - 1].iter().map(|logits| argmax(logits)).collect();
        assert_eq!(ids[start..], chosen, "{prompt:?}");
    }
}

/// Ours is fed what candle's writes; where the two would part, candle's own two best tokens are close.
#[test]
fn where_the_two_part_candles_was_undecided() {
    let Some(mut pair) = Pair::load() else { return };
    let (mut tokens, mut parted) = (0, 0);
    for prompt in ANY {
        let mut ids = pair.model.tokenizer().encode_prompt(prompt).unwrap();
        let (mut sequence, mut fed) = (pair.model.start(), 0);
        pair.oracle.clear_kv_cache();
        for _ in 0..STEPS {
            let input = Tensor::new(&ids[fed..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let theirs: Vec<f32> = pair.oracle.forward(&input, fed).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let ours = pair.model.forward(&mut sequence, &ids[fed..], pair.model.base().as_ref()).unwrap();
            (fed, tokens) = (ids.len(), tokens + 1);
            if argmax(&ours) != argmax(&theirs) {
                parted += 1;
                eprintln!("{prompt:?}, token {tokens}: margin {}", margin(&theirs));
                assert!(margin(&theirs) < 0.8, "{prompt:?}: candle's margin is {}", margin(&theirs));
            }
            ids.push(argmax(&theirs));
        }
    }
    eprintln!("{parted} of {tokens} tokens differ");
    assert!(parted * 10 < tokens, "{parted} of {tokens} tokens differ");
}
