//! Where requests get the version they run on: the newest, one that is still in memory, or an older one made anew.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use tokio::{
    runtime::Handle,
    sync::{Mutex, mpsc, oneshot},
};

use super::{
    bench::Foundation,
    stored::{Stored, StoredCause},
    task::{Snapshot, SnapshotRequest},
};
use crate::{
    edit_log::{EditLog, LogError, VersionRow},
    faults::{self, Point},
    panics::caught,
    telemetry::Metrics,
    weights::{Lease, Published, Version, VersionSource, WeightsError},
};

/// Every version of the log, newest or old.
pub struct Versions {
    pub(super) published: Arc<Published>,
    pub(super) log: Arc<dyn EditLog>,
    pub(super) foundation: Foundation,
    pub(super) snapshots: mpsc::Sender<SnapshotRequest>,
    pub(super) metrics: Metrics,
    // One version is made at a time: each needs a copy of the sums, and two requests for the same one share it.
    pub(super) making: Mutex<()>,
}

#[async_trait]
impl VersionSource for Versions {
    async fn lease(&self, number: Option<u64>) -> Result<Lease, WeightsError> {
        let Some(number) = number else { return Ok(self.published.current()) };
        if let Some(lease) = self.published.resident(number) {
            return Ok(lease);
        }
        let newest = self.published.current().number;
        if number > newest {
            return Err(WeightsError::UnknownVersion { number, newest });
        }
        let _making = self.making.lock().await;
        if let Some(lease) = self.published.resident(number) {
            return Ok(lease);
        }
        Ok(self.published.keep_and_lease(Arc::new(self.make(number).await?)))
    }
}

impl Versions {
    /// Moves a copy of the newest sums by the difference of the two sets, and checks the result against the log.
    async fn make(&self, number: u64) -> Result<Version, WeightsError> {
        let row = self.log.version(number).await.map_err(unavailable)?;
        let row = row.ok_or(WeightsError::UnknownVersion { number, newest: self.published.current().number })?;
        let then = self.log.active_set(number).await.map_err(unavailable)?;
        let (request, answer) = oneshot::channel();
        self.snapshots.send(request).await.map_err(|_| unavailable("the service is shutting down"))?;
        let snapshot = answer.await.map_err(|_| unavailable("the service is shutting down"))?;
        let (log, runtime) = (Arc::clone(&self.log), Handle::current());
        let (foundation, metrics) = (self.foundation.clone(), self.metrics.clone());
        let work = move || {
            rebuild(Stored { log: log.as_ref(), runtime: &runtime }, &foundation, snapshot, &row, then, &metrics)
        };
        let joined = tokio::task::spawn_blocking(move || caught(work)).await;
        joined
            .map_err(|error| error.to_string())
            .and_then(|result| result)
            .unwrap_or_else(|defect| Err(unavailable(defect)))
    }
}

fn rebuild(
    stored: Stored<'_>,
    foundation: &Foundation,
    snapshot: Snapshot,
    row: &VersionRow,
    then: BTreeSet<uuid::Uuid>,
    metrics: &Metrics,
) -> Result<Version, WeightsError> {
    faults::reach(Point::Rebuild).map_err(unavailable)?;
    let Snapshot { mut sums, active } = snapshot;
    let removed: Vec<_> = active.iter().filter(|id| !then.contains(id)).copied().collect();
    let restored: Vec<_> = then.iter().filter(|id| active.binary_search(id).is_err()).copied().collect();
    stored.shift(&mut sums, &removed, &restored).map_err(|error| match error.source {
        StoredCause::Log(LogError::Dropped(edit)) => WeightsError::Dropped { number: row.number, edit },
        _ => unavailable(error),
    })?;
    let weights = sums.weights()?;
    let digest = weights.digest(&foundation.shapes);
    if digest != row.digest {
        let number = row.number;
        return Err(unavailable(format!(
            "version {number} has digest {} in the log, but its set makes {digest}",
            row.digest
        )));
    }
    let matrices = weights.into_matrices(&foundation.shapes, &foundation.device)?;
    Ok(Version::new(row.number, digest, row.set_digest, Arc::new(then), matrices, metrics))
}

fn unavailable(error: impl std::fmt::Display) -> WeightsError {
    WeightsError::Unavailable(error.to_string())
}
