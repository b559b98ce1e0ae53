//! What the hashes of the log cover: the canonical bytes of every row, and the chain over them. Knows no database, so
//! that every storage hashes alike.
//!
//! Law 6 (history is append-only): `hash = BLAKE3(prev_hash || canonical bytes of the entry)`, and the first `prev_hash`
//! is 32 zero bytes. An entry's bytes hold the digest of the row that it heads, and that row holds the digests of what
//! hangs on it, so that every column of every table is covered:
//!
//! | entry | heads | which names by digest |
//! |---|---|---|
//! | `identity` | the row of `identity` | |
//! | `edit` | a row of `edits` | the bytes in `contributions` |
//! | `base`, `version` | a row of `versions` | its rows of `version_changes` and `idempotency` |
//! | `compaction` | a row of `compactions` | the edits whose bytes in `contributions` are gone |
//!
//! A changed, inserted, removed or reordered row therefore shows, except at the tail: a log whose newest entries were
//! cut off, with all that hangs on them, is a valid shorter log, and whoever can write the file can recompute every
//! hash from the changed row on. Against both, keep the newest entry's hash ([`super::VersionRow::entry_hash`])
//! somewhere else and compare.
//!
//! Canonical bytes: a field is its length (8 bytes, little-endian) and its bytes; a number is 8 bytes, little-endian; an
//! optional field is preceded by one byte, 1 if it is there and 0 if not; every kind of row begins with its name.

use uuid::Uuid;

use crate::digest::Digest;

/// `prev_hash` of the first entry.
pub const GENESIS: Digest = Digest([0; 32]);

/// Collects canonical bytes into a hash.
struct Canon(blake3::Hasher);

impl Canon {
    fn new(name: &str) -> Self {
        Self(blake3::Hasher::new()).bytes(name.as_bytes())
    }

    fn number(mut self, number: u64) -> Self {
        self.0.update(&number.to_le_bytes());
        self
    }

    fn bytes(self, bytes: &[u8]) -> Self {
        let mut canon = self.number(bytes.len() as u64);
        canon.0.update(bytes);
        canon
    }

    fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    fn digest(self, digest: &Digest) -> Self {
        self.bytes(digest.as_bytes())
    }

    fn optional<T>(mut self, field: Option<T>, add: impl FnOnce(Self, T) -> Self) -> Self {
        self.0.update(&[u8::from(field.is_some())]);
        match field {
            Some(field) => add(self, field),
            None => self,
        }
    }

    fn finish(self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}

/// What kind of row an entry heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    Identity,
    Base,
    Edit,
    Version,
    Compaction,
}

/// One link of the chain.
#[derive(Debug, Clone)]
pub struct Entry {
    /// 1 for the first, without gaps.
    pub seq: u64,
    /// When it was written, as stored.
    pub at: String,
    pub kind: EntryKind,
    pub version: Option<u64>,
    pub actor: String,
    /// Hash of the row that it heads.
    pub body: Digest,
}

impl Entry {
    /// The hash of this entry after the entry whose hash is `prev`.
    pub fn hash(&self, prev: &Digest) -> Digest {
        // The previous hash has a fixed length, so it needs no length before it.
        let mut start = blake3::Hasher::new();
        start.update(prev.as_bytes());
        Canon(start)
            .text("entry")
            .number(self.seq)
            .text(&self.at)
            .text(self.kind.as_str())
            .optional(self.version, Canon::number)
            .text(&self.actor)
            .digest(&self.body)
            .finish()
    }
}

/// Hash of the row of `identity`.
pub fn identity_digest(identity: &super::Identity) -> Digest {
    Canon::new("identity")
        .digest(&identity.base)
        .digest(&identity.editor)
        .text(&identity.composition)
        .digest(&identity.base_weights)
        .digest(&identity.empty_set)
        .finish()
}

/// A row of `edits`, as stored.
#[derive(Debug, Clone)]
pub struct EditBody {
    pub id: Uuid,
    pub received_at: String,
    pub prompt: String,
    pub target: String,
    /// JSON, byte for byte as stored.
    pub request: String,
    /// JSON, byte for byte as stored.
    pub report: String,
    pub outcome: String,
    pub reason: Option<String>,
    /// Digest of the contribution's bytes.
    pub contribution: Option<Digest>,
}

impl EditBody {
    /// Hash of the row.
    pub fn digest(&self) -> Digest {
        Canon::new("edit")
            .bytes(self.id.as_bytes())
            .text(&self.received_at)
            .text(&self.prompt)
            .text(&self.target)
            .text(&self.request)
            .text(&self.report)
            .text(&self.outcome)
            .optional(self.reason.as_deref(), Canon::text)
            .optional(self.contribution.as_ref(), Canon::digest)
            .finish()
    }
}

