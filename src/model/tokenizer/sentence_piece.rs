//! SentencePiece's BPE as llama.cpp runs it over a GGUF vocabulary of kind `llama` (`llm_tokenizer_spm`): characters are
//! merged, the neighbours whose union has the best score first, and what is no token in the end is spelled in byte tokens.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap},
};

use super::partition::{Fragment, Partition};

/// What stands for a space.
pub(super) const SPACE: &str = "▁";

/// The encoder of a GGUF vocabulary of kind `llama`.
pub(super) struct SentencePiece {
    ids: HashMap<String, u32>,
    scores: Vec<f32>,
    /// The token of each byte, where there is one.
    bytes: Vec<Option<u32>>,
    partition: Partition,
    /// Whether a space is put before a text, and before what follows a recognised token.
    prefix: bool,
}

/// A run of characters that is not merged further yet: a span of the text, empty once its left neighbour has it.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    length: usize,
    before: Option<usize>,
    after: Option<usize>,
}

/// Two neighbours whose union is a token.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of the union, by which a pair is known to be out of date.
    length: usize,
}

impl Ord for Pair {
    /// The best score is the greatest; of equal ones, the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl SentencePiece {
    /// `tokens` with their `scores` in order of id; `bytes` are the tokens of the 256 bytes.
    pub(super) fn new(
        tokens: &[&str],
        scores: Vec<f32>,
        bytes: Vec<Option<u32>>,
        partition: Partition,
        prefix: bool,
    ) -> Self {
        let ids = tokens.iter().zip(0..).map(|(&token, id)| (token.to_owned(), id)).collect();
        Self { ids, scores, bytes, partition, prefix }
    }

    /// Token ids of a text of its own.
    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        self.run(text, self.prefix)
    }

    /// Token ids of a text that continues another.
    pub(super) fn encode_continuation(&self, text: &str) -> Vec<u32> {
        self.run(text, false)
    }

    fn run(&self, text: &str, prefix: bool) -> Vec<u32> {
        let (mut ids, mut prefix) = (Vec::new(), prefix);
        for fragment in self.partition.cut(text) {
            match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    prefix = self.prefix;
                }
                Fragment::Text(text) => {
                    let spaced = if prefix { format!(" {text}") } else { text.to_owned() };
                    self.merge(&spaced.replace(' ', SPACE), &mut ids);
                    prefix = false;
                }
            }
        }
        ids
    }

    fn merge(&self, text: &str, ids: &mut Vec<u32>) {
        let mut symbols = symbols(text);
        let mut pairs: BinaryHeap<Pair> =
            (1..symbols.len()).filter_map(|right| self.pair(text, &symbols, Some(right - 1), Some(right))).collect();
        while let Some(pair) = pairs.pop() {
            let (left, right) = (symbols[pair.left], symbols[pair.right]);
            if left.length == 0 || right.length == 0 || left.length + right.length != pair.length {
                continue;
            }
            symbols[pair.left].length = pair.length;
            symbols[pair.left].after = right.after;
            symbols[pair.right].length = 0;
            if let Some(after) = right.after {
                symbols[after].before = Some(pair.left);
            }
            pairs.extend(self.pair(text, &symbols, left.before, Some(pair.left)));
            pairs.extend(self.pair(text, &symbols, Some(pair.left), right.after));
        }
        for symbol in symbols.iter().filter(|symbol| symbol.length > 0) {
            let span = &text[symbol.start..symbol.start + symbol.length];
            match self.ids.get(span) {
                Some(&id) => ids.push(id),
                None => ids.extend(span.bytes().filter_map(|byte| self.bytes[usize::from(byte)])),
            }
        }
    }

    /// Two neighbours, if their union is a token.
    fn pair(&self, text: &str, symbols: &[Symbol], left: Option<usize>, right: Option<usize>) -> Option<Pair> {
        let (left, right) = (left?, right?);
        let (first, second) = (symbols[left], symbols[right]);
        let length = first.length + second.length;
        let id = self.ids.get(&text[first.start..first.start + length])?;
        Some(Pair { score: self.scores[*id as usize], left, right, length })
    }
}

/// One symbol per character.
fn symbols(text: &str) -> Vec<Symbol> {
    let count = text.chars().count();
    let symbol = |(place, (start, character)): (usize, (usize, char))| Symbol {
        start,
        length: character.len_utf8(),
        before: place.checked_sub(1),
        after: Some(place + 1).filter(|&after| after < count),
    };
    text.char_indices().enumerate().map(symbol).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens with scores, the bytes of `é` among them.
    fn encoder(tokens: &[(&str, f32)], recognised: &[&str], prefix: bool) -> SentencePiece {
        let texts: Vec<&str> = tokens.iter().map(|(token, _)| *token).collect();
        let id = |token: &str| texts.iter().position(|&text| text == token).map(|id| id as u32);
        let bytes = (0..=255u8).map(|byte| id(&format!("<0x{byte:02X}>"))).collect();
        let recognised = recognised.iter().map(|&token| (token.to_owned(), id(token).unwrap())).collect();
        let scores = tokens.iter().map(|(_, score)| *score).collect();
        SentencePiece::new(&texts, scores, bytes, Partition::new(recognised), prefix)
    }

    #[test]
    fn the_best_score_merges_first_and_the_leftmost_of_equals() {
        let vocabulary = [("a", 0.0), ("b", 0.0), ("ab", -2.0), ("ba", -1.0), ("aa", -3.0)];
        let encoder = encoder(&vocabulary, &[], false);
        assert_eq!(encoder.encode("aba"), [0, 3]);
        assert_eq!(encoder.encode("aaa"), [4, 0]);
        assert_eq!(encoder.encode(""), [0u32; 0]);
    }

    #[test]
    fn what_is_no_token_is_spelled_in_bytes_or_left_out() {
        let encoder = encoder(&[("a", 0.0), ("<0xC3>", 0.0), ("<0xA9>", 0.0)], &[], false);
        assert_eq!(encoder.encode("aéa"), [0, 1, 2, 0]);
        assert_eq!(encoder.encode("xa"), [0]);
    }

    #[test]
    fn a_space_comes_before_a_text_and_after_a_recognised_token() {
        let vocabulary = [("a", 0.0), ("▁", 0.0), ("▁a", -1.0), ("<s>", 0.0)];
        let spaced = encoder(&vocabulary, &["<s>"], true);
        assert_eq!(spaced.encode("a a"), [2, 2]);
        assert_eq!(spaced.encode("<s>a"), [3, 2]);
        assert_eq!(spaced.encode_continuation("a"), [0]);
        assert_eq!(encoder(&vocabulary, &["<s>"], false).encode("a<s>a"), [0, 3, 0]);
    }
}
