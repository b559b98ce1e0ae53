//! A model of log and writer, and random histories with crashes held against it.
//!
//! The model knows which edits are active in each version, and at which points a change is durable; nothing of weights,
//! rows or threads. The system is the real writer over a real log and a tiny network. At a crash the files of the log are
//! copied at the very instruction, as a kill would leave them, and the next writer starts on the copy. After every step the
//! newest version, its set, the status of every edit, and the digests must be the model's: the same set has the same
//! digest, whatever led to it (laws 1, 2), what was acknowledged is there (3), and no version is lost or there twice (6).

#![cfg(debug_assertions)]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    sync::{Arc, LazyLock},
    time::Duration,
};

use amend::{
    digest::Digest,
    edit_log::{EditLog, EditQuery, EditStatus, sqlite::SqliteLog},
    editor::{Delta, Editor, EditorError, MatrixDelta},
    faults::{self, Fault, Point},
    model::{Model, TrunkState, capture::Captured},
    telemetry::Metrics,
    weights::VersionSource,
    writer::{
        self, Answer, EditRequest, Foundation, Guard, GuardLimits, Place, SetChange, Started, Submission, WriterConfig,
        WriterError,
    },
};
use proptest::{prelude::*, sample::Index};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use tempfile::TempDir;
use uuid::Uuid;

/// Prompts that are edited, few enough that edits supersede each other.
const PROMPTS: usize = 5;
const TARGETS: usize = 3;

/// An edit: which prompt, and what it should be answered with.
type Fact = (usize, usize);

/// A change that is asked for.
#[derive(Debug, Clone)]
enum Change {
    /// Edits of distinct prompts, together.
    Edits(BTreeMap<usize, usize>),
    /// An edit that the guard rejects.
    Rejected(Fact),
    TakeBack(Index),
    RollBack(Index),
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Error,
    Panic,
    /// The process dies.
    Crash,
}

#[derive(Debug, Clone)]
enum Step {
    Change(Change, Option<(Point, Kind)>),
    /// The writer is stopped and another one started.
    Restart,
}

/// What a change is to the model: the set that it leads to, and which points it passes.
fn outcome(versions: &[BTreeSet<Fact>], change: &Change) -> Option<BTreeSet<Fact>> {
    let newest = versions.last().unwrap();
    match change {
        Change::Edits(edits) => {
            let kept = newest.iter().filter(|(prompt, _)| !edits.contains_key(prompt)).copied();
            Some(kept.chain(edits.iter().map(|(prompt, target)| (*prompt, *target))).collect())
        }
        Change::Rejected(_) => None,
        Change::TakeBack(_) if newest.is_empty() => None,
        Change::TakeBack(index) => {
            let gone = *index.get(&newest.iter().collect::<Vec<_>>());
            Some(newest.iter().filter(|fact| *fact != gone).copied().collect())
        }
        Change::RollBack(index) => Some(index.get(versions).clone()),
    }
}

fn passes(change: &Change, point: Point) -> bool {
    let computes = matches!(point, Point::Capture | Point::Editor | Point::Guard);
    let commits = matches!(point, Point::CommitBegin | Point::CommitRows | Point::CommitDone | Point::Publish);
    match change {
        Change::Edits(_) => computes || commits,
        Change::Rejected(_) => computes || point == Point::Record,
        Change::TakeBack(_) | Change::RollBack(_) => commits,
    }
}

/// What is durable at a point stays, whatever happens there; of the rest nothing is there.
fn durable(point: Point) -> bool {
    matches!(point, Point::CommitDone | Point::Publish)
}

/// Edits whose capture failed together are captured one by one, and the fault has happened by then.
fn made_up_for(change: &Change, (point, kind): (Point, Kind)) -> bool {
    let several = matches!(change, Change::Edits(edits) if edits.len() > 1);
    several && point == Point::Capture && kind != Kind::Crash
}

