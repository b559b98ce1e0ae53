//! What the tests of this room share: a GGUF vocabulary of eight tokens, and the real model's file where there is one.

use std::{
    collections::HashMap,
    env,
    fs::File,
    path::{Path, PathBuf},
};

use candle_core::quantized::gguf_file::{Content, Value, VersionedMagic};

/// Metadata of a tiny byte-level vocabulary.
pub(crate) fn small_metadata() -> HashMap<String, Value> {
    let strings = |list: &[&str]| Value::Array(list.iter().map(|&s| Value::String(s.to_owned())).collect());
    let kinds = [3, 3, 1, 1, 1, 3, 4, 5].map(Value::I32).to_vec();
    HashMap::from([
        ("tokenizer.ggml.model".into(), Value::String("gpt2".into())),
        ("tokenizer.ggml.pre".into(), Value::String("gpt-2".into())),
        ("tokenizer.ggml.tokens".into(), strings(&["<s>", "</s>", "Ġ", "h", "i", "<|im_end|>", "<tool>", "[PAD7]"])),
        ("tokenizer.ggml.merges".into(), strings(&[])),
        ("tokenizer.ggml.token_type".into(), Value::Array(kinds)),
        ("tokenizer.ggml.bos_token_id".into(), Value::U32(0)),
        ("tokenizer.ggml.eos_token_id".into(), Value::U32(1)),
    ])
}

/// A GGUF file with this metadata and no tensors.
pub(crate) fn content(metadata: HashMap<String, Value>) -> Content {
    Content { magic: VersionedMagic::GgufV3, metadata, tensor_infos: HashMap::new(), tensor_data_offset: 0 }
}

/// The header of SmolLM2-135M-Instruct: `AMEND_TEST_MODEL` where set, else the file that the fetch script leaves in the
/// cache; none, with a message, where there is none.
pub(crate) fn smollm2() -> Option<Content> {
    let path = env::var_os("AMEND_TEST_MODEL").map(PathBuf::from).or_else(cached_model)?;
    let Ok(mut file) = File::open(&path) else {
        println!("skipped: no model at {}", path.display());
        return None;
    };
    Some(Content::read(&mut file).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

fn cached_model() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("amend/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
}

/// A file of `../shared`; none, with a message, where it is absent.
pub(crate) fn shared(path: &str) -> Option<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
    read_or_skip(&path)
}

/// A text file; none, with a message, where it is absent.
pub(crate) fn read_or_skip(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path);
    if text.is_err() {
        println!("skipped: can not read {}", path.display());
    }
    text.ok()
}
