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
    quantized::{GgmlDType, QStorage, QTensor, gguf_file::Content},
};

use super::{
    Checkpoint, LoadOptions, Loaded, check_shape,
    gguf_config::{self, Metadata},
};
use crate::{
    digest::Digest,
    model::{
        ModelError,
        chat_template::ChatTemplate,
        families::{self, Family, llama::LlamaConfig},
        layers::{
            Linear,
            attention::Heads,
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
    let family: Box<dyn Family> = match architecture.as_str() {
        "gemma3" => Box::new(gguf_config::gemma3(&metadata)?),
        _ => {
            let config = gguf_config::llama(&metadata, &architecture)?;
            let divisors = rope_divisors(&content, &mut reader, path, config.head_dim / 2)?;
            let rope_scaling = divisors.map_or(config.rope_scaling.clone(), RopeScaling::Divisors);
            Box::new(LlamaConfig { rope_scaling, ..config })
        }
    };
    let checkpoint = GgufCheckpoint {
        // Files of the Llama architecture store q and k rows interleaved for ggml's rotary; the others as trained.
        interleaved: (architecture == "llama").then(|| gguf_config::heads(&metadata, "llama")).transpose()?,
        parts: if architecture == "gemma3" { GEMMA3 } else { LLAMA },
        content,
        reader,
        path: path.to_owned(),
        device: options.device.clone(),
    };
    Ok(Loaded { family, architecture, checkpoint: Box::new(checkpoint), tokenizer, chat_template, name, digest })
}

/// Llama 3's scaling: a divisor for each of the `frequencies`.
fn rope_divisors(
    content: &Content,
    reader: &mut BufReader<File>,
    path: &Path,
    frequencies: usize,
) -> Result<Option<Vec<f32>>, ModelError> {
    let Some(info) = content.tensor_infos.get("rope_freqs.weight") else { return Ok(None) };
    check_shape(&path.display().to_string(), "rope_freqs.weight", info.shape.dims(), &[frequencies])?;
    let divisors = content.tensor(reader, "rope_freqs.weight", &Device::Cpu)?;
    Ok(Some(divisors.dequantize(&Device::Cpu)?.to_vec1()?))
}

/// Metadata and tensor table. candle checks every length against the file's size before it allocates, but divides by the
/// alignment that the file names, which may be zero.
fn read_header(reader: &mut BufReader<File>) -> Result<Content, String> {
    caught(|| Content::read(reader))
        .map_err(|_| "its header can not be read; is general.alignment zero?".to_owned())?
        .map_err(|error| error.to_string())
}

struct GgufCheckpoint {
    content: Content,
    reader: BufReader<File>,
    path: PathBuf,
    device: Device,
    /// Heads whose rotary pairs are interleaved, if they are.
    interleaved: Option<Heads>,
    /// How parts of a block's tensors are called.
    parts: &'static [(&'static str, &'static str)],
}

impl GgufCheckpoint {
    fn read(&mut self, name: &str, shape: &[usize], device: &Device) -> Result<QTensor, ModelError> {
        let stored = stored_name(name, self.parts);
        let file = self.name();
        let info = self
            .content
            .tensor_infos
            .get(&stored)
            .ok_or_else(|| ModelError::Missing { file: file.clone(), what: format!("tensor {stored:?}") })?;
        check_shape(&file, &stored, info.shape.dims(), shape)?;
        Ok(self.content.tensor(&mut self.reader, &stored, device)?)
    }

    /// The row order that turns interleaved rotary pairs into halves, for the matrices that have them.
    fn row_order(&self, name: &str, rows: usize) -> Option<Vec<u32>> {
        let interleaved = self.interleaved?;
        let heads = match name {
            _ if name.contains("self_attn.q_proj") => interleaved.count,
            _ if name.contains("self_attn.k_proj") => interleaved.kv,
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
        self.content.tensor_infos.contains_key(&stored_name(name, self.parts))
    }

    fn dense(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        // By the CPU, whatever computes later: the digests of versions are of these bits.
        let mut tensor = self.read(name, shape, &Device::Cpu)?.dequantize(&Device::Cpu)?;
        if let Some(order) = self.row_order(name, shape[0]) {
            tensor = tensor.index_select(&Tensor::new(order, &Device::Cpu)?, 0)?;
        }
        Ok(tensor.to_device(&self.device)?)
    }

    fn linear(&mut self, name: &str, bias: Option<Tensor>, shape: (usize, usize)) -> Result<Linear, ModelError> {
        let mut weight = self.read(name, &[shape.0, shape.1], &self.device.clone())?;
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

/// Parts of a block, by Hugging Face's name and by GGUF's.
const LLAMA: &[(&str, &str)] = &[
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

/// The same where a block has four norms.
const GEMMA3: &[(&str, &str)] = &[
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

/// GGUF's name of a tensor that Hugging Face calls `name`.
fn stored_name(name: &str, parts: &[(&str, &str)]) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".to_owned(),
        "model.norm.weight" => return "output_norm.weight".to_owned(),
        "lm_head.weight" => return "output.weight".to_owned(),
        _ => {}
    }
    let Some((block, part)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
        return name.to_owned();
    };
    let stored = parts.iter().find_map(|(ours, stored)| Some((stored, part.strip_prefix(ours)?)));
    stored.map_or_else(|| name.to_owned(), |(stored, kind)| format!("blk.{block}.{stored}{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map() {
        assert_eq!(stored_name("model.layers.7.mlp.down_proj.weight", LLAMA), "blk.7.ffn_down.weight");
        assert_eq!(stored_name("model.layers.0.self_attn.q_proj.bias", LLAMA), "blk.0.attn_q.bias");
        assert_eq!(stored_name("model.layers.0.self_attn.q_norm.weight", LLAMA), "blk.0.attn_q_norm.weight");
        assert_eq!(stored_name("model.layers.0.post_attention_layernorm.weight", LLAMA), "blk.0.ffn_norm.weight");
        assert_eq!(stored_name("lm_head.weight", LLAMA), "output.weight");
        let norm = "model.layers.3.post_attention_layernorm.weight";
        assert_eq!(stored_name(norm, LLAMA), "blk.3.ffn_norm.weight");
        assert_eq!(stored_name(norm, GEMMA3), "blk.3.post_attention_norm.weight");
        assert_eq!(stored_name("model.layers.3.pre_feedforward_layernorm.weight", GEMMA3), "blk.3.ffn_norm.weight");
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
