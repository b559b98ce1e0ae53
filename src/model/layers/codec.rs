//! A block of an encoder, or of a decoder that looks at an encoder's output, with norms before (T5) or after (BART, BERT)
//! what they belong to.

use candle_core::{Result, Tensor};
use candle_nn::kv_cache::KvCache;

use super::{Attention, Mlp, Norm, plan::Plan};
use crate::model::Projection;

/// Where a block's norms stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlace {
    /// `x + f(norm(x))`
    Before,
    /// `norm(x + f(x))`
    After,
}

/// Attention, with a decoder's attention to the source after it, and an MLP.
pub struct CodecBlock {
    pub attention: Attention,
    pub attention_norm: Norm,
    pub cross: Option<Cross>,
    pub mlp: Mlp,
    pub mlp_norm: Norm,
    pub place: NormPlace,
}

/// A decoder's attention to what the encoder made of the source.
pub struct Cross {
    pub attention: Attention,
    pub norm: Norm,
}

/// What a decoder's block needs of the source.
pub struct Source<'a> {
    /// The encoder's output `[n, hidden]`; none where its keys and values are in the cache.
    pub rows: Option<&'a Tensor>,
    pub plan: &'a Plan,
    pub cache: Option<&'a mut KvCache>,
}

impl CodecBlock {
    /// `x [n, hidden]` -> `[n, hidden]`.
    pub fn forward(
        &self,
        x: &Tensor,
        plan: &Plan,
        cache: Option<&mut KvCache>,
        source: Option<Source<'_>>,
        weights: &dyn Projection,
    ) -> Result<Tensor> {
        let attend = |x: &Tensor| self.attention.forward(x, plan, cache, weights);
        let mut x = self.add(x, &self.attention_norm, attend)?;
        if let (Some(cross), Some(source)) = (&self.cross, source) {
            x = self.add(&x, &cross.norm, |x| cross.attention.across(x, source, weights))?;
        }
        self.add(&x, &self.mlp_norm, |x| self.mlp.forward(x, weights))
    }

    fn add(&self, x: &Tensor, norm: &Norm, part: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        match self.place {
            NormPlace::Before => x + part(&norm.forward(x)?)?,
            NormPlace::After => norm.forward(&(x + part(x)?)?),
        }
    }
}
