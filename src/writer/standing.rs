//! Where this process stands among those that share its log: whether it writes, how far it is, and how far behind.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::sync::watch;
use utoipa::ToSchema;

use super::WriterError;
use crate::{digest::Digest, edit_log::Survey, telemetry::Metrics, weights::Published};

/// What a process does at its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It changes the set. Law 5: at most one process does.
    Writer,
    /// It takes up what the writer changes.
    Follower,
}

/// A process's place, as of now.
#[derive(Debug, Clone)]
pub struct ReplicaStatus {
    pub role: Role,
    /// The version that new requests run on.
    pub version: u64,
    /// Over the bits of its edited matrices, as this process made them.
    pub digest: Digest,
    /// The newest version that it knows of.
    pub newest: u64,
    /// How long ago it was last known to have every version: what it answers is at most so old. Zero for the writer.
    pub lag: Duration,
    /// Where the writer can be reached, as far as it is known; none for the writer itself.
    pub writer: Option<String>,
    /// What of the log does not fit, if this process is out of service for it.
    pub diverged: Option<String>,
}

/// What the writer's task, its driver and everybody's [`ReplicaHandle`] share.
pub struct Standing {
    state: Mutex<State>,
    metrics: Metrics,
}

struct State {
    role: Role,
    newest: u64,
    /// When it was last known to have every version.
    current_at: Instant,
    writer: Option<String>,
    diverged: Option<String>,
}

impl Standing {
    /// In this role, at the log's newest version.
    pub fn new(role: Role, newest: u64, metrics: Metrics) -> Self {
        metrics.writer.set(i64::from(role == Role::Writer));
        let state = State { role, newest, current_at: Instant::now(), writer: None, diverged: None };
        Self { state: Mutex::new(state), metrics }
    }

    /// Whether this process changes the set.
    pub fn writes(&self) -> bool {
        self.state().role == Role::Writer
    }

    /// Whether it is out of service because it and the log do not agree.
    pub fn has_diverged(&self) -> bool {
        self.state().diverged.is_some()
    }

    /// Why a change is not for this process, if so.
    pub fn refusal(&self) -> Option<WriterError> {
        let state = self.state();
        let follows = state.role == Role::Follower;
        follows.then(|| WriterError::NotWriter { writer: state.writer.clone() })
    }

    /// From now on it writes.
    pub fn becomes_writer(&self) {
        let mut state = self.state();
        (state.role, state.writer) = (Role::Writer, None);
        self.metrics.writer.set(1);
        self.metrics.takeovers.inc();
    }

    /// From now on it follows; it was the newest until now.
    pub fn becomes_follower(&self) {
        let mut state = self.state();
        if state.role == Role::Writer {
            (state.role, state.current_at) = (Role::Follower, Instant::now());
        }
        self.metrics.writer.set(0);
    }

    /// It and the log do not agree. It stays out of service until it is started again.
    pub fn diverges(&self, what: String) {
        tracing::error!(what, "this replica does not make what the log says; it is out of service");
        self.state().diverged = Some(what);
        self.metrics.diverged.set(1);
    }

    /// What a survey that was asked for at `asked_at` says, and which version is here now.
    pub fn surveyed(&self, survey: &Survey, asked_at: Instant, version: u64) {
        let mut state = self.state();
        state.newest = state.newest.max(survey.newest.unwrap_or(0));
        if state.role == Role::Follower {
            state.writer.clone_from(&survey.address);
        }
        if version >= state.newest {
            state.current_at = asked_at;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How others see this process's place. Cheap to clone.
#[derive(Clone)]
pub struct ReplicaHandle {
    pub(super) standing: Arc<Standing>,
    pub(super) published: Arc<Published>,
}

impl ReplicaHandle {
    /// As of now; sets the metrics that depend on when they are read.
    pub fn status(&self) -> ReplicaStatus {
        let current = self.published.current();
        let (version, digest) = (current.number, current.digest);
        let state = self.standing.state();
        let writes = state.role == Role::Writer;
        let newest = if writes { version } else { state.newest.max(version) };
        let lag = if writes { Duration::ZERO } else { state.current_at.elapsed() };
        let metrics = &self.standing.metrics;
        metrics.follower_lag.set(lag.as_secs_f64());
        metrics.follower_versions.set(i64::try_from(newest - version).unwrap_or(i64::MAX));
        let (role, writer, diverged) = (state.role, state.writer.clone(), state.diverged.clone());
        ReplicaStatus { role, version, digest, newest, lag, writer, diverged }
    }

    /// Waits until new requests run on this version or a newer one. The error is the newest after `limit`.
    pub async fn reach(&self, version: u64, limit: Duration) -> Result<(), u64> {
        let mut numbers: watch::Receiver<u64> = self.published.numbers();
        let reached = tokio::time::timeout(limit, numbers.wait_for(|number| *number >= version)).await;
        match reached {
            Ok(Ok(_)) => Ok(()),
            _ => Err(self.published.current().number),
        }
    }
}
