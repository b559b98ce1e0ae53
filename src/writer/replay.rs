//! Replay: from the log to the set it describes, checking on the way that it is the set it says. A restart, `amend
//! verify`, a follower and the repair after a lost answer go through the same code. Gradients are never computed again (law 3).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use thiserror::Error;
use tokio::runtime::Handle;
use uuid::Uuid;

use super::{
    bench::Foundation,
    ledger::{Entry, Ledger, Step},
    stored::{Stored, StoredCause, StoredError},
};
use crate::{
    digest::Digest,
    edit_log::{Change, ChangeKind, EditBrief, EditLog, LogError, VersionRow},
    faults::{self, Point},
    panics::caught,
    telemetry::Metrics,
    weights::{Version, WeightsError},
};

/// Versions whose changes are read from the log at a time.
const PAGE: u64 = 256;

/// How much of each version is compared with the log. The set and the number of active edits always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The weights of every version, made one after another.
    EveryVersion,
    /// The weights of the newest version alone, made at once from what its set contributes: they are a function of that
    /// set (law 2), so those of the versions before are not needed.
    Head,
}

/// What a replay went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayReport {
    /// Entries of the log whose hashes were recomputed.
    pub entries: u64,
    /// Versions that were replayed.
    pub versions: u64,
    /// Edits added or removed on the way.
    pub changes: u64,
    /// Edits that are active at the end.
    pub active: u64,
    /// Edits whose contributions compactions dropped.
    pub dropped: u64,
    /// Versions whose weights were not made, because they contain such an edit; their sets were checked.
    pub unmade: u64,
    pub elapsed: Duration,
}

/// The first thing in the log that does not fit.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// The log could not be read, or its own checks found damage.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A version's row and the contributions of its edits do not agree.
    #[error("version {number}: {what}")]
    Version { number: u64, what: String },
    /// A stored contribution can not be used.
    #[error("version {number}: edit {id}: {what}")]
    Edit { number: u64, id: Uuid, what: String },
    /// The base weights could not be taken up.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A defect.
    #[error("replay stopped: {0}")]
    Defect(String),
}

/// Called with the versions done and those to do.
pub type Progress<'a> = dyn FnMut(u64, u64) + Send + 'a;

/// Checks a whole log against the model and editor that it belongs to: hash chain, every contribution, every version's
/// set and weights. Changes nothing. The error names the first row or version that does not fit.
pub async fn verify(
    log: Arc<dyn EditLog>,
    foundation: Foundation,
    mut progress: impl FnMut(u64, u64) + Send + 'static,
) -> Result<ReplayReport, ReplayError> {
    let runtime = Handle::current();
    let work = move || {
        let mut ledger = Ledger::new(foundation)?;
        let stored = Stored { log: log.as_ref(), runtime: &runtime };
        replay(stored, &mut ledger, Depth::EveryVersion, &mut progress)
    };
    let joined = tokio::task::spawn_blocking(move || caught(work)).await;
    joined
        .map_err(|error| error.to_string())
        .and_then(|result| result)
        .unwrap_or_else(|defect| Err(ReplayError::Defect(defect)))
}

/// Replays a log from version 0 into an empty ledger.
pub fn replay(
    stored: Stored<'_>,
    ledger: &mut Ledger,
    depth: Depth,
    progress: &mut Progress<'_>,
) -> Result<ReplayReport, ReplayError> {
    let start = Instant::now();
    let entries = stored.runtime.block_on(stored.log.check_chain())?;
    if entries == 0 {
        return Err(LogError::NotPinned.into());
    }
    // It is pinned, so this compares alone.
    stored.runtime.block_on(stored.log.pin(ledger.identity()))?;
    let base = version_row(stored, 0)?;
    compare(&base, "digest", base.digest, ledger.identity().base_weights)?;
    compare(&base, "set digest", base.set_digest, ledger.identity().empty_set)?;
    let Followed { changes, dropped, unmade } = follow(stored, ledger, depth, progress)?;
    let (versions, active) = (ledger.head(), ledger.active().len() as u64);
    Ok(ReplayReport { entries, versions, changes, active, dropped, unmade, elapsed: start.elapsed() })
}

/// What was taken up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Followed {
    /// Edits added or removed.
    changes: u64,
    dropped: u64,
    unmade: u64,
}

