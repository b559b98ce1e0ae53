//! Law 6 (history is append-only), checked: takes the rows of a log in order and says which is the first that does not
//! fit. Knows no database; a storage feeds it.

use std::collections::BTreeSet;

use uuid::Uuid;

use super::{
    ChangeKind, Identity, LogError, Outcome, VersionKind,
    chain::{
        ChangeBody, CompactionBody, EditBody, Entry, EntryKind, GENESIS, IdempotencyBody, VersionBody, changes_digest,
        dropped_digest, identity_digest,
    },
};
use crate::digest::Digest;

/// Where the walk stands. It holds ids and digests, never contributions.
pub(super) struct Checker {
    entries: u64,
    last: Digest,
    identity: Option<Identity>,
    /// Number of the newest version met.
    head: Option<u64>,
    /// Every edit that was ever part of a version.
    applied: BTreeSet<Uuid>,
    active: BTreeSet<Uuid>,
    /// Applied edits whose version has not come yet.
    arrived: BTreeSet<Uuid>,
    /// Applied edits whose contribution is not there.
    absent: BTreeSet<Uuid>,
    /// Edits whose contribution a compaction dropped.
    dropped: BTreeSet<Uuid>,
}

/// A version with all that hangs on it.
pub(super) struct VersionRows {
    /// The entry that its row says made it.
    pub seq: u64,
    pub row: VersionBody,
    pub changes: Vec<ChangeBody>,
    pub idempotency: Option<IdempotencyBody>,
}

impl Checker {
    pub(super) fn new() -> Self {
        Self {
            entries: 0,
            last: GENESIS,
            identity: None,
            head: None,
            applied: BTreeSet::new(),
            active: BTreeSet::new(),
            arrived: BTreeSet::new(),
            absent: BTreeSet::new(),
            dropped: BTreeSet::new(),
        }
    }

    /// How many entries fit so far.
    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    /// Takes the next entry; the row that it heads must follow.
    pub(super) fn entry(&mut self, entry: &Entry, prev: &Digest, hash: &Digest) -> Result<(), LogError> {
        let expected = self.entries + 1;
        let damaged = |why: String| LogError::damaged("entries", entry_name(expected), why);
        if entry.seq != expected {
            return Err(damaged(format!("is missing; seq {} comes next", entry.seq)));
        }
        if *prev != self.last {
            return Err(damaged(format!(
                "its prev_hash is {prev}, but the entry before it has the hash {}",
                self.last
            )));
        }
        let computed = entry.hash(prev);
        if *hash != computed {
            return Err(damaged(format!("its hash is {hash}, but its columns hash to {computed}")));
        }
        let kind_fits = match self.entries {
            0 => entry.kind == EntryKind::Identity,
            1 => entry.kind == EntryKind::Base,
            _ => matches!(entry.kind, EntryKind::Edit | EntryKind::Version | EntryKind::Compaction),
        };
        if !kind_fits {
            return Err(damaged(format!("it is of kind {}, which can not stand here", entry.kind.as_str())));
        }
        self.entries = entry.seq;
        self.last = *hash;
        Ok(())
    }

    /// Takes what the log is pinned to.
    pub(super) fn identity(&mut self, entry: &Entry, identity: Identity) -> Result<(), LogError> {
        same_digest("identity", &entry_name(entry.seq), &entry.body, &identity_digest(&identity))?;
        self.identity = Some(identity);
        Ok(())
    }

    /// Takes an edit. Its contribution is checked by whoever holds the bytes, see [`contribution_fits`]; where there are none,
    /// see [`Checker::absent`].
    pub(super) fn edit(&mut self, entry: &Entry, edit: &EditBody) -> Result<(), LogError> {
        let row = edit_name(edit.id);
        same_digest("edits", &row, &entry.body, &edit.digest())?;
        let damaged = |why: &str| LogError::damaged("edits", row.as_str(), why);
        match (edit.outcome == Outcome::APPLIED, entry.version) {
            (true, Some(version)) if Some(version) == self.head.map(|head| head + 1) => {
                if !self.applied.insert(edit.id) {
                    return Err(damaged("is there twice"));
                }
                self.arrived.insert(edit.id);
                Ok(())
            }
            (true, _) => Err(damaged("it was applied, but its entry does not name the next version")),
            (false, Some(_)) => Err(damaged("it was not applied, but its entry names a version")),
            (false, None) => Ok(()),
        }
    }

    /// An applied edit's contribution is not there. A compaction that comes later must have dropped it.
    pub(super) fn absent(&mut self, id: Uuid) {
        self.absent.insert(id);
    }

    /// Takes a compaction and the edits that it dropped, in the order of the log.
    pub(super) fn compaction(&mut self, entry: &Entry, row: &CompactionBody, edits: &[Uuid]) -> Result<(), LogError> {
        let name = entry_name(entry.seq);
        same_digest("compactions", &name, &entry.body, &row.digest())?;
        same_digest("dropped", &name, &row.dropped_digest, &dropped_digest(edits))?;
        if row.dropped != edits.len() as u64 {
            let why = format!("it counts {} edits, but dropped {}", row.dropped, edits.len());
            return Err(LogError::damaged("compactions", name, why));
        }
        if entry.version.is_some() || !self.arrived.is_empty() {
            return Err(LogError::damaged("entries", name, "a compaction can not be part of a version"));
        }
        for id in edits {
            let damaged = |why: &str| LogError::damaged("dropped", edit_name(*id), why);
            if !self.applied.contains(id) {
                return Err(damaged("the edit was never applied"));
            }
            if self.active.contains(id) {
                return Err(damaged("the edit is active"));
            }
            if !self.dropped.insert(*id) {
                return Err(damaged("dropped twice"));
            }
        }
        Ok(())
    }

