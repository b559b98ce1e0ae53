//! Gives waiting jobs their slots and versions. It runs on the async side, because a version may have to be rebuilt and
//! the engine must not wait for that.

use std::{
    sync::{Arc, mpsc::Sender},
    time::Instant,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{
    decoder::Decoder,
    engine::Placed,
    error::GenerateError,
    job::{Counted, Event, Job},
    queue::Queue,
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

/// Moves jobs from the queue into slots. A job leaves the queue only when there is a slot for it, and gets its version
/// only then, so that those who wait keep no version alive.
pub(super) struct Dispatcher<D: Decoder> {
    pub decoder: Arc<D>,
    pub queue: Arc<Queue>,
    pub slots: Arc<Semaphore>,
    pub engine: Sender<Placed<D::Lease>>,
    pub life: Life,
    pub metrics: Metrics,
}

impl<D: Decoder> Dispatcher<D> {
    /// Runs until the queue is closed and empty, or until draining; then refuses whoever still waits.
    pub async fn run(self: Arc<Self>) {
        while let Some((job, slot)) = self.next().await {
            tokio::spawn(Arc::clone(&self).place(job, slot));
        }
        self.queue.close();
        while let Some(job) = self.queue.next().await {
            job.fail(GenerateError::ShuttingDown);
        }
    }

    async fn next(&self) -> Option<(Job, Slot)> {
        let next = async {
            let permit = Arc::clone(&self.slots).acquire_owned().await.ok()?;
            let job = self.queue.next().await?;
            Some((job, self.slot(permit)))
        };
        tokio::select! {
            biased;
            () = self.life.draining.cancelled() => None,
            next = next => next,
        }
    }

    fn slot(&self, permit: OwnedSemaphorePermit) -> Slot {
        Slot {
            _permit: permit,
            _running: Counted::new(self.metrics.sequences.with_label_values(&["running"])),
            since: Instant::now(),
            queue: Arc::clone(&self.queue),
        }
    }

    async fn place(self: Arc<Self>, job: Job, slot: Slot) {
        let Job { task, version, events, admitted, waiting } = job;
        drop(waiting);
        let lease = tokio::select! {
            biased;
            () = events.closed() => return,
            () = self.life.stopped.cancelled() => Err(GenerateError::ShuttingDown),
            lease = self.decoder.lease(version) => lease,
        };
        // In what follows, a client that has left needs no answer.
        match lease {
            Err(error) => drop(events.send(Err(error))),
            Ok(lease) => {
                drop(events.send(Ok(Event::Started { version: self.decoder.version(&lease) })));
                let placed = Placed { task, events, admitted, lease, slot };
                if let Err(unsent) = self.engine.send(placed) {
                    let error = GenerateError::Internal("the engine thread has ended".into());
                    drop(unsent.0.events.send(Err(error)));
                }
            }
        }
    }
}