/// The sets of all versions.
#[derive(Debug, Clone)]
struct Versions(Vec<BTreeSet<Fact>>);

impl Versions {
    /// The fault that this change meets.
    fn met(&self, change: &Change, fault: Option<(Point, Kind)>) -> Option<(Point, Kind)> {
        let happens = !matches!(change, Change::TakeBack(_)) || !self.0.last().unwrap().is_empty();
        fault.filter(|(point, _)| happens && passes(change, *point))
    }
}

impl ReferenceStateMachine for Versions {
    type State = Self;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self(vec![BTreeSet::new()])).boxed()
    }

    fn transitions(_: &Self) -> BoxedStrategy<Step> {
        let fact = (0..PROMPTS, 0..TARGETS);
        let change = prop_oneof![
            6 => prop::collection::btree_map(0..PROMPTS, 0..TARGETS, 1..3).prop_map(Change::Edits),
            1 => fact.prop_map(Change::Rejected),
            3 => any::<Index>().prop_map(Change::TakeBack),
            2 => any::<Index>().prop_map(Change::RollBack),
        ];
        let points = [
            Point::Capture,
            Point::Editor,
            Point::Guard,
            Point::Record,
            Point::CommitBegin,
            Point::CommitRows,
            Point::CommitDone,
            Point::Publish,
        ];
        let kinds = [Kind::Error, Kind::Panic, Kind::Crash, Kind::Crash];
        let fault = (prop::sample::select(points.to_vec()), prop::sample::select(kinds.to_vec()));
        prop_oneof![
            12 => (change, prop::option::weighted(0.5, fault)).prop_map(|(change, fault)| Step::Change(change, fault)),
            1 => Just(Step::Restart),
        ]
        .boxed()
    }

    fn apply(mut self_: Self, step: &Step) -> Self {
        if let Step::Change(change, fault) = step {
            let met = self_.met(change, *fault).filter(|fault| !made_up_for(change, *fault));
            let stays = met.is_none_or(|(point, _)| durable(point));
            if let Some(set) = outcome(&self_.0, change).filter(|_| stays) {
                self_.0.push(set);
            }
        }
        self_
    }
}

/// `W -= rate * gradient`, in factors.
struct Descent;

impl Editor for Descent {
    fn method(&self) -> &str {
        "descent"
    }

    fn digest(&self) -> Digest {
        Digest::of(b"descent")
    }

    fn edit(&self, _: &Model, _: &TrunkState, captured: &Captured) -> Result<Delta, EditorError> {
        let step = |factors: &amend::model::capture::Factors| -> candle_core::Result<MatrixDelta> {
            Ok(MatrixDelta::LowRank { left: (&factors.delta * -0.5)?, right: factors.u.clone() })
        };
        Ok(Delta(captured.factors.iter().map(step).collect::<candle_core::Result<_>>()?))
    }
}

static MODEL: LazyLock<(TempDir, Arc<Model>)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let model = Arc::new(common::tiny_llama(folder.path()));
    (folder, model)
});

/// The real thing.
struct System {
    runtime: tokio::runtime::Runtime,
    folder: TempDir,
    log: Arc<SqliteLog>,
    started: Option<Started>,
    /// Each set's digest when it was first seen.
    digests: HashMap<BTreeSet<Fact>, Digest>,
    /// The model before the step that is being taken.
    before: Versions,
}

