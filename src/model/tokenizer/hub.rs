//! A tokenizer from a Hugging Face folder: what `tokenizer.json` describes, run by the `tokenizers` crate.

use std::{fs, io, path::Path};

use serde_json::Value;
use tokenizers::Tokenizer as Pipeline;

use super::{Encoder, Framing, Tokenizer, hub_config::Configs, spelling::Spelling};
use crate::model::ModelError;

/// Runs a `tokenizer.json`.
pub(super) struct HubEncoder {
    pipeline: Pipeline,
    /// The same without the space before every text; none where there is no such space.
    continuation: Option<Pipeline>,
}

impl HubEncoder {
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        encode_with(&self.pipeline, text, false)
    }

    /// With the special tokens that the tokenizer puts around a whole text.
    pub(super) fn encode_whole(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        encode_with(&self.pipeline, text, true)
    }

    pub(super) fn encode_continuation(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        encode_with(self.continuation.as_ref().unwrap_or(&self.pipeline), text, false)
    }
}

fn encode_with(pipeline: &Pipeline, text: &str, special: bool) -> Result<Vec<u32>, ModelError> {
    let encoding = pipeline.encode_fast(text, special).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
    Ok(encoding.get_ids().to_vec())
}

impl Tokenizer {
    /// The tokenizer of a Hugging Face folder.
    ///
    /// # Errors
    /// [`ModelError::Missing`] without a `tokenizer.json`; [`ModelError::Unsupported`] where its decoder is neither
    /// byte-level, SentencePiece's nor WordPiece's; [`ModelError::Malformed`] names the file.
    pub fn from_folder(folder: &Path) -> Result<Self, ModelError> {
        let json = read_json(folder, "tokenizer.json")?.ok_or_else(|| ModelError::Missing {
            file: folder.display().to_string(),
            what: "tokenizer.json".to_owned(),
        })?;
        let pipeline = pipeline(json.clone())?;
        let spelling = Spelling::of(&json["decoder"])?;
        let config = Configs::read(folder)?;
        let bos = config.token(&pipeline, "bos_token");
        let eos = config.token(&pipeline, "eos_token");
        Ok(Self {
            vocabulary: spelling.vocabulary(&pipeline)?,
            bos,
            eos,
            add_bos: bos.is_some() && config.adds_bos(&pipeline, bos)?,
            ends: config.ends(&pipeline, eos),
            strip_leading_space: spelling.strips_space,
            framing: Framing::default(),
            encoder: Encoder::Hub(Box::new(HubEncoder { continuation: continuation(json)?, pipeline })),
        })
    }
}

/// Reads a JSON file of a folder; none if it is absent.
pub(in crate::model) fn read_json(folder: &Path, name: &str) -> Result<Option<Value>, ModelError> {
    let Some(text) = read_text(folder, name)? else { return Ok(None) };
    let value = serde_json::from_str(&text);
    value.map(Some).map_err(|e| ModelError::Malformed { file: name.to_owned(), why: e.to_string() })
}

/// Reads a text file of a folder; none if it is absent.
pub(in crate::model) fn read_text(folder: &Path, name: &str) -> Result<Option<String>, ModelError> {
    let path = folder.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ModelError::Io { path, source }),
    }
}

/// The pipeline as described, save that it never truncates or pads.
fn pipeline(json: Value) -> Result<Pipeline, ModelError> {
    let malformed = |why: String| ModelError::Malformed { file: "tokenizer.json".to_owned(), why };
    let mut pipeline: Pipeline = serde_json::from_value(json).map_err(|e| malformed(e.to_string()))?;
    pipeline.with_padding(None);
    pipeline.with_truncation(None).map_err(|e| malformed(e.to_string()))?;
    Ok(pipeline)
}

/// The pipeline for a text that continues another: what puts a space before every text is taken out. None where nothing does.
fn continuation(mut json: Value) -> Result<Option<Pipeline>, ModelError> {
    let mut changed = false;
    for part in ["normalizer", "pre_tokenizer"] {
        changed |= drop_prefix_space(&mut json[part]);
    }
    changed.then(|| pipeline(json)).transpose()
}

