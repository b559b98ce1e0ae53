//! Attention with grouped keys and values, optional q/k norms, optional rotary positions and an optional cache: row by
//! row where no gradient is wanted ([`rowwise`]), else as products of padded batches. Who looks at whom is the plan's.

use candle_core::{D, Result, Tensor};
use candle_nn::kv_cache::KvCache;

use super::{Linear, Norm, codec::Source, ops, plan::Plan, rotary::Angles, rowwise};
use crate::model::Projection;

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

/// Whether attention goes row by row: on a CPU, where no gradient is wanted.
fn by_rows(queries: &Tensor, keys: &Tensor) -> bool {
    queries.device().is_cpu() && !queries.track_op() && !keys.track_op()
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
        let q = self.queries(&plan.select(x)?, plan, weights)?;
        let (k, v) = self.keys_and_values(x, plan, weights)?;
        let by_rows = by_rows(x, x);
        let (k, v) = self.laid_out(&k, &v, plan, cache, by_rows)?;
        self.attend(&q, &k, &v, plan, by_rows, weights)
    }

    /// Rows `x [q, hidden]` look at a source, whose keys and values are computed when its rows are given, and then kept
    /// in the cache if there is one.
    pub fn across(&self, x: &Tensor, source: Source<'_>, weights: &dyn Projection) -> Result<Tensor> {
        let Source { rows, plan, cache } = source;
        let q = self.queries(x, plan, weights)?;
        let by_rows = by_rows(x, rows.unwrap_or(x));
        let (k, v) = match (rows, cache) {
            (Some(rows), cache) => {
                let (k, v) = self.keys_and_values(rows, plan, weights)?;
                self.laid_out(&k, &v, plan, cache, by_rows)?
            }
            (None, Some(cache)) => match (cache.k()?, cache.v()?) {
                (Some(k), Some(v)) => (k, v),
                _ => candle_core::bail!("a decoder's text came before its source"),
            },
            (None, None) => candle_core::bail!("a decoder without a source"),
        };
        self.attend(&q, &k, &v, plan, by_rows, weights)
    }

    /// Keys and values as attention reads them, after what a cache holds: by head and padded, or rows one after another.
    fn laid_out(
        &self,
        k: &Tensor,
        v: &Tensor,
        plan: &Plan,
        cache: Option<&mut KvCache>,
        by_rows: bool,
    ) -> Result<(Tensor, Tensor)> {
        match cache {
            Some(cache) => cache.append(&self.by_head(k, plan)?, &self.by_head(v, plan)?),
            None if by_rows => Ok((k.contiguous()?, v.contiguous()?)),
            None => Ok((self.by_head(k, plan)?, self.by_head(v, plan)?)),
        }
    }

    fn queries(&self, x: &Tensor, plan: &Plan, weights: &dyn Projection) -> Result<Tensor> {
        let q = self.q.forward(x, weights)?;
        self.turn(&q, self.heads.count, self.q_norm.as_ref(), plan.query_angles.as_ref())
    }

    fn keys_and_values(&self, x: &Tensor, plan: &Plan, weights: &dyn Projection) -> Result<(Tensor, Tensor)> {
        let k = self.k.forward(x, weights)?;
        let k = self.turn(&k, self.heads.kv, self.k_norm.as_ref(), plan.key_angles.as_ref())?;
        Ok((k, self.v.forward(x, weights)?))
    }

    fn attend(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        plan: &Plan,
        by_rows: bool,
        weights: &dyn Projection,
    ) -> Result<Tensor> {
        let mixed = match by_rows {
            true => rowwise::attend(q, k, v, &plan.seen, plan.biases.as_ref(), self.heads)?,
            false => self.mix(q, k, v, plan)?,
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
