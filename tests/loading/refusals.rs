//! Hugging Face folders that do not load, and what the refusal says.

use std::{collections::HashMap, path::Path};

use candle_core::Tensor;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    common::{random_weights, tiny_config, write_folder},
    written::{load, refusal},
};

/// The refusal of a folder whose configuration and tensors were changed.
fn refused(change: impl FnOnce(&mut Value, &mut HashMap<String, Tensor>)) -> String {
    let mut config = tiny_config("llama");
    let mut tensors = random_weights(&config, 1);
    change(&mut config, &mut tensors);
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &config, &tensors);
    refusal(load(folder.path()))
}

fn with(key: &str, value: Value) -> String {
    refused(|config, _| config[key] = value)
}

#[test]
fn architectures_are_refused_by_name() {
    for name in ["gemma2", "phi3", "opt", "mbart", ""] {
        let error = with("model_type", json!(name));
        let want = format!("architecture {name:?} is not supported: supported are llama, mistral, qwen2, qwen3, ");
        assert!(error.starts_with(&want), "{error}");
    }
}

#[test]
fn parts_of_an_architecture_are_refused_by_name() {
    let error = with("hidden_act", json!("gelu"));
    assert_eq!(error, "activation \"gelu\" is not supported: supported is silu");
    let error = with("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0}));
    assert_eq!(error, "rope scaling \"yarn\" is not supported: supported are default, linear and llama3");
    let error = with("rope_parameters", json!({"rope_type": "dynamic", "rope_theta": 1e4}));
    assert!(error.starts_with("rope scaling \"dynamic\" is not supported"), "{error}");
    let error = with("rope_scaling", json!({"rope_type": "llama3", "factor": 4.0}));
    assert!(error.contains("config.json is malformed: rope scaling: missing field"), "{error}");
    let error = with("rope_scaling", json!({"type": "linear", "factor": 0.0}));
    assert!(error.contains("rotary divisor 0 is out of range"), "{error}");
    let error = with("partial_rotary_factor", json!(0.5));
    assert_eq!(error, "partial rotary embedding \"0.5 of the dimensions\" is not supported");
}

#[test]
fn a_missing_tensor_is_named() {
    for name in ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.self_attn.v_proj.weight"] {
        let error = refused(|_, tensors| drop(tensors.remove(name)));
        assert!(error.ends_with(&format!("has no tensor {name:?}")), "{error}");
    }
    let error = with("tie_word_embeddings", json!(false));
    assert!(error.ends_with("has no tensor \"lm_head.weight\""), "{error}");
}

#[test]
fn a_wrong_shape_is_named_with_both_shapes() {
    let name = "model.layers.2.mlp.down_proj.weight";
    let error = refused(|_, tensors| {
        let turned = tensors[name].t().unwrap().contiguous().unwrap();
        tensors.insert(name.to_owned(), turned);
    });
    assert!(error.ends_with("model.layers.2.mlp.down_proj.weight has shape [48, 32], expected [32, 48]"), "{error}");
    let error = with("num_key_value_heads", json!(1));
    assert!(error.ends_with("self_attn.k_proj.weight has shape [16, 32], expected [8, 32]"), "{error}");
}

#[test]
fn sizes_that_do_not_fit_are_refused_with_the_numbers() {
    for (key, value, why) in [
        ("hidden_size", json!(0), "hidden size 0 is out of range"),
        ("num_hidden_layers", json!(1u64 << 40), "block count 1099511627776 is out of range"),
        ("num_attention_heads", json!(0), "head count 0 is out of range"),
        ("num_key_value_heads", json!(3), "4 heads do not share 3 key/value heads evenly"),
        ("head_dim", json!(7), "head dimension 7 is odd"),
        ("rms_norm_eps", json!(-1.0), "norm epsilon -1 is out of range"),
        ("rope_theta", json!(0.0), "rotary base 0 is out of range"),
    ] {
        let error = with(key, value);
        assert!(error.ends_with(why), "{key}: {error}");
    }
    let error = with("hidden_size", json!("wide"));
    assert!(error.contains("config.json is malformed"), "{error}");
    let error = with("hidden_size", Value::Null);
    assert!(error.contains("config.json is malformed"), "{error}");
}

/// A token whose id lies beyond the embedding would fail in the middle of a request.
#[test]
fn a_tokenizer_larger_than_the_embedding_is_refused_with_both_sizes() {
    let folder = whole();
    let tokenizer = crate::common::byte_tokenizer(97);
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let error = refusal(load(folder.path()));
    assert!(error.ends_with("its tokenizer has 97 ids, but its embedding has 96 rows"), "{error}");
    let smaller = crate::common::byte_tokenizer(95);
    std::fs::write(folder.path().join("tokenizer.json"), smaller.to_string()).unwrap();
    load(folder.path()).unwrap();
}

fn whole() -> TempDir {
    let config = tiny_config("llama");
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), &config, &random_weights(&config, 1));
    folder
}

#[test]
fn files_that_are_not_there_are_named() {
    let error = refusal(load(Path::new("/nowhere/model.gguf")));
    assert!(error.starts_with("/nowhere/model.gguf: "), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = refusal(load(empty.path()));
    assert!(error.contains("config.json"), "{error}");
    for name in ["config.json", "tokenizer.json"] {
        let folder = whole();
        std::fs::remove_file(folder.path().join(name)).unwrap();
        let error = refusal(load(folder.path()));
        assert!(error.contains(name), "{error}");
    }
    let folder = whole();
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let error = refusal(load(folder.path()));
    assert!(error.ends_with("has no .safetensors file"), "{error}");
}

#[test]
fn more_editable_blocks_than_there_are_is_refused() {
    let folder = whole();
    for tail_blocks in [0, 4] {
        let options = amend::model::LoadOptions { tail_blocks, ..Default::default() };
        let error = amend::model::Model::load(folder.path(), &options).err().unwrap().to_string();
        assert!(error.ends_with(&format!("{tail_blocks} editable blocks asked for, of 3")), "{error}");
    }
}
