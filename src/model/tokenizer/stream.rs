//! Tokens to text one at a time, where a character may span several tokens.

use super::vocabulary::Vocabulary;

/// Decodes token by token.
///
/// Law: no character is ever split, and what [`push`](Self::push) returned, end to end, followed by what
/// [`finish`](Self::finish) returns, is what [`Tokenizer::decode`](super::Tokenizer::decode) makes of the same ids.
pub struct DecodeStream<'a> {
    vocabulary: &'a Vocabulary,
    /// Bytes that may still become a character: shorter than one.
    pending: Vec<u8>,
    /// Whether the next byte, if it is a space, is the tokenizer's and not the text's.
    strip_space: bool,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(vocabulary: &'a Vocabulary, strip_space: bool) -> Self {
        Self { vocabulary, pending: Vec::new(), strip_space }
    }

    /// Keeps the space that a SentencePiece tokenizer would take from the start of a text: the ids continue one.
    #[must_use]
    pub fn continuing(mut self) -> Self {
        self.strip_space = false;
        self
    }

    /// Takes the next token; returns the text that is now certain, none if there is none. Special tokens and ids outside
    /// the vocabulary add nothing.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let mut bytes = self.vocabulary.spoken(id);
        if self.strip_space && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            self.strip_space = false;
        }
        self.pending.extend_from_slice(bytes);
        let text = self.take_certain();
        debug_assert!(self.pending.len() < 4, "{} bytes are pending", self.pending.len());
        (!text.is_empty()).then_some(text)
    }

    /// Ends the text: a character that was begun and not finished becomes U+FFFD.
    pub fn finish(self) -> Option<String> {
        (!self.pending.is_empty()).then(|| String::from_utf8_lossy(&self.pending).into_owned())
    }

    /// Takes everything but an incomplete character at the end, each invalid sequence as one U+FFFD, just as
    /// `String::from_utf8_lossy` would over the whole.
    fn take_certain(&mut self) -> String {
        let mut text = String::new();
        let mut taken = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            taken += chunk.valid().len();
            let invalid = chunk.invalid();
            let at_end = taken + invalid.len() == self.pending.len();
            if invalid.is_empty() || (at_end && is_incomplete(invalid)) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            taken += invalid.len();
        }
        self.pending.drain(..taken);
        text
    }
}

/// Whether more bytes could make a character of these.
fn is_incomplete(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes_as_tokens() -> Vocabulary {
        let mut vocabulary = Vocabulary::default();
        (0..=255u8).for_each(|byte| vocabulary.push(&[byte], false));
        vocabulary.push(b"<end>", true);
        vocabulary
    }

    fn decode(vocabulary: &Vocabulary, ids: &[u32]) -> Vec<String> {
        let mut stream = DecodeStream::new(vocabulary, false);
        let mut parts: Vec<String> = ids.iter().filter_map(|&id| stream.push(id)).collect();
        parts.extend(stream.finish());
        parts
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let vocabulary = bytes_as_tokens();
        let mut stream = DecodeStream::new(&vocabulary, false);
        let pushed: Vec<_> = "€!".bytes().map(|byte| stream.push(u32::from(byte))).collect();
        assert_eq!(pushed, [None, None, Some("€".to_owned()), Some("!".to_owned())]);
        assert_eq!(stream.finish(), None);
    }

    #[test]
    fn an_unfinished_character_shows_at_the_end() {
        assert_eq!(decode(&bytes_as_tokens(), &[0xE2, 0x82, 256]), ["\u{FFFD}"]);
        assert_eq!(decode(&bytes_as_tokens(), &[0xE2, 0x41]), ["\u{FFFD}A"]);
    }

    #[test]
    fn only_the_first_space_is_the_tokenizers() {
        let vocabulary = bytes_as_tokens();
        let mut stream = DecodeStream::new(&vocabulary, true);
        let text: String = [256, 32, 32, 65, 32].iter().filter_map(|&id| stream.push(id)).collect();
        assert_eq!(text, " A ");
        assert_eq!(DecodeStream::new(&vocabulary, true).continuing().push(32).as_deref(), Some(" "));
    }

    proptest! {
        #[test]
        fn any_bytes_equal_lossy_decoding_of_the_whole(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let ids: Vec<u32> = bytes.iter().copied().map(u32::from).collect();
            prop_assert_eq!(decode(&bytes_as_tokens(), &ids).concat(), String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn any_text_comes_back_whole_and_never_split(text in any::<String>()) {
            let ids: Vec<u32> = text.bytes().map(u32::from).collect();
            let parts = decode(&bytes_as_tokens(), &ids);
            prop_assert!(parts.iter().all(|part| part.chars().count() == 1));
            prop_assert_eq!(parts.concat(), text);
        }
    }
}
