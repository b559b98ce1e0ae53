//! PostgreSQL's part of the log's statements.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::{
    AssertSqlSafe, PgConnection, Postgres, Row, TypeInfo, ValueRef,
    postgres::{PgArguments, PgRow},
    query::Query,
};

use crate::edit_log::{
    LogError,
    statements::{Bind, Columns, Session},
};

/// How long the server may take to answer a statement. A server that can not be reached does not say so.
const ANSWER: Duration = Duration::from_secs(10);

/// What the server answers, or that it did not.
pub(super) async fn answered<T>(asked: impl Future<Output = sqlx::Result<T>> + Send) -> Result<T, LogError> {
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(LogError::Storage(format!("the database did not answer within {} s", ANSWER.as_secs()))),
    }
}

#[async_trait]
impl Session for PgConnection {
    type Row = PgRow;

    const BY_EDIT: &'static str = "";
    // By the index of the hashes.
    const SAME_PROMPT: &'static str = "sha256(other.prompt) = sha256(this.prompt) AND other.prompt = this.prompt";

    /// Words are bytes. As escapes all but ASCII is digits, which lower() leaves alone.
    fn contains(column: &str) -> String {
        format!("position(? IN decode(lower(encode({column}, 'escape') COLLATE \"C\"), 'escape')) > 0")
    }

    async fn all(&mut self, sql: &str, binds: &[Bind<'_>]) -> Result<Vec<PgRow>, LogError> {
        answered(bound(sql, binds).fetch_all(self)).await
    }

    async fn first(&mut self, sql: &str, binds: &[Bind<'_>]) -> Result<Option<PgRow>, LogError> {
        answered(bound(sql, binds).fetch_optional(self)).await
    }

    async fn run(&mut self, sql: &str, binds: &[Bind<'_>]) -> Result<(), LogError> {
        answered(bound(sql, binds).execute(self)).await.map(drop)
    }

    /// Checking indexes is left to `pg_amcheck`, which needs more rights than a service has.
    async fn check_indexes(&mut self) -> Result<(), LogError> {
        Ok(())
    }
}

/// The statements are this program's own; what others said is in the binds.
fn bound<'q>(sql: &str, binds: &[Bind<'_>]) -> Query<'q, Postgres, PgArguments> {
    let statement = sqlx::query(AssertSqlSafe(numbered(sql)));
    binds.iter().fold(statement, |statement, bind| match *bind {
        Bind::Number(number) => statement.bind(number),
        Bind::OptionalNumber(number) => statement.bind(number),
        Bind::Text(text) => statement.bind(text),
        Bind::Words(text) => statement.bind(text.as_bytes()),
        Bind::OptionalWords(text) => statement.bind(text.map(str::as_bytes)),
        Bind::Bytes(bytes) => statement.bind(bytes),
        Bind::OptionalBytes(bytes) => statement.bind(bytes),
    })
}

/// `?` becomes `$1`, `$2` and so on. No statement has one for anything else.
fn numbered(sql: &str) -> String {
    let mut parts = sql.split('?');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.zip(1..).fold(first, |sql, (part, number)| format!("{sql}${number}{part}"))
}

impl Columns for PgRow {
    fn number(&self, name: &str) -> Result<Option<i64>, String> {
        self.try_get(name).map_err(|error| error.to_string())
    }

    fn text(&self, name: &str) -> Result<Option<String>, String> {
        let value = self.try_get_raw(name).map_err(|error| error.to_string())?;
        if value.type_info().name() != "BYTEA" {
            return self.try_get(name).map_err(|error| error.to_string());
        }
        let Some(bytes) = self.bytes(name)? else { return Ok(None) };
        let text = std::str::from_utf8(bytes).map_err(|error| format!("column {name} is not UTF-8: {error}"))?;
        Ok(Some(text.to_owned()))
    }

    fn bytes(&self, name: &str) -> Result<Option<&[u8]>, String> {
        self.try_get(name).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::numbered;

    #[test]
    fn places_are_numbered_in_order() {
        assert_eq!(numbered("a = ? AND b IN (?, ?)"), "a = $1 AND b IN ($2, $3)");
        assert_eq!(numbered("SELECT 1"), "SELECT 1");
    }
}
