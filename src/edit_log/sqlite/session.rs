//! SQLite's part of the log's statements.

use async_trait::async_trait;
use sqlx::{
    AssertSqlSafe, Row, Sqlite, SqliteConnection,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};

use crate::edit_log::{
    LogError,
    statements::{Bind, Columns, Session},
};

#[async_trait]
impl Session for SqliteConnection {
    type Row = SqliteRow;

    // SQLite, which keeps no statistics here, would otherwise search all changes of the version.
    const BY_EDIT: &'static str = "INDEXED BY version_changes_by_edit";
    const SAME_PROMPT: &'static str = "other.prompt = this.prompt";

    /// SQLite's lower() is ASCII's; instr() knows no wildcards.
    fn contains(column: &str) -> String {
        format!("instr(lower({column}), ?) > 0")
    }

    async fn all(&mut self, sql: &str, binds: &[Bind<'_>]) -> Result<Vec<SqliteRow>, LogError> {
        Ok(bound(sql, binds).fetch_all(self).await?)
    }

    async fn first(&mut self, sql: &str, binds: &[Bind<'_>]) -> Result<Option<SqliteRow>, LogError> {
        Ok(bound(sql, binds).fetch_optional(self).await?)
    }

    async fn run(&mut self, sql: &str, binds: &[Bind<'_>]) -> Result<(), LogError> {
        bound(sql, binds).execute(self).await?;
        Ok(())
    }

    /// Sets and statuses are answered from indexes alone, so these must say what the tables say.
    async fn check_indexes(&mut self) -> Result<(), LogError> {
        let found: String = sqlx::query_scalar("PRAGMA integrity_check(1)").fetch_one(self).await?;
        if found == "ok" {
            return Ok(());
        }
        Err(LogError::damaged("(the database file)", "an index or a page", found))
    }
}

/// The statements are this program's own; what others said is in the binds.
fn bound<'q>(sql: &str, binds: &[Bind<'_>]) -> Query<'q, Sqlite, SqliteArguments> {
    let statement = sqlx::query(AssertSqlSafe(sql.to_owned()));
    binds.iter().fold(statement, |statement, bind| match *bind {
        Bind::Number(number) => statement.bind(number),
        Bind::OptionalNumber(number) => statement.bind(number),
        Bind::Text(text) | Bind::Words(text) => statement.bind(text),
        Bind::OptionalWords(text) => statement.bind(text),
        Bind::Bytes(bytes) => statement.bind(bytes),
        Bind::OptionalBytes(bytes) => statement.bind(bytes),
    })
}

impl Columns for SqliteRow {
    fn number(&self, name: &str) -> Result<Option<i64>, String> {
        self.try_get(name).map_err(|error| error.to_string())
    }

    fn text(&self, name: &str) -> Result<Option<String>, String> {
        self.try_get(name).map_err(|error| error.to_string())
    }

    fn bytes(&self, name: &str) -> Result<Option<&[u8]>, String> {
        self.try_get(name).map_err(|error| error.to_string())
    }
}
