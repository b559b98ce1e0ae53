//! Capturing the edits of a lot together, each failure kept to the edit it belongs to.

use std::{ops::Range, time::Instant};

use tracing::{Span, debug_span};

use super::bench::{Bench, passes};
use crate::{
    faults::{self, Point},
    model::Passage,
    panics::caught,
    telemetry::course::number,
};

/// What capture made of one edit.
pub struct Captured<B: Bench> {
    pub text: B::Text,
    pub factors: B::Factors,
    /// Of the pass that it was part of.
    pub ms: f64,
}

/// The texts of some edits, and by text the span of whoever asked; one request's stand side by side.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub passages: &'a [Passage],
    pub requests: &'a [&'a Span],
}

impl<'a> Asked<'a> {
    fn part(self, range: Range<usize>) -> Self {
        Self { passages: &self.passages[range.clone()], requests: &self.requests[range] }
    }

    /// One span for each request among them: each spends all of the pass's time.
    fn spans(self) -> Vec<Span> {
        let mut requests: Vec<&'a Span> = self.requests.to_vec();
        requests.dedup_by(|one, other| std::ptr::eq(*one, *other));
        let texts = number(self.passages.len());
        requests.into_iter().map(|request| debug_span!(parent: request, "capture", texts)).collect()
    }
}

/// Trunk, tail and gradient of each passage, in as few passes as the budget of tokens allows. Where a pass fails as a
/// whole, its passages are tried one by one, so that one edit's failure is not another's.
pub fn capture<B: Bench>(bench: &B, texts: Asked<'_>, budget: usize) -> Vec<Result<Captured<B>, String>> {
    let mut captured = Vec::with_capacity(texts.passages.len());
    for run in passes(texts.passages.iter(), budget) {
        match pass(bench, texts.part(run.clone())) {
            Ok(together) => captured.extend(together),
            Err(error) if run.len() == 1 => captured.push(Err(error)),
            Err(_) => captured.extend(run.map(|i| match pass(bench, texts.part(i..i + 1)) {
                Ok(alone) => alone.into_iter().next().unwrap_or_else(|| Err("capture returned nothing".into())),
                Err(error) => Err(error),
            })),
        }
    }
    captured
}

/// One pass; the outer error is the pass's, the inner ones the edits' own.
fn pass<B: Bench>(bench: &B, texts: Asked<'_>) -> Result<Vec<Result<Captured<B>, String>>, String> {
    let (start, passages) = (Instant::now(), texts.passages);
    let _spans = texts.spans();
    let run = || -> Result<_, String> {
        faults::reach(Point::Capture).map_err(|error| error.to_string())?;
        let texts = bench.read(passages)?;
        let captured = bench.capture(&texts)?;
        Ok((texts, captured))
    };
    let (texts, captured) = caught(run)??;
    if captured.len() != passages.len() || texts.len() != passages.len() {
        return Err(format!("{} passages gave {} captures", passages.len(), captured.len()));
    }
    let ms = millis(start);
    let edits = texts.into_iter().zip(captured);
    Ok(edits
        .map(
            |(text, (loss, factors))| {
                if loss.is_finite() { Ok(Captured { text, factors, ms }) } else { Err(format!("the loss is {loss}")) }
            },
        )
        .collect())
}

/// Milliseconds since then.
pub fn millis(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
