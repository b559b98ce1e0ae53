//! The network computes what independent implementations compute on the same weights, and decodes what it computes.

#[path = "../common/mod.rs"]
mod common;

mod decoding;
mod families;

mod oracles;
