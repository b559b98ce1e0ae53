//! From one sequence's tokens to the pieces of text that may be shown.

use std::collections::VecDeque;

use super::{decoder::Detokenizer, error::GenerateError, request::TokenLogprob, stop::StopMatcher};

/// Joins tokens to whole characters, watches for stop strings, and keeps each token's log-probability with its text.
pub(super) struct TextOut<'d> {
    detokenizer: Box<dyn Detokenizer + 'd>,
    stop: StopMatcher,
    /// Log-probabilities not yet sent, each with the byte of the whole text at which its token begins.
    pending: VecDeque<(usize, TokenLogprob)>,
    /// Bytes of text that the tokens have made so far.
    made: usize,
    /// Bytes of text let out so far.
    shown: usize,
}

/// Text that is ready to show, and the log-probabilities of the tokens that begin in it or before it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    pub logprobs: Vec<TokenLogprob>,
}

impl Piece {
    /// Whether there is nothing in it to show.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.logprobs.is_empty()
    }
}

impl<'d> TextOut<'d> {
    pub fn new(detokenizer: Box<dyn Detokenizer + 'd>, stop: StopMatcher) -> Self {
        Self { detokenizer, stop, pending: VecDeque::new(), made: 0, shown: 0 }
    }

    /// Takes a token; gives what can be shown now, and whether a stop string ended the text.
    pub fn push(&mut self, id: u32, logprob: Option<TokenLogprob>) -> Result<(Piece, bool), GenerateError> {
        self.pending.extend(logprob.map(|logprob| (self.made, logprob)));
        let Some(text) = self.detokenizer.push(id)? else { return Ok((Piece::default(), false)) };
        self.made += text.len();
        let released = self.stop.push(&text);
        self.shown += released.text.len();
        let due = self.pending.iter().take_while(|(begin, _)| *begin < self.shown).count();
        let logprobs = self.pending.drain(..due).map(|(_, logprob)| logprob).collect();
        Ok((Piece { text: released.text, logprobs }, released.stopped))
    }

    /// The rest of a text that ended without a stop string. A character that was never completed is left out.
    pub fn finish(&mut self) -> Piece {
        let logprobs = self.pending.drain(..).map(|(_, logprob)| logprob).collect();
        Piece { text: self.stop.flush(), logprobs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Token 0 is "ab", 1 is half of a character, 2 its other half ("é"), 3 is "S".
    struct Fake;

    impl Detokenizer for Fake {
        fn push(&mut self, id: u32) -> Result<Option<String>, GenerateError> {
            Ok([Some("ab"), None, Some("é"), Some("S")][id as usize].map(Into::into))
        }
    }

    fn logprob(token: &str) -> TokenLogprob {
        TokenLogprob { token: token.into(), logprob: -1.0, bytes: Vec::new(), top: Vec::new() }
    }

    fn run(ids: &[u32]) -> (String, String, bool) {
        let mut out = TextOut::new(Box::new(Fake), StopMatcher::new(vec!["éSS".into()]));
        let (mut text, mut tokens, mut stopped) = (String::new(), String::new(), false);
        let mut take = |piece: Piece| {
            text += &piece.text;
            tokens.extend(piece.logprobs.into_iter().map(|logprob| logprob.token));
        };
        for id in ids {
            let (piece, end) = out.push(*id, Some(logprob(&id.to_string()))).unwrap();
            take(piece);
            stopped = end;
        }
        if !stopped {
            take(out.finish());
        }
        (text, tokens, stopped)
    }

    #[test]
    fn log_probs_go_with_their_text() {
        assert_eq!(run(&[0, 1, 2, 0]), ("abéab".into(), "0120".into(), false));
        assert_eq!(run(&[0, 1, 2, 3, 0]), ("abéSab".into(), "01230".into(), false));
        assert_eq!(run(&[0, 1]), ("ab".into(), "01".into(), false));
    }

    #[test]
    fn tokens_of_the_stop_string_are_left_out_with_it() {
        assert_eq!(run(&[0, 1, 2, 3, 3]), ("ab".into(), "0".into(), true));
        assert_eq!(run(&[1, 2, 3, 3]), (String::new(), String::new(), true));
    }
}
