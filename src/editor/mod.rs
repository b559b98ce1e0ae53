//! Factors to deltas.

use candle_core::Tensor;

/// What an edit adds to one matrix.
#[derive(Debug, Clone)]
pub enum MatrixDelta {
    /// `W += sum_i left_i right_i^T`; left `[n, d_out]`, right `[n, d_in]` (learning rate folded into left).
    LowRank { left: Tensor, right: Tensor },
    /// `W += dense [d_out, d_in]`.
    Dense(Tensor),
}

/// What an edit adds, one per editable matrix, in the model's order.
#[derive(Debug, Clone)]
pub struct Delta(pub Vec<MatrixDelta>);