fn drop_prefix_space(step: &mut Value) -> bool {
    let mut changed = false;
    for list in ["normalizers", "pretokenizers"] {
        if let Some(steps) = step.get_mut(list).and_then(Value::as_array_mut) {
            steps.iter_mut().for_each(|step| changed |= drop_prefix_space(step));
            steps.retain(|step| !step.is_null());
        }
    }
    match step["type"].as_str() {
        Some("Prepend") => {
            *step = Value::Null;
            changed = true;
        }
        Some("Metaspace") if step["prepend_scheme"] != "never" => {
            step["prepend_scheme"] = "never".into();
            step["add_prefix_space"] = false.into();
            changed = true;
        }
        Some("ByteLevel") if step["add_prefix_space"] == true => {
            step["add_prefix_space"] = false.into();
            changed = true;
        }
        _ => {}
    }
    changed
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::model::Passage;

    fn folder(files: &[(&str, Value)]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, json) in files {
            fs::write(folder.path().join(name), json.to_string()).unwrap();
        }
        folder
    }

    fn added(id: u32, content: &str, special: bool) -> Value {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special})
    }

    /// Byte-level BPE in the manner of SmolLM2's `tokenizer.json`, with padding and truncation that must not apply.
    fn byte_level() -> Value {
        json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 32}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|im_end|>"},
            "added_tokens": [added(0, "<|im_end|>", true), added(9, "<tool>", false)],
            "normalizer": null,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Digits", "individual_digits": true},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": {"<|im_end|>": 0, "a": 1, "b": 2, "Ġ": 3, "1": 4, "Ã": 5, "©": 6, "ab": 7, "Ġab": 8},
                "merges": [["a", "b"], ["Ġ", "ab"]]}
        })
    }

    /// SentencePiece in the manner of Llama 2's `tokenizer.json`.
    fn sentence_piece() -> Value {
        json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true)],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null,
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "<0xC3>": 3, "<0xA9>": 4, "▁": 5, "a": 6, "b": 7, "▁a": 8},
                "merges": [["▁", "a"]]}
        })
    }

    #[test]
    fn byte_level_folder_encodes_and_decodes() {
        let config = json!({"bos_token": null, "eos_token": {"content": "<|im_end|>", "special": true}});
        let folder = folder(&[("tokenizer.json", byte_level()), ("tokenizer_config.json", config)]);
        let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
        let ids = tokenizer.encode("ab ab 1é<|im_end|><tool>").unwrap();
        assert_eq!(ids, [7, 8, 3, 4, 5, 6, 0, 9]);
        assert_eq!(tokenizer.decode(&ids).unwrap(), "ab ab 1é<tool>");
        assert_eq!((tokenizer.vocab_size(), tokenizer.bos(), tokenizer.eos()), (10, None, Some(0)));
        assert!(tokenizer.is_end(0) && !tokenizer.is_end(9));
        assert_eq!(tokenizer.encode_prompt("ab").unwrap(), [7]);
        let passage = tokenizer.encode_passage("ab", "ab").unwrap();
        assert_eq!(passage, Passage::text(vec![7, 8], 1..2));
    }

    #[test]
    fn sentence_piece_folder_puts_a_space_before_a_text_but_not_before_its_continuation() {
        let config = json!({"bos_token": "<s>", "eos_token": "</s>"});
        let folder = folder(&[("tokenizer.json", sentence_piece()), ("tokenizer_config.json", config)]);
        let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
        assert_eq!(tokenizer.encode("a bé").unwrap(), [8, 5, 7, 3, 4]);
        assert_eq!(tokenizer.encode_prompt("a").unwrap(), [1, 8]);
        assert_eq!(tokenizer.encode_continuation(" a").unwrap(), [8]);
        let passage = tokenizer.encode_passage("a", "a").unwrap();
        assert_eq!(passage, Passage::text(vec![1, 8, 8], 2..3));
        assert_eq!(tokenizer.decode(&[1, 8, 5, 7, 3, 4, 2]).unwrap(), "a bé");
        assert_eq!(tokenizer.decode_stream().continuing().push(8).as_deref(), Some(" a"));
    }

    #[test]
    fn decoding_equals_the_tokenizers_crates() {
        for json in [byte_level(), sentence_piece()] {
            let reference = pipeline(json.clone()).unwrap();
            let folder = folder(&[("tokenizer.json", json)]);
            let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
            for text in ["a b", " ab  ba", "aé é", "b a1"] {
                let ids = tokenizer.encode(text).unwrap();
                assert_eq!(ids, reference.encode_fast(text, false).unwrap().get_ids());
                assert_eq!(tokenizer.decode(&ids).unwrap(), reference.decode(&ids, true).unwrap(), "{text:?}");
            }
        }
    }

    #[test]
    fn ends_and_bos_come_from_the_other_files_too() {
        let files = [
            ("tokenizer.json", sentence_piece()),
            ("generation_config.json", json!({"eos_token_id": [2, 7], "bos_token_id": 1})),
            ("config.json", json!({"eos_token_id": 6, "bos_token_id": 5})),
        ];
        let folder = folder(&files);
        let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
        let ends: Vec<_> = (0..9).filter(|&id| tokenizer.is_end(id)).collect();
        assert_eq!((ends.as_slice(), tokenizer.bos(), tokenizer.eos()), (&[2, 6, 7][..], Some(1), Some(2)));
        assert_eq!(tokenizer.encode_prompt("a").unwrap(), [1, 8]);
    }

    #[test]
    fn the_configuration_overrules_the_post_processor() {
        let config = json!({"bos_token": "<s>", "add_bos_token": false});
        let folder = folder(&[("tokenizer.json", sentence_piece()), ("tokenizer_config.json", config)]);
        assert_eq!(Tokenizer::from_folder(folder.path()).unwrap().encode_prompt("a").unwrap(), [8]);
    }

    #[test]
    fn faulty_folders_are_refused_with_the_reason() {
        let empty = folder(&[]);
        let error = Tokenizer::from_folder(empty.path()).unwrap_err().to_string();
        assert!(error.ends_with("has no tokenizer.json"), "{error}");
        let broken = folder(&[("tokenizer.json", json!([1]))]);
        let error = Tokenizer::from_folder(broken.path()).unwrap_err().to_string();
        assert!(error.starts_with("tokenizer.json is malformed"), "{error}");
        let mut high = byte_level();
        high["model"]["vocab"]["z"] = u32::MAX.into();
        let error = Tokenizer::from_folder(folder(&[("tokenizer.json", high)]).path()).unwrap_err().to_string();
        assert!(error.contains("4294967295"), "{error}");
        let mut other = byte_level();
        other["decoder"] = json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true});
        let error = Tokenizer::from_folder(folder(&[("tokenizer.json", other)]).path()).unwrap_err().to_string();
        assert_eq!(error, "tokenizer decoder \"CTC\" is not supported");
    }
}
