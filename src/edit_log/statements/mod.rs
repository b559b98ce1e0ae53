//! The log's statements, once for every database: what is read and written, in an SQL that SQLite and PostgreSQL share. What
//! they do not share is behind [`Session`] and [`Columns`], which each database's room implements.

pub mod append;
pub mod bodies;
pub mod convert;
pub mod edits;
pub mod read;
pub mod tail;
pub mod verify;

use async_trait::async_trait;
use sqlx::{
    SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
};

use super::LogError;

/// A value for a `?` of a statement.
#[derive(Debug, Clone, Copy)]
pub enum Bind<'a> {
    Number(i64),
    OptionalNumber(Option<i64>),
    /// Text of ours, which has no NUL.
    Text(&'a str),
    /// Text of others, of any characters.
    Words(&'a str),
    OptionalWords(Option<&'a str>),
    Bytes(&'a [u8]),
    OptionalBytes(Option<&'a [u8]>),
}

/// A connection that carries statements out, inside a transaction or without one.
#[async_trait]
pub trait Session: Send {
    type Row: Columns;

    /// Named after `version_changes` where the database would choose another index by itself.
    const BY_EDIT: &'static str;

    /// A condition: the edits `this` and `other` have the same prompt.
    const SAME_PROMPT: &'static str;

    /// A condition: this column of words contains the one `?`, which is in lower case, ignoring ASCII case.
    fn contains(column: &str) -> String;

    /// Every row.
    async fn all(&mut self, sql: &str, binds: &[Bind<'_>]) -> Result<Vec<Self::Row>, LogError>;

    /// The first row, if there is one.
    async fn first(&mut self, sql: &str, binds: &[Bind<'_>]) -> Result<Option<Self::Row>, LogError> {
        Ok(self.all(sql, binds).await?.into_iter().next())
    }

    /// For what it does alone.
    async fn run(&mut self, sql: &str, binds: &[Bind<'_>]) -> Result<(), LogError>;

    /// Whether the database's own structures fit, as far as it can tell.
    async fn check_indexes(&mut self) -> Result<(), LogError>;
}

/// The rows whose column, which ends `sql`, is one of `keys`. With so many places that few different statements are made.
pub async fn keyed<S: Session>(
    session: &mut S,
    sql: &str,
    keys: &[Bind<'_>],
    order: &str,
) -> Result<Vec<S::Row>, LogError> {
    let Some(last) = keys.last() else { return Ok(Vec::new()) };
    let places = keys.len().next_power_of_two();
    let binds: Vec<Bind<'_>> = keys.iter().chain(std::iter::repeat(last)).take(places).copied().collect();
    let places = vec!["?"; places].join(", ");
    session.all(&format!("{sql} IN ({places}){order}"), &binds).await
}

/// A row. The error is that the column has another type.
pub trait Columns: Send + Sync {
    fn number(&self, name: &str) -> Result<Option<i64>, String>;
    /// Text, or words.
    fn text(&self, name: &str) -> Result<Option<String>, String>;
    fn bytes(&self, name: &str) -> Result<Option<&[u8]>, String>;
}

/// The schema's history: these files, oldest first.
pub fn migrator(files: &[(i64, &'static str, &'static str)]) -> Migrator {
    let migration = |(version, name, sql): &(i64, &'static str, &'static str)| {
        Migration::new(*version, (*name).into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(files.iter().map(migration).collect())
}

/// The schema that this program reads, compared with the one that was found.
pub fn same_schema(found: Option<i64>, migrations: &Migrator) -> Result<(), LogError> {
    let wanted = migrations.iter().map(|migration| migration.version).max();
    if found == wanted {
        return Ok(());
    }
    let (found, wanted) = (found.unwrap_or(0), wanted.unwrap_or(0));
    Err(LogError::Storage(format!(
        "its schema is number {found}, this program reads number {wanted}; opening it for writing brings an older one up to date"
    )))
}
