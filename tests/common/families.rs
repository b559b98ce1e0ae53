//! A tiny network of every family: its configuration and random weights by Hugging Face's names.

use std::collections::HashMap;

use candle_core::Tensor;
use serde_json::{Value, json};

use super::{Draw, random_weights, tiny_config};

/// Decoder-only families, by `model_type`.
pub const CAUSAL: [&str; 6] = ["llama", "qwen3", "gemma3_text", "gpt2", "gpt_neo", "gptj"];
/// Families of an encoder and a decoder.
pub const ENCODER_DECODERS: [&str; 2] = ["t5", "bart"];
/// Blocks of each, of an encoder and of a decoder.
pub const BLOCKS: usize = 3;

const VOCABULARY: usize = 96;
const HIDDEN: usize = 24;
const HEADS: usize = 3;
const INNER: usize = 40;
const CONTEXT: usize = 64;

/// Configuration and weights of a family.
pub fn tiny(family: &str, seed: u64) -> (Value, HashMap<String, Tensor>) {
    match family {
        "gpt2" => gpt2(seed),
        "gpt_neo" => gpt_neo(seed),
        "gptj" => gptj(seed),
        "gemma3_text" => gemma3(seed),
        "t5" => t5(seed),
        "bart" => bart(seed),
        "bert" => bert(seed),
        _ => {
            let config = tiny_config(family);
            let weights = random_weights(&config, seed);
            (config, weights)
        }
    }
}

fn gpt2(seed: u64) -> (Value, HashMap<String, Tensor>) {
    let config = json!({
        "model_type": "gpt2", "vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": HIDDEN, "n_layer": BLOCKS,
        "n_head": HEADS, "n_inner": INNER, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "scale_attn_by_inverse_layer_idx": true,
    });
    let mut draw = Draw::new(seed);
    draw.put("transformer.wte.weight".to_owned(), &[VOCABULARY, HIDDEN]);
    draw.put("transformer.wpe.weight".to_owned(), &[CONTEXT, HIDDEN]);
    norm(&mut draw, "transformer.ln_f");
    for block in 0..BLOCKS {
        let name = |part: &str| format!("transformer.h.{block}.{part}");
        norm(&mut draw, &name("ln_1"));
        norm(&mut draw, &name("ln_2"));
        for (part, d_in, d_out) in [
            ("attn.c_attn", HIDDEN, 3 * HIDDEN),
            ("attn.c_proj", HIDDEN, HIDDEN),
            ("mlp.c_fc", HIDDEN, INNER),
            ("mlp.c_proj", INNER, HIDDEN),
        ] {
            draw.put(name(&format!("{part}.weight")), &[d_in, d_out]);
            draw.put(name(&format!("{part}.bias")), &[d_out]);
        }
    }
    (config, draw.tensors)
}

fn gpt_neo(seed: u64) -> (Value, HashMap<String, Tensor>) {
    let config = json!({
        "model_type": "gpt_neo", "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "hidden_size": HIDDEN,
        "num_layers": BLOCKS, "num_heads": HEADS, "intermediate_size": INNER, "window_size": 5,
        "attention_layers": ["local", "global", "local"], "activation_function": "gelu_new",
    });
    let mut draw = Draw::new(seed);
    draw.put("transformer.wte.weight".to_owned(), &[VOCABULARY, HIDDEN]);
    draw.put("transformer.wpe.weight".to_owned(), &[CONTEXT, HIDDEN]);
    norm(&mut draw, "transformer.ln_f");
    for block in 0..BLOCKS {
        let name = |part: &str| format!("transformer.h.{block}.{part}");
        norm(&mut draw, &name("ln_1"));
        norm(&mut draw, &name("ln_2"));
        for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            draw.put(name(&format!("attn.attention.{part}.weight")), &[HIDDEN, HIDDEN]);
        }
        draw.put(name("attn.attention.out_proj.bias"), &[HIDDEN]);
        plain_mlp(&mut draw, &name("mlp.c_fc"), &name("mlp.c_proj"));
    }
    (config, draw.tensors)
}

