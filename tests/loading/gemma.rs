//! A Gemma 3 GGUF file computes what the same weights from a Hugging Face folder compute: its own names for norms, whose
//! weights it stores with one added.

use std::collections::HashMap;

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file, gguf_file::Value},
};
use serde_json::json;

use crate::{
    common::{all_logits, assert_close, families, load_folder, random_ids},
    written::load_bytes,
};

const PARTS: [(&str, &str); 13] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

fn stored_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => "token_embd.weight".to_owned(),
        "model.norm.weight" => "output_norm.weight".to_owned(),
        _ => {
            let (block, part) = name.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
            let stored = PARTS.iter().find(|(ours, _)| format!("{ours}.weight") == part).unwrap().1;
            format!("blk.{block}.{stored}.weight")
        }
    }
}

/// A vocabulary of 96 characters, the space and bytes of kind `llama`.
fn tokenizer() -> Vec<(&'static str, Value)> {
    let tokens = (0..96u8).map(|id| match id {
        0 => "<pad>".to_owned(),
        1 => "<eos>".to_owned(),
        2 => "<bos>".to_owned(),
        3 => "<unk>".to_owned(),
        4 => "▁".to_owned(),
        _ => char::from(b'!' + id - 5).to_string(),
    });
    let kinds = (0..96).map(|id| Value::I32(if id < 4 { 3 } else { 1 }));
    vec![
        ("tokenizer.ggml.model", Value::String("llama".to_owned())),
        ("tokenizer.ggml.tokens", Value::Array(tokens.map(Value::String).collect())),
        ("tokenizer.ggml.token_type", Value::Array(kinds.collect())),
        ("tokenizer.ggml.scores", Value::Array(vec![Value::F32(0.0); 96])),
        ("tokenizer.ggml.bos_token_id", Value::U32(2)),
        ("tokenizer.ggml.eos_token_id", Value::U32(1)),
        ("tokenizer.ggml.add_space_prefix", Value::Bool(false)),
    ]
}

fn write(config: &serde_json::Value, weights: &HashMap<String, Tensor>) -> Vec<u8> {
    let number = |name: &str| Value::U32(config[name].as_u64().unwrap() as u32);
    let mut metadata = vec![
        ("general.architecture", Value::String("gemma3".to_owned())),
        ("gemma3.context_length", number("max_position_embeddings")),
        ("gemma3.embedding_length", number("hidden_size")),
        ("gemma3.feed_forward_length", number("intermediate_size")),
        ("gemma3.block_count", number("num_hidden_layers")),
        ("gemma3.attention.head_count", number("num_attention_heads")),
        ("gemma3.attention.head_count_kv", number("num_key_value_heads")),
        ("gemma3.attention.key_length", number("head_dim")),
        ("gemma3.attention.sliding_window", number("sliding_window")),
        ("gemma3.attention.layer_norm_rms_epsilon", Value::F32(1e-6)),
    ];
    metadata.extend(tokenizer());
    let stored: Vec<(String, QTensor)> = weights
        .iter()
        .map(|(name, tensor)| {
            let tensor = if tensor.rank() == 1 { (tensor + 1.0).unwrap() } else { tensor.clone() };
            (stored_name(name), QTensor::quantize(&tensor, GgmlDType::F32).unwrap())
        })
        .collect();
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = stored.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut bytes = std::io::Cursor::new(Vec::new());
    gguf_file::write(&mut bytes, &metadata, &tensors).unwrap();
    bytes.into_inner()
}

#[test]
fn gemma3_equals_the_folders() {
    let (mut config, weights) = families::tiny("gemma3_text", 5);
    // What GGUF files leave unsaid.
    config["query_pre_attn_scalar"] = config["head_dim"].clone();
    config["sliding_window_pattern"] = json!(6);
    let folder = load_folder(&config, &weights, 1);
    let model = load_bytes(&write(&config, &weights)).unwrap();
    assert_eq!(model.editable(), folder.editable());
    let ids = random_ids(96, 24, 3);
    let want = all_logits(&folder, &ids);
    assert_close("gemma3", &all_logits(&model, &ids), &want, 1e-5);
    let decoded = model.forward(&mut model.start(), &ids, model.base().as_ref()).unwrap();
    assert_close("decoding", &Tensor::new(decoded, &Device::Cpu).unwrap(), &want.get(23).unwrap(), 1e-5);
    assert_eq!(model.tokenizer().encode_prompt("! !").unwrap(), [2, 5, 4, 5]);
    assert_eq!(model.tokenizer().decode(&[2, 5, 4, 5, 1]).unwrap(), "! !");
}
