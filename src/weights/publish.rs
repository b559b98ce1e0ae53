//! Which version is current, which older ones are still in memory, and who is running on them.

use std::{
    collections::VecDeque,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use async_trait::async_trait;
use prometheus::IntGauge;
use tokio::sync::watch;

use super::{Version, WeightsError};
use crate::telemetry::Metrics;

/// Where a request gets the version it runs on.
#[async_trait]
pub trait VersionSource: Send + Sync {
    /// The newest version, or the one asked for. [`WeightsError::UnknownVersion`] if there is none of that number.
    async fn lease(&self, number: Option<u64>) -> Result<Lease, WeightsError>;
}

/// A hold on a version.
///
/// Law 4 (a request runs on one version, from its first token to its last): whoever holds a lease keeps its version
/// whole, whatever is published meanwhile. Counted in `version_leases`; a clone is a lease of its own.
pub struct Lease {
    version: Arc<Version>,
    leases: IntGauge,
}

impl Lease {
    fn new(version: Arc<Version>, metrics: &Metrics) -> Self {
        let leases = metrics.version_leases.clone();
        leases.inc();
        Self { version, leases }
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        self.leases.inc();
        Self { version: Arc::clone(&self.version), leases: self.leases.clone() }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.dec();
    }
}

impl Deref for Lease {
    type Target = Version;

    fn deref(&self) -> &Version {
        &self.version
    }
}

/// The current version, the base, and a bounded number of others that were used last. A version that falls out of here
/// lives on while it is leased.
pub struct Published {
    // Read by every request, written once per version: readers do not wait for each other.
    current: RwLock<Arc<Version>>,
    base: Arc<Version>,
    /// Least recently used first; neither the current version nor the base.
    others: Mutex<VecDeque<Arc<Version>>>,
    capacity: usize,
    /// Number of the current version, for those who wait for one.
    numbers: watch::Sender<u64>,
    metrics: Metrics,
}

impl Published {
    /// Begins at the base model. `capacity` is how many versions other than the current one and the base stay in memory
    /// without a lease.
    pub fn new(base: Arc<Version>, capacity: usize, metrics: Metrics) -> Self {
        metrics.version.set(gauge_value(base.number));
        metrics.active_edits.set(base.active.len() as i64);
        let (current, numbers) = (RwLock::new(Arc::clone(&base)), watch::Sender::new(base.number));
        Self { current, base, others: Mutex::new(VecDeque::new()), capacity, numbers, metrics }
    }

    /// Makes a newer version the current one. Numbers only grow.
    pub fn publish(&self, version: Arc<Version>) {
        let number = version.number;
        let old = {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            assert!(version.number > current.number, "version numbers only grow");
            self.metrics.version.set(gauge_value(version.number));
            self.metrics.active_edits.set(version.active.len() as i64);
            std::mem::replace(&mut *current, version)
        };
        self.numbers.send_replace(number);
        self.keep(old);
    }

    /// The number of the newest version, now and as it grows.
    pub fn numbers(&self) -> watch::Receiver<u64> {
        self.numbers.subscribe()
    }

    /// The newest version.
    pub fn current(&self) -> Lease {
        Lease::new(self.newest(), &self.metrics)
    }

    /// A version whose weights are in memory.
    pub fn resident(&self, number: u64) -> Option<Lease> {
        let newest = self.newest();
        let found = if number == newest.number {
            newest
        } else if number == self.base.number {
            Arc::clone(&self.base)
        } else {
            let mut others = self.others();
            let position = others.iter().position(|version| version.number == number)?;
            let version = others.remove(position)?;
            others.push_back(Arc::clone(&version));
            version
        };
        Some(Lease::new(found, &self.metrics))
    }

    /// Keeps an older version that was rebuilt, and leases it.
    pub fn keep_and_lease(&self, version: Arc<Version>) -> Lease {
        let lease = Lease::new(Arc::clone(&version), &self.metrics);
        self.keep(version);
        lease
    }

    fn newest(&self) -> Arc<Version> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn keep(&self, version: Arc<Version>) {
        if version.number == self.base.number {
            return;
        }
        let mut others = self.others();
        others.retain(|other| other.number != version.number);
        others.push_back(version);
        while others.len() > self.capacity {
            others.pop_front();
        }
    }

    fn others(&self) -> MutexGuard<'_, VecDeque<Arc<Version>>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gauge_value(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{digest::Digest, model::DenseMatrices};

    fn version(number: u64, metrics: &Metrics) -> Arc<Version> {
        let digest = Digest::of(&number.to_le_bytes());
        let matrices = DenseMatrices::from_vecs(&[], Vec::new(), &candle_core::Device::Cpu).unwrap();
        Arc::new(Version::new(number, digest, digest, Arc::new(BTreeSet::new()), Arc::new(matrices), metrics))
    }

    #[test]
    fn a_lease_outlives_its_versions_place_in_the_cache() {
        let metrics = Metrics::new();
        let published = Published::new(version(0, &metrics), 1, metrics.clone());
        published.publish(version(1, &metrics));
        let first = published.current();
        let again = first.clone();
        assert_eq!(metrics.version_leases.get(), 2);
        published.publish(version(2, &metrics));
        published.publish(version(3, &metrics));
        assert_eq!((first.number, metrics.version.get()), (1, 3));
        assert!(published.resident(1).is_none(), "one other version is kept, and that is 2");
        assert_eq!(published.resident(2).map(|lease| lease.number), Some(2));
        assert_eq!(metrics.versions_resident.get(), 4);
        drop((first, again));
        assert_eq!((metrics.versions_resident.get(), metrics.version_leases.get()), (3, 0));
        assert_eq!(published.resident(0).map(|lease| lease.number), Some(0), "the base always stays");
        published.keep_and_lease(version(1, &metrics));
        assert!(published.resident(2).is_none() && published.resident(1).is_some());
    }

    #[test]
    #[should_panic(expected = "version numbers only grow")]
    fn an_older_version_is_never_published() {
        let metrics = Metrics::new();
        let published = Published::new(version(2, &metrics), 1, metrics.clone());
        published.publish(version(2, &metrics));
    }
}
