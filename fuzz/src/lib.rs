//! What the fuzz targets call: the functions of `tests/fuzz`.

#![allow(clippy::unwrap_used, reason = "they fail like tests")]

#[path = "../../tests/fuzz/bodies.rs"]
pub mod bodies;
#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/common/tiny.rs"]
#[allow(dead_code, reason = "a part is used")]
mod tiny;
