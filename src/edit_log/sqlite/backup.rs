//! Copies of the whole log: taken while a writer works, and put in place of a log that is lost. Both are checked from the
//! first entry to the last before they have their name, and named by the digest of the file.

use std::{fs, io, path::Path};

use sqlx::{
    ConnectOptions, Connection,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

use super::{
    SqliteLog, database_path,
    open::{create_folder, same_schema},
};
use crate::{
    digest::Digest,
    edit_log::{EditLog, LogError, VersionRow, WriterLock},
    files::partial,
};

/// A whole log in a file of its own.
#[derive(Debug, Clone)]
pub struct LogCopy {
    /// Entries of the chain, all checked.
    pub entries: u64,
    /// The newest version in it.
    pub head: VersionRow,
    /// Bytes of the file.
    pub bytes: u64,
    /// Of the file's bytes.
    pub digest: Digest,
}

/// Copies the log at `url` to the new file `to`, beside a writer or without one: what was committed when this began, whole.
/// The file appears when it is checked and on the disk.
pub async fn backup(url: &str, to: &Path) -> Result<LogCopy, LogError> {
    let from = database_path(url)?;
    if !from.is_file() {
        return Err(LogError::NoDatabase { path: from });
    }
    must_be_new(to)?;
    let beside = Beside::of(to);
    let mut source = SqliteConnectOptions::new().filename(&from).read_only(true).connect().await?;
    let name = beside.0.to_str().ok_or_else(|| LogError::Storage(format!("{} is not UTF-8", to.display())))?;
    // One read transaction over all, which does not keep the writer from writing.
    sqlx::query("VACUUM INTO ?").bind(name).execute(&mut source).await?;
    source.close().await?;
    let copy = check(&beside.0).await?;
    of_the_same_past(url, &copy.head).await?;
    beside.take_its_name(to)?;
    Ok(copy)
}

/// Whether the log at `url` has this version, with everything before it: its entry's hash covers all of that.
async fn of_the_same_past(url: &str, head: &VersionRow) -> Result<(), LogError> {
    let source = SqliteLog::open_read_only(url).await?;
    let same = source.version(head.number).await;
    source.close().await;
    match same? {
        Some(row) if (row.entry_hash, row.digest) == (head.entry_hash, head.digest) => Ok(()),
        _ => Err(LogError::damaged("versions", format!("version {}", head.number), "its copy differs from it")),
    }
}

/// Puts the backup `from` where `url` names no database yet. [`LogError::Storage`] if its digest is not the expected one.
pub async fn restore(from: &Path, url: &str, expected: Option<Digest>) -> Result<LogCopy, LogError> {
    if !from.is_file() {
        return Err(LogError::NoDatabase { path: from.to_owned() });
    }
    let to = database_path(url)?;
    must_be_new(&to)?;
    create_folder(&to)?;
    let _alone = WriterLock::acquire(url)?;
    let beside = Beside::of(&to);
    fs::copy(from, &beside.0).map_err(|error| storage(&beside.0, &error))?;
    let copy = check(&beside.0).await?;
    if let Some(expected) = expected.filter(|expected| *expected != copy.digest) {
        return Err(LogError::Storage(format!("{} has the digest {}, not {expected}", from.display(), copy.digest)));
    }
    beside.take_its_name(&to)?;
    Ok(copy)
}

/// Checks every entry of a log in a file of its own.
async fn check(path: &Path) -> Result<LogCopy, LogError> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true).foreign_keys(true);
    let readers = SqlitePoolOptions::new().max_connections(1).connect_lazy_with(options);
    let log = SqliteLog { writer: None, readers };
    let checked = async {
        same_schema(&log.readers).await?;
        Ok::<_, LogError>((log.check_chain().await?, log.head().await?))
    };
    let checked = checked.await;
    log.close().await;
    let (entries, head) = checked?;
    let bytes = fs::metadata(path).map_err(|error| storage(path, &error))?.len();
    let digest = Digest::of_file(path).map_err(|error| storage(path, &error))?;
    Ok(LogCopy { entries, head, bytes, digest })
}

/// Nothing is overwritten: neither a database nor what SQLite keeps beside one.
fn must_be_new(path: &Path) -> Result<(), LogError> {
    for suffix in ["", "-wal", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        if Path::new(&name).exists() {
            return Err(LogError::Storage(format!("{} is there already; move it away first", name.display())));
        }
    }
    Ok(())
}

/// A file on its way to its name; removed if it does not get there.
struct Beside(std::path::PathBuf);

impl Beside {
    fn of(path: &Path) -> Self {
        let beside = Self(partial(path));
        // Left over from a process of the same number that was killed.
        let _ = fs::remove_file(&beside.0);
        beside
    }

    fn take_its_name(self, path: &Path) -> Result<(), LogError> {
        let settle = || -> io::Result<()> {
            fs::File::open(&self.0)?.sync_all()?;
            fs::rename(&self.0, path)?;
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            fs::File::open(folder)?.sync_all()
        };
        settle().map_err(|error| storage(path, &error))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Where it got its name, there is none of this one any more.
        let _ = fs::remove_file(&self.0);
    }
}

fn storage(path: &Path, error: &io::Error) -> LogError {
    match error.kind() {
        io::ErrorKind::StorageFull => LogError::Full,
        _ => LogError::Storage(format!("{}: {error}", path.display())),
    }
}
