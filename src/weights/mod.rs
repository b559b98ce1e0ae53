//! From a set of edits to weights: fixed-point sums, immutable versions, and who is running on which.
//!
//! Law 2 (a version is a set of active edits) is kept by [`Accumulator`], [`JointSet`] and [`GatedSet`], of which [`Composer`] is
//! the one that the editor wants; law 4 (a request runs on one version) by
//! [`Lease`] and [`Version`].

mod accumulator;
mod active;
mod composed;
mod composer;
mod contribution;
mod digest;
mod error;
mod fixed;
mod gated;
mod joint;
mod kernel;
mod publish;
mod version;

pub use accumulator::Accumulator;
pub use composed::{Composed, Matrices};
pub use composer::Composer;
pub use contribution::{Contribution, Part};
pub use digest::{set_digest, weights_digest};
pub use error::WeightsError;
pub use gated::GatedSet;
pub use joint::JointSet;
pub use publish::{Lease, Published, VersionSource};
pub use version::Version;
