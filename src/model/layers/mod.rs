//! Building blocks that networks share. Each has one forward path for serving and for gradients: it runs candle's
//! fused kernels and, where a gradient is wanted, attaches a backward of its own ([`graft`]), because candle's fused
//! kernels stop gradients silently.

pub mod attention;
pub mod block;
pub mod codec;
pub mod embedding;
pub mod graft;
pub mod int8;
pub mod linear;
pub mod mlp;
pub mod norm;
pub mod ops;
pub mod packing;
pub mod plan;
pub mod relative;
pub mod rescore;
pub mod rotary;
pub mod rowwise;

pub use attention::Attention;
pub use block::Block;
pub use embedding::Embedding;
pub use linear::Linear;
pub use mlp::{Activation, Mlp};
pub use norm::Norm;
pub use packing::Packing;
pub use plan::{Plan, Positions};
pub use rotary::Rotary;
