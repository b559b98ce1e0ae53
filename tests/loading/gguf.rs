//! A GGUF file computes what the same weights from a Hugging Face folder compute, in every type that loads.

use amend::model::Model;
use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file::Value},
};
use serde_json::json;

use crate::{
    common::{all_logits, assert_close, load_folder, random_ids},
    written::{Gguf, config, refusal},
};

/// Of the largest logit, where nothing is quantized.
const EXACT: f32 = 1e-5;
/// The same where activations are quantized to 8 bits: two blocks of it.
const QUANTIZED: f32 = 0.05;

fn compare(what: &str, file: &Gguf, config: &serde_json::Value, tolerance: f32) -> Model {
    let model = file.load().unwrap();
    let folder = load_folder(config, &file.values(), 1);
    assert_eq!(model.architecture(), config["model_type"]);
    assert_eq!(model.editable(), folder.editable());
    for (stored, dense) in model.base().tensors().iter().zip(folder.base().tensors()) {
        assert_close(&format!("{what}, an editable matrix"), stored, dense, 0.0);
    }
    let ids = random_ids(96, 24, 3);
    let want = all_logits(&folder, &ids);
    assert_close(what, &all_logits(&model, &ids), &want, tolerance);
    let decoded = model.forward(&mut model.start(), &ids, model.base().as_ref()).unwrap();
    let last = want.get(ids.len() - 1).unwrap();
    assert_close(&format!("{what}, decoding"), &Tensor::new(decoded, &Device::Cpu).unwrap(), &last, tolerance);
    model
}

#[test]
fn every_type_equals_the_same_values_from_a_folder() {
    let types = [
        (GgmlDType::F32, EXACT),
        (GgmlDType::F16, EXACT),
        (GgmlDType::BF16, EXACT),
        (GgmlDType::Q8_0, QUANTIZED),
        (GgmlDType::Q4_0, QUANTIZED),
        (GgmlDType::Q4_1, QUANTIZED),
        (GgmlDType::Q5_0, QUANTIZED),
        (GgmlDType::Q5_1, QUANTIZED),
        (GgmlDType::Q2K, QUANTIZED),
        (GgmlDType::Q3K, QUANTIZED),
        (GgmlDType::Q4K, QUANTIZED),
        (GgmlDType::Q5K, QUANTIZED),
        (GgmlDType::Q6K, QUANTIZED),
    ];
    for (dtype, tolerance) in types {
        let config = config("llama");
        compare(&format!("{dtype:?}"), &Gguf::new(&config, dtype), &config, tolerance);
    }
}

#[test]
fn an_untied_head_equals_the_folders() {
    let mut config = config("llama");
    config["tie_word_embeddings"] = json!(false);
    compare("untied", &Gguf::new(&config, GgmlDType::F32), &config, EXACT);
}

#[test]
fn qwen2_keeps_its_rows_and_its_biases() {
    let config = config("qwen2");
    compare("qwen2", &Gguf::new(&config, GgmlDType::F32), &config, EXACT);
    compare("qwen2, quantized", &Gguf::new(&config, GgmlDType::Q8_0), &config, QUANTIZED);
}

#[test]
fn qwen3_keeps_its_norms_and_its_head_dimension() {
    let mut config = config("qwen3");
    config["head_dim"] = json!(128);
    compare("qwen3", &Gguf::new(&config, GgmlDType::F16), &config, EXACT);
}

#[test]
fn the_tokenizer_is_the_same_and_the_name_is_the_files() {
    let config = config("llama");
    let model = compare("names", &Gguf::new(&config, GgmlDType::F32), &config, EXACT);
    let folder = load_folder(&config, &Gguf::new(&config, GgmlDType::F32).values(), 1);
    for text in ["Paris is", " 12 bytes!", "a\tb"] {
        assert_eq!(model.tokenizer().encode(text).unwrap(), folder.tokenizer().encode(text).unwrap(), "{text:?}");
    }
    assert_eq!((model.name(), model.context_length(), model.vocab_size()), ("tiny", 512, 96));
}

