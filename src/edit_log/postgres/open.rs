//! Opening a PostgreSQL log: how its connections are set up, and which schema it has.

use std::{
    str::FromStr,
    sync::{Arc, LazyLock, atomic::AtomicU64},
    time::Duration,
};

use sqlx::{
    ConnectOptions, PgPool,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use uuid::Uuid;

use super::PostgresLog;
use crate::edit_log::{
    LogError,
    statements::{self, migrator},
};

static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    migrator(&[
        (1, "log", include_str!("../../../migrations/postgres/0001_log.sql")),
        (2, "compaction", include_str!("../../../migrations/postgres/0002_compaction.sql")),
    ])
});

/// How many answers are read at once; one more waits.
const READERS: u32 = 4;
/// How long a connection may take to be there.
const CONNECT: Duration = Duration::from_secs(3);
/// The most that the server works on one statement, ms; the schema's own may take longer.
const STATEMENT_MS: &str = "10000";
/// After so many ms without a word the server ends a transaction that writes, and frees what it holds: whoever began it is
/// stopped, or out of reach.
const IDLE_WRITING_MS: &str = "2000";
/// The same of one that reads. It holds nothing that others wait for, and hashes a large change between two statements.
const IDLE_READING_MS: &str = "60000";
/// What the names of sessions that commit begin with.
pub(super) const COMMITTING: &str = "amend-commit-";

/// How the database is reached.
#[derive(Clone)]
pub(super) struct Settings {
    pub options: PgConnectOptions,
    /// Names the sessions of this process that commit, so that the writer after it can end those of all others.
    pub committing: String,
}

impl Settings {
    fn of(url: &str) -> Result<Self, LogError> {
        // A URL may hold a password, so that nothing of it is repeated.
        let parsed = PgConnectOptions::from_str(url);
        let options = parsed.map_err(|error| LogError::Storage(format!("the database's URL is not valid: {error}")))?;
        // What a statement says is in the log already, and what is slow is measured.
        let options = options.application_name("amend").disable_statement_logging();
        // That a schema is there already is no news.
        let options = options.options([("client_min_messages", "warning")]);
        Ok(Self { options, committing: format!("{COMMITTING}{}", Uuid::now_v7().simple()) })
    }

    /// Where the database is, for people.
    pub fn place(&self) -> String {
        let (host, port) = (self.options.get_host(), self.options.get_port());
        format!("the database {} at {host}:{port}", self.options.get_database().unwrap_or_default())
    }

    fn at(&self, error: LogError) -> LogError {
        match error {
            LogError::Storage(why) => LogError::Storage(format!("{}: {why}", self.place())),
            other => other,
        }
    }

    fn pool(&self, connections: u32, name: &str, idle_ms: &str) -> PgPool {
        let limits = [
            ("statement_timeout", STATEMENT_MS),
            ("idle_in_transaction_session_timeout", idle_ms),
            // Law 3, also where the server's own setting is another.
            ("synchronous_commit", "on"),
        ];
        let options = self.options.clone().application_name(name).options(limits);
        PgPoolOptions::new().max_connections(connections).acquire_timeout(CONNECT).connect_lazy_with(options)
    }
}

impl PostgresLog {
    /// Opens the log at `url` (`postgres://USER:PASSWORD@HOST/DATABASE`) for reading and for writing by the process that has
    /// the [`super::PostgresSeat`], and brings the schema up to date.
    pub async fn open(url: &str) -> Result<Self, LogError> {
        let settings = Settings::of(url)?;
        let migrated = async {
            // Without the limits of a statement: it may wait for another process that does the same.
            let mut connection = settings.options.connect().await?;
            let done = MIGRATIONS.run(&mut connection).await;
            done.map_err(|error| LogError::Storage(error.to_string()))?;
            Ok(sqlx::Connection::close(connection).await?)
        };
        migrated.await.map_err(|error: LogError| settings.at(error))?;
        let writer = settings.pool(1, &settings.committing, IDLE_WRITING_MS);
        Ok(Self { writer: Some(writer), ..Self::reading(settings) })
    }

    /// Opens the log at `url` for reading alone; never makes or migrates a schema. [`LogError::NotPinned`] if there is none.
    pub async fn open_read_only(url: &str) -> Result<Self, LogError> {
        let settings = Settings::of(url)?;
        let log = Self::reading(settings.clone());
        same_schema(&log.readers).await.map_err(|error| settings.at(error))?;
        Ok(log)
    }

    fn reading(settings: Settings) -> Self {
        let readers = settings.pool(READERS, "amend", IDLE_READING_MS);
        Self { settings, writer: None, readers, epoch: Arc::new(AtomicU64::new(0)) }
    }
}

/// Whether the database has the schema that this program reads.
async fn same_schema(readers: &PgPool) -> Result<(), LogError> {
    let is_log: bool =
        sqlx::query_scalar("SELECT to_regclass('entries') IS NOT NULL AND to_regclass('_sqlx_migrations') IS NOT NULL")
            .fetch_one(readers)
            .await?;
    if !is_log {
        return Err(LogError::NotPinned);
    }
    let found: Option<i64> =
        sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success").fetch_one(readers).await?;
    statements::same_schema(found, &MIGRATIONS)
}
