//! What each token stands for: bytes, and whether decoding leaves it out. Also GPT-2's alphabet, in which byte-level
//! vocabularies spell bytes as printable characters.

use std::{collections::HashMap, sync::LazyLock};

/// Bytes of every token, by id, end to end.
#[derive(Default)]
pub(super) struct Vocabulary {
    bytes: Vec<u8>,
    /// Where token `id` ends in `bytes`; it begins where the one before it ends.
    ends: Vec<usize>,
    silent: Vec<bool>,
}

impl Vocabulary {
    /// Appends the token with the next id. A `silent` token yields nothing when decoded.
    pub(super) fn push(&mut self, bytes: &[u8], silent: bool) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self.silent.push(silent);
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of token `id`, silent or not; none outside the vocabulary.
    pub(super) fn bytes(&self, id: u32) -> Option<&[u8]> {
        let id = usize::try_from(id).ok()?;
        let end = *self.ends.get(id)?;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        Some(&self.bytes[start..end])
    }

    /// What token `id` adds to a text.
    pub(super) fn spoken(&self, id: u32) -> &[u8] {
        match self.bytes(id) {
            Some(bytes) if !self.silent[id as usize] => bytes,
            _ => &[],
        }
    }
}

/// GPT-2's table: printable Latin-1 bytes are themselves, the other 68 are the characters from U+0100 on.
static BYTE_TO_CHAR: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut next = 0x100;
    std::array::from_fn(|i| {
        let byte = u8::try_from(i).expect("the array has 256 entries");
        if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..) {
            return char::from(byte);
        }
        next += 1;
        char::from_u32(next - 1).expect("U+0100 to U+0143 are characters")
    })
});

static CHAR_TO_BYTE: LazyLock<HashMap<char, u8>> =
    LazyLock::new(|| (0..=255).zip(*BYTE_TO_CHAR).map(|(b, c)| (c, b)).collect());

/// All 256 characters.
pub(super) fn alphabet() -> impl Iterator<Item = char> {
    BYTE_TO_CHAR.iter().copied()
}

/// `text`'s bytes in GPT-2's alphabet.
pub(super) fn to_alphabet(text: &str) -> String {
    text.bytes().map(|byte| BYTE_TO_CHAR[usize::from(byte)]).collect()
}

/// The bytes that a token in GPT-2's alphabet spells; its own UTF-8 where it has a character outside the alphabet.
pub(super) fn from_alphabet(token: &str) -> Vec<u8> {
    token
        .chars()
        .map(|c| CHAR_TO_BYTE.get(&c).copied())
        .collect::<Option<_>>()
        .unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte of a byte token such as `<0x0A>`.
pub(super) fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let hexadecimal = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if hexadecimal { u8::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_is_gpt2s_and_inverts() {
        assert_eq!(to_alphabet(" é\n\u{ad}"), "ĠÃ©ĊÂŃ");
        let all: String = BYTE_TO_CHAR.iter().collect();
        assert_eq!(from_alphabet(&all), (0..=255).collect::<Vec<u8>>());
        assert_eq!(from_alphabet("日本"), "日本".as_bytes());
    }

    #[test]
    fn tokens_keep_their_bounds() {
        let mut vocabulary = Vocabulary::default();
        vocabulary.push(b"ab", false);
        vocabulary.push(b"", false);
        vocabulary.push(b"<s>", true);
        assert_eq!((vocabulary.bytes(0), vocabulary.bytes(1)), (Some(&b"ab"[..]), Some(&b""[..])));
        assert_eq!((vocabulary.bytes(2), vocabulary.spoken(2)), (Some(&b"<s>"[..]), &b""[..]));
        assert_eq!((vocabulary.bytes(3), vocabulary.spoken(u32::MAX)), (None, &b""[..]));
    }

    #[test]
    fn byte_tokens_are_two_hexadecimal_digits() {
        assert_eq!(byte_token("<0x0A>"), Some(10));
        assert_eq!((byte_token("<0xA>"), byte_token("<0x+1>"), byte_token("a")), (None, None, None));
    }
}
