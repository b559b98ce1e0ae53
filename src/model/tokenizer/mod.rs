//! Text to token ids and back, as the model's own tokenizer does it.
//!
//! Two sources: a Hugging Face folder, whose `tokenizer.json` the `tokenizers` crate runs (`hub`), and GGUF metadata
//! (`gguf`), for which this module has pipelines of its own: byte-level BPE (`byte_level`), since the metadata names the
//! pre-tokenizer instead of describing it, and SentencePiece's (`sentence_piece`). Decoding is the same for both: each token stands for bytes (`vocabulary`),
//! which a [`DecodeStream`] turns into text.

mod byte_level;
mod framing;
mod gguf;
mod hub;
mod hub_config;
mod partition;
mod pre_tokenizer;
mod sentence_piece;
mod spelling;
mod stream;
mod vocabulary;

#[cfg(test)]
mod golden;
#[cfg(test)]
pub(in crate::model) mod testing;

use std::{collections::BTreeSet, fmt};

use byte_level::ByteLevelBpe;
pub use framing::Framing;
use hub::HubEncoder;
pub(super) use hub::{read_json, read_text};
use sentence_piece::SentencePiece;
pub use stream::DecodeStream;
use vocabulary::Vocabulary;

use super::{ModelError, Passage};

/// Longest text that is encoded at once, bytes. Far above any context; below what would make the regular expressions of a
/// pre-tokenizer give up on a pathological text (ten million steps).
pub const MAX_TEXT_BYTES: usize = 2 * 1024 * 1024;

/// Tokens that end a turn or a text in the families this crate runs. Files often name only one of a model's end tokens.
const END_TOKENS: &[&str] = &[
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
];

/// A model's tokenizer. Immutable; encoding builds nothing anew.
pub struct Tokenizer {
    encoder: Encoder,
    vocabulary: Vocabulary,
    bos: Option<u32>,
    eos: Option<u32>,
    /// Whether a prompt starts with `bos`.
    add_bos: bool,
    ends: BTreeSet<u32>,
    /// Whether text of its own begins with a space that is not the text's (SentencePiece's dummy prefix).
    strip_leading_space: bool,
    framing: Framing,
}

enum Encoder {
    ByteLevel(Box<ByteLevelBpe>),
    SentencePiece(Box<SentencePiece>),
    Hub(Box<HubEncoder>),
}

