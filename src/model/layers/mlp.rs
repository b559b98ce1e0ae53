//! The feed-forward part of a block: plain or gated, with the activations that the families use.

use candle_core::{Result, Tensor};

use super::Linear;
use crate::model::{ModelError, Projection};

/// What stands between the two matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// GELU by tanh.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
    Relu,
}

impl Activation {
    /// By the name that a Hugging Face configuration gives it.
    pub fn named(name: &str) -> std::result::Result<Self, ModelError> {
        match name {
            "silu" | "swish" => Ok(Self::Silu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Self::GeluTanh),
            "gelu" => Ok(Self::GeluErf),
            "relu" => Ok(Self::Relu),
            other => Err(ModelError::Unsupported {
                what: "activation",
                name: other.to_owned(),
                hint: "supported are silu, swish, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh and relu".to_owned(),
            }),
        }
    }

    /// Element by element.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Silu => candle_nn::ops::silu(x),
            Self::GeluTanh => x.gelu(),
            Self::GeluErf => x.gelu_erf(),
            Self::Relu => x.relu(),
        }
    }
}

/// `fall(activation(rise(x)))`, or with a `gate`, `fall(activation(gate(x)) * rise(x))`.
pub struct Mlp {
    pub gate: Option<Linear>,
    pub rise: Linear,
    pub fall: Linear,
    pub activation: Activation,
}

impl Mlp {
    /// `x [n, hidden]` -> `[n, hidden]`.
    pub fn forward(&self, x: &Tensor, weights: &dyn Projection) -> Result<Tensor> {
        let inner = match &self.gate {
            Some(gate) => {
                let gate = gate.forward(x, weights)?;
                (self.activation.forward(&gate)? * self.rise.forward(x, weights)?)?
            }
            None => self.activation.forward(&self.rise.forward(x, weights)?)?,
        };
        self.fall.forward(&inner, weights)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::model::testing::{assert_close, random};

    /// candle writes the constants of its gradients with six digits.
    #[test]
    fn gradients_are_slopes() {
        let x = random(&[2, 50], 1).affine(4.0, 0.003).unwrap();
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf, Activation::Relu] {
            let variable = Var::from_tensor(&x).unwrap();
            let y = activation.forward(variable.as_tensor()).unwrap().sum_all().unwrap();
            let gradient = y.backward().unwrap().get(&variable).unwrap().clone();
            let step = 1e-2;
            let at = |offset: f64| activation.forward(&x.affine(1.0, offset).unwrap()).unwrap();
            let slope = ((at(step) - at(-step)).unwrap() / (2.0 * step)).unwrap();
            assert_close(&gradient, &slope, 1e-3);
        }
    }

    #[test]
    fn the_two_gelus_differ() {
        let x = Tensor::new(&[1f32, -0.5, 2.5], &Device::Cpu).unwrap();
        let values = |activation: Activation| activation.forward(&x).unwrap().to_vec1::<f32>().unwrap();
        let (tanh, erf) = (values(Activation::GeluTanh), values(Activation::GeluErf));
        // torch.nn.functional.gelu, approximate="tanh" and "none".
        for (got, want) in
            tanh.iter().chain(&erf).zip([0.841_192, -0.154_286, 2.484_916, 0.841_345, -0.154_269, 2.484_476])
        {
            assert!((got - want).abs() < 2e-6, "{got} {want}");
        }
    }

    #[test]
    fn names_that_are_not_known_are_refused() {
        assert_eq!(Activation::named("gelu_new").unwrap(), Activation::GeluTanh);
        let error = Activation::named("mish").unwrap_err().to_string();
        assert!(error.starts_with("activation \"mish\" is not supported"), "{error}");
    }
}
