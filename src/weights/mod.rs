//! From a set of edits to weights: fixed-point sums, immutable versions, and who is running on which.
//!
//! Law 2 (a version is a set of active edits) is kept by [`Accumulator`]; law 4 (a request runs on one version) by
//! [`Lease`] and [`Version`].

mod accumulator;
mod contribution;
mod digest;
mod error;
mod fixed;
mod kernel;
mod publish;
mod version;

pub use accumulator::Accumulator;
pub use contribution::{Contribution, Part};
pub use digest::{set_digest, weights_digest};
pub use error::WeightsError;
pub use publish::{Lease, Published, VersionSource};
pub use version::Version;

/// How this room composes contributions into weights; pinned in the log. `W = W0 + sum of the active deltas`.
pub const COMPOSITION: &str = "sum";
