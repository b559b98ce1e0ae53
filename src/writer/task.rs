//! The writer's loop, on a thread of its own: takes what waits, captures it together, then gives each submission its
//! turn, in order. Compute happens here and on the thread pool, never on an async thread.

use std::{sync::Arc, time::Instant};

use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};
use tracing::Span;
use uuid::Uuid;

use super::{
    Idempotency, SetChange, WriterError,
    admission::AdmittedEdit,
    bench::Bench,
    canaries::Canaries,
    capturing::{self, Asked, Captured},
    command::{ChangeJob, Command, EditJob, Reply},
    edit_turn::{EditTurn, Stop},
    ledger::Ledger,
    queue::Shared,
    recheck::Recheck,
    replay::ReplayError,
    roster::Roster,
    standing::Standing,
    stored::Stored,
};
use crate::{
    digest::Digest,
    edit_log::{EditLog, IdempotencyRow, LogError, VersionKind},
    faults::{self, Point},
    model::Passage,
    panics::caught,
    weights::{Composer, Published},
};

/// The sums of the newest version, from which an older one can be rebuilt.
pub struct Snapshot {
    pub sums: Composer,
    pub active: Vec<Uuid>,
}

/// Asks the writer for a [`Snapshot`].
pub type SnapshotRequest = oneshot::Sender<Snapshot>;

/// What the driver of a shared log asks of the task.
pub enum Signal {
    /// Take up what the log holds beyond the ledger.
    Follow(oneshot::Sender<()>),
    /// The writer's place is this process's: take up the last of its predecessor, then take commands.
    Write(oneshot::Sender<Result<(), String>>),
}

/// What the task is told, by whom.
pub struct Inbox {
    pub commands: mpsc::Receiver<Command>,
    pub snapshots: mpsc::Receiver<SnapshotRequest>,
    /// Closed where nobody shares the log.
    pub signals: mpsc::Receiver<Signal>,
}

/// What the writer works with, beside the set itself.
pub struct Tools<B> {
    pub bench: Arc<B>,
    pub log: Arc<dyn EditLog>,
    pub published: Arc<Published>,
    pub shared: Arc<Shared>,
    pub standing: Arc<Standing>,
    pub runtime: Handle,
}

impl<B> Clone for Tools<B> {
    fn clone(&self) -> Self {
        Self {
            bench: Arc::clone(&self.bench),
            log: Arc::clone(&self.log),
            published: Arc::clone(&self.published),
            shared: Arc::clone(&self.shared),
            standing: Arc::clone(&self.standing),
            runtime: self.runtime.clone(),
        }
    }
}

impl<B> Tools<B> {
    /// The log, for this thread.
    pub fn stored(&self) -> Stored<'_> {
        Stored { log: self.log.as_ref(), runtime: &self.runtime }
    }

    /// The answer recorded under a request's key.
    pub fn recorded(&self, key: Option<&Idempotency>) -> Result<Option<IdempotencyRow>, WriterError> {
        let Some(key) = key else { return Ok(None) };
        match self.runtime.block_on(self.log.idempotent(&key.key))? {
            Some(row) if row.request != key.request => Err(WriterError::IdempotencyMismatch { key: key.key.clone() }),
            row => Ok(row),
        }
    }

    /// One transaction of the log, timed.
    pub fn append<T>(&self, write: impl Future<Output = Result<T, LogError>>) -> Result<T, LogError> {
        let start = Instant::now();
        let result = self.runtime.block_on(write);
        self.shared.metrics.log_append.observe(start.elapsed().as_secs_f64());
        if let Err(error @ LogError::NotWriter { .. }) = &result {
            tracing::warn!(%error, "a change was refused; this replica follows from now on");
            self.standing.becomes_follower();
        }
        result
    }

    /// Counts edits that left the set.
    pub fn count_reverts(&self, kind: &str, removed: usize) {
        self.shared.metrics.reverts.with_label_values(&[kind]).inc_by(removed as u64);
    }
}

/// The one task that changes the set.
///
/// Law 5 (one writer): nothing else calls [`EditLog::commit`]. Law 3 (log, then publish): a version is published only
/// after its commit has returned.
pub struct Task<B: Bench> {
    pub tools: Tools<B>,
    pub ledger: Ledger,
    /// The log may hold a version that the ledger does not: a commit ended in an error, or a turn in a panic.
    pub unsettled: bool,
    /// What the guard and the recheck know of the active edits.
    pub roster: Roster<B::Text>,
    pub canaries: Canaries<B::Text>,
    pub recheck: Recheck,
}

#[expect(clippy::large_enum_variant, reason = "there is one at a time, and it is taken apart at once")]
enum Wake {
    Snapshot(SnapshotRequest),
    Signal(Signal),
    Command(Command),
    Recheck,
    Close,
}