impl System {
    fn over(folder: TempDir, digests: HashMap<BTreeSet<Fact>, Digest>, before: Versions) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (log, started) = runtime.block_on(async {
            let url = format!("sqlite://{}", folder.path().join("log.db").display());
            let log = Arc::new(SqliteLog::open(&url).await.unwrap());
            let config = WriterConfig { recheck_idle: Duration::ZERO, guard_sample: 2, ..WriterConfig::default() };
            let (model, editor) = (Arc::clone(&MODEL.1), Arc::new(Descent));
            (
                Arc::clone(&log),
                writer::start(model, editor, log as _, Place::Alone, config, Metrics::new()).await.unwrap(),
            )
        });
        Self { runtime, folder, log, started: Some(started), digests, before }
    }

    fn stop(mut self) -> (TempDir, HashMap<BTreeSet<Fact>, Digest>, Versions) {
        let started = self.started.take().unwrap();
        self.runtime.block_on(async {
            started.task.stop(Duration::ZERO).await;
            self.log.close().await;
        });
        (self.folder, self.digests, self.before)
    }

    fn started(&self) -> &Started {
        self.started.as_ref().unwrap()
    }

    /// The active edit of this prompt.
    fn active(&self, prompt: usize) -> Uuid {
        let query = EditQuery { status: Some(EditStatus::Applied), limit: 1000, ..EditQuery::default() };
        let edits = self.runtime.block_on(self.log.edits(&query)).unwrap().items;
        edits.iter().find(|edit| edit.prompt == prompt_text(prompt)).unwrap().id
    }

    /// Asks for a change; whether a version was acknowledged.
    fn ask(&self, change: &Change) -> Result<u64, WriterError> {
        match change {
            Change::Edits(edits) => self.submit(edits, &Guard::Off),
            Change::Rejected((prompt, target)) => {
                let limits = GuardLimits { min_probability: Some(1.0), ..GuardLimits::default() };
                self.submit(&BTreeMap::from([(*prompt, *target)]), &Guard::Limits(limits))
            }
            Change::TakeBack(index) => {
                let newest = self.before.0.last().unwrap();
                let (prompt, _) = **index.get(&newest.iter().collect::<Vec<_>>());
                self.change(SetChange::TakeBack(self.active(prompt)))
            }
            Change::RollBack(index) => self.change(SetChange::Rollback(index.index(self.before.0.len()) as u64)),
        }
    }

    fn submit(&self, edits: &BTreeMap<usize, usize>, guard: &Guard) -> Result<u64, WriterError> {
        let edits = edits.iter().map(|(prompt, target)| EditRequest {
            prompt: prompt_text(*prompt),
            target: format!("colour {target}"),
            paraphrases: Vec::new(),
            locality: Vec::new(),
            guard: guard.clone(),
            note: None,
            editor: None,
        });
        let submission = Submission {
            edits: edits.collect(),
            dry_run: false,
            actor: "tester".into(),
            expected_version: None,
            idempotency: None,
            batch: true,
            detached: false,
        };
        let ticket = self.started().handle.submit(submission)?;
        match self.runtime.block_on(ticket.done())? {
            Answer::Fresh(report) => Ok(report.version),
            Answer::Recorded(row) => panic!("recorded: {row:?}"),
        }
    }

    fn change(&self, change: SetChange) -> Result<u64, WriterError> {
        match self.runtime.block_on(self.started().handle.change(change, "tester".into(), None, None))? {
            Answer::Fresh(report) => Ok(report.version),
            Answer::Recorded(row) => panic!("recorded: {row:?}"),
        }
    }
}

fn prompt_text(prompt: usize) -> String {
    format!("City {prompt} is")
}

