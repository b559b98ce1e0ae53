//! What loads loads right, from each kind of file, and what does not is refused with the reason.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test panics when something is wrong, and says what it measured"
)]

#[path = "../common/mod.rs"]
mod common;

mod folders;
mod gemma;
mod gguf;
mod headers;
mod refusals;
mod written;
