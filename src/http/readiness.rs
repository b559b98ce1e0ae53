//! Whether the service takes work: one small handle shared by the application, which sets it, and http, which asks.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::{error::Code, error::Problem, state::AppState};
use crate::writer::ReplicaStatus;

/// Where the service is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// The model is being loaded or the log replayed.
    Starting = 0,
    /// Work is taken.
    Ready = 1,
    /// What runs is finished; nothing new is taken.
    Draining = 2,
}

/// A shared [`Phase`]. It only moves forward: a service that drains never becomes ready again.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicU8>);

impl Readiness {
    /// Starting.
    pub fn new() -> Self {
        Self::default()
    }

    /// The model is loaded and the log replayed.
    pub fn ready(&self) {
        self.0.fetch_max(Phase::Ready as u8, Ordering::SeqCst);
    }

    /// The service is about to stop.
    pub fn drain(&self) {
        self.0.fetch_max(Phase::Draining as u8, Ordering::SeqCst);
    }

    /// Where the service is now.
    pub fn phase(&self) -> Phase {
        match self.0.load(Ordering::SeqCst) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Draining,
        }
    }

    /// Refuses unless work is taken.
    pub(super) fn check(&self) -> Result<(), Problem> {
        match self.phase() {
            Phase::Ready => Ok(()),
            Phase::Starting => Err(Problem::new(Code::NotReady, "the model is being loaded or the log replayed")),
            Phase::Draining => Err(Problem::new(Code::Draining, "the service is shutting down and takes no new work")),
        }
    }
}

/// Refuses where this replica does not make what the log says.
pub(super) fn agrees(status: &ReplicaStatus) -> Result<(), Problem> {
    match &status.diverged {
        None => Ok(()),
        Some(what) => {
            let detail = format!("this replica is out of service: {what}");
            Err(Problem::new(Code::ReplicaDiverged, detail).with("version", status.version))
        }
    }
}

/// Extracted by every route that gives the writer or the engine work: 503 unless the service is ready
/// and agrees with the log.
pub(super) struct Admitted;

impl FromRequestParts<AppState> for Admitted {
    type Rejection = Problem;

    async fn from_request_parts(_: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        state.readiness.check()?;
        agrees(&state.replica.status()).map(|()| Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_moves_forward() {
        let readiness = Readiness::new();
        assert_eq!(readiness.phase(), Phase::Starting);
        readiness.ready();
        assert_eq!(readiness.phase(), Phase::Ready);
        readiness.drain();
        readiness.ready();
        assert_eq!(readiness.phase(), Phase::Draining);
    }
}
