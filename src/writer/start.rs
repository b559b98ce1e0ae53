//! Starting and stopping the writer.

use std::{sync::Arc, thread, time::Duration};

use thiserror::Error;
use tokio::{
    runtime::Handle,
    sync::{Mutex, mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;

use super::{
    EditHandle, WriterConfig, WriterError,
    bench::Bench,
    canaries::Canaries,
    driver::Driver,
    ledger::Ledger,
    queue::Shared,
    recheck::Recheck,
    replay::{self, Depth, ReplayError, ReplayReport},
    roster::{CACHED_TOKENS, Roster},
    standing::{ReplicaHandle, Role, Standing},
    stored::Stored,
    task::{Inbox, Signal, Task, Tools},
    versions::Versions,
};
use crate::{
    edit_log::{EditLog, Identity, LogError, Seat},
    model::DenseMatrices,
    panics::caught,
    telemetry::Metrics,
    threads::{self, Urgency},
    weights::{Published, Version},
};

/// Requests for older versions that may wait for the writer to copy its sums.
const SNAPSHOT_QUEUE: usize = 16;

/// Signals of the driver that may wait; it waits for each of them itself.
const SIGNAL_QUEUE: usize = 1;
/// How long a start waits for the first look at the place of this process. A log that does not answer keeps it from nothing.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// How often a start looks whether a log has a first version.
const PINNED: Duration = Duration::from_millis(300);

/// How a process comes to write.
#[derive(Clone)]
pub enum Place {
    /// Nobody else may: it holds the lock of its database.
    Alone,
    /// It shares its log with others, and writes while it has this seat, which it asks for if it is a candidate.
    Shared { seat: Arc<dyn Seat>, candidate: bool },
}

/// Why the writer did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// An option that can not work.
    #[error(transparent)]
    Config(#[from] WriterError),
    /// The log belongs to another model or editor, or can not be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log does not fit what it describes.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The machine has no thread left for it.
    #[error("the writer's thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// A running writer.
pub struct Started {
    pub handle: EditHandle,
    pub versions: Arc<Versions>,
    pub replica: ReplicaHandle,
    pub task: WriterTask,
    pub replay: ReplayReport,
}

/// The writer's thread. Dropping this closes the writer without waiting for it.
pub struct WriterTask {
    closing: CancellationToken,
    ending: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
    driver: Option<Driven>,
}

/// A running driver.
struct Driven {
    leaving: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl WriterTask {
    /// Refuses new requests at once and works on what waits for at most `limit`; then lets the running turn end, answers
    /// the rest with `ShuttingDown`, which the log notes for each edit, and returns when all that is done.
    pub async fn stop(mut self, limit: Duration) {
        self.closing.cancel();
        if let Some(thread) = self.thread.take() {
            let mut joined = tokio::task::spawn_blocking(move || thread.join());
            // The thread catches its turns' panics; if it died all the same, there is nothing left to stop.
            if tokio::time::timeout(limit, &mut joined).await.is_err() {
                self.ending.cancel();
                let _ = joined.await;
            }
        }
        // Only now: what was committed meanwhile needed the place.
        if let Some(driver) = self.driver.take() {
            driver.leaving.cancel();
            let _ = driver.task.await;
        }
    }
}

impl Drop for WriterTask {
    fn drop(&mut self) {
        self.closing.cancel();
        self.ending.cancel();
        if let Some(driver) = &self.driver {
            driver.leaving.cancel();
        }
    }
}

/// Pins the log, replays it, and starts the writer's thread over it. At a log that others share, it waits until one of them
/// has pinned it, or does that itself, and follows until the writer's place is its own.
pub async fn start_with<B: Bench>(
    bench: B,
    log: Arc<dyn EditLog>,
    place: Place,
    config: WriterConfig,
    metrics: Metrics,
) -> Result<Started, StartError> {
    config.check()?;
    let canaries = Canaries::new(&config, &bench)?;
    let foundation = bench.foundation();
    let depth = if config.replay_every_version { Depth::EveryVersion } else { Depth::Head };
    let ledger = Ledger::new(foundation.clone()).map_err(ReplayError::from)?;
    pin(log.as_ref(), &place, ledger.identity()).await?;
    let (ledger, replay, newest) = replayed(Arc::clone(&log), ledger, depth, metrics.clone()).await?;
    metrics.replay.observe(replay.elapsed.as_secs_f64());
    tracing::info!(
        entries = replay.entries,
        versions = replay.versions,
        active = replay.active,
        seconds = replay.elapsed.as_secs_f64(),
        "log replayed and checked"
    );

    let published = publish(&ledger, &foundation.base, newest, config.resident_versions, &metrics);
    let bench = Arc::new(bench);
    let (commands, queue) = mpsc::channel(config.queue_capacity);
    let (snapshots, requests) = mpsc::channel(SNAPSHOT_QUEUE);
    let pool = threads::pool("amend-edits", None, Urgency::Nice(config.niceness))?;
    let (roster, recheck) = (Roster::new(CACHED_TOKENS), Recheck::new(config.recheck_idle));
    let shared = Arc::new(Shared::new(Arc::clone(&bench) as _, config, metrics.clone()));
    let (closing, ending) = (shared.closing.clone(), shared.ending.clone());
    let role = if matches!(place, Place::Alone) { Role::Writer } else { Role::Follower };
    let standing = Arc::new(Standing::new(role, ledger.head(), metrics.clone()));
    let replica = ReplicaHandle { standing: Arc::clone(&standing), published: Arc::clone(&published) };
    let tools = Tools {
        bench,
        log: Arc::clone(&log),
        published: Arc::clone(&published),
        shared: Arc::clone(&shared),
        standing: Arc::clone(&standing),
        runtime: Handle::current(),
    };
    let (signalled, signals) = mpsc::channel(SIGNAL_QUEUE);
    let task = Task { tools, ledger, unsettled: false, roster, canaries, recheck };
    let inbox = Inbox { commands: queue, snapshots: requests, signals };
    let thread = thread::Builder::new().name("amend-writer".into()).spawn(move || {
        pool.install(move || task.run(inbox));
    })?;
    let versions = Versions { published, log, foundation, snapshots, metrics, making: Mutex::default() };
    let handle = EditHandle { shared, standing, commands };
    let driver = drive(place, &replica, signalled).await;
    Ok(Started {
        handle,
        versions: Arc::new(versions),
        replica,
        task: WriterTask { closing, ending, thread: Some(thread), driver },
        replay,
    })
}

/// Starts the driver of a shared log, and waits until it has looked at its place once.
async fn drive(place: Place, replica: &ReplicaHandle, signals: mpsc::Sender<Signal>) -> Option<Driven> {
    let Place::Shared { seat, candidate } = place else { return None };
    let leaving = CancellationToken::new();
    let driver = Driver {
        seat,
        candidate,
        standing: Arc::clone(&replica.standing),
        published: Arc::clone(&replica.published),
        signals,
        leaving: leaving.clone(),
        tried_at: None,
        reachable: true,
    };
    let (settled, looked) = oneshot::channel();
    let task = tokio::spawn(driver.run(settled));
    let _ = tokio::time::timeout(FIRST_LOOK, looked).await;
    Some(Driven { leaving, task })
}

/// Pins the log to this identity, or finds that it is. Whoever may not write waits for the one who may.
async fn pin(log: &dyn EditLog, place: &Place, identity: &Identity) -> Result<(), StartError> {
    let mut waited = false;
    loop {
        let error = match log.pin(identity).await {
            Ok(()) => return Ok(()),
            Err(error @ LogError::IdentityMismatch { .. }) => {
                // What it is pinned to may have been changed, which is another matter.
                log.check_chain().await?;
                return Err(error.into());
            }
            Err(error) => error,
        };
        let Place::Shared { seat, candidate } = place else { return Err(error.into()) };
        if !matches!(error, LogError::NotWriter { .. } | LogError::ReadOnly) {
            return Err(error.into());
        }
        if *candidate && seat.take().await?.is_some() {
            continue;
        }
        if !std::mem::replace(&mut waited, true) {
            tracing::info!("the log is empty; waiting for a writer to begin it");
        }
        tokio::time::sleep(PINNED).await;
    }
}

/// Replays on a thread that may compute. The newest version is none if it is the base.
async fn replayed(
    log: Arc<dyn EditLog>,
    mut ledger: Ledger,
    depth: Depth,
    metrics: Metrics,
) -> Result<(Ledger, ReplayReport, Option<Version>), StartError> {
    let runtime = Handle::current();
    let work = move || -> Result<_, ReplayError> {
        let stored = Stored { log: log.as_ref(), runtime: &runtime };
        let report = replay::replay(stored, &mut ledger, depth, &mut |_, _| {})?;
        let newest = if ledger.head() == 0 { None } else { Some(ledger.version(&metrics)?) };
        Ok((ledger, report, newest))
    };
    let joined = tokio::task::spawn_blocking(move || caught(work)).await;
    let result = joined.map_err(|error| error.to_string()).and_then(|result| result);
    Ok(result.map_err(ReplayError::Defect)??)
}

fn publish(
    ledger: &Ledger,
    base: &Arc<DenseMatrices>,
    newest: Option<Version>,
    resident: usize,
    metrics: &Metrics,
) -> Arc<Published> {
    let identity = ledger.identity();
    let base = Version::new(0, identity.base_weights, identity.empty_set, Arc::default(), Arc::clone(base), metrics);
    let published = Published::new(Arc::new(base), resident, metrics.clone());
    if let Some(newest) = newest {
        published.publish(Arc::new(newest));
    }
    Arc::new(published)
}
