//! Training an editor and measuring one.
//!
//! The base model is frozen, so the hidden states at the tail's door never change: [`cache`] computes them once. A step
//! captures a batch of edits ([`factors`]), lets the editor's network transform their factors and composes those of each
//! set ([`compose`]), and runs the tail with the sets in factored form ([`factored`]): the edited matrices are never built.

pub mod batch;
mod beginning;
pub mod cache;
pub mod compose;
pub mod corpus;
pub mod dataset;
pub mod draw;
mod error;
pub mod evaluate;
pub mod factored;
pub mod factors;
mod gating;
pub mod optimizer;
pub mod options;
pub mod parallel;
pub mod plot;
pub mod run_state;
pub mod trainable;
pub mod trainer;
pub mod validate;
pub mod whitening;

pub use error::TrainingError;
pub use options::{LocalityMix, Recipe, RunOptions};
