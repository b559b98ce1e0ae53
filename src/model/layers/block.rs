//! A block of a decoder-only network, in the arrangements that the families have.

use candle_core::{Result, Tensor};

use super::{Attention, Mlp, Norm, plan::Plan};
use crate::model::{Projection, kv::Kv};

/// Attention and MLP around a residual stream: `x + attention(norm(x))`, then `x + mlp(norm(x))`.
pub struct Block {
    pub attention_norm: Norm,
    pub attention: Attention,
    /// A second norm, over what attention adds (Gemma).
    pub attended_norm: Option<Norm>,
    /// None where the MLP reads what attention reads and both are added at once (GPT-J).
    pub mlp_norm: Option<Norm>,
    pub mlp: Mlp,
    /// A second norm, over what the MLP adds (Gemma).
    pub mixed_norm: Option<Norm>,
    /// Which of the network's [`super::Positions`] this block's attention has.
    pub positions: usize,
}

impl Block {
    /// `x [n, hidden]` -> the asking rows' `[q, hidden]`.
    pub fn forward(
        &self,
        x: &Tensor,
        plan: &Plan,
        cache: Option<Kv<'_, '_>>,
        weights: &dyn Projection,
    ) -> Result<Tensor> {
        let normal = self.attention_norm.forward(x)?;
        let attended = again(self.attended_norm.as_ref(), self.attention.forward(&normal, plan, cache, weights)?)?;
        let x = (plan.select(x)? + attended)?;
        if let Some(rows) = &plan.select {
            weights.keep_rows(rows)?;
        }
        let normal = match &self.mlp_norm {
            Some(norm) => norm.forward(&x)?,
            None => plan.select(&normal)?,
        };
        x + again(self.mixed_norm.as_ref(), self.mlp.forward(&normal, weights)?)?
    }
}

fn again(norm: Option<&Norm>, x: Tensor) -> Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(&x),
        None => Ok(x),
    }
}
