//! Attention with grouped keys and values, optional q/k norms, optional rotary positions and an optional cache: row by
//! row where no gradient is wanted ([`rowwise`]), else as products of padded batches. Who looks at whom is the plan's.

use candle_core::{D, Result, Tensor};

use super::{Linear, Norm, ops, packing::Plan, rotary::Angles, rowwise};
use crate::model::{Projection, kv::Kv};

/// One attention layer.
pub struct Attention {
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    /// Norms over the head dimension (Qwen3, Gemma 3).
    pub q_norm: Option<Norm>,
    pub k_norm: Option<Norm>,
    pub heads: Heads,
}

/// The heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    pub count: usize,
    /// Heads of keys and values, each shared by as many heads of queries.
    pub kv: usize,
    /// Dimensions of each.
    pub dim: usize,
    /// What products of queries and keys are multiplied by.
    pub scale: f64,
}

impl Heads {
    /// With the usual scale, `dim^-1/2`.
    pub fn new(count: usize, kv: usize, dim: usize) -> Self {
        Self { count, kv, dim, scale: (dim as f64).sqrt().recip() }
    }
}

impl Attention {
    /// `x [n, hidden]`, already normalised -> the asking rows' `[q, hidden]`. With a cache, `x` comes after what the
    /// cache holds and is added to it.
    pub fn forward(
        &self,
        x: &Tensor,
        plan: &Plan,
        cache: Option<Kv<'_, '_>>,
        weights: &dyn Projection,
    ) -> Result<Tensor> {
        let q = self.q.forward(&plan.select(x)?, weights)?;
        let q = self.turn(&q, self.heads.count, self.q_norm.as_ref(), plan.query_angles.as_ref())?;
        let k = self.k.forward(x, weights)?;
        let k = self.turn(&k, self.heads.kv, self.k_norm.as_ref(), plan.key_angles.as_ref())?;
        let v = self.v.forward(x, weights)?;
        let by_rows = x.device().is_cpu() && !x.track_op();
        let (k, v) = match cache {
            Some(Kv::Paged(mut pages)) => {
                pages.write(&k, &v, plan.keys.lengths())?;
                let asking = (plan.owners.as_slice(), plan.seen.as_slice());
                let mixed = rowwise::attend_paged(&q, pages.sequences, pages.block, asking, self.heads)?;
                return self.o.forward(&mixed, weights);
            }
            Some(Kv::Stored(cache)) => cache.append(&self.by_head(&k, plan)?, &self.by_head(&v, plan)?)?,
            None if by_rows => (k.contiguous()?, v.contiguous()?),
            None => (self.by_head(&k, plan)?, self.by_head(&v, plan)?),
        };
        let mixed = match by_rows {
            true => rowwise::attend(&q, &k, &v, &plan.seen, self.heads)?,
            false => self.mix(&q, &k, &v, plan)?,
        };
        self.o.forward(&mixed, weights)
    }

    /// Attention as products of padded batches, through which gradients flow: `q [q, heads * head_dim]`, keys and values
    /// `[batch, kv_heads, key width, head_dim]` -> `[q, heads * head_dim]`.
    fn mix(&self, q: &Tensor, k: &Tensor, v: &Tensor, plan: &Plan) -> Result<Tensor> {
        let (batch, query_width) = (plan.queries.batch(), plan.queries.width());
        let Heads { count, kv, dim, scale } = self.heads;
        let groups = count / kv;
        let q = (plan.queries.pad(q)? * scale)?
            .reshape((batch, query_width, kv, groups, dim))?
            .permute((0, 2, 3, 1, 4))?
            .contiguous()?
            .reshape((batch, kv, groups * query_width, dim))?;
        let key_width = k.dim(2)?;
        let scores = q.matmul(&k.transpose(2, 3)?)?;
        let scores = match plan.mask()? {
            Some(mask) => scores
                .reshape((batch, kv, groups, query_width, key_width))?
                .broadcast_add(mask)?
                .reshape((batch, kv, groups * query_width, key_width))?,
            None => scores,
        };
        let mixed = ops::softmax(&scores)?
            .matmul(v)?
            .reshape((batch, kv, groups, query_width, dim))?
            .permute((0, 3, 1, 2, 4))?
            .contiguous()?
            .reshape((batch, query_width, count * dim))?;
        plan.queries.pack(&mixed)
    }

    /// Keys or values `[n, kv_heads * head_dim]` -> `[batch, kv_heads, key width, head_dim]`, padded.
    fn by_head(&self, rows: &Tensor, plan: &Plan) -> Result<Tensor> {
        plan.keys
            .pad(rows)?
            .reshape((plan.keys.batch(), plan.keys.width(), self.heads.kv, self.heads.dim))?
            .transpose(1, 2)?
            .contiguous()
    }

    /// Norm per head, then rotation: `[n, heads * head_dim]` -> the same.
    fn turn(&self, rows: &Tensor, heads: usize, norm: Option<&Norm>, angles: Option<&Angles>) -> Result<Tensor> {
        if norm.is_none() && angles.is_none() {
            return Ok(rows.clone());
        }
        let mut by_head = rows.reshape(((), heads, self.heads.dim))?;
        if let Some(norm) = norm {
            by_head = norm.forward(&by_head)?;
        }
        if let Some(angles) = angles {
            by_head = angles.rotate(&by_head)?;
        }
        by_head.flatten_from(D::Minus2)
    }
}
