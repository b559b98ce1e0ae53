//! Byte-level BPE as llama.cpp runs it over a GGUF vocabulary: special tokens are cut out of the text, the rest is split into
//! words, and each word's bytes, spelled in GPT-2's alphabet, are merged.

use tokenizers::{Model as _, models::bpe::BPE};

use super::{
    partition::{Fragment, Partition},
    pre_tokenizer::PreTokenizer,
    vocabulary::to_alphabet,
};
use crate::model::ModelError;

/// The encoder of a GGUF vocabulary of kind `gpt2`.
pub(super) struct ByteLevelBpe {
    bpe: BPE,
    pre_tokenizer: PreTokenizer,
    partition: Partition,
    /// Whether the vocabulary has every byte as a token of its own.
    every_byte: bool,
}

impl ByteLevelBpe {
    /// `recognised` are the tokens to find in text as they are spelled, whatever surrounds them.
    pub(super) fn new(bpe: BPE, pre_tokenizer: PreTokenizer, recognised: Vec<(String, u32)>) -> Self {
        let every_byte = super::vocabulary::alphabet().all(|c| has_char(&bpe, c));
        Self { bpe, pre_tokenizer, partition: Partition::new(recognised), every_byte }
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        for fragment in self.partition.cut(text) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(text) => self.pre_tokenizer.split(text, |word| self.encode_word(word, &mut ids))?,
            }
        }
        Ok(ids)
    }

    fn encode_word(&self, word: &str, ids: &mut Vec<u32>) -> Result<(), ModelError> {
        let spelled = to_alphabet(word);
        if self.every_byte {
            return self.merge(&spelled, ids);
        }
        // A byte that the vocabulary lacks yields no token, but keeps its neighbours from merging.
        spelled.split(|c| !has_char(&self.bpe, c)).try_for_each(|part| self.merge(part, ids))
    }

    fn merge(&self, spelled: &str, ids: &mut Vec<u32>) -> Result<(), ModelError> {
        let tokens = self.bpe.tokenize(spelled).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        ids.extend(tokens.into_iter().map(|token| token.id));
        Ok(())
    }
}

fn has_char(bpe: &BPE, c: char) -> bool {
    bpe.token_to_id(c.encode_utf8(&mut [0; 4])).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `vocabulary` in order of id; a merge `"a b"` makes `"ab"`.
    fn encoder(pre: &str, vocabulary: &[&str], merges: &[&str], recognised: &[&str]) -> ByteLevelBpe {
        let vocab = (0..).zip(vocabulary).map(|(id, &token)| (token.to_owned(), id)).collect();
        let split = |merge: &&str| merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        let pre_tokenizer = PreTokenizer::named(pre).unwrap();
        let bpe = BPE::builder()
            .ignore_merges(pre_tokenizer.ignore_merges)
            .vocab_and_merges::<tokenizers::models::bpe::Vocab>(vocab, merges.iter().map(split).collect())
            .build()
            .unwrap();
        let id = |token: &str| u32::try_from(vocabulary.iter().position(|&t| t == token).unwrap()).unwrap();
        let recognised = recognised.iter().map(|&token| (token.to_owned(), id(token))).collect();
        ByteLevelBpe::new(bpe, pre_tokenizer, recognised)
    }

    #[test]
    fn the_longest_recognised_token_wins() {
        let bpe = encoder("gpt-2", &["x", "<a", "<a>", "<"], &[], &["<a", "<a>"]);
        assert_eq!(bpe.encode("x<a>x<a<").unwrap(), [0, 2, 0, 1, 3]);
        assert_eq!(bpe.encode("").unwrap(), [0; 0]);
    }

    #[test]
    fn a_missing_byte_yields_nothing_and_keeps_its_neighbours_apart() {
        let bpe = encoder("gpt-2", &["!", "!!"], &["! !"], &[]);
        assert_eq!(bpe.encode("!!").unwrap(), [1]);
        assert_eq!(bpe.encode("!\u{4}!").unwrap(), [0, 0]);
    }

    #[test]
    fn llama3_takes_a_word_of_the_vocabulary_whole() {
        let vocabulary = ["a", "b", "c", "bc", "abc"];
        assert_eq!(encoder("llama-bpe", &vocabulary, &["b c"], &[]).encode("abc").unwrap(), [4]);
        assert_eq!(encoder("smaug-bpe", &vocabulary, &["b c"], &[]).encode("abc").unwrap(), [0, 3]);
    }
}
