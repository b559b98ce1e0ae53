//! Why the log did not do what it was asked. `http` maps each variant to a stable code and a status.

use std::path::PathBuf;

use sqlx::sqlite::SqliteError;
use thiserror::Error;
use uuid::Uuid;

/// Why the log refused or failed. After any of them but [`Storage`](Self::Storage) the log is as it was before the call.
/// After that one, a commit may be in the log all the same: its answer may have been what was lost.
#[derive(Debug, Clone, Error)]
pub enum LogError {
    /// The log was pinned to something else at first use: another model, another editor, another composition.
    #[error("the log belongs to another {what}: it is pinned to {pinned}, but {given} was given")]
    IdentityMismatch { what: &'static str, pinned: String, given: String },
    /// Nothing was pinned yet, so there is no version 0.
    #[error("the log is empty: no model is pinned to it yet")]
    NotPinned,
    /// A version was committed that does not follow the newest one.
    #[error("version {given} can not be committed: the next one is {expected}")]
    VersionConflict { expected: u64, given: u64 },
    /// Rows that contradict the log: a defect of the caller.
    #[error("the log refused rows that contradict it: {0}")]
    Inconsistent(String),
    /// A row does not fit what the chain says about it; the first one that was met.
    #[error("the log is damaged: table {table}, {row}: {why}")]
    Damaged { table: &'static str, row: String, why: String },
    /// No such edit.
    #[error("there is no edit {0}")]
    UnknownEdit(Uuid),
    /// An edit that was rejected or failed contributes nothing.
    #[error("edit {0} was not applied and has no contribution")]
    NoContribution(Uuid),
    /// A compaction dropped the edit's contribution.
    #[error("the change of edit {0} was dropped by a compaction: what contains it can not be made again")]
    Dropped(Uuid),
    /// No such version.
    #[error("there is no version {number}; the newest is {newest}")]
    UnknownVersion { number: u64, newest: u64 },
    /// The disk is full.
    #[error("the disk that holds the log is full")]
    Full,
    /// The database or its folder can not be written, or it was opened for reading only.
    #[error("the log can not be written: it is read-only")]
    ReadOnly,
    /// Another process is the writer (law 5).
    #[error("another process writes to this database: {holder}")]
    Locked { holder: String },
    /// This process does not write to the log, or does not any more: a commit of the epoch `own` was refused, the newest is
    /// `newest`. Nothing was written.
    #[error("this process does not write to the log: its epoch is {own}, the newest is {newest}")]
    NotWriter { own: u64, newest: u64 },
    /// The database file does not exist.
    #[error("there is no database at {}", .path.display())]
    NoDatabase { path: PathBuf },
    /// Anything else that the storage said.
    #[error("the log's storage failed: {0}")]
    Storage(String),
}

impl LogError {
    /// A row that does not fit.
    pub(super) fn damaged(table: &'static str, row: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Damaged { table, row: row.into(), why: why.into() }
    }

    fn of_postgres(code: &str, error: &sqlx::Error) -> Self {
        match code {
            POSTGRES_DISK_FULL => Self::Full,
            POSTGRES_READ_ONLY => Self::ReadOnly,
            code if POSTGRES_DAMAGED.contains(&code) => Self::damaged("(the database)", "a page", error.to_string()),
            _ => Self::Storage(error.to_string()),
        }
    }
}

impl From<std::io::Error> for LogError {
    fn from(error: std::io::Error) -> Self {
        Self::Storage(error.to_string())
    }
}

// Primary result codes: https://www.sqlite.org/rescode.html
const SQLITE_READONLY: i32 = 8;
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_NOTADB: i32 = 26;

// https://www.postgresql.org/docs/current/errcodes-appendix.html
const POSTGRES_READ_ONLY: &str = "25006";
const POSTGRES_DISK_FULL: &str = "53100";
const POSTGRES_DAMAGED: [&str; 2] = ["XX001", "XX002"];

impl From<sqlx::Error> for LogError {
    fn from(error: sqlx::Error) -> Self {
        let database = error.as_database_error();
        let sqlite = database.and_then(|database| database.try_downcast_ref::<SqliteError>());
        if let Some(database) = database
            && sqlite.is_none()
        {
            return Self::of_postgres(&database.code().unwrap_or_default(), &error);
        }
        // The low byte of an extended code is the primary one.
        let code = sqlite
            .and_then(|sqlite| sqlx::error::DatabaseError::code(sqlite)?.parse::<i32>().ok())
            .map(|extended| extended & 0xff);
        match code {
            Some(SQLITE_FULL) => Self::Full,
            Some(SQLITE_READONLY) => Self::ReadOnly,
            Some(SQLITE_CORRUPT | SQLITE_NOTADB) => Self::damaged("(the database file)", "a page", error.to_string()),
            _ => Self::Storage(error.to_string()),
        }
    }
}
