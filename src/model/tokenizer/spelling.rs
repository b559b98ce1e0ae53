//! How the tokens of a `tokenizer.json` spell bytes: GPT-2's alphabet, SentencePiece's sign for a space and byte tokens, or
//! WordPiece's sign for what goes on with a word.

use serde_json::Value;
use tokenizers::Tokenizer as Pipeline;

use super::vocabulary::{Vocabulary, byte_token, from_alphabet};
use crate::model::ModelError;

/// Largest vocabulary, ids; the largest in use have under 300 thousand.
const MAX_IDS: u64 = 1 << 24;

/// How tokens spell bytes, from the decoder's description.
#[derive(Default)]
pub(super) struct Spelling {
    byte_level: bool,
    /// What stands for a space.
    space: Option<String>,
    byte_fallback: bool,
    /// What stands before a token that goes on with a word; every other begins one.
    inside: Option<String>,
    /// Whether a space at the start of a text is the tokenizer's own.
    pub(super) strips_space: bool,
}

impl Spelling {
    /// # Errors
    /// [`ModelError::Unsupported`] where the decoder is neither byte-level nor SentencePiece's nor WordPiece's.
    pub(super) fn of(decoder: &Value) -> Result<Self, ModelError> {
        let mut spelling = Self::default();
        spelling.add(decoder)?;
        Ok(spelling)
    }

    fn add(&mut self, step: &Value) -> Result<(), ModelError> {
        match step["type"].as_str() {
            Some("Sequence") => return step["decoders"].as_array().into_iter().flatten().try_for_each(|s| self.add(s)),
            Some("ByteLevel") => self.byte_level = true,
            Some("ByteFallback") => self.byte_fallback = true,
            Some("Fuse") => {}
            Some("WordPiece") => {
                self.inside = Some(step["prefix"].as_str().unwrap_or("##").to_owned());
                self.strips_space = true;
            }
            Some("Metaspace") => {
                self.space = Some(step["replacement"].as_str().unwrap_or("▁").to_owned());
                self.strips_space = step["prepend_scheme"] != "never" && step["add_prefix_space"] != false;
            }
            Some("Replace") if step["content"] == " " && step["pattern"]["String"].is_string() => {
                self.space = step["pattern"]["String"].as_str().map(str::to_owned);
            }
            Some("Strip") if step["content"] == " " && step["stop"] == 0 => self.strips_space = step["start"] == 1,
            name => {
                let name = name.unwrap_or("none").to_owned();
                return Err(ModelError::Unsupported { what: "tokenizer decoder", name, hint: String::new() });
            }
        }
        Ok(())
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        if let Some(byte) = byte_token(token).filter(|_| self.byte_fallback) {
            return vec![byte];
        }
        if let Some(inside) = &self.inside {
            return token.strip_prefix(inside.as_str()).map_or_else(|| format!(" {token}"), str::to_owned).into_bytes();
        }
        match &self.space {
            Some(space) => token.replace(space, " ").into_bytes(),
            None if self.byte_level => from_alphabet(token),
            None => token.as_bytes().to_vec(),
        }
    }

    /// What each of the pipeline's tokens stands for. Special tokens are silent, and ids without a token.
    ///
    /// # Errors
    /// [`ModelError::Malformed`] where an id is so high that it can only be an error.
    pub(super) fn vocabulary(&self, pipeline: &Pipeline) -> Result<Vocabulary, ModelError> {
        let added = pipeline.get_added_tokens_decoder();
        let ids = pipeline.get_vocab(true).into_values().max().map_or(0, |last| u64::from(last) + 1);
        if ids > MAX_IDS {
            let why = format!("the highest token id is {}, the limit is {}", ids - 1, MAX_IDS - 1);
            return Err(ModelError::Malformed { file: "tokenizer.json".to_owned(), why });
        }
        let mut vocabulary = Vocabulary::default();
        for id in (0..).take(usize::try_from(ids).unwrap_or(usize::MAX)) {
            match (added.get(&id), pipeline.id_to_token(id)) {
                (Some(token), _) => vocabulary.push(token.content.as_bytes(), token.special),
                (None, Some(token)) => vocabulary.push(&self.bytes(&token), false),
                (None, None) => vocabulary.push(b"", true),
            }
        }
        Ok(vocabulary)
    }
}