/// A row of `versions`.
#[derive(Debug, Clone)]
pub struct VersionBody {
    pub number: u64,
    pub kind: super::VersionKind,
    pub digest: Digest,
    pub set_digest: Digest,
    pub active: u64,
    /// [`changes_digest`] of its changes.
    pub changes: Digest,
    /// [`IdempotencyBody::digest`] of its answer, if it keeps one.
    pub idempotency: Option<Digest>,
}

impl VersionBody {
    /// Hash of the row.
    pub fn digest(&self) -> Digest {
        Canon::new("version")
            .number(self.number)
            .text(self.kind.as_str())
            .digest(&self.digest)
            .digest(&self.set_digest)
            .number(self.active)
            .digest(&self.changes)
            .optional(self.idempotency.as_ref(), Canon::digest)
            .finish()
    }
}

/// A row of `version_changes`, without its version and position, which its place in the list gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeBody {
    pub edit: Uuid,
    pub kind: super::ChangeKind,
    pub superseded_by: Option<Uuid>,
}

/// Hash over all changes of version `number`, in order.
pub fn changes_digest(number: u64, changes: &[ChangeBody]) -> Digest {
    let start = Canon::new("changes").number(number).number(changes.len() as u64);
    changes
        .iter()
        .fold(start, |canon, change| {
            canon
                .bytes(change.edit.as_bytes())
                .text(change.kind.as_str())
                .optional(change.superseded_by, |canon, id| canon.bytes(id.as_bytes()))
        })
        .finish()
}

/// A row of `compactions`, as stored.
#[derive(Debug, Clone)]
pub struct CompactionBody {
    /// Edits that left the set before this time were dropped.
    pub until: String,
    /// How many were.
    pub dropped: u64,
    /// [`dropped_digest`] of them.
    pub dropped_digest: Digest,
}

impl CompactionBody {
    /// Hash of the row.
    pub fn digest(&self) -> Digest {
        Canon::new("compaction").text(&self.until).number(self.dropped).digest(&self.dropped_digest).finish()
    }
}

/// Hash over the edits that a compaction dropped, in the order of the log.
pub fn dropped_digest(edits: &[Uuid]) -> Digest {
    let start = Canon::new("dropped").number(edits.len() as u64);
    edits.iter().fold(start, |canon, id| canon.bytes(id.as_bytes())).finish()
}

/// A row of `idempotency`, as stored.
#[derive(Debug, Clone)]
pub struct IdempotencyBody {
    pub key: String,
    pub version: u64,
    pub request: Digest,
    pub http_status: u16,
    /// JSON, byte for byte as stored.
    pub body: String,
}

impl IdempotencyBody {
    /// Hash of the row.
    pub fn digest(&self) -> Digest {
        Canon::new("idempotency")
            .text(&self.key)
            .number(self.version)
            .digest(&self.request)
            .number(u64::from(self.http_status))
            .text(&self.body)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            seq: 7,
            at: "2025-01-02T03:04:05.000000006Z".into(),
            kind: EntryKind::Edit,
            version: Some(3),
            actor: "ana".into(),
            body: Digest::of(b"body"),
        }
    }

    #[test]
    fn the_format_of_an_entry_is_pinned_by_hand_written_bytes() {
        let field = |bytes: &[u8]| [&(bytes.len() as u64).to_le_bytes(), bytes].concat();
        let bytes = [
            [0; 32].to_vec(),
            field(b"entry"),
            7u64.to_le_bytes().to_vec(),
            field(b"2025-01-02T03:04:05.000000006Z"),
            field(b"edit"),
            vec![1],
            3u64.to_le_bytes().to_vec(),
            field(b"ana"),
            field(Digest::of(b"body").as_bytes()),
        ]
        .concat();
        assert_eq!(entry().hash(&GENESIS), Digest::of(&bytes));
    }

    #[test]
    fn every_field_of_an_entry_matters() {
        let hash = entry().hash(&GENESIS);
        let changes: [fn(&mut Entry); 6] = [
            |e| e.seq += 1,
            |e| e.at.push('0'),
            |e| e.kind = EntryKind::Version,
            |e| e.version = None,
            |e| e.actor.clear(),
            |e| e.body = Digest::of(b"other"),
        ];
        for change in changes {
            let mut changed = entry();
            change(&mut changed);
            assert_ne!(changed.hash(&GENESIS), hash, "{changed:?}");
        }
        assert_ne!(entry().hash(&hash), hash);
    }
}
