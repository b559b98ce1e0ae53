//! The file of keys: text, one key a line, `NAME SCOPE,SCOPE HASH`. Empty lines and lines that begin with `#` do not count.
//! A key is revoked by deleting its line.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use super::{Key, KeysError, Scope, check_name};

/// What a new file begins with.
const HEADING: &str = "# API keys of Amend: name, scopes, BLAKE3 hash of the key. `amend keys new` adds one; to revoke one, delete its \
                       line and send the service SIGHUP.\n";

/// The keys of a file.
pub fn read(path: &Path) -> Result<Vec<Key>, KeysError> {
    let text = fs::read_to_string(path).map_err(|source| KeysError::File { path: path.to_owned(), source })?;
    parse(path, &text)
}

/// Makes a key, appends its hash to the file, which is made if need be, and returns the secret. It is nowhere else.
pub fn add(path: &Path, name: &str, scopes: &[Scope]) -> Result<String, KeysError> {
    let known = match read(path) {
        Err(KeysError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
        known => known?,
    };
    if known.iter().any(|key| key.name == name) {
        return Err(KeysError::Taken { path: path.to_owned(), name: name.to_owned() });
    }
    let (key, secret) = Key::new(name, scopes)?;
    append(path, &line(&key)).map_err(|source| KeysError::File { path: path.to_owned(), source })?;
    Ok(secret)
}

/// Appends in one write, so that a service that reloads at the same moment sees whole lines.
fn append(path: &Path, line: &str) -> io::Result<()> {
    // What it says is no secret, but who can write it can let anyone in, and who reads it learns who has keys.
    let mut file = fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let written = fs::read(path)?;
    let mut text = String::new();
    if written.is_empty() {
        text.push_str(HEADING);
    } else if written.last() != Some(&b'\n') {
        text.push('\n');
    }
    text.push_str(line);
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn line(key: &Key) -> String {
    let scopes: Vec<_> = key.scopes.iter().map(|scope| scope.name()).collect();
    let mut line = String::new();
    writeln!(line, "{} {} {}", key.name, scopes.join(","), key.hash.to_hex())
        .expect("writing to a string does not fail");
    line
}

fn parse(path: &Path, text: &str) -> Result<Vec<Key>, KeysError> {
    let mut keys: Vec<Key> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let refused = |reason| KeysError::Line { path: path.to_owned(), line: index + 1, reason };
        let key = parse_line(line).map_err(refused)?;
        if keys.iter().any(|other| other.name == key.name) {
            return Err(refused(format!("a second key named {:?}", key.name)));
        }
        keys.push(key);
    }
    Ok(keys)
}

fn parse_line(line: &str) -> Result<Key, String> {
    let parts: Vec<&str> = line.split_whitespace().collect();
    let [name, scopes, hash] = parts[..] else {
        return Err(format!("a key is NAME SCOPE,SCOPE HASH; {} words were found", parts.len()));
    };
    check_name(name)?;
    let scopes = scopes.split(',').map(|scope| {
        let known = Scope::ALL.map(Scope::name).join(", ");
        Scope::named(scope).ok_or_else(|| format!("{scope:?} is no scope; there are {known}"))
    });
    // The line may hold a key where its hash belongs, so it is not repeated.
    let hash = blake3::Hash::from_hex(hash).map_err(|_| "the hash is not 64 hexadecimal digits".to_owned())?;
    Ok(Key { name: name.to_owned(), scopes: scopes.collect::<Result<_, _>>()?, hash })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::keys::KeyRing;

    #[test]
    fn a_key_that_was_added_is_known_and_its_secret_is_not_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let ci = add(&path, "ci", &[Scope::Edit, Scope::Read]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with('#') && text.contains("\nci edit,read "), "{text}");
        assert!(!text.contains(&ci));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        // An editor may have left no line break at the end.
        fs::write(&path, text.trim_end()).unwrap();
        let ops = add(&path, "ops", &[Scope::Admin]).unwrap();
        let ring = KeyRing::read(&path).unwrap();
        assert_eq!(ring.len(), 2);
        assert_eq!(ring.find(ci.as_bytes()).unwrap().scopes(), [Scope::Edit, Scope::Read]);
        assert_eq!(ring.find(ops.as_bytes()).unwrap().name(), "ops");
        assert!(matches!(add(&path, "ci", &[Scope::Read]), Err(KeysError::Taken { .. })));
    }

    #[test]
    fn a_line_that_is_no_key_is_named_and_what_was_known_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let secret = add(&path, "ci", &[Scope::Read]).unwrap();
        let ring = KeyRing::read(&path).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let hash = "0".repeat(64);
        for (line, said) in [
            ("ops admin".to_owned(), "2 words"),
            (format!("ops root {hash}"), "\"root\" is no scope; there are read, generate, edit, metrics, admin"),
            (format!("ops read,, {hash}"), "\"\" is no scope"),
            ("ops read amend_secret".to_owned(), "64 hexadecimal digits"),
            (format!("o/ps read {hash}"), "a key's name is"),
            (format!("ci admin {hash}"), "a second key named \"ci\""),
        ] {
            fs::write(&path, format!("{good}{line}\n")).unwrap();
            let error = ring.reload(&path).unwrap_err().to_string();
            assert!(error.contains("line 3") && error.contains(said), "{error}");
            assert!(!error.contains("amend_secret"), "{error}");
            assert!(ring.find(secret.as_bytes()).is_some());
        }
        fs::write(&path, "# none\n\n").unwrap();
        assert_eq!(ring.reload(&path).unwrap(), 0);
        assert!(ring.is_empty() && ring.find(secret.as_bytes()).is_none());
        assert!(KeyRing::read(&folder.path().join("nowhere")).unwrap_err().to_string().contains("nowhere"));
    }
}
