//! What loads loads right, from each kind of file, and what does not is refused with the reason.

#[path = "../common/mod.rs"]
mod common;

mod folders;
mod gguf;
mod headers;
mod refusals;
mod written;
