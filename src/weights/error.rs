//! Why weights could not be made or found.

use thiserror::Error;

/// What can go wrong between a set of edits and its weights.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// No such version.
    #[error("there is no version {number}; the newest is {newest}")]
    UnknownVersion { number: u64, newest: u64 },
    /// An element, or the sum it enters, leaves the range of the fixed point. Nothing was changed.
    #[error("the sum of deltas would overflow in {matrix}: its magnitude must stay under {limit}")]
    Overflow { matrix: String, limit: f64 },
    /// A delta has a value that is not a number, or infinite.
    #[error("the delta of {matrix} has a value that is not finite")]
    NonFinite { matrix: String },
    /// Bytes or tensors that are not a contribution to this model.
    #[error("malformed contribution: {0}")]
    Malformed(String),
    /// The version exists, but what one of its edits contributed was dropped from the log.
    #[error(
        "version {number} contains edit {edit}, whose change was dropped by a compaction: it can not be made again"
    )]
    Dropped { number: u64, edit: uuid::Uuid },
    /// The version exists, but its weights can not be had now.
    #[error("the weights are not available: {0}")]
    Unavailable(String),
    /// The tensor library failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
