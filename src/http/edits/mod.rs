//! Edits: asking for them, reading the log of them, taking one back.

mod body;
mod entry;
pub(super) mod read;
pub(super) mod submit;
pub(super) mod take_back;