    /// Takes a version.
    pub(super) fn version(&mut self, entry: &Entry, version: &VersionRows) -> Result<(), LogError> {
        let row = &version.row;
        let name = version_name(row.number);
        let damaged = |why: String| LogError::damaged("versions", name.as_str(), why);
        same_digest("versions", &name, &entry.body, &row.digest())?;
        if version.seq != entry.seq {
            return Err(damaged(format!("it names entry {}, but entry {} made it", version.seq, entry.seq)));
        }
        let expected = self.head.map_or(0, |head| head + 1);
        if row.number != expected || entry.version != Some(row.number) {
            return Err(damaged(format!("version {expected} comes next")));
        }
        if (row.kind == VersionKind::Base) != (expected == 0) {
            return Err(damaged(format!("its kind is {}", row.kind.as_str())));
        }
        self.changes(row, &version.changes)?;
        if row.active != self.active.len() as u64 {
            return Err(damaged(format!("it counts {} active edits, but has {}", row.active, self.active.len())));
        }
        if let Some(identity) = self.identity.as_ref().filter(|_| expected == 0)
            && (row.digest, row.set_digest) != (identity.base_weights, identity.empty_set)
        {
            return Err(damaged("its digests are not those that the log is pinned to".into()));
        }
        self.head = Some(row.number);
        idempotency_fits(row, version.idempotency.as_ref())
    }

    fn changes(&mut self, row: &VersionBody, changes: &[ChangeBody]) -> Result<(), LogError> {
        let name = version_name(row.number);
        same_digest("version_changes", &name, &row.changes, &changes_digest(row.number, changes))?;
        for change in changes {
            let damaged =
                |why: &str| LogError::damaged("version_changes", format!("{name}, {}", edit_name(change.edit)), why);
            if !self.applied.contains(&change.edit) {
                return Err(damaged("the edit was never applied"));
            }
            match change.kind {
                ChangeKind::Added if self.dropped.contains(&change.edit) => {
                    return Err(damaged("added, but a compaction dropped what it contributes"));
                }
                ChangeKind::Added if !self.active.insert(change.edit) => {
                    return Err(damaged("added, but it is active already"));
                }
                ChangeKind::Removed if !self.active.remove(&change.edit) => {
                    return Err(damaged("removed, but it is not active"));
                }
                ChangeKind::Added => drop(self.arrived.remove(&change.edit)),
                ChangeKind::Removed => {}
            }
        }
        match self.arrived.first() {
            Some(id) => Err(LogError::damaged("version_changes", name, format!("{} is not added", edit_name(*id)))),
            None => Ok(()),
        }
    }

    /// Nothing may be left open at the tail.
    pub(super) fn finish(&self) -> Result<u64, LogError> {
        if let Some(id) = self.arrived.first() {
            return Err(LogError::damaged("edits", edit_name(*id), "it was applied, but its version is missing"));
        }
        if self.entries == 1 {
            return Err(LogError::damaged("entries", entry_name(2), "is missing: a pinned log has a version 0"));
        }
        if let Some(id) = self.absent.difference(&self.dropped).next() {
            return Err(LogError::damaged("contributions", edit_name(*id), "is missing"));
        }
        if let Some(id) = self.dropped.difference(&self.absent).next() {
            return Err(LogError::damaged("contributions", edit_name(*id), "is there, but a compaction dropped it"));
        }
        Ok(self.entries)
    }
}

/// Whether a contribution's bytes are those that its edit names.
pub(super) fn contribution_fits(id: Uuid, named: Option<&Digest>, bytes: Option<&[u8]>) -> Result<(), LogError> {
    let damaged = |why: String| LogError::damaged("contributions", edit_name(id), why);
    match (named, bytes) {
        (None, None) => Ok(()),
        (Some(_), None) => Err(damaged("is missing".into())),
        (None, Some(_)) => Err(damaged("is there, but the edit was not applied".into())),
        (Some(named), Some(bytes)) => {
            let computed = Digest::of(bytes);
            if *named == computed {
                Ok(())
            } else {
                Err(damaged(format!("its {} bytes hash to {computed}, but the edit names {named}", bytes.len())))
            }
        }
    }
}

fn idempotency_fits(row: &VersionBody, answer: Option<&IdempotencyBody>) -> Result<(), LogError> {
    let computed = answer.map(IdempotencyBody::digest);
    if row.idempotency == computed {
        return Ok(());
    }
    let name = answer.map_or_else(|| version_name(row.number), |answer| format!("key {:?}", answer.key));
    let why = match (row.idempotency, computed) {
        (Some(_), None) => "is missing".into(),
        (None, Some(_)) => format!("is there, but version {} keeps no answer", row.number),
        (named, computed) => format!("hashes to {computed:?}, but version {} names {named:?}", row.number),
    };
    Err(LogError::damaged("idempotency", name, why))
}

fn same_digest(table: &'static str, row: &str, named: &Digest, computed: &Digest) -> Result<(), LogError> {
    if named == computed {
        return Ok(());
    }
    Err(LogError::damaged(table, row, format!("hashes to {computed}, but the chain names {named}")))
}

/// How [`LogError::Damaged`] names a row of `entries`.
pub(super) fn entry_name(seq: u64) -> String {
    format!("seq {seq}")
}

/// How [`LogError::Damaged`] names a row of `edits` or `contributions`.
pub(super) fn edit_name(id: Uuid) -> String {
    format!("edit {id}")
}

/// How [`LogError::Damaged`] names a row of `versions` or the rows of `version_changes` of one version.
pub(super) fn version_name(number: u64) -> String {
    format!("version {number}")
}
