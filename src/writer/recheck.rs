//! The recheck: when nothing was submitted for a while, all active edits and canaries are scored under the newest version,
//! a batch at a time, so that what is submitted meanwhile waits for one batch at most. A version is checked once; another
//! one that comes before the end begins anew.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    CanaryDrift, CheckProgress, CheckReport, EditsHealth, LostEdit, TargetFigures,
    bench::{Bench, passes},
    capturing::millis,
    echo::Echo,
    task::Task,
};
use crate::{model::Passage, panics::caught, telemetry::Metrics};

/// Tokens of one batch: a few edits, so that it takes about as long as an edit.
const BATCH_TOKENS: usize = 96;
/// Edits that do not hold, named in a report at most.
const NAMED: usize = 200;

/// Where the recheck stands.
pub struct Recheck {
    /// How long nothing must have been submitted; zero: never.
    idle: Duration,
    /// When something was submitted last.
    active_at: Instant,
    /// The version that was checked to its end, or given up.
    settled: Option<u64>,
    running: Option<Running>,
}

/// A check of one version.
struct Running {
    version: u64,
    edits: Vec<Uuid>,
    canaries: usize,
    /// Canaries, then edits, in this order, scored so far.
    done: usize,
    holding: usize,
    lost: Vec<LostEdit>,
    drifts: Vec<CanaryDrift>,
    milliseconds: f64,
}

impl Running {
    fn left(&self) -> bool {
        self.done < self.canaries + self.edits.len()
    }
}

impl Recheck {
    /// Nothing checked yet.
    pub fn new(idle: Duration) -> Self {
        Self { idle, active_at: Instant::now(), settled: None, running: None }
    }

    /// Something was submitted.
    pub fn disturb(&mut self) {
        self.active_at = Instant::now();
    }

    /// When the next batch is due, if nothing is submitted until then; none where this version needs no more.
    pub fn due(&self, version: u64) -> Option<Instant> {
        let wanted = self.idle > Duration::ZERO && self.settled != Some(version);
        wanted.then(|| self.active_at + self.idle)
    }
}

impl<B: Bench> Task<B> {
    /// Scores one batch. What goes wrong is reported and not tried again for the same version.
    pub(super) fn recheck(&mut self) {
        let version = self.ledger.head();
        let start = Instant::now();
        let ended = caught(|| self.recheck_batch(version)).and_then(|result| result);
        self.tools.shared.metrics.edit_check_batch.observe(start.elapsed().as_secs_f64());
        let mut health = self.tools.shared.health();
        match ended {
            Ok(Some(report)) => {
                observe(&self.tools.shared.metrics, &report);
                *health = EditsHealth { checked: Some(report), checking: None, failed: None };
                self.recheck.settled = Some(version);
            }
            Ok(None) => health.checking = self.recheck.running.as_ref().map(Running::progress),
            Err(message) => {
                tracing::warn!(version, message, "the active edits could not be checked");
                (health.checking, health.failed) = (None, Some(message));
                (self.recheck.running, self.recheck.settled) = (None, Some(version));
            }
        }
    }

    fn recheck_batch(&mut self, version: u64) -> Result<Option<CheckReport>, String> {
        self.follow()?;
        let start = Instant::now();
        let (bench, budget) = (self.tools.bench.as_ref(), self.tools.shared.config.pass_tokens);
        let canaries = self.canaries.all(bench, budget)?;
        let mut running = match self.recheck.running.take() {
            Some(running) if running.version == version => running,
            _ => Running {
                version,
                // The newest first: of them the most is wanted, and the least may have been read.
                edits: self.roster.members().keys().rev().copied().collect(),
                canaries: canaries.len(),
                done: 0,
                holding: 0,
                lost: Vec::new(),
                drifts: Vec::new(),
                milliseconds: 0.0,
            },
        };
        if running.done < running.canaries {
            let passages = canaries[running.done..].iter().map(|canary| &canary.passage);
            let batch = running.done..running.done + first_batch(passages, budget);
            for canary in batch.clone() {
                running.drifts.push(self.drift(&canaries[canary])?);
            }
            running.done = batch.end;
        } else if running.left() {
            let at = running.done - running.canaries;
            let members = self.roster.members();
            let passages = running.edits[at..].iter().filter_map(|id| members.get(id)).map(|member| &member.passage);
            let ids = running.edits[at..at + first_batch(passages, budget)].to_vec();
            self.score(&ids, &mut running)?;
            running.done += ids.len();
        }
        running.milliseconds += millis(start);
        if running.left() {
            self.recheck.running = Some(running);
            return Ok(None);
        }
        Ok(Some(running.report()))
    }

