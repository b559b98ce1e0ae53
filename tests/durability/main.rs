//! Laws 2, 3 and 6 from outside, on the real binary: a version is a function of its set, what was acknowledged survives
//! a kill, and a changed past shows.
//!
//! The tests run on a tiny model. The two that are ignored do the same on a real one, see `scripts/show-durability`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "helpers of tests fail like tests, and say what they skip"
)]

#[path = "../common/mod.rs"]
mod common;
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
mod clock;
mod compact;
mod damage;
mod disk;
mod faults;
mod history;
mod kills;
mod order;
mod setting;
