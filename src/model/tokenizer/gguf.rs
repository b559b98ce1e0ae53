//! A tokenizer from GGUF metadata (`tokenizer.ggml.*`).

use std::collections::BTreeSet;

use candle_core::quantized::gguf_file::{Content, Value};
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::{
    END_TOKENS, Encoder, Framing, Tokenizer,
    byte_level::ByteLevelBpe,
    partition::Partition,
    pre_tokenizer::PreTokenizer,
    sentence_piece::{SPACE, SentencePiece},
    vocabulary::{Vocabulary, byte_token, from_alphabet},
};
use crate::model::ModelError;

/// `llama_token_type`, the kinds of token in `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal = 1,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Tokenizer {
    /// The tokenizer that a GGUF file's metadata describes.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] where the kind of vocabulary is neither `gpt2` (byte-level BPE) nor `llama`
    /// (SentencePiece's BPE), or the pre-tokenizer's name is unknown; [`ModelError::Missing`] and
    /// [`ModelError::Malformed`] name the key.
    pub fn from_gguf(content: &Content) -> Result<Self, ModelError> {
        let metadata = Metadata(content);
        let kind = metadata.string("tokenizer.ggml.model")?;
        let read = match kind {
            "gpt2" => byte_level,
            "llama" => sentence_piece,
            other => {
                let hint =
                    "of GGUF vocabularies byte-level BPE (\"gpt2\") and SentencePiece's BPE (\"llama\") are; load \
                            the model from its Hugging Face folder"
                        .to_owned();
                return Err(ModelError::Unsupported { what: "GGUF tokenizer", name: other.to_owned(), hint });
            }
        };
        let tokens = metadata.strings("tokenizer.ggml.tokens")?;
        let kinds = metadata.kinds(tokens.len())?;
        let bos = metadata.token("tokenizer.ggml.bos_token_id", tokens.len())?;
        let eos = metadata.token("tokenizer.ggml.eos_token_id", tokens.len())?;
        let ends = metadata.ends(&tokens, &kinds, eos)?;
        let Pipeline { encoder, spelled, add_bos, strip_leading_space } = read(&metadata, &tokens, &kinds)?;
        let add_bos = metadata.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos);
        Ok(Self {
            vocabulary: vocabulary(&tokens, &kinds, spelled),
            encoder,
            bos,
            eos,
            add_bos: add_bos && bos.is_some(),
            ends,
            strip_leading_space,
            framing: Framing::default(),
        })
    }
}

/// What kinds of vocabulary differ in.
struct Pipeline {
    encoder: Encoder,
    /// The bytes that a normal token stands for.
    spelled: fn(&str) -> Vec<u8>,
    /// Whether prompts begin with BOS where the metadata does not say.
    add_bos: bool,
    strip_leading_space: bool,
}

fn byte_level(metadata: &Metadata<'_>, tokens: &[&str], kinds: &[Kind]) -> Result<Pipeline, ModelError> {
    let pre_tokenizer = PreTokenizer::named(metadata.string("tokenizer.ggml.pre")?)?;
    let add_bos = pre_tokenizer.add_bos;
    let bpe = build_bpe(tokens, metadata.merges()?, &pre_tokenizer)?;
    let encoder = ByteLevelBpe::new(bpe, pre_tokenizer, recognised(tokens, kinds));
    Ok(Pipeline {
        encoder: Encoder::ByteLevel(Box::new(encoder)),
        spelled: from_alphabet,
        add_bos,
        strip_leading_space: false,
    })
}

