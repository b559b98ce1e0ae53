//! Log-probabilities in the two forms that the two routes have.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::generation::{Alternative, TokenLogprob};

/// Of a chat answer.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ChatLogprobs {
    content: Vec<ChatToken>,
}

/// A token of a chat answer.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ChatToken {
    token: String,
    logprob: f32,
    /// The bytes that it stands for, which may be a part of a character.
    bytes: Vec<u8>,
    top_logprobs: Vec<ChatAlternative>,
}

/// Another token that could have come.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ChatAlternative {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl From<Vec<TokenLogprob>> for ChatLogprobs {
    fn from(tokens: Vec<TokenLogprob>) -> Self {
        let alternative = |Alternative { token, logprob, bytes }| ChatAlternative { token, logprob, bytes };
        let token = |TokenLogprob { token, logprob, bytes, top }| ChatToken {
            token,
            logprob,
            bytes,
            top_logprobs: top.into_iter().map(alternative).collect(),
        };
        Self { content: tokens.into_iter().map(token).collect() }
    }
}

/// Of a completion: one entry for each token in each list.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(in crate::http) struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    /// The most probable tokens, and the chosen one if it is not among them.
    top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Characters from the beginning of the text to each token.
    text_offset: Vec<usize>,
}

impl TextLogprobs {
    /// `offset` counts the characters before the first token, and then those before the one after the last.
    pub(super) fn new(tokens: Vec<TokenLogprob>, offset: &mut usize) -> Self {
        let mut all = Self::default();
        for TokenLogprob { token, logprob, bytes, top } in tokens {
            let mut alternatives: BTreeMap<String, f32> =
                top.into_iter().map(|Alternative { token, logprob, bytes }| (name(token, &bytes), logprob)).collect();
            all.text_offset.push(*offset);
            *offset += token.chars().count();
            let token = name(token, &bytes);
            alternatives.insert(token.clone(), logprob);
            all.tokens.push(token);
            all.token_logprobs.push(logprob);
            all.top_logprobs.push(alternatives);
        }
        all
    }
}

/// A token as a key: its text, or as OpenAI writes it where that is not a text of its own, `bytes:\xe2\x82`.
fn name(token: String, bytes: &[u8]) -> String {
    if std::str::from_utf8(bytes).is_ok() {
        return token;
    }
    bytes.iter().fold("bytes:".to_owned(), |name, byte| format!("{name}\\x{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_are_no_text_are_told_apart() {
        let alternative =
            |bytes: &[u8], logprob| Alternative { token: "\u{FFFD}".into(), logprob, bytes: bytes.into() };
        let token = TokenLogprob {
            token: "\u{FFFD}".into(),
            logprob: -3.0,
            bytes: vec![0xe2, 0x82],
            top: vec![alternative(&[0xe2], -1.0), alternative(&[0xff], -2.0)],
        };
        let plain = TokenLogprob { token: "é".into(), logprob: -1.0, bytes: "é".into(), top: Vec::new() };
        let mut offset = 4;
        let all = TextLogprobs::new(vec![token, plain], &mut offset);
        assert_eq!(all.tokens, ["bytes:\\xe2\\x82", "é"]);
        let names: Vec<&str> = all.top_logprobs[0].keys().map(String::as_str).collect();
        assert_eq!(names, ["bytes:\\xe2", "bytes:\\xe2\\x82", "bytes:\\xff"]);
        assert_eq!((all.text_offset, offset), (vec![4, 5], 6));
    }
}
