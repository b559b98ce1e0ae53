//! Logits equal those of candle-transformers' own models on the same weights, after every prefix of a text.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, mistral, qwen2, qwen3};
use serde_json::{Value, json};

use crate::common::{all_logits, assert_close, load_folder, random_ids, random_weights, relative_error, tiny_config};

/// Of the largest logit. What remains is the order of f32 additions.
const TOLERANCE: f32 = 1e-5;
/// Tokens of the text.
const LENGTH: usize = 40;

/// Logits `[vocabulary]` after the last of some ids, from a fresh start.
type Oracle = Box<dyn FnMut(&Tensor) -> candle_core::Result<Tensor>>;

fn oracle(config: &Value, tensors: &HashMap<String, Tensor>) -> Oracle {
    let weights = VarBuilder::from_tensors(tensors.clone(), DType::F32, &Device::Cpu);
    match config["model_type"].as_str().unwrap() {
        "llama" => {
            let config: llama::LlamaConfig = serde_json::from_value(config.clone()).unwrap();
            let config = config.into_config(false);
            let model = llama::Llama::load(weights, &config).unwrap();
            Box::new(move |ids| {
                let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?;
                model.forward(ids, 0, &mut cache)
            })
        }
        "mistral" => {
            let config: mistral::Config = serde_json::from_value(config.clone()).unwrap();
            let mut model = mistral::Model::new(&config, weights).unwrap();
            Box::new(move |ids| {
                model.clear_kv_cache();
                model.forward(ids, 0)
            })
        }
        "qwen2" => {
            let config: qwen2::Config = serde_json::from_value(config.clone()).unwrap();
            let mut model = qwen2::ModelForCausalLM::new(&config, weights).unwrap();
            Box::new(move |ids| {
                model.clear_kv_cache();
                model.forward(ids, 0)
            })
        }
        "qwen3" => {
            let config: qwen3::Config = serde_json::from_value(config.clone()).unwrap();
            let mut model = qwen3::ModelForCausalLM::new(&config, weights).unwrap();
            Box::new(move |ids| {
                model.clear_kv_cache();
                model.forward(ids, 0)
            })
        }
        other => panic!("no oracle for {other}"),
    }
}

fn config(model_type: &str, changes: &Value) -> Value {
    let mut config = tiny_config(model_type);
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

/// Compares the network with its oracle after each prefix, by the path that gradients take and by the one that decodes.
fn compare(what: &str, config: &Value) {
    let tensors = random_weights(config, 7);
    let model = load_folder(config, &tensors, 2);
    let mut oracle = oracle(config, &tensors);
    let ids = random_ids(model.vocab_size(), LENGTH, 11);
    let all = all_logits(&model, &ids);
    for end in 1..=LENGTH {
        let input = Tensor::new(&ids[..end], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let want = oracle(&input).unwrap().flatten_all().unwrap();
        assert_close(&format!("{what}, position {end}"), &all.get(end - 1).unwrap(), &want, TOLERANCE);
        if [1, 2, 17, LENGTH].contains(&end) {
            let got = model.forward(&mut model.start(), &ids[..end], model.base().as_ref()).unwrap();
            assert_close(
                &format!("{what}, decoding at {end}"),
                &Tensor::new(got, &Device::Cpu).unwrap(),
                &want,
                TOLERANCE,
            );
        }
    }
}

#[test]
fn llama_equals_candles() {
    compare("grouped keys, tied", &tiny_config("llama"));
    compare(
        "own keys for each head, untied",
        &config("llama", &json!({"num_key_value_heads": 4, "tie_word_embeddings": false})),
    );
    compare("one key head, another base", &config("llama", &json!({"num_key_value_heads": 1, "rope_theta": 500.0})));
}

/// Wavelengths of this head are 6 to 3,500 positions: below, between and beyond the two bounds (64 and 256).
fn llama3_scaling() -> Value {
    json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 256})
}

#[test]
fn llama3_rope_scaling_equals_candles() {
    let scaled = config("llama", &json!({"hidden_size": 64, "rope_scaling": llama3_scaling()}));
    compare("llama3 scaling", &scaled);
    compare(
        "llama3 scaling, untied",
        &config("llama", &json!({"tie_word_embeddings": false, "rope_scaling": llama3_scaling()})),
    );
    let plain = config("llama", &json!({"hidden_size": 64}));
    let tensors = random_weights(&plain, 7);
    let ids = random_ids(96, LENGTH, 11);
    let error = relative_error(
        &all_logits(&load_folder(&scaled, &tensors, 2), &ids),
        &all_logits(&load_folder(&plain, &tensors, 2), &ids),
    );
    assert!(error > 100.0 * TOLERANCE, "the scaling is too weak to be tested: {error}");
}

#[test]
fn mistral_equals_candles() {
    compare("mistral", &config("mistral", &json!({"tie_word_embeddings": false, "use_flash_attn": false})));
}

/// Fields that candle's Qwen configurations ask for. The window is switched off, but candle's masks by it regardless.
fn qwen(model_type: &str, changes: &Value) -> Value {
    let mut fields = json!({"sliding_window": 4096, "max_window_layers": 3, "use_sliding_window": false});
    fields.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config(model_type, &fields)
}

#[test]
fn qwen2_with_biases_equals_candles() {
    compare("qwen2, tied", &qwen("qwen2", &json!({})));
    compare("qwen2, untied", &qwen("qwen2", &json!({"tie_word_embeddings": false, "rope_theta": 1e6})));
}

#[test]
fn qwen3_with_norms_and_a_wider_head_equals_candles() {
    compare("qwen3, tied", &qwen("qwen3", &json!({"head_dim": 16, "attention_bias": false})));
    compare(
        "qwen3, untied",
        &qwen("qwen3", &json!({"head_dim": 6, "attention_bias": false, "tie_word_embeddings": false})),
    );
}
