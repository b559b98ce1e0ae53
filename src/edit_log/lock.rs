//! The writer's lock: within a database, one process writes.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use jiff::Timestamp;

use super::{LogError, sqlite::database_path};

/// Proof that this process, and no other, may write to a database.
///
/// Law 5 (one writer): it is an exclusive lock of the operating system on the file `<database>.lock`, which says as text
/// who holds it. The system frees it when the process ends, however it ends; the file stays, means nothing without the
/// lock, and must not be removed while someone holds it. Readers need none. On a network file system the lock is as good
/// as that system's locks are.
#[derive(Debug)]
pub struct WriterLock {
    file: File,
    path: PathBuf,
}

impl WriterLock {
    /// Takes the lock of the database at `url` (`sqlite://path`), whose folder is made if it is missing.
    /// [`LogError::Locked`] says who holds it.
    pub fn acquire(url: &str) -> Result<Self, LogError> {
        let path = lock_path(&database_path(url)?)?;
        let failed = |error: io::Error| cannot(&path, &error);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {
                write_holder(&mut file).map_err(failed)?;
                Ok(Self { file, path })
            }
            Err(TryLockError::WouldBlock) => Err(LogError::Locked { holder: read_holder(&mut file) }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// The locked file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WriterLock {
    fn drop(&mut self) {
        // So that the next holder's rival never reads this one's name. Closing the file frees the lock in any case.
        let _ = self.file.set_len(0);
    }
}

/// One name for a database, however its path is spelled.
fn lock_path(database: &Path) -> Result<PathBuf, LogError> {
    super::sqlite::create_folder(database)?;
    let real = match database.canonicalize() {
        Ok(real) => real,
        // The database is made after its lock is taken, so only its folder needs to be there.
        Err(_) => {
            let folder = database.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let name = database
                .file_name()
                .ok_or_else(|| LogError::Storage(format!("{} does not name a database file", database.display())))?;
            folder.canonicalize().map_err(|error| cannot(folder, &error))?.join(name)
        }
    };
    let mut path = real.into_os_string();
    path.push(".lock");
    Ok(path.into())
}

fn cannot(path: &Path, error: &io::Error) -> LogError {
    match error.kind() {
        io::ErrorKind::StorageFull => LogError::Full,
        io::ErrorKind::ReadOnlyFilesystem => LogError::ReadOnly,
        _ => LogError::Storage(format!("{}: {error}", path.display())),
    }
}

fn write_holder(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(this_process().as_bytes())?;
    file.flush()
}

/// Names this process for people who look for the one that writes.
pub(super) fn this_process() -> String {
    format!("process {} on host {} since {:.0}", std::process::id(), host_name(), Timestamp::now())
}

/// What the holder wrote; it may have taken the lock an instant ago and not have written yet.
fn read_holder(file: &mut File) -> String {
    for _ in 0..20 {
        let mut holder = String::new();
        let read = file.rewind().and_then(|()| file.read_to_string(&mut holder));
        if read.is_ok() && !holder.is_empty() {
            return holder;
        }
        thread::sleep(Duration::from_millis(5));
    }
    "a process that did not say its name".into()
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").or_else(|_| std::env::var("COMPUTERNAME")).ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "of unknown name".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_and_told_who_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/new/amend.db", folder.path().display());
        let held = WriterLock::acquire(&url).unwrap();
        let Err(LogError::Locked { holder }) = WriterLock::acquire(&url) else { panic!("taken twice") };
        assert!(holder.starts_with(&format!("process {} on host ", std::process::id())), "{holder}");
        assert!(holder.contains(" since 2"), "{holder}");
        assert!(held.path().ends_with("amend.db.lock"));

        drop(held);
        WriterLock::acquire(&url).unwrap();
    }

    #[test]
    fn another_spelling_of_the_path_is_the_same_lock() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().display();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        let _held = WriterLock::acquire(&format!("sqlite://{base}/amend.db")).unwrap();
        let again = WriterLock::acquire(&format!("sqlite:{base}/sub/../amend.db"));
        assert!(matches!(again, Err(LogError::Locked { .. })), "{again:?}");
    }
}
