//! How a prompt and a target become what a network reads: one text, an encoder's source and a decoder's answer, or a text
//! and its label.

use crate::model::ModelError;

/// What stands between a prompt and its target, and after it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Framing {
    /// The target goes on with the prompt.
    #[default]
    Continuation,
    /// An encoder reads the prompt; a decoder begins with `start` and answers with the target, which `end` closes.
    Answer { start: Vec<u32>, end: Option<u32> },
    /// The target is one of these labels; its number is the place here.
    Label(Vec<String>),
}

/// The id that stands for the place where a classifier is asked for a label. It is never looked up.
pub(super) const ASKED: u32 = 0;

impl Framing {
    /// How many ids of a prompt come after what an encoder reads: those that its decoder begins with, or a label's place.
    pub fn opening(&self) -> usize {
        match self {
            Self::Continuation => 0,
            Self::Answer { start, .. } => start.len(),
            Self::Label(_) => 1,
        }
    }

    /// A classifier's labels, in the order of their numbers; none of any other network.
    pub fn labels(&self) -> &[String] {
        match self {
            Self::Label(labels) => labels,
            _ => &[],
        }
    }
}

/// The number of the label that `text` names, or is the number of.
pub(super) fn label(labels: &[String], text: &str) -> Result<u32, ModelError> {
    let (text, names) = (text.trim(), 0..labels.len());
    let named = labels.iter().position(|label| label == text);
    let numbered = || text.parse().ok().filter(|number| names.contains(number));
    let unknown = || ModelError::UnknownLabel { label: text.to_owned(), labels: labels.to_vec() };
    Ok(named.or_else(numbered).ok_or_else(unknown)? as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_goes_by_its_name_or_its_number() {
        let labels = ["red", "2", "blue"].map(str::to_owned);
        for (text, number) in [("red", 0), (" blue ", 2), ("0", 0), ("2", 1)] {
            assert_eq!(label(&labels, text).unwrap(), number, "{text:?}");
        }
        for text in ["", "Red", "3", "-1", "1.0"] {
            let error = label(&labels, text).unwrap_err().to_string();
            assert!(error.ends_with("is none of the labels red, 2, blue"), "{error}");
        }
    }
}
