//! The bounded queue in front of the writer, and the handle that everybody else holds.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Answer, BatchReport, EditsHealth, Idempotency, SetChange, Submission, VersionReport, WriterConfig, WriterError,
    admission::{self, AdmittedEdit},
    bench::Texts,
    command::{ChangeJob, Command, EditJob, Reply},
    standing::Standing,
};
use crate::{
    digest::Digest,
    faults,
    telemetry::{Course, Metrics},
};

/// How far an edit is that is not in the log yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PendingState {
    Queued,
    Running,
}

/// An edit that is not in the log yet.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PendingEdit {
    pub id: Uuid,
    pub prompt: String,
    pub target: String,
    pub actor: String,
    #[schema(value_type = String, format = DateTime)]
    pub received_at: Timestamp,
    pub state: PendingState,
}

/// What handles and the writer share.
pub struct Shared {
    pub texts: Arc<dyn Texts>,
    pub config: WriterConfig,
    pub metrics: Metrics,
    /// No new request is admitted.
    pub closing: CancellationToken,
    /// What still waits is refused.
    pub ending: CancellationToken,
    pub pace: Pace,
    // Read by `GET /edits/{id}` while the writer works; never held across anything slow.
    pending: Mutex<HashMap<Uuid, PendingEdit>>,
    // Taken before `pending`; held while a submission enters the queue, so that a key is never there twice.
    in_flight: Mutex<HashMap<String, InFlight>>,
    // Read by `GET /health/edits` while the writer works; never held across anything slow.
    health: Mutex<EditsHealth>,
}

/// A submission with an idempotency key that is not answered yet.
struct InFlight {
    request: Digest,
    ids: Vec<Uuid>,
    /// Whether it goes on when nobody waits for it.
    detached: bool,
    /// Those who sent the same request again meanwhile.
    followers: Vec<Reply<BatchReport>>,
}

impl Shared {
    pub fn new(texts: Arc<dyn Texts>, config: WriterConfig, metrics: Metrics) -> Self {
        metrics.edit_queue_capacity.set(i64::try_from(config.queue_capacity).unwrap_or(i64::MAX));
        let (closing, ending, pace) = (CancellationToken::new(), CancellationToken::new(), Pace::default());
        let (pending, in_flight, health) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { texts, config, metrics, closing, ending, pace, pending, in_flight, health }
    }

    /// Marks a submission's edits as running.
    pub fn running(&self, job: &EditJob) {
        let mut pending = self.pending();
        for edit in &job.edits {
            if let Some(edit) = pending.get_mut(&edit.id) {
                edit.state = PendingState::Running;
            }
        }
    }

    /// Forgets edits that are in the log, or gone.
    pub fn forget(&self, edits: &[AdmittedEdit]) {
        let mut pending = self.pending();
        for edit in edits {
            pending.remove(&edit.id);
        }
    }

    /// Answers a submission that is in the log, or gone, and whoever has sent it again since. Whoever asked may have
    /// left.
    pub fn answer(&self, job: EditJob, answer: Result<Answer<BatchReport>, WriterError>) {
        let key = job.submission.idempotency.as_ref();
        let shared = key.and_then(|key| self.in_flight().remove(&key.key));
        self.forget(&job.edits);
        for follower in shared.into_iter().flat_map(|shared| shared.followers) {
            let _ = follower.send(answer.clone());
        }
        let _ = job.reply.send(answer);
    }

    /// Whether nobody waits for a command that nothing was computed for yet; if so, it is forgotten and its key free.
    pub fn let_go(&self, command: &Command) -> bool {
        match command {
            Command::Change(job) => job.reply.is_closed(),
            Command::Edits(job) => self.let_go_of_edits(job),
        }
    }