/// Takes up the versions that follow the ledger's. After an error the ledger is somewhere between and must not be used.
pub fn follow(
    stored: Stored<'_>,
    ledger: &mut Ledger,
    depth: Depth,
    progress: &mut Progress<'_>,
) -> Result<Followed, ReplayError> {
    let newest = not_shorter(stored, ledger)?;
    let dropped = stored.runtime.block_on(stored.log.dropped())?;
    let mut followed = Followed { dropped: dropped.len() as u64, ..Followed::default() };
    let (start, before) = (ledger.head(), ledger.active().clone());
    while ledger.head() < newest {
        let (after, to) = (ledger.head(), newest.min(ledger.head() + PAGE));
        let changes = stored.runtime.block_on(stored.log.changes(after, to))?;
        followed.changes += changes.len() as u64;
        let mut page = Page::read(stored, after, to, changes)?;
        for number in after + 1..=to {
            let made = step(stored, ledger, page.take(number)?, depth, &dropped)?;
            followed.unmade += u64::from(!made);
            progress(number, newest);
        }
    }
    if depth == Depth::Head && newest > start {
        compose(stored, ledger, &before)?;
    }
    name_all(stored, ledger)?;
    Ok(followed)
}

/// Some versions as the log has them, read together.
struct Page {
    rows: BTreeMap<u64, VersionRow>,
    changes: BTreeMap<u64, Vec<Change>>,
    /// What the edits that enter contribute, as their rows say.
    digests: BTreeMap<Uuid, Digest>,
}

impl Page {
    fn read(stored: Stored<'_>, after: u64, to: u64, changes: Vec<Change>) -> Result<Self, ReplayError> {
        let count = u32::try_from(to - after).unwrap_or(u32::MAX);
        let rows = stored.runtime.block_on(stored.log.versions(to.checked_add(1), count))?;
        let entering: BTreeSet<Uuid> =
            changes.iter().filter(|change| change.kind == ChangeKind::Added).map(|change| change.edit).collect();
        let digests = stored.digests(&entering.into_iter().collect::<Vec<_>>())?;
        let mut by_version: BTreeMap<u64, Vec<Change>> = BTreeMap::new();
        for change in changes {
            by_version.entry(change.version).or_default().push(change);
        }
        let rows = rows.into_iter().map(|row| (row.number, row)).collect();
        Ok(Self { rows, changes: by_version, digests })
    }

    fn take(&mut self, number: u64) -> Result<Next<'_>, ReplayError> {
        let row = self.rows.remove(&number).ok_or_else(|| absent(number))?;
        Ok(Next { row, changes: self.changes.remove(&number).unwrap_or_default(), digests: &self.digests })
    }
}

/// The version that is taken up next.
struct Next<'a> {
    row: VersionRow,
    changes: Vec<Change>,
    digests: &'a BTreeMap<Uuid, Digest>,
}

/// Moves the sums from the set that they are of to the ledger's, and compares the weights with the newest version's.
fn compose(stored: Stored<'_>, ledger: &mut Ledger, of: &BTreeMap<Uuid, Digest>) -> Result<(), ReplayError> {
    let row = version_row(stored, ledger.head())?;
    let removed: Vec<Uuid> = of.keys().filter(|id| !ledger.active().contains_key(id)).copied().collect();
    let added: Vec<Uuid> = ledger.active().keys().filter(|id| !of.contains_key(id)).copied().collect();
    stored.shift(ledger.sums_mut(), &removed, &added).map_err(|error| located(row.number, error))?;
    compare(&row, "digest", row.digest, ledger.weights_digest()?)
}

/// One version. Where compactions dropped what an edit contributed, the sums never hold it, and a version that contains it
/// has its set compared, but not its weights. Returns whether this one's weights could be.
fn step(
    stored: Stored<'_>,
    ledger: &mut Ledger,
    next: Next<'_>,
    depth: Depth,
    dropped: &BTreeSet<Uuid>,
) -> Result<bool, ReplayError> {
    faults::reach(Point::Replay).map_err(LogError::from)?;
    let Next { row, changes, digests } = next;
    let (removed, added) = difference(ledger, row.number, &changes)?;
    let (gone, there): (Vec<Uuid>, Vec<Uuid>) = added.into_iter().partition(|id| dropped.contains(id));
    let stated = |ids: &[Uuid]| ids.iter().filter_map(|id| Some((*id, *digests.get(id)?))).collect::<Vec<_>>();
    let mut entered = match depth {
        Depth::EveryVersion => {
            let leaving: Vec<Uuid> = removed.iter().filter(|id| !dropped.contains(id)).copied().collect();
            stored.shift(ledger.sums_mut(), &leaving, &there).map_err(|error| located(row.number, error))?
        }
        Depth::Head => stated(&there),
    };
    entered.extend(stated(&gone));
    let added = entered.into_iter().map(|(id, digest)| Entry { id, digest, prompt: None }).collect();
    ledger.enter(Step { removed, added });
    same_set(&row, ledger.active().len() as u64, ledger.set_digest())?;
    let whole = !ledger.active().keys().any(|id| dropped.contains(id));
    if depth == Depth::EveryVersion && whole {
        compare(&row, "digest", row.digest, ledger.weights_digest()?)?;
    }
    Ok(whole)
}

