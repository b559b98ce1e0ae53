//! Linear layers: frozen dense, frozen quantized, or editable through a [`Projection`].

use candle_core::{
    DType, Module, Result, Tensor,
    quantized::{GgmlDType, QMatMul, QTensor},
};

use super::{dense, graft::graft, int8::PackedWeights};
use crate::model::Projection;

/// At most this many rows are multiplied one by one on a CPU: candle's f32 matmul takes ten times as long for two rows
/// as for one, and about as long for twelve as for twelve single ones.
const ROW_BY_ROW: usize = 8;

/// `y = W x + b`, with `W [d_out, d_in]`.
#[derive(Clone)]
pub enum Linear {
    /// f32; passes gradients to its input, never to its weight.
    Dense { weight: Tensor, bias: Option<Tensor> },
    /// The file's own precision; passes no gradient at all, so it belongs in the trunk.
    Quantized { weight: Quantized, bias: Option<Tensor> },
    /// Editable matrix number `matrix`, whose weight the version decides.
    Editable { matrix: usize, bias: Option<Tensor> },
}

/// Quantized weights and the kernel that multiplies them.
#[derive(Clone)]
pub enum Quantized {
    /// Packed for our own kernel.
    Packed(PackedWeights),
    /// Any of GGUF's types, by candle's kernels.
    Stored(QMatMul),
}

impl Quantized {
    /// Chooses the kernel for a tensor `[d_out, d_in]`: ours, else candle's, else (where candle's has no SIMD on a CPU)
    /// candle's for the same weights as `Q8_0`, whose step is finer.
    pub fn new(mut weight: QTensor) -> Result<Self> {
        if let Some(packed) = PackedWeights::pack(&weight)? {
            return Ok(Self::Packed(packed));
        }
        if weight.device().is_cpu() && is_slow(weight.dtype()) {
            weight = QTensor::quantize(&weight.dequantize(&weight.device())?, GgmlDType::Q8_0)?;
            return Self::new(weight);
        }
        Ok(Self::Stored(QMatMul::from_qtensor(weight)?))
    }

    /// `x [n, d_in]` -> `[n, d_out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Packed(weight) => weight.forward(x),
            Self::Stored(weight) => weight.forward(x),
        }
    }
}

/// Whether candle multiplies this type without SIMD on a CPU: Q4_1 decodes four times slower than the same weights as
/// Q8_0.
fn is_slow(dtype: GgmlDType) -> bool {
    matches!(dtype, GgmlDType::Q4_1 | GgmlDType::Q5_0 | GgmlDType::Q5_1)
}

impl Linear {
    /// `x [n, d_in]` -> `[n, d_out]`.
    pub fn forward(&self, x: &Tensor, weights: &dyn Projection) -> Result<Tensor> {
        let (y, bias) = match self {
            Self::Dense { weight, bias } => (frozen_matmul(x, weight)?, bias),
            Self::Quantized { weight, bias } => (weight.forward(x)?, bias),
            Self::Editable { matrix, bias } => (weights.project(*matrix, x)?, bias),
        };
        match bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// `x W^T` for a frozen `W [d_out, d_in]`: its gradient is `g W`, and none is computed for `W` (candle's own matmul
/// computes both, about half of the time wasted).
pub fn frozen_matmul(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let input = x.detach();
    // By rows, so that what a text gives does not depend on the texts that run with it.
    let value = match input.device().is_cpu() && input.dtype() == DType::F32 && weight.dtype() == DType::F32 {
        true => dense::matmul(&input, weight)?,
        false => input.matmul(&weight.t()?)?,
    };
    let weight = weight.clone();
    graft(x, value, move |grad| matmul_rows(grad, &weight))
}

/// `x [n, k]` times `w [k, m]`, row by row where that is faster.
fn matmul_rows(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let rows = x.dim(0)?;
    if !x.device().is_cpu() || rows == 1 || rows > ROW_BY_ROW {
        return x.matmul(w);
    }
    let products = (0..rows).map(|row| x.narrow(0, row, 1)?.matmul(w)).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&products, 0)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::model::testing::{assert_close, random};

    #[test]
    fn frozen_matmul_equals_matmul_at_every_row_count() {
        let weight = random(&[6, 4], 1);
        for rows in [1, 2, ROW_BY_ROW, ROW_BY_ROW + 1, 30] {
            let x = Var::from_tensor(&random(&[rows, 4], 2)).unwrap();
            let probe = random(&[rows, 6], 3);
            let gradient = |y: &Tensor| {
                let loss = (y * &probe).unwrap().sum_all().unwrap();
                loss.backward().unwrap().get(&x).unwrap().clone()
            };
            let ours = frozen_matmul(x.as_tensor(), &weight).unwrap();
            let plain = x.as_tensor().matmul(&weight.t().unwrap()).unwrap();
            assert_close(&ours, &plain, 1e-6);
            assert_close(&gradient(&ours), &gradient(&plain), 1e-6);
        }
    }
}
