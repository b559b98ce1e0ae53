//! The log in a PostgreSQL database, which several processes may share. A database holds one log.
//!
//! Each commit is one transaction; when it returns, the server has it on its disk. Law 5 (one writer) is kept by the
//! database: who writes is decided at the [`PostgresSeat`], and every transaction that writes begins by holding its epoch
//! against the newest one, on a row that stays locked until the transaction ends. So there is no moment at which a writer
//! that has been followed by another could still commit.

mod open;
mod seat;
mod session;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use sqlx::{Connection, PgPool, Postgres, pool::PoolConnection};
use uuid::Uuid;

use super::{
    Change, EditBrief, EditLog, EditQuery, EditRow, IdempotencyRow, Identity, LogError, NewEdit, NewVersion, Page,
    VersionRow,
    statements::{Bind, Columns, Session, append, edits, read, verify},
};
use crate::faults::{self, Point};
use open::Settings;
pub use seat::PostgresSeat;
use session::answered;

/// What followers listen to.
const CHANNEL: &str = "amend";

/// An [`EditLog`] in a PostgreSQL database.
pub struct PostgresLog {
    settings: Settings,
    /// One connection; none if the log was opened for reading.
    writer: Option<PgPool>,
    readers: PgPool,
    /// That of the seat which this process has, 0 while it has none.
    epoch: Arc<AtomicU64>,
}

/// A connection of a pool. After anything but an orderly end it is closed: the answer of what was asked may still be on its
/// way, or the server may be out of reach.
struct Lent {
    connection: PoolConnection<Postgres>,
    orderly: bool,
}

impl Lent {
    async fn of(pool: &PgPool) -> Result<Self, LogError> {
        Ok(Self { connection: pool.acquire().await?, orderly: false })
    }

    fn settle<T>(mut self, result: Result<T, LogError>) -> Result<T, LogError> {
        self.orderly = !matches!(result, Err(LogError::Storage(_) | LogError::Damaged { .. }));
        result
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.orderly {
            self.connection.close_on_drop();
        }
    }
}

/// Asks on a connection that reads.
macro_rules! asked {
    ($log:ident, $session:ident => $read:expr) => {{
        let mut lent = Lent::of(&$log.readers).await?;
        let $session = &mut *lent.connection;
        let result = $read.await;
        lent.settle(result)
    }};
}

/// Asks in a transaction that sees one state of the log.
macro_rules! asked_of_snapshot {
    ($log:ident, $session:ident => $read:expr) => {{
        let mut lent = Lent::of(&$log.readers).await?;
        let asked = async {
            let begun = lent.connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
            let mut transaction = answered(begun).await?;
            let $session = &mut *transaction;
            let read = $read.await?;
            answered(transaction.commit()).await?;
            Ok(read)
        };
        let result = asked.await;
        lent.settle(result)
    }};
}

/// Carries out `write` as one transaction. Law 3: when this returns, what it wrote is on the disk.
macro_rules! written {
    ($log:ident, $transaction:ident => $write:expr) => {{
        let mut lent = Lent::of($log.writer.as_ref().ok_or(LogError::ReadOnly)?).await?;
        let written = async {
            let mut held = answered(lent.connection.begin()).await?;
            let $transaction = &mut *held;
            fence($transaction, $log.epoch.load(Ordering::SeqCst)).await?;
            let written = $write.await?;
            $transaction.run("SELECT pg_notify(?, '')", &[Bind::Text(CHANNEL)]).await?;
            answered(held.commit()).await?;
            Ok(written)
        };
        let result = written.await;
        lent.settle(result)
    }};
}

/// Refuses a transaction of a writer that is none any more. The lock on the row lasts until the transaction ends: the next
/// writer's epoch comes either before it, and is seen here, or after it.
async fn fence(transaction: &mut impl Session, own: u64) -> Result<(), LogError> {
    let row = transaction.first("SELECT epoch FROM writer FOR SHARE", &[]).await?;
    let newest = row.as_ref().map(|row| row.number("epoch")).transpose().map_err(LogError::Storage)?.flatten();
    match newest.and_then(|newest| u64::try_from(newest).ok()) {
        Some(newest) if newest == own && own > 0 => Ok(()),
        Some(newest) => Err(LogError::NotWriter { own, newest }),
        None => Err(LogError::damaged("writer", "the only row", "is missing")),
    }
}

#[async_trait]
impl EditLog for PostgresLog {
    async fn pin(&self, identity: &Identity) -> Result<(), LogError> {
        if let Some(pinned) = asked!(self, session => read::identity(session))? {
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
        asked!(self, session => read::head(session))
    }

    async fn version(&self, number: u64) -> Result<Option<VersionRow>, LogError> {
        asked!(self, session => read::version(session, number))
    }

    async fn versions(&self, before: Option<u64>, limit: u32) -> Result<Vec<VersionRow>, LogError> {
        asked!(self, session => read::versions(session, before, limit))
    }

    async fn changes(&self, after: u64, to: u64) -> Result<Vec<Change>, LogError> {
        asked_of_snapshot!(self, session => read::changes(session, after, to))
    }

    async fn active_set(&self, number: u64) -> Result<BTreeSet<Uuid>, LogError> {
        asked_of_snapshot!(self, session => read::active_set(session, number))
    }

    async fn edit(&self, id: Uuid) -> Result<Option<EditRow>, LogError> {
        asked!(self, session => edits::one(session, id))
    }

    async fn edits(&self, query: &EditQuery) -> Result<Page<EditRow>, LogError> {
        asked!(self, session => edits::page(session, query))
    }

    async fn contribution(&self, id: Uuid) -> Result<Vec<u8>, LogError> {
        asked!(self, session => read::contribution(session, id))
    }

    async fn contributions(&self, ids: &[Uuid]) -> Result<Vec<Vec<u8>>, LogError> {
        asked!(self, session => read::contributions(session, ids))
    }

    async fn briefs(&self, ids: &[Uuid]) -> Result<Vec<EditBrief>, LogError> {
        asked!(self, session => read::briefs(session, ids))
    }

    async fn dropped(&self) -> Result<BTreeSet<Uuid>, LogError> {
        asked!(self, session => read::dropped(session))
    }

    async fn idempotent(&self, key: &str) -> Result<Option<IdempotencyRow>, LogError> {
        asked!(self, session => read::idempotent(session, key))
    }

    async fn check_chain(&self) -> Result<u64, LogError> {
        asked_of_snapshot!(self, session => verify::check_chain(session))
    }

    async fn ping(&self) -> Result<(), LogError> {
        asked!(self, session => read::ping(session))
    }

    async fn close(&self) {
        self.readers.close().await;
        if let Some(writer) = &self.writer {
            writer.close().await;
        }
    }
}