/// What a kill at this instruction would leave: the database and its WAL as they are. The shared memory beside them is made
/// anew by whoever opens them.
fn image(from: &std::path::Path, to: &std::path::Path) {
    for name in ["log.db", "log.db-wal"] {
        if from.join(name).exists() {
            fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}

struct Crashes;

impl StateMachineTest for Crashes {
    type SystemUnderTest = System;
    type Reference = Versions;

    fn init_test(state: &Versions) -> System {
        System::over(tempfile::tempdir().unwrap(), HashMap::new(), state.clone())
    }

    fn apply(mut system: System, after: &Versions, step: Step) -> System {
        let Step::Change(change, fault) = step else {
            let (folder, digests, before) = system.stop();
            return System::over(folder, digests, before);
        };
        let met = system.before.met(&change, fault);
        if matches!(&change, Change::TakeBack(_)) && system.before.0.last().unwrap().is_empty() {
            return system;
        }
        let left = tempfile::tempdir().unwrap();
        if let Some((point, kind)) = met {
            let (from, to) = (system.folder.path().to_owned(), left.path().to_owned());
            let fault = match kind {
                Kind::Error => Fault::Error,
                Kind::Panic => Fault::Panic,
                Kind::Crash => Fault::Call(Box::new(move || image(&from, &to))),
            };
            faults::arm(point, fault, 1);
        }
        let answer = system.ask(&change);
        let met = met.filter(|fault| !made_up_for(&change, *fault));
        match (&change, met) {
            (Change::Rejected(_), None) => {
                assert!(matches!(answer, Err(WriterError::Rejected { .. })), "{answer:?}");
            }
            // The answer that the dead process would have given is nobody's.
            (_, Some((_, Kind::Crash))) => {}
            (_, None) => assert_eq!(answer.unwrap(), after.0.len() as u64 - 1),
            (_, Some((point, Kind::Error))) if durable(point) => assert_eq!(answer.unwrap(), after.0.len() as u64 - 1),
            (_, Some(_)) => drop(answer.unwrap_err()),
        }
        if let Some((_, Kind::Crash)) = met {
            let (_, digests, before) = system.stop();
            system = System::over(left, digests, before);
        }
        system.before = after.clone();
        let head = system.runtime.block_on(system.log.head()).unwrap();
        let known = *system.digests.entry(after.0.last().unwrap().clone()).or_insert(head.digest);
        assert_eq!(head.digest, known, "the same set has another digest: {:?}", after.0.last());
        system
    }

    fn check_invariants(system: &System, model: &Versions) {
        let set = model.0.last().unwrap();
        let newest = system.runtime.block_on(system.started().versions.lease(None)).unwrap();
        let head = system.runtime.block_on(system.log.head()).unwrap();
        // A panic after the commit is settled by the next turn; until then the log is ahead of what is published.
        assert_eq!(head.number, model.0.len() as u64 - 1);
        assert!(newest.number <= head.number);
        let query = EditQuery { status: Some(EditStatus::Applied), limit: 1000, ..EditQuery::default() };
        let active = system.runtime.block_on(system.log.edits(&query)).unwrap().items;
        let prompts: BTreeSet<String> = active.iter().map(|edit| format!("{} {}", edit.prompt, edit.target)).collect();
        let wanted = set.iter().map(|(prompt, target)| format!("{} colour {target}", prompt_text(*prompt)));
        assert_eq!(prompts, wanted.collect());
        if newest.number == head.number {
            assert_eq!(newest.digest, head.digest);
        }
    }

    fn teardown(system: System, model: Versions) {
        let (folder, digests, before) = system.stop();
        // The log alone leads to all of it again.
        let system = System::over(folder, digests, before);
        Self::check_invariants(&system, &model);
        let log = Arc::clone(&system.log) as Arc<dyn EditLog>;
        let report =
            system.runtime.block_on(writer::verify(log, Foundation::of(&MODEL.1, &Descent), |_, _| {})).unwrap();
        assert_eq!(report.versions, model.0.len() as u64 - 1);
        let mut digests: HashMap<&BTreeSet<Fact>, Digest> = HashMap::new();
        for (number, set) in (0..).zip(&model.0) {
            let row = system.runtime.block_on(system.log.version(number)).unwrap().unwrap();
            assert_eq!(*digests.entry(set).or_insert(row.digest), row.digest, "version {number}: {set:?}");
        }
        system.stop();
    }
}

prop_state_machine! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("AMEND_CRASH_CASES").map_or(24, |text| text.parse().unwrap()),
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_history_with_crashes_is_the_models(sequential 1..20 => Crashes);
}
