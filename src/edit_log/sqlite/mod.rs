//! The log in a SQLite file.
//!
//! One connection writes, each commit in one `BEGIN IMMEDIATE` transaction; a few others read, each answer from one
//! snapshot. WAL with `synchronous=FULL`: when a commit returns, it is on the disk; a process killed at any instruction
//! leaves either all of a commit or nothing of it.

mod append;
mod backup;
mod compact;
mod convert;
mod edits;
mod open;
mod read;
mod tail;
#[cfg(test)]
mod tests;
mod verify;

use std::collections::BTreeSet;

use async_trait::async_trait;
use sqlx::{Sqlite, SqlitePool, pool::PoolConnection};
use uuid::Uuid;

use super::{
    Change, EditLog, EditQuery, EditRow, IdempotencyRow, Identity, LogError, NewEdit, NewVersion, Page, VersionRow,
};

pub use backup::{LogCopy, backup, restore};
pub use compact::{Compaction, compact};
pub(super) use open::create_folder;
pub use open::database_path;

/// An [`EditLog`] in a SQLite file.
pub struct SqliteLog {
    /// One connection; none if the log was opened for reading.
    writer: Option<SqlitePool>,
    readers: SqlitePool,
}

impl SqliteLog {
    /// Lends the writer's connection; a second caller waits.
    async fn writer(&self) -> Result<PoolConnection<Sqlite>, LogError> {
        Ok(self.writer.as_ref().ok_or(LogError::ReadOnly)?.acquire().await?)
    }

    /// Closes all connections and folds the WAL into the database file. Without it nothing is lost.
    pub async fn close(&self) {
        self.readers.close().await;
        if let Some(writer) = &self.writer {
            writer.close().await;
        }
    }
}

/// Gives the writer's connection back, or, after an error, closes it: where SQLite has rolled back by itself (a full
/// disk), the pool would go on believing in the transaction and refuse the next one.
async fn settle<T>(writer: PoolConnection<Sqlite>, result: Result<T, LogError>) -> Result<T, LogError> {
    if result.is_err()
        && let Err(error) = writer.close().await
    {
        tracing::warn!(%error, "closing the log's writing connection failed");
    }
    result
}

#[async_trait]
impl EditLog for SqliteLog {
    async fn pin(&self, identity: &Identity) -> Result<(), LogError> {
        if let Some(pinned) = read::identity(&self.readers).await? {
            return pinned.same_as(identity);
        }
        let mut writer = self.writer().await?;
        let result = append::pin(&mut writer, identity).await;
        settle(writer, result).await
    }

    async fn commit(&self, version: NewVersion) -> Result<VersionRow, LogError> {
        let mut writer = self.writer().await?;
        let result = append::commit(&mut writer, version).await;
        settle(writer, result).await
    }

    async fn record(&self, edits: Vec<NewEdit>) -> Result<(), LogError> {
        let mut writer = self.writer().await?;
        let result = append::record(&mut writer, edits).await;
        settle(writer, result).await
    }

    async fn head(&self) -> Result<VersionRow, LogError> {
        read::head(&mut *self.readers.acquire().await?).await
    }

    async fn version(&self, number: u64) -> Result<Option<VersionRow>, LogError> {
        read::version(&self.readers, number).await
    }

    async fn versions(&self, before: Option<u64>, limit: u32) -> Result<Vec<VersionRow>, LogError> {
        read::versions(&self.readers, before, limit).await
    }

    async fn changes(&self, after: u64, to: u64) -> Result<Vec<Change>, LogError> {
        read::changes(&self.readers, after, to).await
    }

    async fn active_set(&self, number: u64) -> Result<BTreeSet<Uuid>, LogError> {
        read::active_set(&self.readers, number).await
    }

    async fn edit(&self, id: Uuid) -> Result<Option<EditRow>, LogError> {
        edits::one(&self.readers, id).await
    }

    async fn edits(&self, query: &EditQuery) -> Result<Page<EditRow>, LogError> {
        edits::page(&self.readers, query).await
    }

    async fn contribution(&self, id: Uuid) -> Result<Vec<u8>, LogError> {
        read::contribution(&self.readers, id).await
    }

    async fn dropped(&self) -> Result<BTreeSet<Uuid>, LogError> {
        read::dropped(&self.readers).await
    }

    async fn idempotent(&self, key: &str) -> Result<Option<IdempotencyRow>, LogError> {
        read::idempotent(&self.readers, key).await
    }

    async fn check_chain(&self) -> Result<u64, LogError> {
        verify::check_chain(&self.readers).await
    }

    async fn ping(&self) -> Result<(), LogError> {
        read::ping(&self.readers).await
    }
}
