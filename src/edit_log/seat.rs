//! What replicas of one log know of each other: who writes, and how far the log is.

use std::time::Duration;

use async_trait::async_trait;

use super::LogError;

/// The writer's place at a log that several processes share.
///
/// Law 5 (one writer): one process has it at a time, and the log refuses the commits of any other. Whoever takes it begins a
/// new epoch. Whoever has it must [`keep`](Self::keep) it more often than every [`LEASE`]; a process that is stopped, cut off or dead
/// loses it.
#[async_trait]
pub trait Seat: Send + Sync {
    /// Takes the place, if nobody has it, and returns the epoch that this begins. From then on the log takes this process's
    /// commits, and no others.
    async fn take(&self) -> Result<Option<u64>, LogError>;

    /// Says that this process is there. The error is that the place is lost.
    async fn keep(&self) -> Result<(), LogError>;

    /// Gives the place up, if this process has it.
    async fn leave(&self);

    /// How far the log is and who writes, as of now.
    async fn survey(&self) -> Result<Survey, LogError>;

    /// Returns when the log or its writer may have changed, at the latest after `limit`.
    async fn changed(&self, limit: Duration);
}

/// How long a place is kept without a word.
pub const LEASE: Duration = Duration::from_secs(2);

/// How a shared log stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Number of the newest version; none before the log is pinned.
    pub newest: Option<u64>,
    /// That of the last process that took the writer's place; 0 before the first.
    pub epoch: u64,
    /// Which process that was, for people.
    pub holder: String,
    /// Where it can be reached; it may have gone since.
    pub address: Option<String>,
}