impl<B: Bench> Task<B> {
    /// Runs until the service closes or nobody holds a handle any more.
    pub fn run(mut self, mut inbox: Inbox) {
        // Before the first edit asks for it. What can not be read now is tried again when it is needed.
        if let Err(error) = caught(|| self.follow()).and_then(|result| result) {
            tracing::warn!(error, "the active edits could not be read");
        }
        loop {
            let wake = self.wait(&mut inbox);
            if matches!(wake, Wake::Close) {
                break;
            }
            // Turns catch their own panics; after one beside them, what was waiting is answered as if the service ended,
            // and the thread that all changes need goes on.
            if let Err(panic) = caught(|| self.act(wake, &mut inbox)) {
                self.unsettled = true;
                tracing::error!(panic, "the writer panicked outside a turn");
            }
        }
        inbox.commands.close();
        while let Ok(command) = inbox.commands.try_recv() {
            self.tools.shared.metrics.edit_queue_depth.dec();
            self.refuse(command, WriterError::ShuttingDown);
        }
    }

    fn act(&mut self, wake: Wake, inbox: &mut Inbox) {
        match wake {
            Wake::Snapshot(request) => self.snapshot(request),
            Wake::Signal(signal) => self.obey(signal, &mut inbox.snapshots),
            Wake::Command(first) => {
                for lot in self.lots(self.drain(first, &mut inbox.commands)) {
                    self.serve(lot, &mut inbox.snapshots);
                }
                self.recheck.disturb();
            }
            Wake::Recheck => self.recheck(),
            Wake::Close => {}
        }
    }

