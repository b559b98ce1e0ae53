//! From a set of edits to weights: fixed-point sums, immutable versions, and who is running on which.
//!
//! Law 2 (a version is a set of active edits) is kept by [`Accumulator`] and [`JointSet`], of which [`Composer`] is the one
//! that the editor wants; law 4 (a request runs on one version) by
//! [`Lease`] and [`Version`].

mod accumulator;
mod composer;
mod contribution;
mod digest;
mod error;
mod fixed;
mod joint;
mod kernel;
mod publish;
mod version;

pub use accumulator::Accumulator;
pub use composer::Composer;
pub use contribution::{Contribution, Part};
pub use digest::{set_digest, weights_digest};
pub use error::WeightsError;
pub use joint::JointSet;
pub use publish::{Lease, Published, VersionSource};
pub use version::Version;
