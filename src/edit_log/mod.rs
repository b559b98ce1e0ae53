//! The append-only log: what was edited, by whom, what it contributed to the weights, and which set of edits each
//! version is. It speaks rows, bytes and hashes, never tensors; what is inside a contribution is not its concern.
//!
//! Law 3 (log, then publish): [`EditLog::commit`] is one transaction; when it returns, the version is durable.
//! Law 6 (history is append-only): rows are only ever inserted (triggers in the database refuse anything else) and
//! every entry carries the hash of the one before it, see [`chain`]. The one thing that may go are the bytes that an edit
//! contributed, and only where an entry names the edit: see [`sqlite::compact`].

pub mod chain;
mod check;
mod error;
mod lock;
mod names;
mod open;
pub mod postgres;
mod rows;
mod seat;
pub mod sqlite;
mod statements;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use async_trait::async_trait;
use uuid::Uuid;

pub use error::LogError;
pub use lock::WriterLock;
pub use open::{open_read_only, shared_by_replicas, without_password};
pub use rows::{
    Change, ChangeKind, EditBrief, EditQuery, EditRow, EditStatus, IdempotencyRow, Identity, NewEdit, NewVersion,
    Outcome, Page, Removal, VersionKind, VersionRow,
};
pub use seat::{LEASE, Seat, Survey};

/// A durable, append-only log of edits and versions. One writer commits; any number may read.
#[async_trait]
pub trait EditLog: Send + Sync {
    /// Pins the model, the editor and the composition at first use and creates version 0; later checks that they are
    /// the same. [`LogError::IdentityMismatch`] names what differs.
    async fn pin(&self, identity: &Identity) -> Result<(), LogError>;

    /// Writes a version, its new edits with their contributions and its idempotency record in one transaction.
    /// [`LogError::VersionConflict`] if `version.number` is not the head's plus one; [`LogError::Inconsistent`] if an edit
    /// is removed that is not active, restored that was not taken back, new but known, or shares its prompt with another
    /// active one, or if the idempotency key has an answer already; [`LogError::NotWriter`] if another process has become the
    /// writer. After an error the log
    /// is as it was, or, if the answer of the storage was lost ([`LogError::Storage`]), holds the version whole.
    async fn commit(&self, version: NewVersion) -> Result<VersionRow, LogError>;

    /// Records edits that were rejected or failed: they change no version.
    async fn record(&self, edits: Vec<NewEdit>) -> Result<(), LogError>;

    /// The newest version; version 0 right after [`EditLog::pin`], [`LogError::NotPinned`] before it.
    async fn head(&self) -> Result<VersionRow, LogError>;

    /// One version.
    async fn version(&self, number: u64) -> Result<Option<VersionRow>, LogError>;

    /// Versions, newest first, below `before` if given.
    async fn versions(&self, before: Option<u64>, limit: u32) -> Result<Vec<VersionRow>, LogError>;

    /// The changes that lead from version `after` (exclusive) to version `to` (inclusive), in order; within a version
    /// removals come first. Empty if `after` is not below `to`; [`LogError::UnknownVersion`] if there is no version `to`.
    async fn changes(&self, after: u64, to: u64) -> Result<Vec<Change>, LogError>;

    /// The ids of the edits active in version `number`; [`LogError::UnknownVersion`] if there is none.
    async fn active_set(&self, number: u64) -> Result<BTreeSet<Uuid>, LogError>;

    /// One edit, with its status as of the newest version.
    async fn edit(&self, id: Uuid) -> Result<Option<EditRow>, LogError>;

    /// Edits, newest first, one page.
    async fn edits(&self, query: &EditQuery) -> Result<Page<EditRow>, LogError>;

    /// The bytes that an applied edit contributes, checked against the digest that its row holds.
    /// [`LogError::NoContribution`] if the edit was rejected or failed, [`LogError::Dropped`] if a compaction dropped it.
    async fn contribution(&self, id: Uuid) -> Result<Vec<u8>, LogError>;

    /// The same of several edits, in their order. They are in memory together.
    async fn contributions(&self, ids: &[Uuid]) -> Result<Vec<Vec<u8>>, LogError> {
        let mut all = Vec::with_capacity(ids.len());
        for id in ids {
            all.push(self.contribution(*id).await?);
        }
        Ok(all)
    }

    /// What is short of several edits, in their order.
    async fn briefs(&self, ids: &[Uuid]) -> Result<Vec<EditBrief>, LogError> {
        let mut all = Vec::with_capacity(ids.len());
        for id in ids {
            let EditRow { id, prompt, contribution, .. } = self.edit(*id).await?.ok_or(LogError::UnknownEdit(*id))?;
            all.push(EditBrief { id, prompt, contribution });
        }
        Ok(all)
    }

    /// Edits whose contributions compactions have dropped; none of them is active. A storage without compaction has none.
    async fn dropped(&self) -> Result<BTreeSet<Uuid>, LogError> {
        Ok(BTreeSet::new())
    }

    /// The answer recorded under an idempotency key.
    async fn idempotent(&self, key: &str) -> Result<Option<IdempotencyRow>, LogError>;

    /// Walks all entries in order, a few contributions in memory at a time, and recomputes every hash; [`LogError::Damaged`]
    /// names the first row that does not fit. Returns the number of entries. See [`chain`] for what it can not see.
    async fn check_chain(&self) -> Result<u64, LogError>;

    /// Whether the log can be reached.
    async fn ping(&self) -> Result<(), LogError>;

    /// Closes all connections. Without it nothing is lost.
    async fn close(&self);
}
