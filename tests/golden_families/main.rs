//! Parity with Hugging Face's PyTorch implementations of every family that loads (`golden/README.md` beside the data):
//! logits, loss, and of every edited matrix the inputs `u`, the `delta` at its outputs, and the gradient.
//!
//! `AMEND_GOLDEN_FAMILIES` names another folder of the same layout: other widths, other head counts.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "helpers of tests may unwrap; a skipped test says so")]

#[path = "../common/mod.rs"]
mod common;

mod causal;
mod classifier;
mod encoder_decoder;
mod golden;