/// Llama 3's scaling, as its GGUF files say it: a divisor for each frequency.
#[test]
fn rope_freqs_equal_llama3_scaling() {
    let mut config = config("llama");
    let mut file = Gguf::new(&config, GgmlDType::F32);
    let half = 256 / 4 / 2;
    let (factor, low, high, original) = (8f64, 1f64, 4f64, 256f64);
    let divisors: Vec<f32> = (0..half)
        .map(|i| {
            let rotations = original / (2.0 * std::f64::consts::PI * 10_000f64.powf(i as f64 / half as f64));
            let blend = ((rotations - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - blend) / factor + blend)) as f32
        })
        .collect();
    let weights = file.values();
    let ids = random_ids(96, 24, 3);
    let plain = all_logits(&file.load().unwrap(), &ids);
    let divisors = Tensor::new(divisors, &Device::Cpu).unwrap();
    file.tensors.push(("rope_freqs.weight".to_owned(), QTensor::quantize(&divisors, GgmlDType::F32).unwrap()));
    config["rope_scaling"] = json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low,
        "high_freq_factor": high, "original_max_position_embeddings": original});
    let folder = load_folder(&config, &weights, 1);
    let scaled = all_logits(&file.load().unwrap(), &ids);
    assert_close("rope_freqs", &scaled, &all_logits(&folder, &ids), EXACT);
    assert!(crate::common::relative_error(&scaled, &plain) > 100.0 * EXACT, "the scaling is too weak to be tested");
}

#[test]
fn linear_scaling_equals_the_folders() {
    let mut config = config("llama");
    let mut file = Gguf::new(&config, GgmlDType::F32);
    file.set("llama.rope.scaling.type", Value::String("linear".to_owned()));
    file.set("llama.rope.scaling.factor", Value::F32(4.0));
    config["rope_scaling"] = json!({"type": "linear", "factor": 4.0});
    compare("linear", &file, &config, EXACT);
}

#[test]
fn what_a_gguf_file_asks_for_and_we_lack_is_refused_by_name() {
    let file = |change: &dyn Fn(&mut Gguf)| {
        let mut file = Gguf::new(&config("llama"), GgmlDType::F32);
        change(&mut file);
        refusal(file.load())
    };
    let text = |text: &str| Value::String(text.to_owned());
    for name in ["gpt2", "gemma2", "bert"] {
        let error = file(&|file| file.set("general.architecture", text(name)));
        let want =
            format!("architecture {name:?} is not supported: supported are llama, mistral, qwen2, qwen3, gemma3");
        assert_eq!(error, want);
    }
    let error = file(&|file| file.set("llama.rope.scaling.type", text("yarn")));
    assert!(error.starts_with("rope scaling \"yarn\" is not supported"), "{error}");
    let error = file(&|file| file.set("llama.rope.dimension_count", Value::U32(16)));
    assert_eq!(error, "partial rotary embedding \"16 of 64 dimensions\" is not supported");
    let error = file(&|file| file.set("tokenizer.ggml.model", text("t5")));
    assert!(error.starts_with("GGUF tokenizer \"t5\" is not supported"), "{error}");
    let error = file(&|file| file.metadata.retain(|(key, _)| key != "llama.block_count"));
    assert!(error.ends_with("has no metadata \"llama.block_count\""), "{error}");
    let error = file(&|file| file.set("llama.block_count", text("two")));
    assert!(error.ends_with("metadata \"llama.block_count\" has the wrong type"), "{error}");
    let error = file(&|file| file.tensors.retain(|(name, _)| name != "blk.1.ffn_up.weight"));
    assert!(error.ends_with("has no tensor \"blk.1.ffn_up.weight\""), "{error}");
    let error = file(&|file| file.tensors.retain(|(name, _)| name != "token_embd.weight"));
    assert!(error.ends_with("has no token_embd.weight"), "{error}");
    let error = file(&|file| file.set("llama.feed_forward_length", Value::U32(511)));
    assert!(error.ends_with("blk.0.ffn_gate.weight has shape [512, 256], expected [511, 256]"), "{error}");
}
