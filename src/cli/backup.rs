//! `amend backup` and `amend restore`.

use std::path::PathBuf;

use clap::Args;

use crate::{
    config::DatabaseArgs,
    digest::Digest,
    edit_log::{
        LogError, shared_by_replicas,
        sqlite::{self, LogCopy},
        without_password,
    },
};

/// Where to copy the log.
#[derive(Debug, Clone, Args)]
pub struct BackupArgs {
    /// The new file
    pub file: PathBuf,

    #[command(flatten)]
    pub database: DatabaseArgs,
}

/// Which copy to make the log.
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    /// The backup
    pub file: PathBuf,

    /// What `amend backup` said the file's digest is; default: only what the file says of itself is checked
    #[arg(long, env = "AMEND_DIGEST", value_name = "DIGEST")]
    pub digest: Option<Digest>,

    #[command(flatten)]
    pub database: DatabaseArgs,
}

/// Copies the log beside a running server, and says what was copied.
pub async fn backup(args: &BackupArgs) -> Result<String, LogError> {
    only_a_file(&args.database.database, "pg_dump")?;
    let copy = sqlite::backup(&args.database.database, &args.file).await?;
    Ok(format!("backed up to {}: {}", args.file.display(), said(&copy)))
}

/// Makes a backup the log, where there is none, and says what was restored.
pub async fn restore(args: &RestoreArgs) -> Result<String, LogError> {
    only_a_file(&args.database.database, "pg_restore")?;
    let copy = sqlite::restore(&args.file, &args.database.database, args.digest).await?;
    Ok(format!("restored from {}: {}", args.file.display(), said(&copy)))
}

/// A log in PostgreSQL is copied by PostgreSQL's own tools.
fn only_a_file(url: &str, tool: &str) -> Result<(), LogError> {
    if !shared_by_replicas(url) {
        return Ok(());
    }
    let place = without_password(url);
    Err(LogError::Storage(format!(
        "{place} is no file: {tool} copies it (docs/operations.md), and `amend verify` checks the copy"
    )))
}

fn said(copy: &LogCopy) -> String {
    let LogCopy { entries, head, bytes, digest } = copy;
    format!(
        "{entries} entries, all checked; version {} with {} active edits, digest {}; {bytes} bytes, file digest {digest}",
        head.number, head.active, head.digest
    )
}
