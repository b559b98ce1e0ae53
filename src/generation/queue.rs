//! Admission: a bounded queue that answers at once whether there is a place, and if not, when there will be.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    budget::Cost,
    error::GenerateError,
    job::{Events, Job},
};

/// The least and the most that a client is told to wait.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Weight of the newest measurement in the mean time that a task holds its slot.
const NEWEST: f64 = 0.2;

/// Jobs that wait for their place, first come, first served. Jobs whose client has left do not count against the capacity.
pub(super) struct Queue {
    capacity: usize,
    slots: usize,
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    jobs: VecDeque<Job>,
    /// Jobs that have left `jobs` and wait for an old version to be rebuilt.
    rebuilding: usize,
    closed: bool,
    /// Mean seconds that a task holds its slot; none before the first has ended.
    hold: Option<f64>,
}

impl Queue {
    /// A queue of `capacity` places before `slots` slots.
    pub fn new(capacity: usize, slots: usize) -> Self {
        Self { capacity, slots, inner: Mutex::default(), changed: Notify::new() }
    }

    /// Admits all of `jobs` or none of them.
    pub fn admit(&self, jobs: Vec<Job>) -> Result<(), GenerateError> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(GenerateError::ShuttingDown);
        }
        if inner.waiting() + jobs.len() > self.capacity {
            inner.jobs.retain(|job| !job.is_abandoned());
        }
        if inner.waiting() + jobs.len() > self.capacity {
            return Err(self.full(&inner));
        }
        inner.jobs.extend(jobs);
        drop(inner);
        self.changed.notify_one();
        Ok(())
    }

    /// Waits for a first job whose client still waits: what it costs, and where its client would be seen leaving. None when
    /// the queue is closed and empty. For one consumer.
    pub async fn first(&self) -> Option<(Cost, Events)> {
        loop {
            {
                let mut inner = self.lock();
                inner.skip_abandoned();
                if let Some(job) = inner.jobs.front() {
                    return Some((job.cost, job.events.clone()));
                }
                if inner.closed {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    /// Takes the first job whose client still waits, if `fits` says so of its cost.
    pub fn take(&self, fits: impl FnOnce(Cost) -> bool) -> Option<Job> {
        let mut inner = self.lock();
        inner.skip_abandoned();
        inner.jobs.front().is_some_and(|job| fits(job.cost)).then(|| inner.jobs.pop_front())?
    }

    /// The place of a job that waits elsewhere: it counts against the capacity until this is dropped.
    pub fn hold_place(self: &Arc<Self>) -> Place {
        self.lock().rebuilding += 1;
        Place(Arc::clone(self))
    }

    /// Admits nothing more.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// Takes a measurement of how long a task held its slot.
    pub fn measure(&self, hold: Duration) {
        let mut inner = self.lock();
        let newest = hold.as_secs_f64();
        inner.hold = Some(inner.hold.map_or(newest, |mean| mean + NEWEST * (newest - mean)));
    }

    /// The error that says in what time, at the measured rate, those who wait now will have been served.
    fn full(&self, inner: &Inner) -> GenerateError {
        let seconds = inner.hold.unwrap_or(0.0) * inner.waiting() as f64 / self.slots as f64;
        let (least, most) = RETRY_AFTER;
        let retry_after = Duration::from_secs_f64(seconds.clamp(least.as_secs_f64(), most.as_secs_f64()));
        GenerateError::QueueFull { capacity: self.capacity, retry_after }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing under the lock panics half-way through a change, so a poisoned queue is still whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn skip_abandoned(&mut self) {
        while self.jobs.front().is_some_and(Job::is_abandoned) {
            self.jobs.pop_front();
        }
    }

    fn waiting(&self) -> usize {
        self.jobs.len() + self.rebuilding
    }
}

/// See [`Queue::hold_place`].
pub(super) struct Place(Arc<Queue>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.lock().rebuilding -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        generation::job::{EventsOut, Task},
        telemetry::Metrics,
    };

    fn job() -> (Job, EventsOut) {
        Job::new(Task::Score(Vec::new()), None, &Metrics::new())
    }

    #[tokio::test]
    async fn admits_all_or_none_and_closes() {
        let queue = Queue::new(2, 1);
        let (one, _one) = job();
        queue.admit(vec![one]).unwrap();
        let ((two, _two), (three, _three)) = (job(), job());
        assert!(matches!(queue.admit(vec![two, three]), Err(GenerateError::QueueFull { capacity: 2, .. })));
        queue.close();
        assert_eq!(queue.admit(vec![job().0]), Err(GenerateError::ShuttingDown));
        let (cost, _) = queue.first().await.unwrap();
        assert!(queue.take(|_| false).is_none(), "it stays until there is room for it");
        assert!(queue.take(|first| first == cost).is_some());
        assert!(queue.first().await.is_none());
    }

    #[tokio::test]
    async fn those_who_left_make_room() {
        let queue = Queue::new(1, 1);
        let (gone, out) = job();
        queue.admit(vec![gone]).unwrap();
        drop(out);
        let (stays, _out) = job();
        queue.admit(vec![stays]).unwrap();
    }

    #[test]
    fn those_who_wait_elsewhere_keep_their_place() {
        let queue = Arc::new(Queue::new(1, 1));
        let place = queue.hold_place();
        let refused = queue.admit(vec![job().0]);
        assert!(matches!(refused, Err(GenerateError::QueueFull { capacity: 1, .. })));
        drop(place);
        queue.admit(vec![job().0]).unwrap();
    }

    #[test]
    fn says_when_to_come_back_from_the_measured_rate() {
        let queue = Queue::new(8, 2);
        let (jobs, _outs): (Vec<_>, Vec<_>) = (0..8).map(|_| job()).unzip();
        queue.admit(jobs).unwrap();
        let retry_after = |queue: &Queue| match queue.admit(vec![job().0]) {
            Err(GenerateError::QueueFull { retry_after, .. }) => retry_after,
            other => panic!("{other:?}"),
        };
        assert_eq!(retry_after(&queue), Duration::from_secs(1));
        queue.measure(Duration::from_secs(3));
        assert_eq!(retry_after(&queue), Duration::from_secs(12));
        queue.measure(Duration::from_secs(1000));
        assert_eq!(retry_after(&queue), Duration::from_secs(60));
    }
}
