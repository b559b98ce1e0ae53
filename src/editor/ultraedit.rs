//! UltraEdit (2025/2026): no training at all. The factors at the answer's positions, normalised by running statistics,
//! propose the outputs that are wanted at their own keys, and least squares over the active edits gives them.
//!
//! With `k^` and `d^` the normalised input and output gradient of a row, `v = -lr |k^|^2 d^` is wanted at `k`, and
//! `W = W0 + S^T` with `S = (K^T K + I)^-1 K^T V`. In the paper the statistics move with every turn, so that results depend
//! on the order of edits. Here they are those of a warm-up and then stay: edits are values (law 1).

use candle_core::{D, Tensor};

use super::{
    Composition, Delta, Editor, EditorError, MatrixDelta,
    mend::{Slot, Statistics, slots},
};
use crate::{
    digest::Digest,
    model::{Model, TrunkState, capture::Captured},
};

/// The method's name.
pub const METHOD: &str = "ultraedit";

/// The ridge of the least squares (the paper's).
const RIDGE: f32 = 1.0;

/// An editor whose statistics are frozen.
pub struct UltraEdit {
    rate: f64,
    statistics: Vec<Statistics>,
    slots: Vec<Slot>,
    digest: Digest,
}

impl UltraEdit {
    /// With the statistics of the answers' rows of `warm_up`. `rate` is the paper's `lr`: 1e-6 there, for widths of
    /// thousands; `|k^|^2` grows with the width.
    pub fn new(model: &Model, warm_up: &[Captured], rate: f64) -> Result<Self, EditorError> {
        let (slots, shapes) = slots(model.editable());
        let mut statistics: Vec<Statistics> = shapes.into_iter().map(Statistics::new).collect();
        let mut bytes = rate.to_le_bytes().to_vec();
        for captured in warm_up {
            for (slot, factors) in slots.iter().zip(&captured.at_answers()?.factors) {
                statistics[slot.network].update(&factors.u, &factors.delta)?;
                let values = Tensor::cat(&[&factors.u, &factors.delta], 1)?.flatten_all()?.to_vec1::<f32>()?;
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
        let digest = Digest::of_parts([METHOD.as_bytes(), &bytes]);
        Ok(Self { rate, statistics, slots, digest })
    }
}

impl Editor for UltraEdit {
    fn method(&self) -> &str {
        METHOD
    }

    fn digest(&self) -> Digest {
        self.digest
    }

    fn composition(&self) -> Composition {
        Composition::LeastSquares { ridge: RIDGE }
    }

    fn edit(&self, _: &Model, _: &TrunkState, captured: &Captured) -> Result<Delta, EditorError> {
        let captured = captured.at_answers()?;
        let deltas = self.slots.iter().zip(captured.factors).map(|(slot, factors)| {
            let normal = self.statistics[slot.network].normal(factors.u.device())?;
            let size = normal.u(&factors.u)?.sqr()?.sum_keepdim(D::Minus1)?;
            let wanted = (normal.delta(&factors.delta)?.broadcast_mul(&size)? * -self.rate)?;
            Ok(MatrixDelta::Joint { keys: factors.u.clone(), left: wanted, right: factors.u })
        });
        Ok(Delta(deltas.collect::<Result<_, EditorError>>()?))
    }
}