fn sentence_piece(metadata: &Metadata<'_>, tokens: &[&str], kinds: &[Kind]) -> Result<Pipeline, ModelError> {
    let scores = metadata.scores(tokens.len())?;
    let prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut bytes = vec![None; 256];
    for (id, (token, _)) in (0..).zip(tokens.iter().zip(kinds)).filter(|(_, (_, kind))| **kind == Kind::Byte) {
        if let Some(byte) = byte_token(token) {
            bytes[usize::from(byte)] = Some(id);
        }
    }
    let partition = Partition::new(recognised(tokens, kinds));
    Ok(Pipeline {
        encoder: Encoder::SentencePiece(Box::new(SentencePiece::new(tokens, scores, bytes, partition, prefix))),
        spelled: |token| token.replace(SPACE, " ").into_bytes(),
        add_bos: true,
        strip_leading_space: prefix,
    })
}

fn build_bpe(tokens: &[&str], merges: Merges, pre_tokenizer: &PreTokenizer) -> Result<BPE, ModelError> {
    let vocab: Vocab = (0..).zip(tokens).map(|(id, &token)| (token.to_owned(), id)).collect();
    BPE::builder()
        .ignore_merges(pre_tokenizer.ignore_merges)
        .vocab_and_merges(vocab, merges)
        .build()
        .map_err(|e| malformed("tokenizer.ggml.merges", e.to_string()))
}

/// Tokens found in text as spelled: unknown, control and user-defined ones.
fn recognised(tokens: &[&str], kinds: &[Kind]) -> Vec<(String, u32)> {
    (0..)
        .zip(tokens.iter().zip(kinds))
        .filter(|(_, (_, kind))| matches!(kind, Kind::Unknown | Kind::Control | Kind::UserDefined))
        .map(|(id, (&token, _))| (token.to_owned(), id))
        .collect()
}

fn vocabulary(tokens: &[&str], kinds: &[Kind], spelled: fn(&str) -> Vec<u8>) -> Vocabulary {
    let mut vocabulary = Vocabulary::default();
    for (token, kind) in tokens.iter().zip(kinds) {
        match kind {
            Kind::Normal => vocabulary.push(&spelled(token), false),
            Kind::UserDefined => vocabulary.push(token.as_bytes(), false),
            Kind::Byte => match byte_token(token) {
                Some(byte) => vocabulary.push(&[byte], false),
                None => vocabulary.push(&spelled(token), false),
            },
            Kind::Unknown | Kind::Control | Kind::Unused => vocabulary.push(token.as_bytes(), true),
        }
    }
    vocabulary
}

/// Typed access to the metadata, with errors that name the key.
struct Metadata<'a>(&'a Content);