    fn wait(&self, inbox: &mut Inbox) -> Wake {
        // A ledger that may be behind the log is settled by the next turn. What the writer checks, others need not.
        let due = self.recheck.due(self.ledger.head()).filter(|_| !self.unsettled && self.tools.standing.writes());
        let idle = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        self.tools.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.tools.shared.ending.cancelled() => Wake::Close,
                Some(request) = inbox.snapshots.recv() => Wake::Snapshot(request),
                Some(signal) = inbox.signals.recv() => Wake::Signal(signal),
                command = inbox.commands.recv() => command.map_or(Wake::Close, Wake::Command),
                // After the queue: what waits is worked on first.
                () = self.tools.shared.closing.cancelled() => Wake::Close,
                () = idle => Wake::Recheck,
            }
        })
    }

    /// What waits, up to the number of edits that may be captured together.
    fn drain(&self, first: Command, commands: &mut mpsc::Receiver<Command>) -> Vec<Command> {
        let mut edits = first.edits();
        let mut lot = vec![first];
        while edits < self.tools.shared.config.capture_batch {
            let Ok(next) = commands.try_recv() else { break };
            edits += next.edits();
            lot.push(next);
        }
        self.tools.shared.metrics.edit_queue_depth.sub(i64::try_from(lot.len()).unwrap_or(i64::MAX));
        lot
    }

    /// Splits what was waiting, in order, where a lot would have too many tokens: all that capture makes of a lot is in
    /// memory at once. A single submission has been held to the same number.
    fn lots(&self, waiting: Vec<Command>) -> Vec<Vec<Command>> {
        let budget = self.tools.shared.config.max_submission_tokens;
        let mut lots: Vec<Vec<Command>> = Vec::new();
        let mut spent = 0;
        for command in waiting {
            let tokens = command.tokens();
            match lots.last_mut() {
                Some(lot) if spent + tokens <= budget => {
                    spent += tokens;
                    lot.push(command);
                }
                _ => {
                    spent = tokens;
                    lots.push(vec![command]);
                }
            }
        }
        lots
    }

    /// Captures a lot together, then takes its turns.
    fn serve(&mut self, mut lot: Vec<Command>, snapshots: &mut mpsc::Receiver<SnapshotRequest>) {
        // Whose client has left, or ran out of time, needs no compute.
        lot.retain(|command| !self.tools.shared.let_go(command));
        lot.iter_mut().for_each(|command| command.course().rest());
        let mut captured = self.capture(&lot).into_iter();
        for command in lot {
            // Whoever waits for an older version does not wait for the whole lot.
            while let Ok(request) = snapshots.try_recv() {
                self.snapshot(request);
            }
            let own = captured.next().unwrap_or_default();
            if let Some(error) = self.refusal() {
                self.refuse(command, error);
                continue;
            }
            let start = Instant::now();
            match command {
                Command::Edits(job) => self.edit(job, own),
                Command::Change(job) => self.change(job),
            }
            self.tools.shared.pace.note(start.elapsed());
        }
    }

    /// What capture made of each command's edits. Factors are taken at the base weights (law 1), so it does not matter
    /// that the versions between are not made yet.
    fn capture(&self, lot: &[Command]) -> Vec<Vec<Result<Captured<B>, String>>> {
        let wanted: Vec<&[_]> = lot.iter().map(|command| self.to_capture(command)).collect();
        let passages: Vec<Passage> =
            wanted.iter().flat_map(|edits| edits.iter().map(|edit| edit.passage.clone())).collect();
        let requests: Vec<&Span> =
            lot.iter().zip(&wanted).flat_map(|(command, edits)| edits.iter().map(|_| command.request())).collect();
        let texts = Asked { passages: &passages, requests: &requests };
        let mut captured =
            capturing::capture(self.tools.bench.as_ref(), texts, self.tools.shared.config.pass_tokens).into_iter();
        wanted.iter().map(|edits| captured.by_ref().take(edits.len()).collect()).collect()
    }

    fn to_capture<'a>(&self, command: &'a Command) -> &'a [AdmittedEdit] {
        let Command::Edits(job) = command else { return &[] };
        self.tools.shared.running(job);
        // A repeated request is answered from the log; its turn looks again and says so.
        match self.tools.recorded(job.submission.idempotency.as_ref()) {
            Ok(Some(_)) | Err(WriterError::IdempotencyMismatch { .. }) => &[],
            Ok(None) | Err(_) => &job.edits,
        }
    }

    /// The spans of a turn's phases are held and not entered, as the request's is here: a database's own threads hold on to
    /// the current span for a moment longer than the phase lasts.
    fn edit(&mut self, job: EditJob, captured: Vec<Result<Captured<B>, String>>) {
        let _request = job.course.request().clone().entered();
        let answer = match caught(|| self.edit_turn(&job, captured)) {
            Ok(answer) => answer,
            Err(panic) => {
                caught(|| self.after_panic(&job, panic)).unwrap_or_else(|panic| Err(WriterError::Internal(panic)))
            }
        };
        match &answer {
            Err(WriterError::Invalid { .. } | WriterError::VersionConflict { .. }) => {
                self.tools.shared.count("invalid", job.edits.len());
            }
            Err(error @ (WriterError::Log(_) | WriterError::Internal(_))) => {
                self.tools.shared.count("failed", job.edits.len());
                tracing::error!(%error, "a submission failed");
            }
            _ => {}
        }
        self.tools.shared.answer(job, answer);
    }

    fn change(&mut self, job: ChangeJob) {
        let _request = job.course.request().clone().entered();
        let answer = caught(|| self.change_turn(&job)).unwrap_or_else(|panic| {
            self.unsettled = true;
            // What was committed is published at once; what can not be read now, the next turn settles.
            if let Err(error) = caught(|| self.reconcile()).unwrap_or_else(|panic| Err(WriterError::Internal(panic))) {
                tracing::error!(%error, "the set could not be settled after a panic");
            }
            Err(WriterError::Internal(panic))
        });
        if let Err(error @ (WriterError::Log(_) | WriterError::Internal(_))) = &answer {
            tracing::error!(%error, "a change of the set failed");
        }
        reply(job.reply, answer);
    }

    /// Why no turn is begun any more, if so.
    fn refusal(&self) -> Option<WriterError> {
        if self.tools.shared.ending.is_cancelled() {
            return Some(WriterError::ShuttingDown);
        }
        self.tools.standing.refusal()
    }

    fn refuse(&self, command: Command, error: WriterError) {
        match command {
            Command::Edits(job) => {
                self.tools.shared.count("shed", job.edits.len());
                let error = EditTurn::new(&self.tools, &job).explain(Stop::Error(error));
                self.tools.shared.answer(job, Err(error));
            }
            Command::Change(job) => reply(job.reply, Err(error)),
        }
    }

    pub(super) fn snapshot(&self, request: SnapshotRequest) {
        let snapshot =
            Snapshot { sums: self.ledger.sums().clone(), active: self.ledger.active().keys().copied().collect() };
        // Whoever asked may have left.
        let _ = request.send(snapshot);
    }

    /// Compare-and-swap.
    pub(super) fn expect(&self, expected: Option<u64>) -> Result<(), WriterError> {
        match expected {
            Some(expected) if expected != self.ledger.head() => {
                Err(WriterError::VersionConflict { expected, current: self.ledger.head() })
            }
            _ => Ok(()),
        }
    }

    /// After a commit that ended in an error: whether the version is in the log all the same (its answer was lost). If
    /// so it has been published. The sums must be those of the version before.
    pub(super) fn committed_after_all(&mut self, number: u64, set: Digest) -> bool {
        self.unsettled = true;
        self.reconcile().is_ok() && self.ledger.head() == number && self.ledger.set_digest() == set
    }

    /// Takes up what the log holds beyond the ledger, after an error that left this open.
    pub(super) fn reconcile(&mut self) -> Result<(), WriterError> {
        if !self.unsettled {
            return Ok(());
        }
        self.catch_up(&mut None).map_err(|error| match error {
            ReplayError::Log(error) => WriterError::Log(error),
            other => WriterError::Internal(other.to_string()),
        })
    }
}

/// A version is durable. Whatever goes wrong between its commit and its publication is a commit whose answer was lost.
pub fn about_to_publish<T>(committed: T) -> Result<T, LogError> {
    faults::reach(Point::Publish)?;
    Ok(committed)
}

/// The metric's label for a change.
pub fn revert_kind(change: SetChange) -> &'static str {
    match change.kind() {
        VersionKind::Rollback => "rollback",
        _ => "take_back",
    }
}

/// A defect, or a resource that ran out.
pub fn internal(error: impl std::fmt::Display) -> WriterError {
    WriterError::Internal(error.to_string())
}

/// Whoever asked may have left; the answer is in the log.
fn reply<T>(to: Reply<T>, answer: Result<super::Answer<T>, WriterError>) {
    let _ = to.send(answer);
}
