//! Editors: from the factors of an answer's gradient to a change of the weights.
//!
//! An editor is a folder: `editor.safetensors`, `editor.json` ([`folder::Manifest`]) and a card, `README.md`.

mod composition;
mod error;

pub mod adam;
pub mod finetune;
pub mod folder;
pub mod gate;
pub mod gated;
pub mod joint;
pub mod mend;
pub mod objective;
pub mod spectrum;
pub mod ultraedit;

use std::path::Path;

use candle_core::Tensor;

pub use composition::{Composition, CompositionKind};
pub use error::EditorError;
pub use folder::Manifest;

use crate::{
    digest::Digest,
    model::{Model, TrunkState, capture::Captured},
};

/// What an edit adds to one matrix.
#[derive(Debug, Clone)]
pub enum MatrixDelta {
    /// `W += sum_i left_i right_i^T`, with `left [n, d_out]` (the learning rate folded in) and `right [n, d_in]`.
    LowRank { left: Tensor, right: Tensor },
    /// `W += dense`, `[d_out, d_in]`.
    Dense(Tensor),
    /// Rows of a joint solve ([`joint`]) or behind a gate ([`gate`]): what the edit alone would add, and the inputs
    /// `keys [n, d_in]` at which it must hold.
    Joint { keys: Tensor, left: Tensor, right: Tensor },
}

/// What an edit adds, one entry per editable matrix in the model's order.
#[derive(Debug, Clone)]
pub struct Delta(pub Vec<MatrixDelta>);

/// Computes the change of the weights that makes a model give a target.
///
/// Law 1 (an edit is a value): an editor sees the model at `W0` and one edit, never which others are active.
pub trait Editor: Send + Sync {
    /// The method's name: `mend`, `finetune`.
    fn method(&self) -> &str;

    /// Names exactly this editor; the log is pinned to it.
    fn digest(&self) -> Digest;

    /// How the changes of several edits become one. Every edit of this editor is of the form that it needs.
    fn composition(&self) -> Composition {
        Composition::Sum
    }

    /// The change for the passage of `state`, whose factors at `W0` are `captured`.
    fn edit(&self, model: &Model, state: &TrunkState, captured: &Captured) -> Result<Delta, EditorError>;
}

/// Loads an editor folder for `model`; refuses one that was trained on another model or is damaged.
pub fn load(path: &Path, model: &Model) -> Result<(Manifest, Box<dyn Editor>), EditorError> {
    let (manifest, tensors) = folder::read(path, model.digest())?;
    let malformed = |why: String| EditorError::Malformed { folder: path.display().to_string(), why };
    match manifest.method.as_str() {
        mend::METHOD => {
            let editor = mend::Mend::from_checkpoint(&manifest, &tensors, model, path)?;
            Ok((manifest, Box::new(editor)))
        }
        other => Err(malformed(format!("method {other:?} is not known; known is {:?}", mend::METHOD))),
    }
}
