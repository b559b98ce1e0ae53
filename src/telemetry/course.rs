//! Where a request is on its way through a thread that serves many, as spans beside it.

use tracing::{Span, debug_span};

/// One span after the other, each below the span of whoever asked. It travels with the request from thread to thread; when it
/// is dropped, the last of its spans ends.
///
/// The spans are of level debug: where traces are not exported and no debug log is written, each costs a comparison.
#[derive(Debug)]
pub struct Course {
    request: Span,
    stage: Span,
}

impl Course {
    /// The current span's request enters a queue.
    pub fn queued() -> Self {
        let request = Span::current();
        let stage = debug_span!(parent: &request, "queue");
        Self { request, stage }
    }

    /// The span of whoever asked.
    pub fn request(&self) -> &Span {
        &self.request
    }

    /// What it is in now ends, then the next begins, below the span of whoever asked.
    pub fn enter(&mut self, stage: impl FnOnce(&Span) -> Span) {
        self.rest();
        self.stage = stage(&self.request);
    }

    /// What it is in now ends, and nothing begins.
    pub fn rest(&mut self) {
        self.stage = Span::none();
    }

    /// Records a number with what it is in now, which has declared the field.
    pub fn record(&self, field: &str, value: usize) {
        self.stage.record(field, number(value));
    }
}

/// A number as a span's field: OpenTelemetry has no other integers.
pub fn number(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}
