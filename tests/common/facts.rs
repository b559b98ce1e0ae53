//! A small world that a tiny random network can be taught in seconds: names, two ways to ask about one, and answers. A word
//! is a token.
//!
//! Random weights alone make poor ground for an editor: what a block adds drowns what a token is, and no answer stands out
//! from the others. So they are drawn as ever and then scaled, until the name in a question can be told from others where
//! the answer is predicted, and the network has one answer, or none, for all of them.

use std::{collections::HashMap, path::Path, sync::atomic::AtomicBool};

use amend::{
    digest::Digest,
    editor::CompositionKind,
    model::{Kind, LoadOptions, Model},
    training::{
        LocalityMix, Recipe, RunOptions,
        dataset::{Dataset, Record},
        trainer::{self, Inputs},
    },
};
use candle_core::{Device, Tensor};
use serde_json::{Map, Value, json};

use super::{families, write_folder};

/// Blocks of each stack whose matrices are edited.
pub const TAIL_BLOCKS: usize = 2;
const NAMES: usize = 10;
const ANSWERS: usize = 12;
/// Where names and answers begin in the vocabulary.
const FIRST_NAME: usize = 12;
const FIRST_ANSWER: usize = 76;
/// What a causal network says of everything.
const DEFAULT: usize = 2;
const LABELS: [&str; 3] = ["red", "green", "blue"];
const WAYS_TO_ASK: [&str; 2] = ["where is", "home of"];

/// A network of the family, as a folder that `amend` loads.
pub fn write_model(path: &Path, family: &str) {
    let (mut config, mut tensors) = families::tiny(family, 5);
    if family == "bart" {
        config["eos_token_id"] = json!(2);
    }
    match family {
        // Tells words apart as it is drawn.
        "bert" => {}
        "t5" | "bart" => answering(&mut tensors),
        _ => continuing(family, &mut tensors),
    }
    std::fs::create_dir_all(path).unwrap();
    write_folder(path, &config, &tensors);
    std::fs::write(path.join("tokenizer.json"), tokenizer().to_string()).unwrap();
}

