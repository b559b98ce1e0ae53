//! Causal attention with grouped keys and values, optional q/k norms, rotary positions and an optional cache: row by row
//! where no gradient is wanted ([`rowwise`]), else as products of padded batches.

use candle_core::{D, Result, Tensor};
use candle_nn::kv_cache::KvCache;

use super::{Linear, ops, packing::Plan, rotary::Angles, rowwise};
use crate::model::Projection;

/// One attention layer.
pub struct Attention {
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    /// RMS norms over the head dimension (Qwen3).
    pub q_norm: Option<Tensor>,
    pub k_norm: Option<Tensor>,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub eps: f64,
}

impl Attention {
    /// `x [n, hidden]`, already normalised -> the asking rows' `[q, hidden]`. With a cache, `x` comes after what the
    /// cache holds and is added to it.
    pub fn forward(
        &self,
        x: &Tensor,
        plan: &Plan,
        cache: Option<&mut KvCache>,
        weights: &dyn Projection,
    ) -> Result<Tensor> {
        let q = self.q.forward(&plan.select(x)?, weights)?;
        let q = self.turn(&q, self.heads, self.q_norm.as_ref(), &plan.query_angles)?;
        let k = self.k.forward(x, weights)?;
        let k = self.turn(&k, self.kv_heads, self.k_norm.as_ref(), &plan.key_angles)?;
        let v = self.v.forward(x, weights)?;
        let by_rows = x.device().is_cpu() && !x.track_op();
        let (k, v) = match cache {
            Some(cache) => cache.append(&self.by_head(&k, plan)?, &self.by_head(&v, plan)?)?,
            None if by_rows => (k.contiguous()?, v.contiguous()?),
            None => (self.by_head(&k, plan)?, self.by_head(&v, plan)?),
        };
        let mixed = match by_rows {
            true => rowwise::attend(&q, &k, &v, &plan.seen, self.kv_heads, self.head_dim)?,
            false => self.mix(&q, &k, &v, plan)?,
        };
        self.o.forward(&mixed, weights)
    }

    /// Attention as products of padded batches, through which gradients flow: `q [q, heads * head_dim]`, keys and values
    /// `[batch, kv_heads, key width, head_dim]` -> `[q, heads * head_dim]`.
    fn mix(&self, q: &Tensor, k: &Tensor, v: &Tensor, plan: &Plan) -> Result<Tensor> {
        let (batch, query_width) = (plan.queries.batch(), plan.queries.width());
        let groups = self.heads / self.kv_heads;
        let q = (plan.queries.pad(q)? * (self.head_dim as f64).powf(-0.5))?
            .reshape((batch, query_width, self.kv_heads, groups, self.head_dim))?
            .permute((0, 2, 3, 1, 4))?
            .contiguous()?
            .reshape((batch, self.kv_heads, groups * query_width, self.head_dim))?;
        let key_width = k.dim(2)?;
        let scores = q.matmul(&k.transpose(2, 3)?)?;
        let scores = match plan.mask()? {
            Some(mask) => scores
                .reshape((batch, self.kv_heads, groups, query_width, key_width))?
                .broadcast_add(mask)?
                .reshape((batch, self.kv_heads, groups * query_width, key_width))?,
            None => scores,
        };
        let mixed = ops::softmax(&scores)?
            .matmul(v)?
            .reshape((batch, self.kv_heads, groups, query_width, self.head_dim))?
            .permute((0, 3, 1, 2, 4))?
            .contiguous()?
            .reshape((batch, query_width, self.heads * self.head_dim))?;
        plan.queries.pack(&mixed)
    }

    /// Keys or values `[n, kv_heads * head_dim]` -> `[batch, kv_heads, key width, head_dim]`, padded.
    fn by_head(&self, rows: &Tensor, plan: &Plan) -> Result<Tensor> {
        plan.keys
            .pad(rows)?
            .reshape((plan.keys.batch(), plan.keys.width(), self.kv_heads, self.head_dim))?
            .transpose(1, 2)?
            .contiguous()
    }

    /// Norm per head, then rotation: `[n, heads * head_dim]` -> the same.
    fn turn(&self, rows: &Tensor, heads: usize, norm: Option<&Tensor>, angles: &Angles) -> Result<Tensor> {
        let by_head = rows.reshape(((), heads, self.head_dim))?;
        let by_head = match norm {
            Some(weight) => ops::rms_norm(&by_head, weight, self.eps)?,
            None => by_head,
        };
        angles.rotate(&by_head)?.flatten_from(D::Minus2)
    }
}
