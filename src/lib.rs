//! Amend edits facts inside a language model over HTTP, keeps every edit in a durable log, and takes any of them back
//! exactly.
//!
//! The floor plan, from the top down. Arrows point downward only; `tests/walls.rs` keeps them so.
//!
//! | room | holds |
//! |---|---|
//! | [`app`] | the only place that sees every room: it wires them |
//! | [`http`] | routes, one file per noun; the code table of errors; OpenAPI |
//! | [`writer`] | the one task that changes the set of active edits: queue, guard, commit, publish, replay |
//! | [`generation`] | the engine thread that decodes, its sampler, stop strings and streams |
//! | [`weights`] | fixed-point accumulators, immutable versions and their digests, leases |
//! | [`training`] | datasets, the cache of hidden states, the training loop, evaluation |
//! | [`editor`] | factors to deltas: MEND, fine-tuning |
//! | [`model`] | trunk and tail of a network, loaders, tokenizer, capture of factors |
//! | [`edit_log`] | the append-only log: rows, bytes and hashes, never tensors |
//! | [`telemetry`] | metrics, tracing, traces |
//!
//! Beside them stand [`config`] (options from flags, environment and file), [`digest`] (the 32-byte hash that names
//! things), [`faults`] (that tests ask for), [`files`] (written whole or not at all), [`keys`] (what callers of the service may do), [`panics`] (turned into
//! errors), [`threads`] (that compute) and [`cli`] (the commands).

pub mod app;
pub mod cli;
pub mod config;
pub mod digest;
pub mod edit_log;
pub mod editor;
pub mod faults;
pub mod files;
pub mod generation;
pub mod http;
pub mod keys;
pub mod model;
pub mod panics;
pub mod telemetry;
pub mod threads;
pub mod training;
pub mod weights;
pub mod writer;
