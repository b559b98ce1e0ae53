//! The log that a command works on, and how the process comes to write to it: by the lock of its file, or by the seat of a
//! log that others share.

use std::{sync::Arc, time::Duration};

use crate::{
    edit_log::{EditLog, LogError, Seat, WriterLock, postgres::PostgresLog, shared_by_replicas, sqlite::SqliteLog},
    writer::Place,
};

/// How often a follower looks whether there is a log yet.
const PAUSE: Duration = Duration::from_secs(1);

/// What a command wants of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To change the set, when its turn comes.
    Write,
    /// To follow what others change.
    Read,
}

/// An open log.
pub(super) struct Log {
    pub log: Arc<dyn EditLog>,
    by: By,
}

enum By {
    /// Held as long as the log is open.
    Lock {
        _held: WriterLock,
    },
    Seat {
        log: Arc<PostgresLog>,
        candidate: bool,
    },
}

impl Log {
    /// Opens the log at `url`. A log in a file is this process's alone, whatever it is for. One that is only to be read is not
    /// made: where there is none yet, this waits for it.
    pub async fn open(url: &str, purpose: Purpose) -> Result<Self, LogError> {
        if !shared_by_replicas(url) {
            let held = WriterLock::acquire(url)?;
            return Ok(Self { log: Arc::new(SqliteLog::open(url).await?), by: By::Lock { _held: held } });
        }
        let log = match purpose {
            Purpose::Write => PostgresLog::open(url).await?,
            Purpose::Read => follow(url).await?,
        };
        let log = Arc::new(log);
        let candidate = purpose == Purpose::Write;
        Ok(Self { log: Arc::clone(&log) as _, by: By::Seat { log, candidate } })
    }

    /// How this process comes to write; others reach it at `address`.
    pub fn place(&self, address: Option<String>) -> Place {
        match &self.by {
            By::Lock { .. } => Place::Alone,
            By::Seat { log, candidate } => Place::Shared { seat: Arc::new(log.seat(address)), candidate: *candidate },
        }
    }

    /// Which process writes to it, where that is not decided by a lock.
    pub async fn holder(&self) -> Result<String, LogError> {
        match &self.by {
            By::Lock { .. } => Ok("this process".to_owned()),
            By::Seat { log, .. } => Ok(log.seat(None).survey().await?.holder),
        }
    }

    /// Closes its connections; the place is given up with this value.
    pub async fn close(&self) {
        self.log.close().await;
    }
}

async fn follow(url: &str) -> Result<PostgresLog, LogError> {
    let mut waited = false;
    loop {
        match PostgresLog::open_read_only(url).await {
            Err(LogError::NotPinned) => {}
            opened => return opened,
        }
        if !std::mem::replace(&mut waited, true) {
            tracing::info!("the database holds no log yet; waiting for a writer to make it");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
