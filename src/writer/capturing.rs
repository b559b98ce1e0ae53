//! Capturing the edits of a lot together, each failure kept to the edit it belongs to.

use std::time::Instant;

use super::bench::{Bench, passes};
use crate::{
    faults::{self, Point},
    model::Passage,
    panics::caught,
};

/// What capture made of one edit.
pub struct Captured<B: Bench> {
    pub text: B::Text,
    pub factors: B::Factors,
    /// Of the pass that it was part of.
    pub ms: f64,
}

/// Trunk, tail and gradient of each passage, in as few passes as the budget of tokens allows. Where a pass fails as a
/// whole, its passages are tried one by one, so that one edit's failure is not another's.
pub fn capture<B: Bench>(bench: &B, passages: &[Passage], budget: usize) -> Vec<Result<Captured<B>, String>> {
    let mut captured = Vec::with_capacity(passages.len());
    for run in passes(passages.iter(), budget) {
        let run = &passages[run];
        match pass(bench, run) {
            Ok(together) => captured.extend(together),
            Err(error) if run.len() == 1 => captured.push(Err(error)),
            Err(_) => captured.extend(run.iter().map(|passage| match pass(bench, std::slice::from_ref(passage)) {
                Ok(alone) => alone.into_iter().next().unwrap_or_else(|| Err("capture returned nothing".into())),
                Err(error) => Err(error),
            })),
        }
    }
    captured
}

/// One pass; the outer error is the pass's, the inner ones the edits' own.
fn pass<B: Bench>(bench: &B, passages: &[Passage]) -> Result<Vec<Result<Captured<B>, String>>, String> {
    let start = Instant::now();
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
