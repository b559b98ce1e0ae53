//! How an edit's gradient is spread: the singular values of `G = sum_t delta_t u_t^T`, from its factors alone.
//!
//! `G = D^T U` with `D [n, d_out]` and `U [n, d_in]` has the singular values that `D D^T U U^T`, `n x n`, has the square
//! roots of as eigenvalues. With `D D^T = Q L Q^T` they are those of the symmetric `L^1/2 Q^T (U U^T) Q L^1/2`. A prompt has
//! few rows, so this costs next to nothing beside the pass that gave the factors.

use faer::{Accum, Mat, MatRef, Par, Side, linalg::matmul::matmul};

use super::EditorError;
use crate::model::capture::Factors;

/// The spread of one matrix's gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spectrum {
    /// Frobenius norm, `sqrt(sum_i s_i^2)` over the singular values `s_i`.
    pub norm: f32,
    /// Nuclear norm, `sum_i s_i`.
    pub nuclear_norm: f32,
    /// `exp(- sum_i p_i ln p_i)` with `p_i = s_i / sum_j s_j` (Roy and Vetterli, "The effective rank", EUSIPCO 2007): 1
    /// where one direction has it all, the rank where all have the same; 0 for no gradient.
    pub effective_rank: f32,
}

impl Spectrum {
    /// Of the gradient with these factors.
    pub fn of(factors: &Factors) -> Result<Self, EditorError> {
        let (delta, u) = (gram(&factors.delta)?, gram(&factors.u)?);
        Ok(Self::from_values(&singular_values(&delta, &u)?))
    }

    /// Of a gradient with these singular values.
    pub fn from_values(values: &[f64]) -> Self {
        let total: f64 = values.iter().sum();
        let entropy: f64 = values.iter().map(|s| s / total).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
        Self {
            norm: values.iter().map(|s| s * s).sum::<f64>().sqrt() as f32,
            nuclear_norm: total as f32,
            effective_rank: if total > 0.0 { entropy.exp() as f32 } else { 0.0 },
        }
    }
}

/// `A A^T` in f64.
fn gram(rows: &candle_core::Tensor) -> Result<Mat<f64>, EditorError> {
    let (n, width) = rows.dims2()?;
    let values = rows.to_dtype(candle_core::DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let rows = MatRef::from_row_major_slice(&values, n, width);
    let mut gram = Mat::zeros(n, n);
    matmul(gram.as_mut(), Accum::Replace, rows, rows.transpose(), 1.0, Par::Seq);
    Ok(gram)
}

fn singular_values(delta: &Mat<f64>, u: &Mat<f64>) -> Result<Vec<f64>, EditorError> {
    let n = delta.nrows();
    if n == 0 {
        return Ok(Vec::new());
    }
    let failed = || EditorError::NonFinite { what: format!("the spectrum of a gradient of {n} rows") };
    let finite = |gram: &Mat<f64>| (0..n).all(|i| gram[(i, i)].is_finite());
    if !finite(delta) || !finite(u) {
        return Err(failed());
    }
    let eigen = delta.self_adjoint_eigen(Side::Lower).map_err(|_| failed())?;
    let (vectors, sizes) = (eigen.U(), eigen.S().column_vector());
    // Rounding can make what is zero a little negative.
    let scaled = Mat::from_fn(n, n, |i, j| vectors[(i, j)] * sizes[j].max(0.0).sqrt());
    let squares = (scaled.transpose() * u * &scaled).self_adjoint_eigenvalues(Side::Lower).map_err(|_| failed())?;
    Ok(squares.into_iter().map(|square| square.max(0.0).sqrt()).collect())
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use proptest::prelude::*;

    use super::*;

    fn factors(delta: Vec<f32>, u: Vec<f32>, n: usize) -> Factors {
        let tensor = |values: Vec<f32>| {
            let width = values.len() / n;
            Tensor::from_vec(values, (n, width), &Device::Cpu).unwrap()
        };
        Factors { u: tensor(u), delta: tensor(delta) }
    }

    fn close(got: f32, want: f64) -> bool {
        (f64::from(got) - want).abs() <= 1e-4 * want.abs().max(1e-3)
    }

    #[test]
    fn one_direction_is_of_rank_one_and_equal_ones_are_counted() {
        // 2 e0 (3 e1)^T, in two halves: one singular value, 6.
        let one = Spectrum::of(&factors(vec![1.0, 0.0, 1.0, 0.0], vec![0.0, 3.0, 0.0, 3.0], 2)).unwrap();
        assert!(close(one.norm, 6.0) && close(one.nuclear_norm, 6.0) && close(one.effective_rank, 1.0), "{one:?}");
        let identity: Vec<f32> = (0..9).map(|at| f32::from(u8::from(at % 4 == 0))).collect();
        let three = Spectrum::of(&factors(identity.clone(), identity, 3)).unwrap();
        assert!(close(three.norm, 3f64.sqrt()) && close(three.nuclear_norm, 3.0), "{three:?}");
        assert!(close(three.effective_rank, 3.0), "{three:?}");
    }

    #[test]
    fn no_gradient_has_no_rank_and_what_is_no_number_is_an_error() {
        let none = Spectrum::of(&factors(vec![0.0; 4], vec![1.0; 4], 2)).unwrap();
        assert_eq!((none.norm, none.nuclear_norm, none.effective_rank), (0.0, 0.0, 0.0));
        assert!(Spectrum::of(&factors(vec![f32::NAN; 4], vec![1.0; 4], 2)).is_err());
    }

    proptest! {
        #[test]
        fn it_is_that_of_the_dense_gradient(
            n in 1_usize..7, delta in prop::collection::vec(-2f32..2.0, 42), u in prop::collection::vec(-2f32..2.0, 30),
        ) {
            let (delta, u) = (delta[..n * 7].to_vec(), u[..n * 5].to_vec());
            let dense = Mat::from_fn(7, 5, |o, d| {
                (0..n).map(|t| f64::from(delta[t * 7 + o]) * f64::from(u[t * 5 + d])).sum::<f64>()
            });
            let want = Spectrum::from_values(&dense.singular_values().unwrap());
            let got = Spectrum::of(&factors(delta, u, n)).unwrap();
            prop_assert!(close(got.norm, f64::from(want.norm)), "{got:?} for {want:?}");
            prop_assert!(close(got.nuclear_norm, f64::from(want.nuclear_norm)), "{got:?} for {want:?}");
            prop_assert!(close(got.effective_rank, f64::from(want.effective_rank)), "{got:?} for {want:?}");
        }
    }
}
