//! GGUF files: metadata to configuration, tensors by Hugging Face's names, weights in the file's own precision where a
//! fast kernel exists for it.

use std::{
    borrow::Cow,
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use candle_core::{
    Device, Tensor,
    quantized::{
        GgmlDType, QStorage, QTensor,
        gguf_file::{Content, Value},
    },
};

use super::{Checkpoint, LoadOptions, Loaded, check_shape};
use crate::{
    digest::Digest,
    model::{
        ModelError,
        chat_template::ChatTemplate,
        families::{self, llama::LlamaConfig},
        layers::{
            Linear,
            linear::Quantized,
            rotary::{RopeScaling, halves_from_pairs},
        },
        tokenizer::Tokenizer,
    },
    panics::caught,
};

/// Opens a GGUF file.
pub(super) fn open(path: &Path, options: &LoadOptions) -> Result<Loaded, ModelError> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    let digest = Digest::of_file(path).map_err(io)?;
    let mut reader = BufReader::new(File::open(path).map_err(io)?);
    let content =
        read_header(&mut reader).map_err(|why| ModelError::Malformed { file: path.display().to_string(), why })?;
    let metadata = Metadata { content: &content, file: path.display().to_string() };
    let architecture = metadata.string("general.architecture")?;
    if !families::GGUF.contains(&architecture.as_str()) {
        return Err(families::unsupported(&architecture, families::GGUF.iter().copied()));
    }
    let tokenizer = Tokenizer::from_gguf(&content)?;
    let chat_template = ChatTemplate::from_gguf(&content, &tokenizer)?;
    let name = path.file_stem().map_or_else(|| architecture.clone(), |stem| stem.to_string_lossy().into_owned());
    let mut config = config(&metadata, &architecture)?;
    let mut checkpoint = GgufCheckpoint {
        // Files of the Llama architecture store q and k rows interleaved for ggml's rotary; the others as trained.
        interleaved: architecture == "llama",
        heads: config.heads,
        kv_heads: config.kv_heads,
        content,
        reader,
        path: path.to_owned(),
        device: options.device.clone(),
    };
    if checkpoint.content.tensor_infos.contains_key("rope_freqs.weight") {
        let divisors = checkpoint.dense("rope_freqs.weight", &[config.head_dim / 2])?;
        config.rope_scaling = RopeScaling::Divisors(divisors.to_vec1()?);
    }
    let (family, checkpoint) = (Box::new(config), Box::new(checkpoint));
    Ok(Loaded { family, architecture, checkpoint, tokenizer, chat_template, name, digest })
}

/// Metadata and tensor table. candle checks every length against the file's size before it allocates, but divides by the
/// alignment that the file names, which may be zero.
fn read_header(reader: &mut BufReader<File>) -> Result<Content, String> {
    caught(|| Content::read(reader))
        .map_err(|_| "its header can not be read; is general.alignment zero?".to_owned())?
        .map_err(|error| error.to_string())
}

struct Metadata<'a> {
    content: &'a Content,
    file: String,
}

impl Metadata<'_> {
    fn get(&self, key: &str) -> Result<&Value, ModelError> {
        let missing = || ModelError::Missing { file: self.file.clone(), what: format!("metadata {key:?}") };
        self.content.metadata.get(key).ok_or_else(missing)
    }

    fn wrong(&self, key: &str) -> ModelError {
        ModelError::Malformed { file: self.file.clone(), why: format!("metadata {key:?} has the wrong type") }
    }

    fn string(&self, key: &str) -> Result<String, ModelError> {
        Ok(self.get(key)?.to_string().map_err(|_| self.wrong(key))?.clone())
    }

    fn optional_string(&self, key: &str) -> Option<String> {
        self.content.metadata.get(key).and_then(|value| value.to_string().ok()).cloned()
    }

    fn size(&self, key: &str) -> Result<usize, ModelError> {
        let value = self.get(key)?;
        let size = value.to_u64().or_else(|_| value.to_u32().map(u64::from)).map_err(|_| self.wrong(key))?;
        usize::try_from(size).map_err(|_| self.wrong(key))
    }

    fn float(&self, key: &str) -> Result<f64, ModelError> {
        let value = self.get(key)?;
        value.to_f64().or_else(|_| value.to_f32().map(f64::from)).map_err(|_| self.wrong(key))
    }

    fn has(&self, key: &str) -> bool {
        self.content.metadata.contains_key(key)
    }
}

fn config(metadata: &Metadata<'_>, architecture: &str) -> Result<LlamaConfig, ModelError> {
    let key = |name: &str| format!("{architecture}.{name}");
    let heads = metadata.size(&key("attention.head_count"))?;
    let hidden = metadata.size(&key("embedding_length"))?;
    let or = |name: &str, default: usize| {
        if metadata.has(&key(name)) { metadata.size(&key(name)) } else { Ok(default) }
    };
    let scaling = match metadata.optional_string(&key("rope.scaling.type")).as_deref() {
        None | Some("none") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear(metadata.float(&key("rope.scaling.factor"))?),
        Some(other) => {
            return Err(ModelError::Unsupported {
                what: "rope scaling",
                name: other.to_owned(),
                hint: "supported are none, linear and rope_freqs.weight".to_owned(),
            });
        }
    };
    let vocabulary = metadata
        .content
        .tensor_infos
        .get("token_embd.weight")
        .and_then(|info| info.shape.dims().first().copied())
        .ok_or_else(|| ModelError::Missing { file: metadata.file.clone(), what: "token_embd.weight".to_owned() })?;
    let context = metadata.size(&key("context_length"))?;
    let head_dim = or("attention.key_length", hidden.checked_div(heads).unwrap_or(0))?;
    let turned = or("rope.dimension_count", head_dim)?;
    if turned != head_dim {
        return Err(ModelError::Unsupported {
            what: "partial rotary embedding",
            name: format!("{turned} of {head_dim} dimensions"),
            hint: String::new(),
        });
    }
    Ok(LlamaConfig {
        vocabulary,
        hidden,
        intermediate: metadata.size(&key("feed_forward_length"))?,
        blocks: metadata.size(&key("block_count"))?,
        heads,
        kv_heads: or("attention.head_count_kv", heads)?,
        head_dim,
        rms_eps: metadata.float(&key("attention.layer_norm_rms_epsilon"))?,
        rope_base: if metadata.has(&key("rope.freq_base")) { metadata.float(&key("rope.freq_base"))? } else { 1e4 },
        rope_scaling: scaling,
        context: context.min(or("attention.sliding_window", context)?),
        tied: None,
    })
}

