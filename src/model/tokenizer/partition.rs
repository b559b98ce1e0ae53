//! Cutting tokens that are recognised as they are spelled (special and user-defined ones) out of a text, as llama.cpp does.

/// A part of a text: not tokenized yet, or a token already.
pub(super) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

/// Tokens recognised in text, whatever surrounds them.
pub(super) struct Partition {
    /// Longest first.
    recognised: Vec<(String, u32)>,
}

impl Partition {
    /// Recognises these spellings; the empty one is none.
    pub(super) fn new(mut recognised: Vec<(String, u32)>) -> Self {
        recognised.retain(|(content, _)| !content.is_empty());
        recognised.sort_by_key(|(content, _)| std::cmp::Reverse(content.len()));
        Self { recognised }
    }

    /// The parts of `text`, none of them empty. The longest spelling is cut out of the whole text first.
    pub(super) fn cut<'t>(&self, text: &'t str) -> Vec<Fragment<'t>> {
        let mut fragments = if text.is_empty() { Vec::new() } else { vec![Fragment::Text(text)] };
        let beginnings = Beginnings::of(text);
        for (content, id) in &self.recognised {
            if beginnings.may_have(content) && text.contains(content) {
                fragments = fragments.into_iter().flat_map(|fragment| cut_out(fragment, content, *id)).collect();
            }
        }
        fragments
    }
}

/// Which pairs of bytes a text has. Vocabularies have thousands of special tokens, which a text mostly has no beginning of.
struct Beginnings(Vec<bool>);

impl Beginnings {
    fn of(text: &str) -> Self {
        let mut pairs = vec![false; 1 << 16];
        for pair in text.as_bytes().windows(2) {
            pairs[place(pair[0], pair[1])] = true;
        }
        Self(pairs)
    }

    fn may_have(&self, content: &str) -> bool {
        match *content.as_bytes() {
            [first, second, ..] => self.0[place(first, second)],
            _ => true,
        }
    }
}

fn place(first: u8, second: u8) -> usize {
    usize::from(first) << 8 | usize::from(second)
}

fn cut_out<'t>(fragment: Fragment<'t>, content: &str, id: u32) -> Vec<Fragment<'t>> {
    let Fragment::Text(text) = fragment else { return vec![fragment] };
    let mut fragments = Vec::new();
    for (i, part) in text.split(content).enumerate() {
        if i > 0 {
            fragments.push(Fragment::Token(id));
        }
        if !part.is_empty() {
            fragments.push(Fragment::Text(part));
        }
    }
    fragments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_any_length_are_found_anywhere() {
        let partition = Partition::new(vec![("é".to_owned(), 0), ("x".to_owned(), 1), ("<ab>".to_owned(), 2)]);
        let parts: Vec<String> = partition
            .cut("<ab>aéx<ab")
            .into_iter()
            .map(|fragment| match fragment {
                Fragment::Text(text) => text.to_owned(),
                Fragment::Token(id) => id.to_string(),
            })
            .collect();
        assert_eq!(parts, ["2", "a", "0", "1", "<ab"]);
        assert!(partition.cut("").is_empty());
    }
}
