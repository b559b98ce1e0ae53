//! How a gate's inputs are centred and whitened, and where its map begins.

use candle_core::{Device, Result as CandleResult, Tensor};
use faer::{Mat, Side};

use super::Inputs;
use crate::training::TrainingError;

/// Most rows of the map.
const RANK: usize = 256;
/// `e`, as a share of the mean of the diagonal of `D`.
const RIDGE: f64 = 0.05;
/// Length of the whitened inputs, as the root of their mean square.
const LENGTH: f64 = 24.0;

/// How inputs are centred and whitened, and where the map begins.
pub struct Frame {
    /// `[d_in]`
    pub mean: Tensor,
    /// `B` times what makes whitened inputs as long as they should be, `[d_in, d_in]`, symmetric.
    pub whitening: Tensor,
    /// `[r, d_in]`, on whitened inputs.
    pub map: Tensor,
}

impl Frame {
    /// Of these inputs.
    pub fn of(inputs: &Inputs) -> Result<Self, TrainingError> {
        let all = Tensor::cat(&[&inputs.prompts, &inputs.paraphrases, &inputs.neighbours], 0)?;
        let mean = all.mean(0)?;
        let centred = all.broadcast_sub(&mean)?;
        let width = mean.dim(0)?;
        let apart = moment(&(&inputs.prompts - &inputs.paraphrases)?)?;
        let ridge = RIDGE * (0..width).map(|i| apart[(i, i)]).sum::<f64>() / width as f64;
        let shifted = Mat::from_fn(width, width, |i, j| apart[(i, j)] + if i == j { ridge } else { 0.0 });
        let (sizes, axes) = eigen(&shifted)?;
        let inverse = Mat::from_fn(width, width, |i, j| axes[(i, j)] / sizes[j].max(1e-12).sqrt());
        let root = &inverse * axes.transpose();
        let varied = &root * moment(&centred)? * &root;
        let (_, axes) = eigen(&varied)?;
        let rank = RANK.min(width);
        // The last are the largest.
        let map: Vec<f32> = (0..rank * width).map(|at| axes[(at % width, width - 1 - at / width)] as f32).collect();
        let length = (0..width).map(|i| varied[(i, i)]).sum::<f64>().sqrt();
        let whitening: Vec<f32> =
            (0..width * width).map(|at| (root[(at / width, at % width)] * LENGTH / length) as f32).collect();
        Ok(Self {
            mean,
            whitening: Tensor::from_vec(whitening, (width, width), &Device::Cpu)?,
            map: Tensor::from_vec(map, (rank, width), &Device::Cpu)?,
        })
    }

    /// `(x - mean) whitening`, `[n, d_in]`.
    pub fn whitened(&self, x: &Tensor) -> CandleResult<Tensor> {
        x.broadcast_sub(&self.mean)?.matmul(&self.whitening)
    }
}

/// `x^T x / n`, `x [n, width]`.
fn moment(x: &Tensor) -> CandleResult<Mat<f64>> {
    let (n, width) = x.dims2()?;
    let sum = x.t()?.contiguous()?.matmul(x)?.to_vec2::<f32>()?;
    Ok(Mat::from_fn(width, width, |i, j| f64::from(sum[i][j]) / n as f64))
}

/// Eigenvalues, rising, and eigenvectors as columns.
fn eigen(matrix: &Mat<f64>) -> Result<(Vec<f64>, Mat<f64>), TrainingError> {
    let failed = |_| TrainingError::Refused("the inputs that a gate is trained on have no eigenvectors".to_owned());
    let eigen = matrix.self_adjoint_eigen(Side::Lower).map_err(failed)?;
    let sizes = (0..matrix.nrows()).map(|i| eigen.S()[i]).collect();
    Ok((sizes, eigen.U().to_owned()))
}
