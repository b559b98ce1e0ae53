//! How a prompt and a target become what a network reads: one text, an encoder's source and a decoder's answer, or a text
//! and its label.

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
