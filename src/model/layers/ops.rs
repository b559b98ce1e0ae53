//! Normalisation and softmax: candle's fused kernels forward, their exact gradients backward.

use candle_core::{D, Result, Tensor};

use super::graft::graft;

/// RMS normalisation over the last dimension: `x / sqrt(mean(x^2) + eps) * weight`.
///
/// `x [n, d]`, `weight [d]`; the weight is frozen.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let input = x.detach().contiguous()?;
    let value = candle_nn::ops::rms_norm(&input, weight, eps as f32)?;
    let weight = weight.clone();
    graft(x, value, move |grad| {
        // With r = 1/sqrt(mean(x^2) + eps) and g = dL/dy * weight: dL/dx = r g - x r^3 mean(g x).
        let scaled = grad.broadcast_mul(&weight)?;
        let r = (input.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
        let along = (&scaled * &input)?.mean_keepdim(D::Minus1)?;
        let radial = input.broadcast_mul(&(along * r.powf(3.0)?)?)?;
        scaled.broadcast_mul(&r)? - radial
    })
}

/// Layer normalisation over the last dimension: `(x - mean) / sqrt(variance + eps) * weight + bias`.
///
/// `x [n, d]`, `weight [d]`, `bias [d]`; weight and bias are frozen.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let input = x.detach().contiguous()?;
    let value = candle_nn::ops::layer_norm(&input, weight, bias, eps as f32)?;
    let weight = weight.clone();
    graft(x, value, move |grad| {
        // With r = 1/sqrt(variance + eps), n = (x - mean) r and g = dL/dy * weight: dL/dx = r (g - mean(g) - n mean(g n)).
        let scaled = grad.broadcast_mul(&weight)?;
        let centred = input.broadcast_sub(&input.mean_keepdim(D::Minus1)?)?;
        let r = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
        let normal = centred.broadcast_mul(&r)?;
        let along = (&scaled * &normal)?.mean_keepdim(D::Minus1)?;
        let flat = scaled.broadcast_sub(&scaled.mean_keepdim(D::Minus1)?)?;
        (flat - normal.broadcast_mul(&along)?)?.broadcast_mul(&r)
    })
}

/// Softmax over the last dimension.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let value = candle_nn::ops::softmax_last_dim(&x.detach().contiguous()?)?;
    let y = value.clone();
    graft(x, value, move |grad| {
        let weighted = (&y * grad)?;
        let total = weighted.sum_keepdim(D::Minus1)?;
        weighted - y.broadcast_mul(&total)?
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::model::testing::{assert_close, random};

    /// The gradient of `sum(f(x) * probe)` by a grafted op and by candle's own composed one.
    fn compare(fast: impl Fn(&Tensor) -> Result<Tensor>, slow: impl Fn(&Tensor) -> Result<Tensor>) {
        let x = Var::from_tensor(&random(&[5, 8], 1)).unwrap();
        let probe = random(&[5, 8], 2);
        let gradient = |f: &dyn Fn(&Tensor) -> Result<Tensor>| {
            let loss = (f(x.as_tensor()).unwrap() * &probe).unwrap().sum_all().unwrap();
            loss.backward().unwrap().get(&x).expect("a gradient reaches x").clone()
        };
        assert_close(&fast(x.as_tensor()).unwrap(), &slow(x.as_tensor()).unwrap(), 1e-5);
        assert_close(&gradient(&fast), &gradient(&slow), 1e-5);
    }

    #[test]
    fn rms_norm_has_the_gradient_of_the_composed_one() {
        let weight = random(&[8], 3);
        compare(|x| rms_norm(x, &weight, 1e-5), |x| candle_nn::ops::rms_norm_slow(x, &weight, 1e-5));
    }

    #[test]
    fn layer_norm_has_the_gradient_of_the_composed_one() {
        let (weight, bias) = (random(&[8], 3), random(&[8], 4));
        compare(|x| layer_norm(x, &weight, &bias, 1e-5), |x| candle_nn::ops::layer_norm_slow(x, &weight, &bias, 1e-5));
    }

    #[test]
    fn softmax_has_the_gradient_of_the_composed_one() {
        compare(softmax, |x| candle_nn::ops::softmax(x, D::Minus1));
    }

    #[test]
    fn softmax_of_a_masked_row_has_a_finite_gradient() {
        let x = Var::from_tensor(&random(&[2, 4], 4)).unwrap();
        let mask = Tensor::new(&[[0f32, f32::NEG_INFINITY, 0., 0.], [0., 0., 0., 0.]], &Device::Cpu).unwrap();
        let y = softmax(&(x.as_tensor() + mask).unwrap()).unwrap();
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let g = grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(g.iter().all(|v| v.is_finite()), "{g:?}");
    }
}
