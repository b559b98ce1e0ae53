//! Splitting text into the words that BPE works on. GGUF metadata gives a name for it (`tokenizer.ggml.pre`); what each
//! name means is llama.cpp's table (`llama-vocab.cpp`). Only names whose meaning was checked against llama.cpp are here:
//! a wrong split would shift token ids silently, so any other name is refused.

use std::fmt;

use tokenizers::{NormalizedString, Normalizer, normalizers::unicode::NFC, utils::SysRegex};

use crate::model::ModelError;

/// GPT-2: contractions, words, numbers, other signs, each with at most one space before; then white space.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Every character of Unicode category N stands alone.
const DIGIT: &str = r"\p{N}";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How a text is cut into words before BPE.
pub(super) struct PreTokenizer {
    /// Applied one after another, each to the pieces that the one before left.
    patterns: Vec<SysRegex>,
    /// Whether text is brought to Unicode's normal form C first.
    nfc: bool,
    /// Whether a word that is a token as a whole stays one, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether prompts begin with BOS where the metadata does not say.
    pub(super) add_bos: bool,
}

impl PreTokenizer {
    /// The pre-tokenizer that llama.cpp knows by `name`.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`], by name, for any that is not in the table.
    pub(super) fn named(name: &str) -> Result<Self, ModelError> {
        let (patterns, nfc, llama3): (&[&str], bool, bool) = match name {
            "gpt-2" => (&[GPT2], false, false),
            "smollm" | "starcoder" | "refact" | "codeshell" => (&[DIGIT, GPT2], false, false),
            "llama3" | "llama-v3" | "llama-bpe" => (&[LLAMA3], false, true),
            "smaug-bpe" => (&[LLAMA3], false, false),
            "qwen2" => (&[QWEN2], true, false),
            _ => {
                let hint = "a wrong one would give wrong token ids without a sign; load the model from its Hugging Face \
                            folder instead";
                return Err(ModelError::Unsupported {
                    what: "pre-tokenizer",
                    name: name.to_owned(),
                    hint: hint.to_owned(),
                });
            }
        };
        let patterns = patterns.iter().map(|pattern| {
            SysRegex::new(pattern).map_err(|e| ModelError::Tokenizer(format!("pre-tokenizer {name:?}: {e}")))
        });
        Ok(Self { patterns: patterns.collect::<Result<_, _>>()?, nfc, ignore_merges: llama3, add_bos: llama3 })
    }

    /// Calls `each` with every word of `text`, in order.
    pub(super) fn split<E>(&self, text: &str, mut each: impl FnMut(&str) -> Result<(), E>) -> Result<(), E>
    where
        E: From<ModelError>,
    {
        if !self.nfc || text.is_ascii() {
            return split_by(&self.patterns, text, &mut each);
        }
        let mut normalized = NormalizedString::from(text);
        NFC.normalize(&mut normalized).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        split_by(&self.patterns, normalized.get(), &mut each)
    }
}

impl fmt::Debug for PreTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreTokenizer").field("ignore_merges", &self.ignore_merges).finish_non_exhaustive()
    }
}

/// Cuts `text` into the matches of the first pattern and what lies between them, and each of those by the rest.
fn split_by<E>(patterns: &[SysRegex], text: &str, each: &mut impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
    let Some((first, rest)) = patterns.split_first() else { return each(text) };
    let mut end = 0;
    for (from, to) in first.find_iter(text) {
        if end < from {
            split_by(rest, &text[end..from], each)?;
        }
        split_by(rest, &text[from..to], each)?;
        end = to;
    }
    if end < text.len() { split_by(rest, &text[end..], each) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(name: &str, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        let collect = |word: &str| {
            words.push(word.to_owned());
            Ok::<_, ModelError>(())
        };
        PreTokenizer::named(name).unwrap().split(text, collect).unwrap();
        words
    }

    const SAMPLE: &str = "I'Ll we'll x  123½\n\n  go!\n";

    #[test]
    fn smollm_splits_numbers_off_before_anything_else() {
        let expected = ["I", "'", "Ll", " we", "'ll", " x", "  ", "1", "2", "3", "½", "\n\n ", " go", "!", "\n"];
        assert_eq!(words("smollm", SAMPLE), expected);
    }

    #[test]
    fn gpt2_takes_a_number_whole_with_its_space() {
        let expected = ["I", "'", "Ll", " we", "'ll", " x", " ", " 123½", "\n\n ", " go", "!", "\n"];
        assert_eq!(words("gpt-2", SAMPLE), expected);
    }

    #[test]
    fn llama3_and_qwen2_differ_in_numbers() {
        let expected = ["I", "'Ll", " we", "'ll", " x", " ", " ", "123", "½", "\n\n", " ", " go", "!\n"];
        assert_eq!(words("llama-bpe", SAMPLE), expected);
        let expected = ["I", "'Ll", " we", "'ll", " x", " ", " ", "1", "2", "3", "½", "\n\n", " ", " go", "!\n"];
        assert_eq!(words("qwen2", SAMPLE), expected);
    }

    #[test]
    fn qwen2_composes_and_the_others_do_not() {
        assert_eq!(words("qwen2", "e\u{301}t"), ["ét"]);
        assert_eq!(words("gpt-2", "e\u{301}t"), ["e", "\u{301}", "t"]);
    }

    #[test]
    fn an_unknown_name_is_refused_by_name() {
        let error = PreTokenizer::named("tekken").unwrap_err();
        assert!(error.to_string().starts_with("pre-tokenizer \"tekken\" is not supported"), "{error}");
    }

    #[test]
    fn long_runs_of_white_space_are_no_trap() {
        for name in ["gpt-2", "smollm", "llama-bpe", "qwen2"] {
            for unit in [" ", "\n", "\u{3000}", "\t \r"] {
                let text = unit.repeat(crate::model::tokenizer::MAX_TEXT_BYTES / unit.len() - 1) + "a";
                assert_eq!(words(name, &text).concat(), text, "{name} {unit:?}");
            }
        }
    }
}
