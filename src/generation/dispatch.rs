//! Gives waiting jobs their slots and versions. It runs on the async side, because a version may have to be rebuilt:
//! neither the engine nor the jobs whose versions are there must wait for that.

use std::{
    sync::{Arc, mpsc::Sender},
    time::Instant,
};

use futures::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{
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

/// One of the places in which tasks run side by side; free again when dropped.
pub(super) struct Slot {
    _permit: OwnedSemaphorePermit,
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
/// a slot. More would keep more versions in memory and be no faster, because versions are rebuilt one after another.
pub(super) const REBUILDS: usize = 2;

/// Moves jobs from the queue into slots. A job leaves the queue only when there is a slot for it, and gets its version
/// only then, so that those who wait keep no version alive. A job whose version is not in memory gives the slot on to the
/// next one and waits apart, without a slot.
pub(super) struct Dispatcher<D: Decoder> {
    pub decoder: Arc<D>,
    pub queue: Arc<Queue>,
    pub slots: Arc<Semaphore>,
    /// [`REBUILDS`] permits.
    pub rebuilds: Semaphore,
    pub engine: Sender<Placed<D::Lease>>,
    pub life: Life,
    pub metrics: Metrics,
}

impl<D: Decoder> Dispatcher<D> {
    /// Runs until the queue is closed and empty, or until draining; then refuses whoever still waits.
    pub async fn run(self: Arc<Self>) {
        while let Some((job, permit)) = self.next().await {
            match self.decoder.lease(job.version).now_or_never() {
                Some(Ok(lease)) => self.place(job, lease, permit),
                Some(Err(error)) => job.fail(error),
                None => drop(tokio::spawn(Arc::clone(&self).rebuild(job, self.queue.hold_place()))),
            }
        }
        self.queue.close();
        while let Some(job) = self.queue.next().await {
            job.fail(GenerateError::ShuttingDown);
        }
    }

    async fn next(&self) -> Option<(Job, OwnedSemaphorePermit)> {
        let next = async {
            let permit = self.permit().await?;
            Some((self.queue.next().await?, permit))
        };
        tokio::select! {
            biased;
            () = self.life.draining.cancelled() => None,
            next = next => next,
        }
    }

    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.slots).acquire_owned().await.ok()
    }

    /// The way of a job whose version is not in memory: it gets a slot only when the version is there.
    async fn rebuild(self: Arc<Self>, job: Job, place: Place) {
        let rebuilt = async {
            let _turn = self.rebuilds.acquire().await.ok();
            let lease = self.decoder.lease(job.version).await?;
            let permit = self.permit().await.ok_or(GenerateError::ShuttingDown)?;
            Ok((lease, permit))
        };
        let rebuilt = tokio::select! {
            biased;
            () = job.events.closed() => return,
            () = self.life.draining.cancelled() => Err(GenerateError::ShuttingDown),
            rebuilt = rebuilt => rebuilt,
        };
        drop(place);
        match rebuilt {
            Ok((lease, permit)) => self.place(job, lease, permit),
            Err(error) => job.fail(error),
        }
    }

    fn place(&self, job: Job, lease: D::Lease, permit: OwnedSemaphorePermit) {
        let slot = Slot {
            _permit: permit,
            _running: Counted::new(self.metrics.sequences.with_label_values(&["running"])),
            since: Instant::now(),
            queue: Arc::clone(&self.queue),
        };
        let Job { task, events, admitted, waiting, .. } = job;
        drop(waiting);
        // In what follows, a client that has left needs no answer.
        drop(events.send(Ok(Event::Started { version: self.decoder.version(&lease) })));
        if let Err(unsent) = self.engine.send(Placed { task, events, admitted, lease, slot }) {
            let error = GenerateError::Internal("the engine thread has ended".into());
            drop(unsent.0.events.send(Err(error)));
        }
    }
}