impl<'a> Metadata<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.metadata.get(key)
    }

    fn required(&self, key: &str) -> Result<&'a Value, ModelError> {
        self.get(key).ok_or_else(|| ModelError::Missing { file: "the GGUF metadata".to_owned(), what: key.to_owned() })
    }

    fn string(&self, key: &str) -> Result<&'a str, ModelError> {
        self.required(key)?.to_string().map(String::as_str).map_err(|e| malformed(key, e.to_string()))
    }

    fn array(&self, key: &str) -> Result<&'a [Value], ModelError> {
        self.required(key)?.to_vec().map(Vec::as_slice).map_err(|e| malformed(key, e.to_string()))
    }

    fn strings(&self, key: &str) -> Result<Vec<&'a str>, ModelError> {
        let entry = |value: &'a Value| value.to_string().map(String::as_str).map_err(|e| malformed(key, e.to_string()));
        self.array(key)?.iter().map(entry).collect()
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.get(key).map(|value| value.to_bool().map_err(|e| malformed(key, e.to_string()))).transpose()
    }

    /// A token id that must lie in a vocabulary of `size`.
    fn token(&self, key: &str, size: usize) -> Result<Option<u32>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let id = integer(value).and_then(|id| u32::try_from(id).ok()).filter(|&id| (id as usize) < size);
        id.map(Some).ok_or_else(|| malformed(key, format!("{value:?} is no id in a vocabulary of {size}")))
    }

    fn kinds(&self, size: usize) -> Result<Vec<Kind>, ModelError> {
        let key = "tokenizer.ggml.token_type";
        let kind = |value: &Value| match integer(value) {
            Some(0 | 1) => Ok(Kind::Normal),
            Some(2) => Ok(Kind::Unknown),
            Some(3) => Ok(Kind::Control),
            Some(4) => Ok(Kind::UserDefined),
            Some(5) => Ok(Kind::Unused),
            Some(6) => Ok(Kind::Byte),
            _ => Err(malformed(key, format!("{value:?} is no kind of token"))),
        };
        let kinds: Vec<_> = self.array(key)?.iter().map(kind).collect::<Result<_, _>>()?;
        if kinds.len() != size {
            return Err(malformed(key, format!("{} kinds for {size} tokens", kinds.len())));
        }
        Ok(kinds)
    }

    fn scores(&self, size: usize) -> Result<Vec<f32>, ModelError> {
        let key = "tokenizer.ggml.scores";
        let score = |value: &Value| value.to_f32().map_err(|e| malformed(key, e.to_string()));
        let scores: Vec<f32> = self.array(key)?.iter().map(score).collect::<Result<_, _>>()?;
        match scores.len() == size {
            true => Ok(scores),
            false => Err(malformed(key, format!("{} scores for {size} tokens", scores.len()))),
        }
    }

    fn merges(&self) -> Result<Merges, ModelError> {
        let key = "tokenizer.ggml.merges";
        let pair = |merge: &str| {
            let (left, right) = merge.split_once(' ').ok_or_else(|| malformed(key, format!("{merge:?} is no pair")))?;
            Ok((left.to_owned(), right.to_owned()))
        };
        self.strings(key)?.into_iter().map(pair).collect()
    }

    /// The end tokens that the metadata names, and control tokens that are known as such.
    fn ends(&self, tokens: &[&str], kinds: &[Kind], eos: Option<u32>) -> Result<BTreeSet<u32>, ModelError> {
        let known = (0..).zip(tokens.iter().zip(kinds));
        let known = known.filter(|(_, (token, kind))| **kind == Kind::Control && END_TOKENS.contains(token));
        let mut ends: BTreeSet<u32> = known.map(|(id, _)| id).chain(eos).collect();
        for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            ends.extend(self.token(key, tokens.len())?);
        }
        Ok(ends)
    }
}

fn integer(value: &Value) -> Option<i64> {
    match *value {
        Value::U8(v) => Some(v.into()),
        Value::I8(v) => Some(v.into()),
        Value::U16(v) => Some(v.into()),
        Value::I16(v) => Some(v.into()),
        Value::U32(v) => Some(v.into()),
        Value::I32(v) => Some(v.into()),
        Value::U64(v) => v.try_into().ok(),
        Value::I64(v) => Some(v),
        _ => None,
    }
}

