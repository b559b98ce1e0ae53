//! Several services at one log in PostgreSQL, on the real binary: one writes, the others follow to the same digest, hand
//! changes on, and take over.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests fail like tests, and say what they skip"
)]

#[path = "../common/collector.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod collector;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/postgres.rs"]
mod postgres;
#[path = "../common/process.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod process;
#[path = "../common/server.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod server;
#[path = "../common/tiny.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod tiny;

mod clients;
mod commands;
mod diverging;
mod failover;
mod following;
mod measure;
mod partition;
mod setting;
