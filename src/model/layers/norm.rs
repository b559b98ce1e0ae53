//! The two normalisations that networks use.

use candle_core::{Result, Tensor};

use super::ops;

/// A normalisation over the last dimension, its weights frozen.
#[derive(Debug, Clone)]
pub enum Norm {
    Rms { weight: Tensor, eps: f64 },
    Layer { weight: Tensor, bias: Tensor, eps: f64 },
}

impl Norm {
    /// `x [.., d]` -> the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Rms { weight, eps } => ops::rms_norm(x, weight, *eps),
            Self::Layer { weight, bias, eps } => ops::layer_norm(x, weight, bias, *eps),
        }
    }
}