fn gptj(seed: u64) -> (Value, HashMap<String, Tensor>) {
    let config = json!({
        "model_type": "gptj", "vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": HIDDEN, "n_layer": BLOCKS,
        "n_head": HEADS, "n_inner": INNER, "rotary_dim": 6, "activation_function": "gelu_new",
    });
    let mut draw = Draw::new(seed);
    draw.put("transformer.wte.weight".to_owned(), &[VOCABULARY, HIDDEN]);
    draw.put("lm_head.weight".to_owned(), &[VOCABULARY, HIDDEN]);
    draw.put("lm_head.bias".to_owned(), &[VOCABULARY]);
    norm(&mut draw, "transformer.ln_f");
    for block in 0..BLOCKS {
        let name = |part: &str| format!("transformer.h.{block}.{part}");
        norm(&mut draw, &name("ln_1"));
        for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            draw.put(name(&format!("attn.{part}.weight")), &[HIDDEN, HIDDEN]);
        }
        plain_mlp(&mut draw, &name("mlp.fc_in"), &name("mlp.fc_out"));
    }
    (config, draw.tensors)
}

fn gemma3(seed: u64) -> (Value, HashMap<String, Tensor>) {
    let head_dim = 10;
    let config = json!({
        "model_type": "gemma3_text", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": head_dim,
        "query_pre_attn_scalar": 12, "sliding_window": 5, "sliding_window_pattern": 2, "rope_theta": 1e6,
        "rope_local_base_freq": 1e4, "max_position_embeddings": CONTEXT,
    });
    let mut draw = Draw::new(seed);
    draw.put("model.embed_tokens.weight".to_owned(), &[VOCABULARY, HIDDEN]);
    draw.put("model.norm.weight".to_owned(), &[HIDDEN]);
    for block in 0..BLOCKS {
        let mut put = |part: &str, shape: &[usize]| draw.put(format!("model.layers.{block}.{part}.weight"), shape);
        for part in
            ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"]
        {
            put(part, &[HIDDEN]);
        }
        put("self_attn.q_norm", &[head_dim]);
        put("self_attn.k_norm", &[head_dim]);
        put("self_attn.q_proj", &[4 * head_dim, HIDDEN]);
        put("self_attn.k_proj", &[2 * head_dim, HIDDEN]);
        put("self_attn.v_proj", &[2 * head_dim, HIDDEN]);
        put("self_attn.o_proj", &[HIDDEN, 4 * head_dim]);
        put("mlp.gate_proj", &[INNER, HIDDEN]);
        put("mlp.up_proj", &[INNER, HIDDEN]);
        put("mlp.down_proj", &[HIDDEN, INNER]);
    }
    (config, draw.tensors)
}

/// Gated, its head its own.
fn t5(seed: u64) -> (Value, HashMap<String, Tensor>) {
    let (head_dim, buckets) = (5, 8);
    let config = json!({
        "model_type": "t5", "vocab_size": VOCABULARY, "d_model": HIDDEN, "d_kv": head_dim, "d_ff": INNER,
        "num_layers": BLOCKS, "num_heads": HEADS, "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 16, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false,
        "decoder_start_token_id": 0, "eos_token_id": 1,
    });
    let mut draw = Draw::new(seed);
    draw.put("shared.weight".to_owned(), &[VOCABULARY, HIDDEN]);
    draw.put("lm_head.weight".to_owned(), &[VOCABULARY, HIDDEN]);
    for (stack, parts) in
        [("encoder", ["SelfAttention"].as_slice()), ("decoder", &["SelfAttention", "EncDecAttention"])]
    {
        draw.put(format!("{stack}.final_layer_norm.weight"), &[HIDDEN]);
        let bias = format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        draw.put(bias, &[buckets, HEADS]);
        for block in 0..BLOCKS {
            let mut put = |layer: usize, part: &str, shape: &[usize]| {
                draw.put(format!("{stack}.block.{block}.layer.{layer}.{part}.weight"), shape);
            };
            for (layer, part) in parts.iter().enumerate() {
                put(layer, "layer_norm", &[HIDDEN]);
                for side in ["q", "k", "v"] {
                    put(layer, &format!("{part}.{side}"), &[HEADS * head_dim, HIDDEN]);
                }
                put(layer, &format!("{part}.o"), &[HIDDEN, HEADS * head_dim]);
            }
            put(parts.len(), "layer_norm", &[HIDDEN]);
            put(parts.len(), "DenseReluDense.wi_0", &[INNER, HIDDEN]);
            put(parts.len(), "DenseReluDense.wi_1", &[INNER, HIDDEN]);
            put(parts.len(), "DenseReluDense.wo", &[HIDDEN, INNER]);
        }
    }
    (config, draw.tensors)
}

