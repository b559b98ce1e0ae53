//! A tiny network of every family: its configuration and random weights by Hugging Face's names.

use std::collections::HashMap;

use candle_core::Tensor;
use serde_json::{Value, json};

use super::{Draw, random_weights, tiny_config};

/// Decoder-only families, by `model_type`.
pub const CAUSAL: [&str; 6] = ["llama", "qwen3", "gemma3_text", "gpt2", "gpt_neo", "gptj"];
/// Blocks of each.
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
