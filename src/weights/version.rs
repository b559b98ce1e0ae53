//! A version of the weights: immutable, named by number and digests.

use std::{collections::BTreeSet, sync::Arc};

use candle_core::Tensor;
use prometheus::IntGauge;
use uuid::Uuid;

use super::Matrices;
use crate::{digest::Digest, model::Projection, telemetry::Metrics};

/// A set of active edits and the weights that it makes.
///
/// Law 4: a published version is never mutated. Nothing here can be: the fields are set once, and tensors are
/// shared, not written.
pub struct Version {
    /// 0 is the base model; grows by one with each change of the set.
    pub number: u64,
    /// Over the bits of the edited matrices; of edits behind a gate, over the base's and the edits' own.
    pub digest: Digest,
    /// Over base, editor, composition and the active contributions.
    pub set_digest: Digest,
    /// The edits in the set.
    pub active: Arc<BTreeSet<Uuid>>,
    matrices: Matrices,
    resident: IntGauge,
}

impl Version {
    /// Counted in `versions_resident` until it is dropped.
    pub fn new(
        number: u64,
        digest: Digest,
        set_digest: Digest,
        active: Arc<BTreeSet<Uuid>>,
        matrices: impl Into<Matrices>,
        metrics: &Metrics,
    ) -> Self {
        let resident = metrics.versions_resident.clone();
        resident.inc();
        Self { number, digest, set_digest, active, matrices: matrices.into(), resident }
    }

    /// The editable matrices under the set.
    pub fn matrices(&self) -> &Matrices {
        &self.matrices
    }
}

impl Drop for Version {
    fn drop(&mut self) {
        self.resident.dec();
    }
}

impl Projection for Version {
    fn project(&self, matrix: usize, x: &Tensor) -> candle_core::Result<Tensor> {
        self.matrices.project(matrix, x)
    }

    fn begin_pass(&self) -> Option<Box<dyn Projection + '_>> {
        self.matrices.begin_pass()
    }
}
