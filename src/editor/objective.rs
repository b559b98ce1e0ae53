//! The losses that editors minimise beside the likelihood of a target, with their gradients.

use candle_core::{D, Result, Tensor};

use crate::model::{layers::graft::graft, measure::log_softmax};

/// Per-row KL(base || edited), nats, of `[n, vocabulary]` logits, and their weighted sum as a function of the edited
/// ones.
pub fn weighted_kl(edited: &Tensor, base: &Tensor, weights: &[f32]) -> Result<(Vec<f32>, Tensor)> {
    let rows = weights.len();
    let after = log_softmax(&edited.detach())?;
    let before = log_softmax(&base.detach())?;
    let reference = before.exp()?;
    let divergences = (&reference * (before - &after)?)?.sum(D::Minus1)?;
    let scale = Tensor::new(weights, edited.device())?;
    let total = (&divergences * &scale)?.sum_all()?;
    let total = graft(edited, total, move |grad| {
        // d KL / d logits = softmax(edited) - softmax(base).
        let gradient = (after.exp()? - &reference)?;
        gradient.broadcast_mul(&scale.reshape((rows, 1))?)?.broadcast_mul(grad)
    })?;
    Ok((divergences.to_vec1()?, total))
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::model::{
        capture::weighted_nll,
        testing::{assert_close, random},
    };

    #[test]
    fn kl_has_the_value_and_gradient_of_the_composed_one() {
        let edited = Var::from_tensor(&random(&[3, 7], 1)).unwrap();
        let base = random(&[3, 7], 2);
        let weights = [0.5f32, 0.0, 2.0];
        let (_, ours) = weighted_kl(edited.as_tensor(), &base, &weights).unwrap();
        let log = |x: &Tensor| candle_nn::ops::log_softmax(x, D::Minus1).unwrap();
        let p = log(&base);
        let per_row = (p.exp().unwrap() * (&p - log(edited.as_tensor())).unwrap()).unwrap().sum(D::Minus1).unwrap();
        let plain = (per_row * Tensor::new(&weights, base.device()).unwrap()).unwrap().sum_all().unwrap();
        assert_close(&ours, &plain, 1e-5);
        let gradient = |loss: &Tensor| loss.backward().unwrap().get(&edited).unwrap().clone();
        assert_close(&gradient(&ours), &gradient(&plain), 1e-5);
    }

    #[test]
    fn nll_has_the_value_and_gradient_of_cross_entropy() {
        let logits = Var::from_tensor(&random(&[4, 7], 3)).unwrap();
        let targets = [6u32, 0, 3, 3];
        let (_, ours) = weighted_nll(logits.as_tensor(), &targets, &[0.25; 4]).unwrap();
        let index = Tensor::new(&targets, logits.device()).unwrap();
        let plain = candle_nn::loss::cross_entropy(logits.as_tensor(), &index).unwrap();
        assert_close(&ours, &plain, 1e-5);
        let gradient = |loss: &Tensor| loss.backward().unwrap().get(&logits).unwrap().clone();
        assert_close(&gradient(&ours), &gradient(&plain), 1e-5);
    }
}