    fn let_go_of_edits(&self, job: &EditJob) -> bool {
        if job.submission.detached || !job.reply.is_closed() {
            return false;
        }
        if let Some(key) = &job.submission.idempotency {
            // Under the lock, so that nobody joins in between.
            let mut in_flight = self.in_flight();
            let awaited = |shared: &InFlight| shared.detached || shared.followers.iter().any(|one| !one.is_closed());
            if in_flight.get(&key.key).is_some_and(awaited) {
                return false;
            }
            in_flight.remove(&key.key);
        }
        self.forget(&job.edits);
        self.count("cancelled", job.edits.len());
        true
    }

    /// What the recheck found last.
    pub fn health(&self) -> MutexGuard<'_, EditsHealth> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a submission's edits under an outcome.
    pub fn count(&self, outcome: &str, edits: usize) {
        self.metrics.edits.with_label_values(&[outcome]).inc_by(edits as u64);
    }

    fn in_flight(&self) -> MutexGuard<'_, HashMap<String, InFlight>> {
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<Uuid, PendingEdit>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InFlight {
    /// Lets the sender of the same request wait for its answer. The edits' ids.
    fn follow(
        &mut self,
        key: &Idempotency,
        detached: bool,
        reply: Reply<BatchReport>,
    ) -> Result<Vec<Uuid>, WriterError> {
        if key.request != self.request {
            return Err(WriterError::IdempotencyMismatch { key: key.key.clone() });
        }
        self.detached |= detached;
        self.followers.retain(|follower| !follower.is_closed());
        self.followers.push(reply);
        Ok(self.ids.clone())
    }
}

/// How fast the writer answers, for `Retry-After`.
#[derive(Default)]
pub struct Pace {
    /// Exponential mean of the time of one turn, microseconds; 0 until the first.
    turn_micros: AtomicU64,
}

impl Pace {
    /// Notes how long a turn took.
    pub fn note(&self, turn: Duration) {
        let micros = u64::try_from(turn.as_micros()).unwrap_or(u64::MAX).max(1);
        let mean = match self.turn_micros.load(Ordering::Relaxed) {
            0 => micros,
            mean => mean - mean / 8 + micros / 8,
        };
        self.turn_micros.store(mean.max(1), Ordering::Relaxed);
    }

    /// When half of a full queue will have been answered: between 1 s and 60 s.
    fn retry_after(&self, capacity: usize) -> Duration {
        let turn = Duration::from_micros(self.turn_micros.load(Ordering::Relaxed));
        let half = u32::try_from(capacity / 2).unwrap_or(u32::MAX);
        turn.saturating_mul(half).clamp(Duration::from_secs(1), Duration::from_secs(60))
    }
}

/// The way to the writer. Cheap to clone; nothing here waits for a computation except [`Ticket::done`] and
/// [`EditHandle::change`].
#[derive(Clone)]
pub struct EditHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) standing: Arc<Standing>,
    pub(super) commands: mpsc::Sender<Command>,
}

impl EditHandle {
    /// Checks the request's shape and limits, admits it to the bounded queue, returns at once. A request whose key and
    /// digest are those of one that is not answered yet shares that one's ids and answer.
    pub fn submit(&self, submission: Submission) -> Result<Ticket, WriterError> {
        let (count, shared) = (submission.edits.len(), &self.shared);
        let edits = admission::admit(&submission, shared.texts.as_ref(), &shared.config)
            .inspect_err(|_| shared.count("invalid", count.max(1)))?;
        let ids: Vec<Uuid> = edits.iter().map(|edit| edit.id).collect();
        let (reply, answer) = oneshot::channel();
        let key = submission.idempotency.clone();
        let mut in_flight = shared.in_flight();
        if let Some(key) = &key {
            if let Some(first) = in_flight.get_mut(&key.key) {
                return first.follow(key, submission.detached, reply).map(|ids| Ticket { ids, answer });
            }
            let (request, ids, detached) = (key.request, ids.clone(), submission.detached);
            let first = InFlight { request, ids, detached, followers: Vec::new() };
            in_flight.insert(key.key.clone(), first);
        }
        let (received_at, received, course) = (faults::now(), Instant::now(), Course::queued());
        let job = EditJob { submission, edits, received_at, received, course, reply };
        // Before it is sent: the writer may be done with it before this thread goes on.
        self.note_pending(&job);
        self.send(Command::Edits(job)).inspect_err(|_| {
            shared.count("shed", count);
            if let Some(key) = &key {
                in_flight.remove(&key.key);
            }
        })?;
        Ok(Ticket { ids, answer })
    }

