//! Opening a SQLite log: where it lies, how its connections are set up, and which schema it has.

use std::{
    io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::LazyLock,
    time::Duration,
};

use sqlx::{
    SqlitePool,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::SqliteLog;
use crate::edit_log::{
    LogError,
    statements::{self, migrator},
};

static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    migrator(&[
        (1, "log", include_str!("../../../migrations/sqlite/0001_log.sql")),
        (2, "compaction", include_str!("../../../migrations/sqlite/0002_compaction.sql")),
    ])
});

/// How long a statement waits for another process that holds the file.
const BUSY: Duration = Duration::from_secs(5);
/// How many answers are read at once; one more waits.
const READERS: u32 = 4;

impl SqliteLog {
    /// Opens the log at `url` (`sqlite://path`) for reading and writing; makes the file and its folder if they are
    /// missing, and brings the schema up to date. Hold a [`super::super::WriterLock`] while it is open.
    pub async fn open(url: &str) -> Result<Self, LogError> {
        let path = database_path(url)?;
        create_folder(&path)?;
        let options = options(url)?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options)
            .await
            .map_err(|error| at(&path, error.into()))?;
        MIGRATIONS.run(&writer).await.map_err(|error| at(&path, LogError::Storage(error.to_string())))?;
        Ok(Self { writer: Some(writer), readers: readers(url)? })
    }

    /// Opens the log at `url` for reading alone, beside a writer or without one; never makes or migrates a file.
    /// [`LogError::NoDatabase`] if there is none.
    pub async fn open_read_only(url: &str) -> Result<Self, LogError> {
        let path = database_path(url)?;
        if !path.is_file() {
            return Err(LogError::NoDatabase { path });
        }
        let readers = readers(url)?;
        same_schema(&readers).await.map_err(|error| at(&path, error))?;
        Ok(Self { writer: None, readers })
    }
}

fn readers(url: &str) -> Result<SqlitePool, LogError> {
    let options = options(url)?.create_if_missing(false).read_only(true);
    Ok(SqlitePoolOptions::new().max_connections(READERS).connect_lazy_with(options))
}

fn options(url: &str) -> Result<SqliteConnectOptions, LogError> {
    let is_sqlite = url.starts_with("sqlite:");
    if !is_sqlite || url.contains(":memory:") || url.contains("mode=memory") {
        return Err(LogError::Storage(format!("{url:?} is not the URL of a database file: sqlite://PATH")));
    }
    Ok(SqliteConnectOptions::from_str(url)?.foreign_keys(true).busy_timeout(BUSY))
}

/// The file that a `sqlite://path` URL names.
pub fn database_path(url: &str) -> Result<PathBuf, LogError> {
    let path = options(url)?.get_filename().to_owned();
    if path.file_name().is_none() || path.is_dir() {
        return Err(LogError::Storage(format!("{url:?} does not name a file")));
    }
    Ok(path)
}

/// Makes the folder that the database lies in.
pub(in crate::edit_log) fn create_folder(database: &Path) -> Result<(), LogError> {
    let Some(folder) = database.parent() else { return Ok(()) };
    std::fs::create_dir_all(folder).map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull => LogError::Full,
        io::ErrorKind::ReadOnlyFilesystem => LogError::ReadOnly,
        _ => LogError::Storage(format!("can not make the folder {}: {error}", folder.display())),
    })
}

/// Whether the file has the schema that this program reads.
pub(super) async fn same_schema(readers: &SqlitePool) -> Result<(), LogError> {
    let is_log: bool =
        sqlx::query_scalar("SELECT count(*) FROM sqlite_master WHERE name IN ('entries', '_sqlx_migrations')")
            .fetch_one(readers)
            .await
            .map(|tables: i64| tables == 2)?;
    if !is_log {
        return Err(LogError::Storage("it holds no log".into()));
    }
    let found: Option<i64> =
        sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success").fetch_one(readers).await?;
    statements::same_schema(found, &MIGRATIONS)
}

/// Adds the file's name to what its storage says.
fn at(path: &Path, error: LogError) -> LogError {
    match error {
        LogError::Storage(why) => LogError::Storage(format!("{}: {why}", path.display())),
        LogError::Damaged { table, row, why } => {
            LogError::Damaged { table, row, why: format!("{}: {why}", path.display()) }
        }
        other => other,
    }
}
