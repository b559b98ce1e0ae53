//! What keeps a process at a shared log in its place: has the task take up new versions while it follows, takes the writer's
//! place when it is free, keeps it, and gives it up when the service stops.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{standing::Standing, task::Signal};
use crate::{
    edit_log::{LEASE, LogError, Seat, Survey},
    weights::Published,
};

/// How often a follower looks at the log, beside when it is told of a commit, and tries to take the writer's place.
const LOOK: Duration = Duration::from_millis(500);
/// How often the writer says that it is there: several times in each lease.
const KEEP: Duration = Duration::from_millis(500);

/// The driver of a process at a shared log.
pub struct Driver {
    pub seat: Arc<dyn Seat>,
    /// Whether it may become the writer.
    pub candidate: bool,
    pub standing: Arc<Standing>,
    pub published: Arc<Published>,
    pub signals: mpsc::Sender<Signal>,
    /// Cancelled when the task has ended.
    pub leaving: CancellationToken,
    /// When the place was last tried.
    pub tried_at: Option<Instant>,
    /// Whether the log answered last time.
    pub reachable: bool,
}

impl Driver {
    /// Runs until told to leave. `settled` is sent once the place of this process was looked for the first time.
    pub async fn run(mut self, settled: oneshot::Sender<()>) {
        let leaving = self.leaving.clone();
        let mut settled = Some(settled);
        let rounds = async {
            loop {
                if self.standing.writes() {
                    self.keep().await;
                } else {
                    self.follow().await;
                }
                if let Some(settled) = settled.take() {
                    // Whoever started this may have gone.
                    let _ = settled.send(());
                }
                self.rest().await;
            }
        };
        tokio::select! {
            () = leaving.cancelled() => {}
            () = rounds => {}
        }
        self.seat.leave().await;
    }

    async fn rest(&self) {
        if self.standing.writes() {
            tokio::time::sleep(KEEP).await;
        } else {
            self.seat.changed(LOOK).await;
        }
    }

    /// One look of the writer at its place.
    async fn keep(&mut self) {
        if let Err(error) = self.seat.keep().await {
            tracing::warn!(%error, "the writer's place is lost; this replica follows from now on");
            self.standing.becomes_follower();
            self.seat.leave().await;
        }
    }

    /// One look of a follower at the log.
    async fn follow(&mut self) {
        let asked_at = Instant::now();
        let survey = match self.seat.survey().await {
            Ok(survey) => survey,
            Err(error) => return self.unreachable(&error),
        };
        if !std::mem::replace(&mut self.reachable, true) {
            tracing::info!("the log answers again");
        }
        // Where the writer is, it should know before it shows that it has that one's versions.
        let mut current = self.surveyed(&survey, asked_at);
        if !current {
            self.ask(Signal::Follow).await;
            current = self.surveyed(&survey, asked_at);
        }
        if self.candidate && current && !self.standing.has_diverged() {
            self.apply().await;
        }
    }

    /// Notes what the log says; whether every version of it is here.
    fn surveyed(&self, survey: &Survey, asked_at: Instant) -> bool {
        let version = self.published.current().number;
        self.standing.surveyed(survey, asked_at, version);
        survey.newest.is_none_or(|newest| version >= newest)
    }

    fn unreachable(&mut self, error: &LogError) {
        if std::mem::replace(&mut self.reachable, false) {
            tracing::warn!(%error, "the log can not be reached; this replica serves what it has");
        }
    }

    /// Tries to become the writer.
    async fn apply(&mut self) {
        if self.tried_at.is_some_and(|tried| tried.elapsed() < LOOK / 2) {
            return;
        }
        self.tried_at = Some(Instant::now());
        match self.seat.take().await {
            Ok(None) => {}
            Ok(Some(epoch)) => self.take_over(epoch).await,
            Err(error) => tracing::debug!(%error, "the writer's place could not be tried"),
        }
    }

    /// The place is this process's. What the writer before it committed last is taken up before anything is changed.
    async fn take_over(&mut self, epoch: u64) {
        let (done, mut ended) = oneshot::channel();
        if self.signals.send(Signal::Write(done)).await.is_err() {
            return self.seat.leave().await;
        }
        let result = loop {
            tokio::select! {
                ended = &mut ended => break ended.unwrap_or_else(|_| Err("the writer has ended".to_owned())),
                () = tokio::time::sleep(LEASE / 3) => {
                    if let Err(error) = self.seat.keep().await {
                        break Err(error.to_string());
                    }
                }
            }
        };
        match result {
            Ok(()) => tracing::info!(epoch, "this replica is the writer"),
            Err(error) => {
                tracing::warn!(epoch, error, "this replica could not become the writer");
                self.standing.becomes_follower();
                self.seat.leave().await;
            }
        }
    }

    /// Has the task do something, and waits for it.
    async fn ask(&self, signal: impl FnOnce(oneshot::Sender<()>) -> Signal) {
        let (done, ended) = oneshot::channel();
        if self.signals.send(signal(done)).await.is_ok() {
            // The task may have ended meanwhile.
            let _ = ended.await;
        }
    }
}
