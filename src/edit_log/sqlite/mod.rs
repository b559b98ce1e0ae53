//! The log in a SQLite file.
//!
//! One connection writes, each commit in one `BEGIN IMMEDIATE` transaction; a few others read, each answer from one
//! snapshot. WAL with `synchronous=FULL`: when a commit returns, it is on the disk; a process killed at any instruction
//! leaves either all of a commit or nothing of it.

mod backup;
mod compact;
mod open;
mod session;

use std::collections::BTreeSet;

use async_trait::async_trait;
use sqlx::{Connection, Sqlite, SqlitePool, Transaction, pool::PoolConnection};
use uuid::Uuid;

use super::{
    Change, EditBrief, EditLog, EditQuery, EditRow, IdempotencyRow, Identity, LogError, NewEdit, NewVersion, Page,
    VersionRow,
    statements::{append, edits, read, verify},
};
use crate::faults::{self, Point};

pub use backup::{LogCopy, backup, restore};
pub use compact::{Compaction, compact};
pub(super) use open::create_folder;
pub use open::database_path;

/// An [`EditLog`] in a SQLite file.
pub struct SqliteLog {
    /// One connection; none if the log was opened for reading.
    pub(super) writer: Option<SqlitePool>,
    readers: SqlitePool,
}

impl SqliteLog {
    /// Lends the writer's connection; a second caller waits.
    async fn writer(&self) -> Result<PoolConnection<Sqlite>, LogError> {
        Ok(self.writer.as_ref().ok_or(LogError::ReadOnly)?.acquire().await?)
    }

    /// Lends a connection that reads.
    async fn reader(&self) -> Result<PoolConnection<Sqlite>, LogError> {
        Ok(self.readers.acquire().await?)
    }

    /// What is asked of it is answered from one state of the log.
    async fn snapshot(&self) -> Result<Transaction<'static, Sqlite>, LogError> {
        Ok(self.readers.begin().await?)
    }

    /// Closes all connections and folds the WAL into the database file. Without it nothing is lost.
    pub async fn close(&self) {
        self.readers.close().await;
        if let Some(writer) = &self.writer {
            writer.close().await;
        }
    }
}

/// Carries out `write` as one transaction. Law 3: when this returns, what it wrote is on the disk.
macro_rules! written {
    ($log:ident, $transaction:ident => $write:expr) => {{
        let mut writer = $log.writer().await?;
        let written = async {
            // IMMEDIATE: what is read in it stays the newest until the commit.
            let mut held = writer.begin_with("BEGIN IMMEDIATE").await?;
            let $transaction = &mut *held;
            let written = $write.await?;
            held.commit().await?;
            Ok(written)
        };
        let result = written.await;
        settle(writer, result).await
    }};
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
        if let Some(pinned) = read::identity(&mut *self.reader().await?).await? {
            return pinned.same_as(identity);
        }
        written!(self, transaction => append::pin(transaction, identity))
    }

    async fn commit(&self, version: NewVersion) -> Result<VersionRow, LogError> {
        let row = written!(self, transaction => append::commit(transaction, version))?;
        faults::reach(Point::CommitDone)?;
        Ok(row)
    }

    async fn record(&self, edits: Vec<NewEdit>) -> Result<(), LogError> {
        written!(self, transaction => append::record(transaction, edits))
    }

    async fn head(&self) -> Result<VersionRow, LogError> {
        read::head(&mut *self.reader().await?).await
    }

    async fn version(&self, number: u64) -> Result<Option<VersionRow>, LogError> {
        read::version(&mut *self.reader().await?, number).await
    }

    async fn versions(&self, before: Option<u64>, limit: u32) -> Result<Vec<VersionRow>, LogError> {
        read::versions(&mut *self.reader().await?, before, limit).await
    }

    async fn changes(&self, after: u64, to: u64) -> Result<Vec<Change>, LogError> {
        read::changes(&mut *self.snapshot().await?, after, to).await
    }

    async fn active_set(&self, number: u64) -> Result<BTreeSet<Uuid>, LogError> {
        read::active_set(&mut *self.snapshot().await?, number).await
    }

    async fn edit(&self, id: Uuid) -> Result<Option<EditRow>, LogError> {
        edits::one(&mut *self.reader().await?, id).await
    }

    async fn edits(&self, query: &EditQuery) -> Result<Page<EditRow>, LogError> {
        edits::page(&mut *self.reader().await?, query).await
    }

    async fn contribution(&self, id: Uuid) -> Result<Vec<u8>, LogError> {
        read::contribution(&mut *self.reader().await?, id).await
    }

    async fn contributions(&self, ids: &[Uuid]) -> Result<Vec<Vec<u8>>, LogError> {
        read::contributions(&mut *self.reader().await?, ids).await
    }

    async fn briefs(&self, ids: &[Uuid]) -> Result<Vec<EditBrief>, LogError> {
        read::briefs(&mut *self.reader().await?, ids).await
    }

    async fn dropped(&self) -> Result<BTreeSet<Uuid>, LogError> {
        read::dropped(&mut *self.reader().await?).await
    }

    async fn idempotent(&self, key: &str) -> Result<Option<IdempotencyRow>, LogError> {
        read::idempotent(&mut *self.reader().await?, key).await
    }

    async fn check_chain(&self) -> Result<u64, LogError> {
        verify::check_chain(&mut *self.snapshot().await?).await
    }

    async fn ping(&self) -> Result<(), LogError> {
        read::ping(&mut *self.reader().await?).await
    }

    async fn close(&self) {
        Self::close(self).await;
    }
}