impl Tokenizer {
    /// Token ids of `text`. Adds no special token; those spelled out in the text are recognised.
    ///
    /// Characters whose bytes the vocabulary lacks yield no token, as in llama.cpp.
    ///
    /// # Errors
    /// [`ModelError::TooLong`] above [`MAX_TEXT_BYTES`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        check_length(text)?;
        match &self.encoder {
            Encoder::ByteLevel(bpe) => bpe.encode(text),
            Encoder::SentencePiece(pieces) => Ok(pieces.encode(text)),
            Encoder::Hub(hub) => hub.encode(text),
        }
    }

    /// The same tokenizer for a network that takes its prompts and targets like this.
    #[must_use]
    pub fn framed(self, framing: Framing) -> Self {
        Self { framing, ..self }
    }

    /// How prompts and targets are put together.
    pub fn framing(&self) -> &Framing {
        &self.framing
    }

    /// What a network is given before it answers: the text, starting with BOS if the model wants one and the text does not
    /// spell it out already; or, where an encoder reads it, the text with the special tokens that the tokenizer puts
    /// around it, and then what the decoder begins with.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        Ok(self.asked(self.encode_source(text)?.0))
    }

    /// A prompt with what the network is asked for its answer by.
    fn asked(&self, mut ids: Vec<u32>) -> Vec<u32> {
        match &self.framing {
            Framing::Continuation => {}
            Framing::Answer { start, .. } => ids.extend(start),
            Framing::Label(_) => ids.push(framing::ASKED),
        }
        ids
    }

    /// The ids of a prompt, and how many of them an encoder reads: all or none.
    fn encode_source(&self, text: &str) -> Result<(Vec<u32>, usize), ModelError> {
        if self.framing == Framing::Continuation {
            let mut ids = self.encode(text)?;
            if let Some(bos) = self.bos.filter(|bos| self.add_bos && ids.first() != Some(bos)) {
                ids.insert(0, bos);
            }
            return Ok((ids, 0));
        }
        check_length(text)?;
        let mut ids = match &self.encoder {
            Encoder::Hub(hub) => hub.encode_whole(text)?,
            _ => self.encode(text)?,
        };
        if let Framing::Answer { end: Some(end), .. } = self.framing
            && ids.last() != Some(&end)
        {
            ids.push(end);
        }
        let source = ids.len();
        Ok((ids, source))
    }

    /// Token ids of `text` as the continuation of another: as [`Tokenizer::encode`], without the space that some
    /// tokenizers put before every text.
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        check_length(text)?;
        match &self.encoder {
            Encoder::ByteLevel(bpe) => bpe.encode(text),
            Encoder::SentencePiece(pieces) => Ok(pieces.encode_continuation(text)),
            Encoder::Hub(hub) => hub.encode_continuation(text),
        }
    }

    /// Prompt and target, encoded separately and concatenated, so that the prompt's ids do not depend on the target. In a
    /// text that goes on, one space joins them unless the target begins with white space.
    ///
    /// # Errors
    /// [`ModelError::Empty`] where one of the two is the empty string or has no token; [`ModelError::UnknownLabel`].
    pub fn encode_passage(&self, prompt: &str, target: &str) -> Result<Passage, ModelError> {
        let open = self.encode_open(prompt)?;
        let target = non_empty("target", target, |text| self.encode_target(text))?;
        let start = open.ids.len();
        let ids = [open.ids, target].concat();
        let target = start..ids.len();
        Ok(Passage { ids, source: open.source, target })
    }

    /// A prompt whose answer is not given.
    ///
    /// # Errors
    /// [`ModelError::Empty`] where it is the empty string or has no token.
    pub fn encode_open(&self, prompt: &str) -> Result<Passage, ModelError> {
        let mut source = 0;
        let ids = non_empty("prompt", prompt, |text| {
            let (ids, read) = self.encode_source(text)?;
            source = read;
            Ok(ids)
        })?;
        Ok(Passage { source, ..Passage::open(self.asked(ids)) })
    }

    fn encode_target(&self, target: &str) -> Result<Vec<u32>, ModelError> {
        match &self.framing {
            Framing::Continuation if target.starts_with(char::is_whitespace) => self.encode_continuation(target),
            Framing::Continuation => self.encode_continuation(&format!(" {target}")),
            Framing::Answer { end, .. } => {
                let mut ids = non_empty("target", target.trim(), |text| self.encode(text))?;
                ids.extend(end);
                Ok(ids)
            }
            Framing::Label(labels) => {
                let known = labels.iter().position(|label| label == target.trim());
                let unknown = || ModelError::UnknownLabel { label: target.to_owned(), labels: labels.clone() };
                Ok(vec![known.ok_or_else(unknown)? as u32])
            }
        }
    }

    /// The text of `ids`, special tokens left out. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] where an id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        if let Some(id) = ids.iter().find(|&&id| self.vocabulary.bytes(id).is_none()) {
            let size = self.vocab_size();
            return Err(ModelError::Tokenizer(format!("there is no token {id}; the vocabulary has {size} ids")));
        }
        let mut stream = self.decode_stream();
        let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
        text.extend(stream.finish());
        Ok(text)
    }

    /// Decodes token by token; see [`DecodeStream`].
    pub fn decode_stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(&self.vocabulary, self.strip_leading_space)
    }

    /// One token as text, special tokens too; bytes that are no UTF-8 on their own become U+FFFD.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.vocabulary.bytes(id).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// The bytes that one token stands for.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.vocabulary.bytes(id)
    }

    /// Whether the token ends a text or a turn.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// One more than the highest id. The model's own vocabulary may be larger, padded.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// The token that begins a text, where the model has one; prompts begin with it only if the model wants that.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that the files name as the end.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// How BOS is spelled; empty where there is none.
    pub fn bos_text(&self) -> String {
        self.bos.and_then(|id| self.token_text(id)).unwrap_or_default()
    }

    /// How EOS is spelled; empty where there is none.
    pub fn eos_text(&self) -> String {
        self.eos.and_then(|id| self.token_text(id)).unwrap_or_default()
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("add_bos", &self.add_bos)
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

fn check_length(text: &str) -> Result<(), ModelError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(ModelError::TooLong { given: text.len(), limit: MAX_TEXT_BYTES, unit: "bytes" });
    }
    Ok(())
}

fn non_empty(
    what: &'static str,
    text: &str,
    encode: impl FnOnce(&str) -> Result<Vec<u32>, ModelError>,
) -> Result<Vec<u32>, ModelError> {
    if text.is_empty() {
        return Err(ModelError::Empty { what });
    }
    let ids = encode(text)?;
    if ids.is_empty() { Err(ModelError::Empty { what }) } else { Ok(ids) }
}
