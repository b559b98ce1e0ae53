//! The language model: trunk and tail, loaders, tokenizer and chat template, capture of factors.

pub mod chat_template;
mod error;
mod passage;
pub mod tokenizer;

pub use error::ModelError;
pub use passage::Passage;
