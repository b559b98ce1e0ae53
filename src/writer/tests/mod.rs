//! The writer as a whole, over a small bench and a real log.

mod changes;
mod edits;
mod failures;
mod following;
mod holding;
mod property;
mod queueing;
mod restart;
mod similarity;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tempfile::TempDir;
use uuid::Uuid;

use super::{
    Answer, BatchReport, EditReport, EditRequest, Guard, Idempotency, LocalityProbe, Place, SetChange, Started,
    Submission, Ticket, VersionReport, WriterConfig, WriterError,
    start::start_with,
    testing::{FaultyLog, Gate, SmallBench, base_answer, foundation, shapes},
};
use crate::{
    digest::Digest,
    edit_log::{EditLog, EditRow, sqlite::SqliteLog},
    editor::Composition,
    telemetry::Metrics,
    weights::{Composed, Composer, Contribution, Lease, VersionSource, weights_digest},
};

/// A running writer with everything around it.
struct World {
    started: Started,
    log: Arc<FaultyLog>,
    metrics: Metrics,
    gate: Arc<Gate>,
    passes: Arc<Mutex<Vec<usize>>>,
    folder: TempDir,
}

/// Few limits get in the way of tests about other things.
fn config() -> WriterConfig {
    WriterConfig { min_probability: None, max_kl: None, max_prompt_tokens: 20, ..WriterConfig::default() }
}

impl World {
    async fn new() -> Self {
        Self::with(config()).await
    }

    async fn with(config: WriterConfig) -> Self {
        Self::over(tempfile::tempdir().unwrap(), config).await
    }

    async fn over(folder: TempDir, config: WriterConfig) -> Self {
        let url = format!("sqlite://{}", folder.path().join("log.db").display());
        let log = Arc::new(FaultyLog::new(SqliteLog::open(&url).await.unwrap()));
        let (bench, metrics) = (SmallBench::default(), Metrics::new());
        let (gate, passes) = (Arc::clone(&bench.gate), Arc::clone(&bench.passes));
        let started = start_with(bench, Arc::clone(&log) as _, Place::Alone, config, metrics.clone()).await.unwrap();
        Self { started, log, metrics, gate, passes, folder }
    }

    /// Stops, and starts again over the same log.
    async fn restart(self, config: WriterConfig) -> Self {
        self.started.task.stop(Duration::ZERO).await;
        self.log.log.close().await;
        Self::over(self.folder, config).await
    }

    fn submit(&self, submission: Submission) -> Result<Ticket, WriterError> {
        self.started.handle.submit(submission)
    }

    async fn run(&self, submission: Submission) -> Result<BatchReport, WriterError> {
        match self.submit(submission)?.done().await? {
            Answer::Fresh(report) => Ok(report),
            Answer::Recorded(row) => panic!("recorded: {row:?}"),
        }
    }

    /// Applies one edit.
    async fn edit(&self, prompt: &str, target: &str) -> EditReport {
        self.run(single(edit(prompt, target))).await.unwrap().edits.remove(0)
    }

    async fn change(&self, change: SetChange) -> Result<VersionReport, WriterError> {
        match self.started.handle.change(change, "tester".into(), None, None).await? {
            Answer::Fresh(report) => Ok(report),
            Answer::Recorded(row) => panic!("recorded: {row:?}"),
        }
    }

    async fn newest(&self) -> Lease {
        self.started.versions.lease(None).await.unwrap()
    }

    async fn row(&self, id: Uuid) -> EditRow {
        self.log.edit(id).await.unwrap().unwrap()
    }

    fn counted(&self, outcome: &str) -> u64 {
        self.metrics.edits.with_label_values(&[outcome]).get()
    }

    /// Law 2: what the newest version is must be what its set makes from nothing, added in another order; and the log
    /// must agree. Returns the digest.
    async fn check(&self) -> Digest {
        let newest = self.newest().await;
        let head = self.log.head().await.unwrap();
        assert_eq!((head.number, head.digest, head.set_digest), (newest.number, newest.digest, newest.set_digest));
        assert_eq!(*newest.active, self.log.active_set(newest.number).await.unwrap());
        let mut sums = Composer::new(&shapes(), &foundation().base, &Composition::Sum).unwrap();
        for id in newest.active.iter().rev() {
            let bytes = self.log.contribution(*id).await.unwrap();
            sums.change(&[], &[&Contribution::from_bytes(&bytes, &shapes()).unwrap()]).unwrap();
        }
        let Composed::Dense(weights) = sums.weights().unwrap() else { panic!("a sum is dense") };
        assert_eq!(newest.digest, weights_digest(&shapes(), &weights));
        assert_eq!(weights_of(&newest), weights);
        newest.digest
    }
}

/// The small bench's edits add up.
fn weights_of(version: &Lease) -> Vec<Vec<f32>> {
    version.matrices().dense().expect("a sum is dense").to_vecs().unwrap()
}

fn edit(prompt: &str, target: &str) -> EditRequest {
    EditRequest {
        prompt: prompt.into(),
        target: target.into(),
        paraphrases: Vec::new(),
        locality: Vec::new(),
        guard: Guard::Default,
        note: None,
        editor: None,
    }
}

fn probe(prompt: &str, target: Option<&str>) -> LocalityProbe {
    LocalityProbe { prompt: prompt.into(), target: target.map(Into::into) }
}

fn single(edit: EditRequest) -> Submission {
    Submission {
        edits: vec![edit],
        dry_run: false,
        actor: "tester".into(),
        expected_version: None,
        idempotency: None,
        batch: false,
        detached: false,
    }
}

fn batch(edits: Vec<EditRequest>) -> Submission {
    Submission { edits, batch: true, ..single(edit("", "")) }
}

fn key(name: &str, request: &str) -> Option<Idempotency> {
    Some(Idempotency { key: name.into(), request: Digest::of(request.as_bytes()) })
}
