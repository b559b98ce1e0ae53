//! What the integration tests share.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::print_stderr, clippy::unwrap_used, reason = "a skipped test says so; helpers of tests may unwrap")]

pub mod facts;
pub mod families;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use amend::model::{Extent, LoadOptions, Model, Rows};
use candle_core::{DType, Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// A file beside the checkout, or the one that `variable` names. None, said aloud, where it is absent.
pub fn shared_file(variable: &str, relative: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable)
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(relative), PathBuf::from);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is absent", path.display());
    None
}

/// SmolLM2-135M-Instruct: the file that `AMEND_TEST_MODEL` names, else the one that the fetch script leaves in the cache.
/// None, said aloud, where it is absent.
pub fn smollm2() -> Option<PathBuf> {
    model_file("AMEND_TEST_MODEL", "SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// Gemma 3 270M: the file that `AMEND_TEST_GEMMA` names, else the one in the cache. None, said aloud, where it is absent.
pub fn gemma3() -> Option<PathBuf> {
    model_file("AMEND_TEST_GEMMA", "gemma-3-270m-q4_k_m.gguf")
}

/// flan-T5-small: the folder that `AMEND_TEST_FLAN_T5` names, else the one that its script leaves in the cache. None, said
/// aloud, where it is absent.
pub fn flan_t5() -> Option<PathBuf> {
    model_file("AMEND_TEST_FLAN_T5", "flan-t5-small-titles")
}

fn model_file(variable: &str, name: &str) -> Option<PathBuf> {
    let cached = || {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
        Some(cache.join("amend/models").join(name))
    };
    let path = std::env::var_os(variable).map(PathBuf::from).or_else(cached)?;
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: no model at {}", path.display());
    None
}

/// Largest absolute difference over the largest entry of `want`; infinite if anything is not a number.
pub fn relative_error(got: &Tensor, want: &Tensor) -> f32 {
    assert_eq!(got.dims(), want.dims());
    let largest = |t: &Tensor| {
        let values = t.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        values.iter().fold(0f32, |m, v| if v.is_nan() { f32::INFINITY } else { m.max(v.abs()) })
    };
    largest(&(got - want).unwrap()) / largest(want).max(f32::MIN_POSITIVE)
}

/// Fails unless `got` is within `tolerance` of `want`'s largest entry.
pub fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f32) {
    let error = relative_error(got, want);
    assert!(error <= tolerance, "{what}: relative error {error} exceeds {tolerance}");
}

/// A byte-level tokenizer without merges: every byte is a token, printable ASCII first, then space and the others.
/// Bytes beyond the vocabulary are unknown to it.
pub fn byte_tokenizer(vocabulary: usize) -> Value {
    let plain = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut letters: Vec<char> = (b'!'..=b'~').map(char::from).collect();
    // GPT-2 writes the bytes that are not printable as the characters from U+0100 on.
    let shifted: Vec<char> =
        (0..=255u8).filter(|byte| !plain(byte)).zip(256u32..).filter_map(|(_, code)| char::from_u32(code)).collect();
    letters.push('\u{120}');
    letters.extend(shifted.into_iter().filter(|letter| *letter != '\u{120}'));
    letters.extend((0xa1..=0xffu8).filter(|byte| plain(byte)).map(char::from));
    let vocab: serde_json::Map<String, Value> =
        letters.iter().take(vocabulary).enumerate().map(|(id, letter)| (letter.to_string(), json!(id))).collect();
    json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []}
    })
}

/// Writes a Hugging Face folder.
pub fn write_folder(folder: &Path, config: &Value, tensors: &HashMap<String, Tensor>) {
    let vocabulary = config["vocab_size"].as_u64().unwrap() as usize;
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), byte_tokenizer(vocabulary).to_string()).unwrap();
    candle_core::safetensors::save(tensors, folder.join("model.safetensors")).unwrap();
}

/// Tensors and metadata of a safetensors file.
pub fn read_safetensors(path: &Path) -> (HashMap<String, Tensor>, HashMap<String, String>) {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap_or_default();
    (candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap(), metadata)
}

/// A Llama of three tiny blocks whose weights are drawn by a fixed seed, the last two of them editable. Every byte is a
/// token.
pub fn tiny_llama(folder: &Path) -> Model {
    let (vocabulary, hidden, inner, kv) = (256, 32, 48, 16);
    let config = json!({
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 256, "tie_word_embeddings": true, "hidden_act": "silu"
    });
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut random = |rows: usize, columns: usize| {
        let values: Vec<f32> = (0..rows * columns).map(|_| rng.random_range(-0.5..0.5)).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    };
    let ones = || Tensor::ones(hidden, DType::F32, &Device::Cpu).unwrap();
    let mut tensors = HashMap::from([
        ("model.embed_tokens.weight".to_owned(), random(vocabulary, hidden)),
        ("model.norm.weight".to_owned(), ones()),
    ]);
    for layer in 0..3 {
        let mut put = |name: &str, tensor| tensors.insert(format!("model.layers.{layer}.{name}.weight"), tensor);
        put("input_layernorm", ones());
        put("post_attention_layernorm", ones());
        for (name, rows, columns) in [
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ] {
            put(name, random(rows, columns));
        }
    }
    write_folder(folder, &config, &tensors);
    Model::load(folder, &LoadOptions { tail_blocks: 2, ..LoadOptions::default() }).unwrap()
}