fn bart(seed: u64) -> (Value, HashMap<String, Tensor>) {
    let config = json!({
        "model_type": "bart", "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "d_model": HIDDEN,
        "encoder_layers": BLOCKS, "encoder_ffn_dim": INNER, "encoder_attention_heads": HEADS, "decoder_layers": BLOCKS,
        "decoder_ffn_dim": INNER, "decoder_attention_heads": HEADS, "scale_embedding": true,
    });
    let mut draw = Draw::new(seed);
    draw.put("model.shared.weight".to_owned(), &[VOCABULARY, HIDDEN]);
    draw.put("final_logits_bias".to_owned(), &[1, VOCABULARY]);
    for (stack, parts) in [("encoder", ["self_attn"].as_slice()), ("decoder", &["self_attn", "encoder_attn"])] {
        draw.put(format!("model.{stack}.embed_positions.weight"), &[CONTEXT + 2, HIDDEN]);
        norm(&mut draw, &format!("model.{stack}.layernorm_embedding"));
        for block in 0..BLOCKS {
            let name = |part: &str| format!("model.{stack}.layers.{block}.{part}");
            for part in parts {
                norm(&mut draw, &name(&format!("{part}_layer_norm")));
                for side in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                    draw.put(name(&format!("{part}.{side}.weight")), &[HIDDEN, HIDDEN]);
                    draw.put(name(&format!("{part}.{side}.bias")), &[HIDDEN]);
                }
            }
            norm(&mut draw, &name("final_layer_norm"));
            plain_mlp(&mut draw, &name("fc1"), &name("fc2"));
        }
    }
    (config, draw.tensors)
}

/// Three labels.
fn bert(seed: u64) -> (Value, HashMap<String, Tensor>) {
    let config = json!({
        "model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS, "intermediate_size": INNER, "max_position_embeddings": CONTEXT,
        "type_vocab_size": 2, "id2label": {"0": "red", "1": "green", "2": "blue"},
    });
    let mut draw = Draw::new(seed);
    for (table, rows) in [("word", VOCABULARY), ("position", CONTEXT), ("token_type", 2)] {
        draw.put(format!("bert.embeddings.{table}_embeddings.weight"), &[rows, HIDDEN]);
    }
    norm(&mut draw, "bert.embeddings.LayerNorm");
    for (name, rows) in [("bert.pooler.dense", HIDDEN), ("classifier", 3)] {
        draw.put(format!("{name}.weight"), &[rows, HIDDEN]);
        draw.put(format!("{name}.bias"), &[rows]);
    }
    for block in 0..BLOCKS {
        let name = |part: &str| format!("bert.encoder.layer.{block}.{part}");
        for part in ["self.query", "self.key", "self.value", "output.dense"] {
            draw.put(name(&format!("attention.{part}.weight")), &[HIDDEN, HIDDEN]);
            draw.put(name(&format!("attention.{part}.bias")), &[HIDDEN]);
        }
        norm(&mut draw, &name("attention.output.LayerNorm"));
        norm(&mut draw, &name("output.LayerNorm"));
        plain_mlp(&mut draw, &name("intermediate.dense"), &name("output.dense"));
    }
    (config, draw.tensors)
}

fn norm(draw: &mut Draw, name: &str) {
    draw.put(format!("{name}.weight"), &[HIDDEN]);
    draw.put(format!("{name}.bias"), &[HIDDEN]);
}

fn plain_mlp(draw: &mut Draw, rise: &str, fall: &str) {
    for (name, d_out, d_in) in [(rise, INNER, HIDDEN), (fall, HIDDEN, INNER)] {
        draw.put(format!("{name}.weight"), &[d_out, d_in]);
        draw.put(format!("{name}.bias"), &[d_out]);
    }
}