fn malformed(key: &str, why: String) -> ModelError {
    ModelError::Malformed { file: format!("the GGUF metadata's {key}"), why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tokenizer::testing::{content, small_metadata};

    #[test]
    fn control_and_user_defined_tokens_are_recognised_and_unused_ones_are_not() {
        let tokenizer = Tokenizer::from_gguf(&content(small_metadata())).unwrap();
        assert_eq!(tokenizer.encode("hi<|im_end|><tool>").unwrap(), [3, 4, 5, 6]);
        assert!(tokenizer.encode("[PAD7]").unwrap().iter().all(|&id| id != 7));
        assert_eq!(tokenizer.decode(&[3, 5, 4, 6, 7]).unwrap(), "hi<tool>");
        assert_eq!(tokenizer.token_text(5).as_deref(), Some("<|im_end|>"));
        assert_eq!(tokenizer.token_text(8), None);
    }

    #[test]
    fn prompts_begin_with_bos_once_where_the_metadata_says_so() {
        let mut metadata = small_metadata();
        assert_eq!(Tokenizer::from_gguf(&content(metadata.clone())).unwrap().encode_prompt("h").unwrap(), [3]);
        metadata.insert("tokenizer.ggml.add_bos_token".into(), Value::Bool(true));
        let tokenizer = Tokenizer::from_gguf(&content(metadata)).unwrap();
        assert_eq!(tokenizer.encode_prompt("h").unwrap(), [0, 3]);
        assert_eq!(tokenizer.encode_prompt("<s>h").unwrap(), [0, 3]);
        assert_eq!(tokenizer.encode("h").unwrap(), [3]);
        assert_eq!((tokenizer.bos_text(), tokenizer.eos_text()), ("<s>".into(), "</s>".into()));
    }

    #[test]
    fn ends_are_the_named_ones_and_the_known_ones() {
        let tokenizer = Tokenizer::from_gguf(&content(small_metadata())).unwrap();
        let ends: Vec<_> = (0..10).filter(|&id| tokenizer.is_end(id)).collect();
        assert_eq!(ends, [1, 5]);
    }

    #[test]
    fn a_passage_is_prompt_and_target_with_one_space_between() {
        let mut metadata = small_metadata();
        metadata.insert("tokenizer.ggml.add_bos_token".into(), Value::Bool(true));
        let tokenizer = Tokenizer::from_gguf(&content(metadata)).unwrap();
        let passage = tokenizer.encode_passage("h", "i").unwrap();
        assert_eq!((passage.ids.as_slice(), passage.target.clone()), (&[0, 3, 2, 4][..], 2..4));
        assert_eq!(passage.target_ids(), [2, 4]);
        assert_eq!(tokenizer.encode_passage("h", " i").unwrap(), passage);
        let error = tokenizer.encode_passage("h", "").unwrap_err();
        assert_eq!(error.to_string(), "the target is empty");
        assert!(matches!(tokenizer.encode_passage("", "i"), Err(ModelError::Empty { what: "prompt" })));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let refused = |key: &str, value: Option<Value>| {
            let mut metadata = small_metadata();
            metadata.remove(key);
            metadata.extend(value.map(|value| (key.to_owned(), value)));
            Tokenizer::from_gguf(&content(metadata)).unwrap_err().to_string()
        };
        let error = refused("tokenizer.ggml.model", Some(Value::String("t5".into())));
        assert!(error.starts_with("GGUF tokenizer \"t5\" is not supported"), "{error}");
        let error = refused("tokenizer.ggml.model", Some(Value::String("llama".into())));
        assert_eq!(error, "the GGUF metadata has no tokenizer.ggml.scores");
        assert_eq!(refused("tokenizer.ggml.pre", None), "the GGUF metadata has no tokenizer.ggml.pre");
        let error = refused("tokenizer.ggml.eos_token_id", Some(Value::U32(99)));
        assert!(error.contains("eos_token_id") && error.contains("99"), "{error}");
        let error = refused("tokenizer.ggml.token_type", Some(Value::Array(vec![Value::I32(1)])));
        assert!(error.contains("1 kinds for 8 tokens"), "{error}");
        let error = refused("tokenizer.ggml.merges", Some(Value::Array(vec![Value::String("ab".into())])));
        assert!(error.contains("\"ab\" is no pair"), "{error}");
        let error = refused("tokenizer.ggml.merges", Some(Value::Array(vec![Value::String("h q".into())])));
        assert!(error.contains("merges"), "{error}");
    }

    #[test]
    fn a_text_beyond_the_limit_is_refused_with_the_numbers() {
        let tokenizer = Tokenizer::from_gguf(&content(small_metadata())).unwrap();
        let limit = crate::model::tokenizer::MAX_TEXT_BYTES;
        let error = tokenizer.encode(&"h".repeat(limit + 1)).unwrap_err().to_string();
        assert_eq!(error, format!("too long: {} bytes, the limit is {limit}", limit + 1));
        let error = tokenizer.decode(&[3, 8]).unwrap_err().to_string();
        assert!(error.contains("no token 8") && error.contains("8 ids"), "{error}");
    }
}
