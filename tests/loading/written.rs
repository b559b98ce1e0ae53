//! GGUF files that the tests write.

use std::{collections::HashMap, fs::File, path::Path};

use amend::model::{LoadOptions, Model};
use candle_core::{
    Device, Tensor,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{self, Value},
    },
};
use serde_json::json;

use crate::common::{byte_tokenizer, random_weights, tiny_config};

/// Sizes that every one of GGUF's types divides: rows of 256 values.
pub fn config(architecture: &str) -> serde_json::Value {
    let mut config = tiny_config(architecture);
    let sizes = json!({"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2});
    config.as_object_mut().unwrap().extend(sizes.as_object().unwrap().clone());
    config
}

/// A GGUF file in the making.
pub struct Gguf {
    architecture: String,
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<(String, QTensor)>,
    heads: usize,
    kv_heads: usize,
}

impl Gguf {
    /// The weights of a Hugging Face configuration, matrices as `dtype`, with a byte-level tokenizer.
    pub fn new(config: &serde_json::Value, dtype: GgmlDType) -> Self {
        let size = |name: &str| config[name].as_u64().unwrap();
        let architecture = config["model_type"].as_str().unwrap().to_owned();
        let number = |value: u64| Value::U32(value as u32);
        let real = |name: &str| Value::F32(config[name].as_f64().unwrap() as f32);
        let mut metadata = vec![("general.architecture".to_owned(), Value::String(architecture.clone()))];
        let own = [
            ("context_length", number(size("max_position_embeddings"))),
            ("embedding_length", number(size("hidden_size"))),
            ("feed_forward_length", number(size("intermediate_size"))),
            ("block_count", number(size("num_hidden_layers"))),
            ("attention.head_count", number(size("num_attention_heads"))),
            ("attention.head_count_kv", number(size("num_key_value_heads"))),
            ("attention.layer_norm_rms_epsilon", real("rms_norm_eps")),
            ("rope.freq_base", real("rope_theta")),
        ];
        metadata.extend(own.map(|(name, value)| (format!("{architecture}.{name}"), value)));
        if let Some(head_dim) = config["head_dim"].as_u64() {
            metadata.push((format!("{architecture}.attention.key_length"), number(head_dim)));
        }
        metadata.extend(tokenizer(size("vocab_size") as usize));
        let mut file = Self {
            architecture,
            metadata,
            tensors: Vec::new(),
            heads: size("num_attention_heads") as usize,
            kv_heads: size("num_key_value_heads") as usize,
        };
        let mut weights: Vec<_> = random_weights(config, 5).into_iter().collect();
        weights.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (name, tensor) in weights {
            let dtype = if tensor.rank() == 1 { GgmlDType::F32 } else { dtype };
            let stored = QTensor::quantize(&file.interleave(&name, &tensor, false), dtype).unwrap();
            file.tensors.push((stored_name(&name), stored));
        }
        file
    }

    /// Llama's files hold the rows of q and k in pairs, not halves; `back` undoes it.
    fn interleave(&self, name: &str, tensor: &Tensor, back: bool) -> Tensor {
        let heads = match name {
            _ if self.architecture != "llama" => return tensor.clone(),
            _ if name.contains("q_proj") => self.heads,
            _ if name.contains("k_proj") => self.kv_heads,
            _ => return tensor.clone(),
        };
        let (rows, columns) = tensor.dims2().unwrap();
        let half = rows / heads / 2;
        let parts = if back { (heads, half, 2, columns) } else { (heads, 2, half, columns) };
        let turned = tensor.reshape(parts).unwrap().transpose(1, 2).unwrap();
        turned.contiguous().unwrap().reshape((rows, columns)).unwrap()
    }

    /// What the file's tensors are worth in f32, by Hugging Face's names.
    pub fn values(&self) -> HashMap<String, Tensor> {
        let value = |(stored, tensor): &(String, QTensor)| {
            let name = hub_name(stored);
            let value = tensor.dequantize(&Device::Cpu).unwrap();
            let value = self.interleave(&name, &value, true);
            (name, value)
        };
        self.tensors.iter().map(value).collect()
    }

    /// Sets a metadata value.
    pub fn set(&mut self, key: &str, value: Value) {
        self.metadata.retain(|(known, _)| known != key);
        self.metadata.push((key.to_owned(), value));
    }

    pub fn bytes(&self) -> Vec<u8> {
        let metadata: Vec<(&str, &Value)> = self.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<(&str, &QTensor)> =
            self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut bytes = std::io::Cursor::new(Vec::new());
        gguf_file::write(&mut bytes, &metadata, &tensors).unwrap();
        bytes.into_inner()
    }

    pub fn load(&self) -> Result<Model, String> {
        load_bytes(&self.bytes())
    }
}

/// Loads bytes as a file, with one editable block.
pub fn load_bytes(bytes: &[u8]) -> Result<Model, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    std::io::Write::write_all(&mut File::create(&path).unwrap(), bytes).unwrap();
    load(&path)
}

/// Loads with one editable block; the error as text.
pub fn load(path: &Path) -> Result<Model, String> {
    Model::load(path, &LoadOptions { tail_blocks: 1, ..LoadOptions::default() }).map_err(|error| error.to_string())
}

/// The error of what must not load.
pub fn refusal(result: Result<Model, String>) -> String {
    result.err().expect("it is refused")
}

/// Metadata of the tokenizer that [`byte_tokenizer`] describes.
fn tokenizer(vocabulary: usize) -> Vec<(String, Value)> {
    let hub = byte_tokenizer(vocabulary);
    let mut tokens: Vec<(u64, String)> = hub["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(token, id)| (id.as_u64().unwrap(), token.clone()))
        .collect();
    tokens.sort();
    let kinds = vec![Value::I32(1); tokens.len()];
    let tokens = tokens.into_iter().map(|(_, token)| Value::String(token)).collect();
    let text = |text: &str| Value::String(text.to_owned());
    [
        ("model", text("gpt2")),
        ("pre", text("gpt-2")),
        ("tokens", Value::Array(tokens)),
        ("merges", Value::Array(Vec::new())),
        ("token_type", Value::Array(kinds)),
    ]
    .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
    .into()
}

const NAMES: [(&str, &str); 11] = [
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
    ("post_attention_layernorm", "ffn_norm"),
];

const OUTER: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

fn stored_name(name: &str) -> String {
    if let Some((_, stored)) = OUTER.iter().find(|(hub, _)| *hub == name) {
        return (*stored).to_owned();
    }
    let parts: Vec<&str> = name.strip_prefix("model.layers.").unwrap().splitn(2, '.').collect();
    let (part, kind) = parts[1].rsplit_once('.').unwrap();
    let stored = NAMES.iter().find(|(hub, _)| *hub == part).unwrap().1;
    format!("blk.{}.{stored}.{kind}", parts[0])
}

fn hub_name(stored: &str) -> String {
    if let Some((name, _)) = OUTER.iter().find(|(_, known)| *known == stored) {
        return (*name).to_owned();
    }
    let parts: Vec<&str> = stored.strip_prefix("blk.").unwrap().split('.').collect();
    let part = NAMES.iter().find(|(_, known)| *known == parts[1]).unwrap().0;
    format!("model.layers.{}.{part}.{}", parts[0], parts[2])
}