/// The configuration of a small network of the Llama family, three blocks; change what the test is about.
pub fn tiny_config(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 512, "tie_word_embeddings": true, "hidden_act": "silu",
    })
}

/// Random weights for a configuration, by Hugging Face's names: biases for `qwen2`, q/k norms for `qwen3`, a head where
/// none is tied.
pub fn random_weights(config: &Value, seed: u64) -> HashMap<String, Tensor> {
    let size = |name: &str| config[name].as_u64().unwrap() as usize;
    let (hidden, inner, heads) = (size("hidden_size"), size("intermediate_size"), size("num_attention_heads"));
    let head_dim = config["head_dim"].as_u64().map_or(hidden / heads, |head_dim| head_dim as usize);
    let (wide, narrow) = (heads * head_dim, size("num_key_value_heads") * head_dim);
    let family = config["model_type"].as_str().unwrap();
    let mut draw = Draw::new(seed);
    let mut put = |name: String, shape: &[usize]| draw.put(name, shape);
    put("model.embed_tokens.weight".to_owned(), &[size("vocab_size"), hidden]);
    put("model.norm.weight".to_owned(), &[hidden]);
    if config["tie_word_embeddings"] != true {
        put("lm_head.weight".to_owned(), &[size("vocab_size"), hidden]);
    }
    for block in 0..size("num_hidden_layers") {
        let mut put = |part: &str, shape: &[usize]| put(format!("model.layers.{block}.{part}"), shape);
        put("input_layernorm.weight", &[hidden]);
        put("post_attention_layernorm.weight", &[hidden]);
        for (part, rows) in [("q", wide), ("k", narrow), ("v", narrow)] {
            put(&format!("self_attn.{part}_proj.weight"), &[rows, hidden]);
            if family == "qwen2" {
                put(&format!("self_attn.{part}_proj.bias"), &[rows]);
            }
        }
        put("self_attn.o_proj.weight", &[hidden, wide]);
        if family == "qwen3" {
            put("self_attn.q_norm.weight", &[head_dim]);
            put("self_attn.k_norm.weight", &[head_dim]);
        }
        put("mlp.gate_proj.weight", &[inner, hidden]);
        put("mlp.up_proj.weight", &[inner, hidden]);
        put("mlp.down_proj.weight", &[hidden, inner]);
    }
    draw.tensors
}

/// Random tensors by name.
pub struct Draw {
    rng: ChaCha8Rng,
    pub tensors: HashMap<String, Tensor>,
}

impl Draw {
    /// What follows depends on `seed` and on the order of the names.
    pub fn new(seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), tensors: HashMap::new() }
    }

    /// Norms around 1, everything else so that sums keep their size.
    pub fn put(&mut self, name: String, shape: &[usize]) {
        let (middle, spread) = match shape {
            [_] if name.ends_with("weight") => (1.0, 0.5),
            [_] => (0.0, 0.5),
            [_, inputs, ..] if !name.contains("embed") => (0.0, 2.5 / (*inputs as f32).sqrt()),
            _ => (0.0, 1.0),
        };
        let values: Vec<f32> =
            (0..shape.iter().product()).map(|_| middle + spread * self.rng.random_range(-1.0f32..1.0)).collect();
        self.tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
    }
}

/// Loads a model from a folder that is written for it and removed again.
pub fn load_folder(config: &Value, tensors: &HashMap<String, Tensor>, tail_blocks: usize) -> Model {
    let folder = tempfile::tempdir().unwrap();
    write_folder(folder.path(), config, tensors);
    Model::load(folder.path(), &LoadOptions { tail_blocks, ..LoadOptions::default() }).unwrap()
}

/// Ids that depend on `seed` alone.
pub fn random_ids(vocabulary: usize, count: usize, seed: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(0..vocabulary as u32)).collect()
}

/// Logits after every position, `[ids, vocabulary]`, without a cache.
pub fn all_logits(model: &Model, ids: &[u32]) -> Tensor {
    let extents = [Extent::text(ids.len())];
    let hidden = model.network().trunk(ids, &extents, None).unwrap();
    let top = model.network().tail(&hidden, &extents, Rows::All, model.base().as_ref(), None).unwrap();
    model.network().logits(&top).unwrap()
}
