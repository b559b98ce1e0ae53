//! What the task does at a log that others share: it takes up their versions, and becomes the writer when its turn comes.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::{
    bench::Bench,
    replay::{self, Depth, ReplayError},
    task::{Signal, SnapshotRequest, Task},
};
use crate::panics::caught;

/// Versions that are taken up one by one; of more, the newest alone is composed, as at a start.
const ONE_BY_ONE: u64 = 64;

impl<B: Bench> Task<B> {
    pub(super) fn obey(&mut self, signal: Signal, snapshots: &mut mpsc::Receiver<SnapshotRequest>) {
        match signal {
            Signal::Follow(done) => {
                // What went wrong is told already; the next signal tries again.
                let _ = self.follow_log(snapshots);
                let _ = done.send(());
            }
            Signal::Write(done) => {
                let followed = self.follow_log(snapshots);
                if followed.is_ok() {
                    self.tools.standing.becomes_writer();
                }
                let _ = done.send(followed);
            }
        }
    }

    /// Takes up what the log holds beyond the ledger. A log that can not be read is read again another time; one that does
    /// not fit takes this process out of service.
    fn follow_log(&mut self, snapshots: &mut mpsc::Receiver<SnapshotRequest>) -> Result<(), String> {
        if self.tools.standing.has_diverged() {
            return Err("it has diverged from the log".to_owned());
        }
        let caught_up = match caught(|| self.catch_up(&mut Some(snapshots))) {
            Ok(result) => result,
            Err(panic) => Err(ReplayError::Defect(panic)),
        };
        if let Err(error) = caught_up {
            match &error {
                ReplayError::Log(log) if !is_damage(log) => tracing::warn!(%error, "the log could not be followed"),
                _ => self.tools.standing.diverges(error.to_string()),
            }
            return Err(error.to_string());
        }
        // So that this process can write at once when its turn comes.
        if let Err(error) = caught(|| self.follow()).and_then(|result| result) {
            tracing::warn!(error, "the active edits could not be read");
        }
        Ok(())
    }

    /// Brings ledger and published version to the log's newest. After an error both are at the last version that could be
    /// taken up.
    pub(super) fn catch_up(
        &mut self,
        snapshots: &mut Option<&mut mpsc::Receiver<SnapshotRequest>>,
    ) -> Result<(), ReplayError> {
        let newest = self.tools.runtime.block_on(self.tools.log.head())?.number;
        if newest > self.ledger.head() + ONE_BY_ONE {
            self.leap()?;
        }
        while let Some(next) = replay::next(self.tools.stored(), &mut self.ledger, &self.tools.shared.metrics)? {
            self.tools.published.publish(next.version);
            if !self.tools.standing.writes() {
                let age = Timestamp::now().duration_since(next.created_at).as_secs_f64();
                self.tools.shared.metrics.follower_apply.observe(age.max(0.0));
            }
            // Whoever waits for an older version does not wait for all of them.
            while let Some(request) = snapshots.as_mut().and_then(|waiting| waiting.try_recv().ok()) {
                self.snapshot(request);
            }
            if self.tools.shared.ending.is_cancelled() {
                break;
            }
        }
        self.unsettled = false;
        Ok(())
    }

    /// Goes to the newest version at once, on a copy: an error on the way leaves the ledger as it was.
    fn leap(&mut self) -> Result<(), ReplayError> {
        let mut ahead = self.ledger.clone();
        replay::follow(self.tools.stored(), &mut ahead, Depth::Head, &mut |_, _| {})?;
        let version = ahead.version(&self.tools.shared.metrics)?;
        self.ledger = ahead;
        self.tools.published.publish(Arc::new(version));
        Ok(())
    }
}

/// Whether the log itself does not fit, rather than not answer.
fn is_damage(error: &crate::edit_log::LogError) -> bool {
    use crate::edit_log::LogError;
    !matches!(error, LogError::Storage(_) | LogError::Full | LogError::ReadOnly | LogError::NotWriter { .. })
}
