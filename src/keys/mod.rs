//! API keys: what each may do, and the ring of those that are known.
//!
//! A key is 32 random bytes; only its BLAKE3 hash is kept ([`mod@file`]). A fast hash is enough for a secret that nobody can
//! guess, and it is the same hash that names everything else here.

pub mod file;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use clap::ValueEnum;
use rand::{TryRngCore, rngs::OsRng};
use thiserror::Error;

/// Random bytes of a key.
const SECRET_BYTES: usize = 32;
/// What every key begins with, so that people and scanners of code know one when they see it.
const PREFIX: &str = "amend_";
/// Longest name of a key, characters; names of actors in the log may be longer.
const NAME_MAX: usize = 64;

/// What a key may do. No scope but `admin` contains another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Scope {
    /// Read the log of edits with all its texts, versions, and what runs.
    Read,
    /// Have texts written, scored and classified.
    Generate,
    /// Change facts, take changes back, roll back.
    Edit,
    /// Read the metrics, which hold no text.
    Metrics,
    /// Everything.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 5] = [Self::Read, Self::Generate, Self::Edit, Self::Metrics, Self::Admin];

    /// Its name in the key file, in options and in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Generate => "generate",
            Self::Edit => "edit",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }

    /// The scope of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == name)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why keys could not be read or made.
#[derive(Debug, Error)]
pub enum KeysError {
    /// The file can not be read or written.
    #[error("the key file {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    /// A line is not a key.
    #[error("the key file {}, line {line}: {reason}", path.display())]
    Line { path: PathBuf, line: usize, reason: String },
    /// The name is in use.
    #[error("the key file {} has a key named {name:?} already; delete its line first", path.display())]
    Taken { path: PathBuf, name: String },
    /// A name that can not stand in the file.
    #[error("{0}")]
    Name(String),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes: {0}")]
    Random(rand::rand_core::OsError),
}

/// A known key: its name, what it may do, and the hash of the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    name: String,
    scopes: Vec<Scope>,
    hash: blake3::Hash,
}

impl Key {
    /// The name under which the log records what the key's holder does.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it may do what `scope` allows.
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.iter().any(|own| [scope, Scope::Admin].contains(own))
    }

    /// Its scopes, as given.
    pub fn scopes(&self) -> &[Scope] {
        &self.scopes
    }

    /// A new key, and the secret that is its holder's alone.
    pub fn new(name: &str, scopes: &[Scope]) -> Result<(Self, String), KeysError> {
        check_name(name).map_err(KeysError::Name)?;
        let mut bytes = [0; SECRET_BYTES];
        OsRng.try_fill_bytes(&mut bytes).map_err(KeysError::Random)?;
        let secret = format!("{PREFIX}{}", blake3::Hash::from_bytes(bytes).to_hex());
        Ok((Self { name: name.to_owned(), scopes: scopes.to_vec(), hash: blake3::hash(secret.as_bytes()) }, secret))
    }
}

/// Neither the secret, which is not here, nor its hash.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("name", &self.name).field("scopes", &self.scopes).finish_non_exhaustive()
    }
}

/// 1 to 64 of letters, digits and `. _ - @`, so that a name can stand in the file, in a header and in the log.
fn check_name(name: &str) -> Result<(), String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
    if (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(fits) {
        return Ok(());
    }
    Err(format!("a key's name is 1 to {NAME_MAX} letters, digits, dots, underscores, hyphens or @. Given: {name:?}"))
}

/// The keys that are known now. Cloning shares them, and [`reload`](Self::reload) changes them for all.
#[derive(Debug, Clone)]
pub struct KeyRing(Arc<RwLock<Arc<[Key]>>>);

impl KeyRing {
    /// These keys.
    pub fn new(keys: Vec<Key>) -> Self {
        Self(Arc::new(RwLock::new(keys.into())))
    }

    /// Those of a file.
    pub fn read(path: &Path) -> Result<Self, KeysError> {
        file::read(path).map(Self::new)
    }

    /// Replaces the keys by the file's and says how many there are. If it can not be read, those that were known stay.
    pub fn reload(&self, path: &Path) -> Result<usize, KeysError> {
        let keys: Arc<[Key]> = file::read(path)?.into();
        let count = keys.len();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(count)
    }

    /// How many keys are known.
    pub fn len(&self) -> usize {
        self.keys().len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The key with this secret. How long the answer takes does not depend on which key it is nor on how much of a hash
    /// fits: every key is compared, each in constant time ([`blake3::Hash`]'s equality).
    pub fn find(&self, secret: &[u8]) -> Option<Key> {
        let hash = blake3::hash(secret);
        self.keys().iter().fold(None, |found, key| if key.hash == hash { Some(key.clone()) } else { found })
    }

    fn keys(&self) -> Arc<[Key]> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_its_secret_alone() {
        let (reader, secret) = Key::new("reader", &[Scope::Read]).unwrap();
        let (admin, other) = Key::new("ops@example", &[Scope::Admin]).unwrap();
        assert_ne!(secret, other);
        assert_eq!(secret.len(), PREFIX.len() + 64);
        let ring = KeyRing::new(vec![reader, admin]);
        assert_eq!(ring.find(secret.as_bytes()).unwrap().name(), "reader");
        assert_eq!(ring.find(other.as_bytes()).unwrap().name(), "ops@example");
        for wrong in ["", &secret[1..], &secret[..secret.len() - 1], &secret.to_uppercase()] {
            assert!(ring.find(wrong.as_bytes()).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn a_scope_contains_itself_and_admin_contains_all() {
        let key = |scopes: &[Scope]| Key::new("k", scopes).unwrap().0;
        for scope in Scope::ALL {
            assert!(key(&[Scope::Admin]).may(scope), "{scope}");
            let others: Vec<_> =
                Scope::ALL.into_iter().filter(|other| ![scope, Scope::Admin].contains(other)).collect();
            assert!(!key(&others).may(scope), "{scope}");
            assert_eq!(Scope::named(scope.name()), Some(scope));
            assert_eq!(scope.to_possible_value().unwrap().get_name(), scope.name());
        }
    }

    #[test]
    fn names_fit_where_they_are_written() {
        for good in ["ci", "a.b_c-d@e", &"x".repeat(64)] {
            assert!(Key::new(good, &[Scope::Read]).is_ok(), "{good}");
        }
        for bad in ["", "two words", "#ci", "caf\u{e9}", &"x".repeat(65)] {
            assert!(matches!(Key::new(bad, &[Scope::Read]), Err(KeysError::Name(_))), "{bad}");
        }
    }

    #[test]
    fn what_is_printed_for_a_developer_holds_no_hash() {
        let (key, secret) = Key::new("ci", &[Scope::Edit]).unwrap();
        let printed = format!("{key:?}");
        assert!(printed.contains("ci") && !printed.contains(&key.hash.to_hex().to_string()), "{printed}");
        assert!(!printed.contains(&secret), "{printed}");
    }
}
