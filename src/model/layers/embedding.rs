//! Token ids to the first block's input.

use candle_core::{Result, Tensor};

use super::Norm;

/// Token embeddings, with what a family does to them.
pub struct Embedding {
    /// `[vocabulary, hidden]`
    pub tokens: Tensor,
    /// Learned positions `[context, hidden]`, added.
    pub positions: Option<Tensor>,
    /// What token embeddings are multiplied by, before positions are added.
    pub scale: Option<f64>,
    /// A norm over the sum.
    pub norm: Option<Norm>,
}

impl Embedding {
    /// Token embeddings as they are.
    pub fn plain(tokens: Tensor) -> Self {
        Self { tokens, positions: None, scale: None, norm: None }
    }

    /// Packed sequences of `lengths`, of which `past` positions were given before -> `[n, hidden]`.
    pub fn forward(&self, ids: &[u32], lengths: &[usize], past: usize) -> Result<Tensor> {
        let device = self.tokens.device();
        let mut embedded = self.tokens.index_select(&Tensor::new(ids, device)?, 0)?;
        if let Some(scale) = self.scale {
            embedded = (embedded * scale)?;
        }
        if let Some(positions) = &self.positions {
            let at: Vec<u32> = lengths.iter().flat_map(|&length| past as u32..(past + length) as u32).collect();
            embedded = (embedded + positions.index_select(&Tensor::new(at, device)?, 0)?)?;
        }
        match &self.norm {
            Some(norm) => norm.forward(&embedded),
            None => Ok(embedded),
        }
    }
}