struct GgufCheckpoint {
    content: Content,
    reader: BufReader<File>,
    path: PathBuf,
    device: Device,
    interleaved: bool,
    heads: usize,
    kv_heads: usize,
}

impl GgufCheckpoint {
    fn read(&mut self, name: &str, shape: &[usize]) -> Result<QTensor, ModelError> {
        let stored = stored_name(name);
        let file = self.name();
        let info = self
            .content
            .tensor_infos
            .get(&stored)
            .ok_or_else(|| ModelError::Missing { file: file.clone(), what: format!("tensor {stored:?}") })?;
        check_shape(&file, &stored, info.shape.dims(), shape)?;
        Ok(self.content.tensor(&mut self.reader, &stored, &self.device)?)
    }

    /// The row order that turns interleaved rotary pairs into halves, for the matrices that have them.
    fn row_order(&self, name: &str, rows: usize) -> Option<Vec<u32>> {
        let heads = match name {
            _ if !self.interleaved => return None,
            _ if name.contains("self_attn.q_proj") => self.heads,
            _ if name.contains("self_attn.k_proj") => self.kv_heads,
            _ => return None,
        };
        let head_dim = rows / heads;
        Some(halves_from_pairs(heads, head_dim, head_dim))
    }
}

impl Checkpoint for GgufCheckpoint {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn has(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(&stored_name(name))
    }

    fn dense(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let tensor = self.read(name, shape)?.dequantize(&self.device)?;
        match self.row_order(name, shape[0]) {
            Some(order) => Ok(tensor.index_select(&Tensor::new(order, &self.device)?, 0)?),
            None => Ok(tensor),
        }
    }

    fn linear(&mut self, name: &str, bias: Option<Tensor>, shape: (usize, usize)) -> Result<Linear, ModelError> {
        let mut weight = self.read(name, &[shape.0, shape.1])?;
        if matches!(weight.dtype(), GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16) {
            return Ok(Linear::Dense { weight: self.dense(name, &[shape.0, shape.1])?, bias });
        }
        if let Some(order) = self.row_order(name, shape.0) {
            weight = reorder_rows(&weight, &order)?;
        }
        Ok(Linear::Quantized { weight: Quantized::new(weight)?, bias })
    }
}

/// Rows are stored one after another in whole blocks, so they can be moved without touching a number.
fn reorder_rows(weight: &QTensor, order: &[u32]) -> Result<QTensor, ModelError> {
    let bytes = weight.data()?;
    let row = bytes.len() / order.len();
    let moved: Vec<u8> =
        order.iter().flat_map(|&from| &bytes[from as usize * row..(from as usize + 1) * row]).copied().collect();
    let storage = QStorage::from_data(Cow::Owned(moved), &weight.device(), weight.dtype())?;
    Ok(QTensor::new(storage, weight.shape().clone())?)
}

/// GGUF's name of a tensor that Hugging Face calls `name`.
fn stored_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".to_owned(),
        "model.norm.weight" => return "output_norm.weight".to_owned(),
        "lm_head.weight" => return "output.weight".to_owned(),
        _ => {}
    }
    let Some(rest) = name.strip_prefix("model.layers.") else { return name.to_owned() };
    let parts = [
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
    let stored = parts.iter().fold(rest.to_owned(), |name, (from, to)| name.replace(from, to));
    format!("blk.{stored}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map() {
        assert_eq!(stored_name("model.layers.7.mlp.down_proj.weight"), "blk.7.ffn_down.weight");
        assert_eq!(stored_name("model.layers.0.self_attn.q_proj.bias"), "blk.0.attn_q.bias");
        assert_eq!(stored_name("model.layers.0.self_attn.q_norm.weight"), "blk.0.attn_q_norm.weight");
        assert_eq!(stored_name("model.layers.0.post_attention_layernorm.weight"), "blk.0.ffn_norm.weight");
        assert_eq!(stored_name("lm_head.weight"), "output.weight");
    }

    #[test]
    fn moving_quantized_rows_equals_moving_their_values() {
        let values = crate::model::testing::random(&[4, 64], 5);
        let quantized = QTensor::quantize(&values, GgmlDType::Q8_0).unwrap();
        let order = [2u32, 0, 3, 1];
        let moved = reorder_rows(&quantized, &order).unwrap().dequantize(&Device::Cpu).unwrap();
        let index = Tensor::new(&order, &Device::Cpu).unwrap();
        let want = quantized.dequantize(&Device::Cpu).unwrap().index_select(&index, 0).unwrap();
        crate::model::testing::assert_close(&moved, &want, 0.0);
    }
}
