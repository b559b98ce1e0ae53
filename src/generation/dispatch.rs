//! Gives waiting jobs their places and versions. It runs on the async side, because a version may have to be rebuilt:
//! neither the engine nor the jobs whose versions are there must wait for that.

use std::{
    sync::{Arc, mpsc::Sender},
    time::Instant,
};

use futures::FutureExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{
    budget::{Budget, Hold},
    decoder::Decoder,
    engine::Placed,
    error::GenerateError,
    job::{Counted, Event, Job},
    queue::{Place, Queue},
};
use crate::telemetry::Metrics;

/// How far the room is on its way out.
#[derive(Debug, Clone, Default)]
pub(super) struct Life {
    /// Nothing more is admitted or started; what runs goes on.
    pub draining: CancellationToken,
    /// What runs is ended at the next turn.
    pub stopped: CancellationToken,
    /// The engine thread is gone.
    pub ended: CancellationToken,
}

/// The place of a task that runs; free again when dropped.
pub(super) struct Slot {
    _hold: Hold,
    _running: Counted,
    since: Instant,
    queue: Arc<Queue>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.queue.measure(self.since.elapsed());
    }
}

/// How many jobs get old versions at the same time: one that is being rebuilt, and one that has its version and waits for
/// a place. More would keep more versions in memory and be no faster, because versions are rebuilt one after another.
pub(super) const REBUILDS: usize = 2;

/// Moves jobs from the queue to the engine. A job leaves the queue only when there is room for it, and gets its version
/// only then, so that those who wait keep no version alive. A job whose version is not in memory gives its room on to the
/// next one and waits apart, without any.
pub(super) struct Dispatcher<D: Decoder> {
    pub decoder: Arc<D>,
    pub queue: Arc<Queue>,
    pub budget: Budget,
    /// [`REBUILDS`] permits.
    pub rebuilds: Semaphore,
    pub engine: Sender<Placed<D::Lease>>,
    pub life: Life,
    pub metrics: Metrics,
}

impl<D: Decoder> Dispatcher<D> {
    /// Runs until the queue is closed and empty, or until draining; then refuses whoever still waits.
    pub async fn run(self: Arc<Self>) {
        while let Some((job, hold)) = self.next().await {
            match self.decoder.lease(job.version).now_or_never() {
                Some(Ok(lease)) => self.place(job, lease, hold),
                Some(Err(error)) => job.fail(error),
                None => drop(tokio::spawn(Arc::clone(&self).rebuild(job, self.queue.hold_place()))),
            }
        }
        self.queue.close();
        while let Some(job) = self.queue.take(|_| true) {
            job.fail(GenerateError::ShuttingDown);
        }
    }

    async fn next(&self) -> Option<(Job, Hold)> {
        tokio::select! {
            biased;
            () = self.life.draining.cancelled() => None,
            next = self.next_that_fits() => next,
        }
    }

    /// The first in the queue, once there is room for it. If its client leaves meanwhile, the next one takes its turn.
    async fn next_that_fits(&self) -> Option<(Job, Hold)> {
        loop {
            let (cost, left) = self.queue.first().await?;
            let hold = tokio::select! {
                biased;
                () = left.closed() => continue,
                hold = self.budget.hold(cost) => hold,
            };
            let Some(mut hold) = hold else {
                // Plans are checked against the budget, so this is a defect; the queue must not stand still for it.
                let error = GenerateError::Internal(format!("a job of {cost:?} never fits"));
                self.queue.take(|first| first == cost).into_iter().for_each(|job| job.fail(error.clone()));
                continue;
            };
            if let Some(job) = self.queue.take(|cost| hold.shrink(cost)) {
                return Some((job, hold));
            }
        }
    }

    /// The way of a job whose version is not in memory: it gets its room only when the version is there.
    async fn rebuild(self: Arc<Self>, job: Job, place: Place) {
        let rebuilt = async {
            let _turn = self.rebuilds.acquire().await.ok();
            let lease = self.decoder.lease(job.version).await?;
            let hold = self.budget.hold(job.cost).await.ok_or(GenerateError::ShuttingDown)?;
            Ok((lease, hold))
        };
        let rebuilt = tokio::select! {
            biased;
            () = job.events.closed() => return,
            () = self.life.draining.cancelled() => Err(GenerateError::ShuttingDown),
            rebuilt = rebuilt => rebuilt,
        };
        drop(place);
        match rebuilt {
            Ok((lease, hold)) => self.place(job, lease, hold),
            Err(error) => job.fail(error),
        }
    }

    fn place(&self, job: Job, lease: D::Lease, hold: Hold) {
        let Job { task, cost, events, admitted, course, waiting, .. } = job;
        let slot = Slot {
            _hold: hold,
            _running: Counted::new(self.metrics.sequences.with_label_values(&["running"]), cost.sequences),
            since: Instant::now(),
            queue: Arc::clone(&self.queue),
        };
        drop(waiting);
        // In what follows, a client that has left needs no answer.
        drop(events.send(Ok(Event::Started { version: self.decoder.version(&lease) })));
        if let Err(unsent) = self.engine.send(Placed { task, events, admitted, course, lease, slot }) {
            let error = GenerateError::Internal("the engine thread has ended".into());
            drop(unsent.0.events.send(Err(error)));
        }
    }
}
