//! The active edits behind a gate ([`crate::editor::gate`]): the base weights stay as they are, and each edit beside them.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::{
    Contribution, WeightsError,
    active::Active,
    contribution::{Part, Values},
    digest::weights_digest,
};
use crate::{
    digest::Digest,
    editor::{
        gate::Gate,
        gated::{GatedEdit, GatedEdits, Terms},
    },
    model::{DenseMatrices, EditableMatrix},
};

/// The active contributions, each beside the base weights.
///
/// Law 2 (a version is a set of active edits; its weights are a function of that set alone, bit for bit): the edits stand in the
/// order of their digests, each as its own bytes say; nothing is added up that would have to be taken apart again. So
/// `digest` hashes the base weights' digest and those of the contributions, and is the same on every kind of machine.
#[derive(Debug, Clone)]
pub struct GatedSet {
    shapes: Arc<[EditableMatrix]>,
    base: Arc<DenseMatrices>,
    base_digest: Digest,
    gate: Arc<Gate>,
    edits: Active<GatedEdit>,
}

impl GatedSet {
    /// The empty set over these base weights.
    pub fn new(shapes: &[EditableMatrix], base: &Arc<DenseMatrices>, gate: Arc<Gate>) -> Result<Self, WeightsError> {
        let base_digest = weights_digest(shapes, &base.to_vecs()?);
        Ok(Self { shapes: shapes.into(), base: Arc::clone(base), base_digest, gate, edits: Active::default() })
    }

    /// The editable matrices.
    pub fn shapes(&self) -> &[EditableMatrix] {
        &self.shapes
    }

    /// Takes some contributions out and puts others in. On an error nothing has changed.
    pub fn change(&mut self, removed: &[&Contribution], added: &[&Contribution]) -> Result<(), WeightsError> {
        self.edits = self.edits.changed(&self.shapes, removed, added, |contribution| self.read(contribution))?;
        Ok(())
    }

    /// The base weights with the edits of the set beside them.
    pub fn edits(&self) -> Result<GatedEdits, WeightsError> {
        let edits = self.edits.iter().map(|(_, edit)| Arc::clone(edit)).collect();
        Ok(GatedEdits::new(Arc::clone(&self.base), Arc::clone(&self.gate), edits)?)
    }

    /// Names the set's weights; of no edits, the base's own digest.
    pub fn digest(&self) -> Digest {
        let mut edits = self.edits.iter().map(|(digest, _)| digest.as_bytes().as_slice()).peekable();
        match edits.peek() {
            None => self.base_digest,
            Some(_) => {
                let fixed = [b"amend gated weights 1".as_slice(), self.base_digest.as_bytes()];
                Digest::of_parts(fixed.into_iter().chain(edits))
            }
        }
    }

    fn read(&self, contribution: &Contribution) -> Result<GatedEdit, WeightsError> {
        let mut keys = None;
        let mut terms = Vec::with_capacity(contribution.parts().len());
        for Part { n, d_in, values, .. } in contribution.parts() {
            let Values::Joint { left, right, keys: own } = values else {
                unreachable!("only rows with keys enter the set")
            };
            keys.get_or_insert((own, *n, *d_in));
            terms.push(Terms { left: left.clone(), right: right.clone() });
        }
        let (keys, n, d_in) = keys.ok_or_else(|| WeightsError::Malformed("it is of no matrices".into()))?;
        let keys = Tensor::from_slice(keys, (n, d_in), &Device::Cpu)?.to_device(self.gate.map.device())?;
        Ok(GatedEdit::new(&self.gate, &keys, terms)?)
    }
}

#[cfg(test)]
#[path = "gated_tests.rs"]
mod tests;