    /// Takes an edit back or rolls the set back, and waits for the version that this makes.
    pub async fn change(
        &self,
        change: SetChange,
        actor: String,
        expected_version: Option<u64>,
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<VersionReport>, WriterError> {
        let (reply, answer) = oneshot::channel();
        let course = Course::queued();
        self.send(Command::Change(ChangeJob { change, actor, expected_version, idempotency, course, reply }))?;
        answer.await.unwrap_or(Err(WriterError::ShuttingDown))
    }

    /// An edit that is waiting or running; none once it is in the log, or gone.
    pub fn pending(&self, id: Uuid) -> Option<PendingEdit> {
        self.shared.pending().get(&id).cloned()
    }

    /// How healthy the active edits are, as far as it was checked.
    pub fn health(&self) -> EditsHealth {
        self.shared.health().clone()
    }

    fn note_pending(&self, job: &EditJob) {
        let mut pending = self.shared.pending();
        for (edit, request) in job.edits.iter().zip(&job.submission.edits) {
            let waiting = PendingEdit {
                id: edit.id,
                prompt: request.prompt.clone(),
                target: request.target.clone(),
                actor: job.submission.actor.clone(),
                received_at: job.received_at,
                state: PendingState::Queued,
            };
            pending.insert(edit.id, waiting);
        }
    }

    fn send(&self, command: Command) -> Result<(), WriterError> {
        let shared = &self.shared;
        let refused = if shared.closing.is_cancelled() {
            (command, WriterError::ShuttingDown)
        } else if let Some(error) = self.standing.refusal() {
            (command, error)
        } else {
            shared.metrics.edit_queue_depth.inc();
            match self.commands.try_send(command) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    shared.metrics.edit_queue_depth.dec();
                    self.refusal(error)
                }
            }
        };
        let (command, error) = refused;
        if let Command::Edits(job) = command {
            shared.forget(&job.edits);
        }
        Err(error)
    }

    fn refusal(&self, error: mpsc::error::TrySendError<Command>) -> (Command, WriterError) {
        match error {
            mpsc::error::TrySendError::Closed(command) => (command, WriterError::ShuttingDown),
            mpsc::error::TrySendError::Full(command) => {
                let capacity = self.shared.config.queue_capacity;
                let retry_after = self.shared.pace.retry_after(capacity);
                (command, WriterError::QueueFull { capacity, retry_after })
            }
        }
    }
}

/// A submission's place in the queue. Dropping it drops the edits too, unless they are detached or being made already.
pub struct Ticket {
    ids: Vec<Uuid>,
    answer: oneshot::Receiver<Result<Answer<BatchReport>, WriterError>>,
}

impl Ticket {
    /// The edits' ids, in the order of the submission.
    pub fn ids(&self) -> &[Uuid] {
        &self.ids
    }

    /// Waits for the answer.
    pub async fn done(self) -> Result<Answer<BatchReport>, WriterError> {
        self.answer.await.unwrap_or(Err(WriterError::ShuttingDown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_follows_the_measured_pace() {
        let pace = Pace::default();
        assert_eq!(pace.retry_after(256), Duration::from_secs(1), "nothing measured yet");
        pace.note(Duration::from_millis(50));
        assert_eq!(pace.retry_after(256), Duration::from_millis(6400));
        for _ in 0..100 {
            pace.note(Duration::from_secs(10));
        }
        assert_eq!(pace.retry_after(256), Duration::from_secs(60));
    }
}
