//! What travels between a client and the engine: jobs one way, events the other, and the guards that count both.

use std::{sync::Arc, time::Instant};

use prometheus::IntGauge;
use tokio::sync::mpsc;

use super::{
    budget::Cost,
    error::GenerateError,
    plan::Plan,
    request::{FinishReason, Usage},
    text_out::Piece,
};
use crate::{
    model::{Passage, measure::TargetScore},
    telemetry::{Course, Metrics},
};

/// What the engine is to do.
#[derive(Debug)]
pub(super) enum Task {
    Generate(Arc<Plan>),
    Score(Vec<Passage>),
    /// One text.
    Classify(Passage),
}

impl Task {
    /// What it takes while it runs. Scoring and classification keep nothing from one turn to the next.
    pub fn cost(&self) -> Cost {
        match self {
            Self::Generate(plan) => plan.cost(),
            Self::Score(_) | Self::Classify(_) => Cost { sequences: 1, tokens: 0 },
        }
    }
}

/// What the engine tells.
#[derive(Debug)]
pub(super) enum Event {
    /// The task has its place and runs on this version; always the first event.
    Started { version: u64 },
    /// Text that is ready to show, of one of the request's texts.
    Text { choice: usize, piece: Piece },
    /// The end of one text.
    Ended { choice: usize, finish_reason: FinishReason },
    /// The end of a generation, after the end of each text.
    Finished { usage: Usage },
    /// The end of a scoring task: one per passage, in order.
    Scored(Vec<TargetScore>),
    /// The end of a classification: the log-probability of each label, in the order of the model's labels.
    Classified(Vec<f32>),
}

/// Where events go. Unbounded, because the engine must not wait for a slow client; what can pile up is bounded by
/// `max_tokens`. When the receiving end is dropped, the client has left.
pub(super) type Events = mpsc::UnboundedSender<Result<Event, GenerateError>>;
pub(super) type EventsOut = mpsc::UnboundedReceiver<Result<Event, GenerateError>>;

/// A task that waits for its place.
pub(super) struct Job {
    pub task: Task,
    pub cost: Cost,
    /// Which version to run on; none is the newest at the time the task gets its place.
    pub version: Option<u64>,
    pub events: Events,
    pub admitted: Instant,
    pub course: Course,
    pub waiting: Counted,
}

impl Job {
    pub fn new(task: Task, version: Option<u64>, metrics: &Metrics) -> (Self, EventsOut) {
        let (events, out) = mpsc::unbounded_channel();
        let cost = task.cost();
        let waiting = Counted::new(metrics.sequences.with_label_values(&["waiting"]), cost.sequences);
        let (admitted, course) = (Instant::now(), Course::queued());
        (Self { task, cost, version, events, admitted, course, waiting }, out)
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Answers with an error.
    pub fn fail(self, error: GenerateError) {
        // A client that has left needs no answer.
        let _ = self.events.send(Err(error));
    }
}

/// So many more in a gauge, for as long as it lives.
#[derive(Debug)]
pub(super) struct Counted(IntGauge, i64);

impl Counted {
    pub fn new(gauge: IntGauge, count: usize) -> Self {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        gauge.add(count);
        Self(gauge, count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.sub(self.1);
    }
}

/// Counts one request under its outcome when it ends; one that is dropped before it ended was cancelled.
pub(super) struct Outcome {
    metrics: Metrics,
    label: &'static str,
}

impl Outcome {
    pub fn new(metrics: &Metrics) -> Self {
        Self { metrics: metrics.clone(), label: "cancelled" }
    }

    /// Notes how the request ended.
    pub fn settle<T>(&mut self, result: &Result<T, GenerateError>) {
        self.label = result.as_ref().err().map_or("ok", GenerateError::outcome);
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        self.metrics.generate_requests.with_label_values(&[self.label]).inc();
    }
}