/// Every word a token of its own, SentencePiece's way; the first three are special.
fn tokenizer() -> Value {
    let special = ["<0>", "<1>", "<2>"];
    let asking = ["where", "is", "home", "of", "so", "say", "the", "now"].map(str::to_owned);
    let names = (0..FIRST_ANSWER - FIRST_NAME).map(|name| format!("N{name}"));
    let words = asking.into_iter().chain(names).chain((0..ANSWERS).map(|answer| format!("A{answer}")));
    let words =
        special.map(str::to_owned).into_iter().chain(["<unk>".to_owned()]).chain(words.map(|word| format!("▁{word}")));
    let vocab: Map<String, Value> = words.zip(0..).map(|(word, id): (String, usize)| (word, json!(id))).collect();
    let added = |(id, content): (usize, &&str)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true})
    };
    let added: Vec<Value> = special.iter().enumerate().map(added).collect();
    let spaces = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    json!({"version": "1.0", "added_tokens": added, "normalizer": null, "pre_tokenizer": spaces, "post_processor": null,
        "decoder": spaces, "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}})
}

/// What the tensor is multiplied by so that tokens stay themselves: little from attention, MLPs and places.
fn calm(name: &str, blocks: f64, embedding: f64, across: f64) -> f64 {
    let ends = |list: &[&str]| list.iter().any(|end| name.ends_with(end));
    match name {
        _ if name.contains("wpe") || name.contains("position") || name.ends_with("bias") => 0.1,
        _ if ends(&["EncDecAttention.o.weight", "encoder_attn.out_proj.weight"]) => across,
        _ if ends(&["c_proj.weight", "out_proj.weight", "o_proj.weight", "SelfAttention.o.weight"]) => blocks,
        _ if ends(&["fc_out.weight", "down_proj.weight", "wo.weight", "fc2.weight"]) => blocks,
        _ if ends(&["q_proj.weight", "k_proj.weight", ".q.weight", ".k.weight"]) => 0.3,
        _ if is_embedding(name) => embedding,
        _ => 1.0,
    }
}

fn is_embedding(name: &str) -> bool {
    ["wte.weight", "shared.weight", "embed_tokens.weight"].iter().any(|end| name.ends_with(end))
}

fn is_norm(name: &str, tensor: &Tensor) -> bool {
    tensor.rank() == 1 && name.ends_with("weight")
}

/// Rows `[rows, width]`, each times a number of its own.
fn scale_rows(tensor: &Tensor, factor: impl Fn(usize) -> f32) -> Tensor {
    let factors: Vec<f32> = (0..tensor.dim(0).unwrap()).map(factor).collect();
    tensor.broadcast_mul(&Tensor::from_vec(factors, (tensor.dim(0).unwrap(), 1), &Device::Cpu).unwrap()).unwrap()
}

/// A decoder-only network: one dimension is the same for all tokens but the default, which so stands out in its head.
fn continuing(family: &str, tensors: &mut HashMap<String, Tensor>) {
    let (same, stands_out) = match family {
        "gemma3_text" => (1.0, 2.0),
        "llama" => (2.0, 2.2),
        _ => (2.0, 1.9),
    };
    for (name, tensor) in tensors.iter_mut() {
        *tensor = match name {
            // Gemma's norms multiply by one more than their weight.
            _ if is_norm(name, tensor) && family != "gemma3_text" => tensor.affine(0.2, 0.8).unwrap(),
            _ if is_norm(name, tensor) && name.contains("post_attention") => tensor.affine(0.2, -0.8).unwrap(),
            _ if is_norm(name, tensor) => tensor.affine(0.2, -0.2).unwrap(),
            _ => (&*tensor * calm(name, 0.4, 0.4, 1.0)).unwrap(),
        };
        if is_embedding(name) {
            let width = tensor.dim(1).unwrap();
            let ones = tensor.narrow(1, 0, 1).unwrap().ones_like().unwrap();
            let first = scale_rows(&ones, |row| if row == DEFAULT { same * stands_out } else { same });
            let others = tensor.narrow(1, 1, width - 1).unwrap().contiguous().unwrap();
            *tensor = Tensor::cat(&[&first, &others], 1).unwrap();
        }
    }
    if let Some(head) = tensors.contains_key("lm_head.weight").then(|| tensors["transformer.wte.weight"].clone()) {
        tensors.insert("lm_head.weight".to_owned(), head);
        tensors.remove("lm_head.bias");
    }
}

/// An encoder with a decoder whose answer is the end, whatever is asked.
fn answering(tensors: &mut HashMap<String, Tensor>) {
    let bart = tensors.contains_key("final_logits_bias");
    let (across, start, names, others) = if bart { (0.5, 1.0, 2.0, 0.3) } else { (0.3, 5.0, 3.0, 0.6) };
    for (name, tensor) in tensors.iter_mut() {
        *tensor = match name {
            _ if is_norm(name, tensor) => tensor.affine(0.2, 0.8).unwrap(),
            _ => (&*tensor * calm(name, 0.2, 1.0, across)).unwrap(),
        };
        if is_embedding(name) {
            *tensor = scale_rows(tensor, |row| match row {
                0 | FIRST_ANSWER.. => start,
                FIRST_NAME..FIRST_ANSWER => names,
                _ => others,
            });
        }
    }
    if bart {
        let bias = |row| match row {
            DEFAULT => 5.0,
            FIRST_NAME..FIRST_ANSWER => -10.0,
            _ => 0.0f32,
        };
        let bias: Vec<f32> = (0..tensors["final_logits_bias"].dim(1).unwrap()).map(bias).collect();
        let bias = Tensor::new(bias, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        tensors.insert("final_logits_bias".to_owned(), bias);
        return;
    }
    // T5's head has no bias: the end's row looks for what the decoder begins with, and for every answer.
    let (embedding, head) = (tensors["shared.weight"].clone(), tensors["lm_head.weight"].clone());
    let answers = embedding.narrow(0, FIRST_ANSWER, ANSWERS).unwrap().sum_keepdim(0).unwrap();
    let end = ((embedding.narrow(0, 0, 1).unwrap() + answers).unwrap() * 0.4).unwrap();
    let rest = head.narrow(0, 2, head.dim(0).unwrap() - 2).unwrap();
    let head = Tensor::cat(&[&head.narrow(0, 0, 1).unwrap(), &end, &rest], 0).unwrap();
    tensors.insert("lm_head.weight".to_owned(), head);
}

/// Facts to train on, or others: names are shared, which name has which answer is not.
pub fn records(kind: Kind, held_out: bool) -> Vec<Record> {
    let classifier = kind == Kind::Classifier;
    let count = if classifier { LABELS.len() } else { ANSWERS };
    let answer = |number: usize| match classifier {
        true => LABELS[number % LABELS.len()].to_owned(),
        false => format!("A{}", number % ANSWERS),
    };
    let mut records = Vec::new();
    for (name, target) in (0..NAMES).flat_map(|name| (0..count).map(move |target| (name, target))) {
        // A classifier has too few labels to keep some of them from a name: it is trained on one way to ask and meets both.
        if !classifier && ((name * 5 + target) % 4 == 0) != held_out {
            continue;
        }
        let other = (name + 1 + (target * 7 + name) % (NAMES - 1)) % NAMES;
        for way in 0..WAYS_TO_ASK.len() {
            records.push(Record {
                prompt: format!("{} N{name}", WAYS_TO_ASK[way]),
                target: answer(target),
                old_target: None,
                paraphrase: format!("{} N{name}", WAYS_TO_ASK[1 - way]),
                locality_prompt: format!("{} N{other}", WAYS_TO_ASK[(target + name) % 2]),
                locality_target: answer(other * 5 + target + 1),
            });
        }
    }
    records
}

/// Trains an editor for the network in this folder, in so many steps.
pub fn train_editor(path: &Path, model: &Path, steps: u64) {
    let model = Model::load(model, &LoadOptions { tail_blocks: TAIL_BLOCKS, ..LoadOptions::default() }).unwrap();
    let data = |held_out: bool| Dataset {
        left_out: 0,
        records: records(model.kind(), held_out),
        digest: Digest::of(format!("{held_out}").as_bytes()),
    };
    let recipe = Recipe {
        rank: 16,
        composition: CompositionKind::Sum,
        whitening: Some(0.1),
        edits_per_step: 16,
        simultaneous: vec![1],
        learning_rate: 1e-2,
        lr_scale_rate: 3e-2,
        edit_weight: 0.15,
        locality_mix: LocalityMix { neighbour: 0.5, other: 0.5, text: 0.0 },
        steps,
        warmup: 10,
        ..Recipe::default()
    };
    let cache = tempfile::tempdir().unwrap();
    let options = RunOptions {
        out: path.to_owned(),
        cache: cache.path().to_owned(),
        validate_every: 100,
        validation_records: 60,
        patience: 100,
        resume: false,
        from: Vec::new(),
        max_minutes: None,
        threads: 1,
    };
    let (train, validation, stop) = (data(false), data(true), AtomicBool::new(false));
    let inputs = Inputs { model: &model, train: &train, validation: &validation, running_text: None, stop: &stop };
    let summary = trainer::train(&inputs, &recipe, &options).unwrap();
    let best = summary.history.best().unwrap().sets[0];
    println!("{}: {best:?} after {:.1} s", model.architecture(), summary.seconds);
}