/// The edits that leave the set with version `number`, and those that enter it.
fn difference(ledger: &Ledger, number: u64, changes: &[Change]) -> Result<(Vec<Uuid>, Vec<Uuid>), ReplayError> {
    let of = |kind| changes.iter().filter(move |change| change.kind == kind).map(|change| change.edit);
    let (removed, added): (Vec<Uuid>, Vec<Uuid>) = (of(ChangeKind::Removed).collect(), of(ChangeKind::Added).collect());
    if let Some(id) = removed.iter().find(|id| !ledger.active().contains_key(id)) {
        return Err(ReplayError::Version { number, what: format!("it removes edit {id}, which is not active") });
    }
    if let Some(id) = added.iter().find(|id| ledger.active().contains_key(id) && !removed.contains(id)) {
        return Err(ReplayError::Version { number, what: format!("it adds edit {id}, which is active already") });
    }
    Ok((removed, added))
}

fn same_set(row: &VersionRow, active: u64, digest: Digest) -> Result<(), ReplayError> {
    if row.active != active {
        let what = format!("the log says that {} edits are active, its changes leave {active}", row.active);
        return Err(ReplayError::Version { number: row.number, what });
    }
    compare(row, "set digest", row.set_digest, digest)
}

/// Takes up the version after the ledger's, if the log has one: what a process does that another is ahead of. The version
/// has the digests that the log says. After an error nothing has changed.
pub fn next(stored: Stored<'_>, ledger: &mut Ledger, metrics: &Metrics) -> Result<Option<NextVersion>, ReplayError> {
    let number = ledger.head() + 1;
    let Some(row) = stored.runtime.block_on(stored.log.version(number))? else {
        return not_shorter(stored, ledger).map(|_| None);
    };
    let changes = stored.runtime.block_on(stored.log.changes(ledger.head(), number))?;
    let (removed, added) = difference(ledger, number, &changes)?;
    let (step, how) = stored.step(ledger, removed, &added).map_err(|error| located(number, error))?;
    for entry in &step.added {
        if let Some(other) = entry.prompt.as_ref().and_then(|prompt| ledger.by_prompt(prompt))
            && !step.removed.contains(&other)
        {
            let what = format!("edits {other} and {} are both active and have the same prompt", entry.id);
            return Err(ReplayError::Version { number, what });
        }
    }
    let tried = ledger.attempt(step, how, metrics)?;
    let version = tried.version();
    same_set(&row, version.active.len() as u64, version.set_digest)?;
    compare(&row, "digest", row.digest, version.digest)?;
    Ok(Some(NextVersion { version: tried.settle(), created_at: row.created_at }))
}

/// A version that was taken up, and when it was committed.
pub struct NextVersion {
    pub version: Arc<Version>,
    pub created_at: Timestamp,
}

/// The log's newest version, which is not before the ledger's.
fn not_shorter(stored: Stored<'_>, ledger: &Ledger) -> Result<u64, ReplayError> {
    let newest = stored.runtime.block_on(stored.log.head())?.number;
    if newest >= ledger.head() {
        return Ok(newest);
    }
    let what = format!("the log ends at version {newest}, but it was {} before", ledger.head());
    Err(ReplayError::Version { number: newest, what })
}

/// Looks up the prompts of the edits that replay has left active.
fn name_all(stored: Stored<'_>, ledger: &mut Ledger) -> Result<(), ReplayError> {
    for EditBrief { id, prompt, .. } in stored.briefs(&ledger.nameless())? {
        if let Some(other) = ledger.name(id, prompt) {
            let what = format!("edits {other} and {id} are both active and have the same prompt");
            return Err(ReplayError::Version { number: ledger.head(), what });
        }
    }
    Ok(())
}

fn version_row(stored: Stored<'_>, number: u64) -> Result<VersionRow, ReplayError> {
    let row = stored.runtime.block_on(stored.log.version(number))?;
    row.ok_or_else(|| absent(number))
}

fn absent(number: u64) -> ReplayError {
    ReplayError::Version { number, what: "it is missing from the log".to_owned() }
}

fn compare(row: &VersionRow, what: &str, logged: Digest, made: Digest) -> Result<(), ReplayError> {
    if logged == made {
        return Ok(());
    }
    let what = format!("the log has {what} {logged}, but the stored contributions make {made}");
    Err(ReplayError::Version { number: row.number, what })
}

fn located(number: u64, error: StoredError) -> ReplayError {
    match error.source {
        StoredCause::Log(error) => ReplayError::Log(error),
        StoredCause::Weights(source) => ReplayError::Edit { number, id: error.id, what: source.to_string() },
    }
}