    /// Scores some edits under the newest version.
    fn score(&mut self, ids: &[Uuid], running: &mut Running) -> Result<(), String> {
        let bench = self.tools.bench.as_ref();
        let texts = self.roster.texts(bench, ids, self.tools.shared.config.pass_tokens)?;
        let current = self.tools.published.current();
        let readings = bench.measure(&texts, &*current)?;
        for ((id, text), reading) in ids.iter().zip(&texts).zip(&readings) {
            let now = bench.figures(text, reading)?;
            if now.greedy {
                running.holding += 1;
                continue;
            }
            let member = &self.roster.members()[id];
            let (prompt, target) = (member.prompt.clone(), member.target.clone());
            if running.lost.len() < NAMED {
                running.lost.push(LostEdit { id: *id, prompt, target, now, applied: member.applied });
            }
        }
        self.locate(ids, &texts)
    }

    /// Finds where edits speak whose contribution does not say it: after a restart under a composition that keeps no keys.
    fn locate(&mut self, ids: &[Uuid], texts: &[B::Text]) -> Result<(), String> {
        let unknown = |id: &Uuid| self.roster.members()[id].echo.is_none();
        let (ids, texts): (Vec<Uuid>, Vec<B::Text>) =
            ids.iter().zip(texts).filter(|(id, _)| unknown(id)).map(|(id, text)| (*id, text.clone())).unzip();
        if ids.is_empty() {
            return Ok(());
        }
        let bench = self.tools.bench.as_ref();
        for ((id, text), (_, factors)) in ids.into_iter().zip(&texts).zip(bench.capture(&texts)?) {
            let keys = bench.keys(text, &factors)?;
            let stored = self.tools.stored().contribution(id, self.ledger.sums().shapes());
            let (_, contribution) = stored.map_err(|error| error.to_string())?;
            self.roster.set_echo(id, Echo::new(&contribution, &keys));
        }
        Ok(())
    }

    fn drift(&self, canary: &super::canaries::Canary<B::Text>) -> Result<CanaryDrift, String> {
        let bench = self.tools.bench.as_ref();
        let texts = std::slice::from_ref(&canary.state);
        let (base, current) = (bench.foundation().base, self.tools.published.current());
        let one = |mut readings: Vec<B::Reading>| readings.pop().ok_or("a canary gave no reading");
        let (before, now) = (one(bench.measure(texts, base.as_ref())?)?, one(bench.measure(texts, &*current)?)?);
        let (kl, greedy_unchanged) = bench.divergence(&before, &now)?;
        let figures = |reading: &B::Reading| -> Result<Option<TargetFigures>, String> {
            canary.text.expected.as_ref().map(|_| bench.figures(&canary.state, reading)).transpose()
        };
        let (base, now) = (figures(&before)?, figures(&now)?);
        let (prompt, expected) = (canary.text.prompt.clone(), canary.text.expected.clone());
        Ok(CanaryDrift { prompt, expected, kl, greedy_unchanged, base, now })
    }
}

/// How many of these texts make up the next batch: one at least.
fn first_batch<'a>(passages: impl Iterator<Item = &'a Passage>, budget: usize) -> usize {
    passes(passages, budget.min(BATCH_TOKENS)).first().map_or(0, |run: &Range<usize>| run.len())
}

impl Running {
    fn progress(&self) -> CheckProgress {
        CheckProgress { version: self.version, done: self.done, of: self.canaries + self.edits.len() }
    }

    fn report(self) -> CheckReport {
        let edits = self.edits.len();
        CheckReport {
            version: self.version,
            at: Timestamp::now(),
            milliseconds: self.milliseconds,
            edits,
            holding: self.holding,
            share: (edits > 0).then(|| self.holding as f32 / edits as f32),
            lost: self.lost,
            canaries: self.drifts,
        }
    }
}

fn observe(metrics: &Metrics, report: &CheckReport) {
    let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    metrics.edits_checked.set(count(report.edits));
    metrics.edits_holding.set(count(report.holding));
    metrics.edits_check_version.set(i64::try_from(report.version).unwrap_or(i64::MAX));
    metrics.edits_check_timestamp.set(report.at.as_second());
    metrics.canaries.set(count(report.canaries.len()));
    metrics.canaries_changed.set(count(report.canaries.iter().filter(|canary| !canary.greedy_unchanged).count()));
    let kls = || report.canaries.iter().map(|canary| f64::from(canary.kl));
    metrics.canary_kl.with_label_values(&["max"]).set(kls().fold(0.0, f64::max));
    metrics.canary_kl.with_label_values(&["mean"]).set(kls().sum::<f64>() / report.canaries.len().max(1) as f64);
}
