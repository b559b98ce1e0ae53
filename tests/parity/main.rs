//! The network computes what independent implementations compute on the same weights, and decodes what it computes.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test panics when something is wrong, and says what it measured"
)]

#[path = "../common/mod.rs"]
mod common;

mod decoding;
mod encoders;
mod flan_t5;
mod gemma;
mod gradients;
mod greedy;
mod oracles;
