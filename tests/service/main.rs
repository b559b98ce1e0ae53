//! The service as its users meet it: the real binary with a tiny model, over HTTP and on the command line.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests fail like tests, and say what they skip"
)]

#[path = "../common/collector.rs"]
mod collector;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/process.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod process;
#[path = "../common/server.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod server;
#[path = "../common/tiny.rs"]
mod tiny;

mod access;
mod changes;
mod commands;
mod crowd;
mod edits;
mod errors;
mod gated;
mod generation;
mod holding;
mod interface;
mod kinds;
mod life;
mod openai;
mod operations;
mod overload;
mod python;
mod tls;
mod traces;
mod training;
