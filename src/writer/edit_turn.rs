//! A submission's turn: editor, composition, guard, commit, publish.

use std::{sync::Arc, time::Instant};

use tracing::{debug_span, field::Empty};
use uuid::Uuid;

use super::{
    Answer, BatchReport, DeltaReport, GradientReport, RejectedBy, WriterError,
    bench::{Bench, Keys},
    capturing::{Captured, millis},
    command::EditJob,
    echo::Echo,
    judging::Around,
    ledger::{Entry, Ledger, Move, Step},
    task::{Task, Tools, about_to_publish},
};
use crate::{
    digest::Digest,
    faults::{self, Point},
    telemetry::course::number,
    weights::{Contribution, WeightsError},
};

/// An edit whose contribution is computed.
pub struct Computed<B: Bench> {
    pub text: B::Text,
    /// What entered each matrix where the answer begins.
    pub keys: Keys,
    /// Where it speaks.
    pub echo: Option<Echo>,
    pub gradient: Vec<GradientReport>,
    pub bytes: Vec<u8>,
    pub digest: Digest,
    pub delta: Vec<DeltaReport>,
    pub capture_ms: f64,
    pub editor_ms: f64,
}

/// Why a turn ended without a version.
pub enum Stop {
    /// Computing failed, at this edit of the submission if that is known.
    Failed { index: Option<usize>, message: String },
    /// A sum would leave its range.
    Overflow { matrix: String, limit: f64 },
    /// The guard refused at least one edit.
    Rejected { report: BatchReport, by: RejectedBy },
    /// The set is another than the one asked for, the service ends, or the log failed.
    Error(WriterError),
}

impl<E: Into<WriterError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

/// One submission's turn.
pub struct EditTurn<'a, B: Bench> {
    pub tools: Tools<B>,
    pub job: &'a EditJob,
    /// Milliseconds from admission to the turn.
    pub waited_ms: f64,
}

impl<B: Bench> Task<B> {
    /// The way of a submission, from its captured factors to its answer. Whatever this returns, the sums are those of
    /// the newest version when it does.
    pub(super) fn edit_turn(
        &mut self,
        job: &EditJob,
        captured: Vec<Result<Captured<B>, String>>,
    ) -> Result<Answer<BatchReport>, WriterError> {
        let turn = EditTurn::new(&self.tools, job);
        self.try_turn(&turn, captured).map_err(|stop| turn.explain(stop))
    }

    fn try_turn(
        &mut self,
        turn: &EditTurn<'_, B>,
        captured: Vec<Result<Captured<B>, String>>,
    ) -> Result<Answer<BatchReport>, Stop> {
        self.reconcile()?;
        if let Some(row) = self.tools.recorded(turn.job.submission.idempotency.as_ref())? {
            return Ok(Answer::Recorded(row));
        }
        self.expect(turn.job.submission.expected_version)?;
        let mut report = self.make_version(turn, captured)?;
        report.name_every_phase();
        Ok(Answer::Fresh(report))
    }

    /// A turn that ended in a panic. The sums were moved back while it unwound; the log may be ahead of them.
    pub(super) fn after_panic(&mut self, job: &EditJob, panic: String) -> Result<Answer<BatchReport>, WriterError> {
        self.unsettled = true;
        let turn = EditTurn::new(&self.tools, job);
        if let Err(error) = self.reconcile() {
            return Err(turn.explain(Stop::Error(error)));
        }
        if self.ledger.active().contains_key(&job.edits[0].id) {
            return Err(WriterError::Internal(format!("the edit is applied, but its answer was lost: {panic}")));
        }
        Err(turn.explain(Stop::Failed { index: None, message: panic }))
    }

    fn make_version(
        &mut self,
        turn: &EditTurn<'_, B>,
        captured: Vec<Result<Captured<B>, String>>,
    ) -> Result<BatchReport, Stop> {
        let (parts, contributions) = turn.compute(captured)?;
        let replaced: Vec<Option<Uuid>> =
            turn.job.edits.iter().map(|edit| self.ledger.by_prompt(&edit.prompt_key)).collect();
        let (step, how) = turn.step(&self.ledger, &parts, contributions, &replaced)?;

        let (guard_start, guard) = (Instant::now(), debug_span!("guard", rejected = Empty));
        let watch = self.watch(turn, &parts, &step.removed)?;
        let removed = step.removed.clone();
        let current = self.tools.published.current();
        let tried = self.ledger.attempt(step, how, &self.tools.shared.metrics).map_err(|error| uncomposable(&error))?;
        let version = Arc::clone(tried.version());
        faults::reach(Point::Guard).map_err(|error| Stop::Failed { index: None, message: error.to_string() })?;
        let around = Around { before: &current, after: &version };
        let verdicts = turn.judge(&parts, around, &watch, &self.roster, &removed)?;
        let by = verdicts.iter().find_map(|verdict| Some(verdict.objection.as_ref()?.by));
        let mut report = turn.report(&parts, &replaced, &version, verdicts, millis(guard_start));
        guard.record("rejected", by.is_some());
        drop(guard);
        if let Some(by) = by {
            return Err(Stop::Rejected { report, by });
        }
        if turn.job.submission.dry_run {
            turn.finish(&mut report, "dry_run");
            return Ok(report);
        }

        let (commit_start, commit) = (Instant::now(), debug_span!("commit", version = number(version.number)));
        let (row, members) = turn.row(parts, &replaced, &version, &report)?;
        let committed = self.tools.append(self.tools.log.commit(row)).and_then(about_to_publish);
        let commit_ms = millis(commit_start);
        drop(commit);
        let (publish_start, publish) = (Instant::now(), debug_span!("publish"));
        match committed {
            Ok(_) => self.tools.published.publish(tried.settle()),
            Err(error) => {
                drop(tried);
                if !self.committed_after_all(version.number, version.set_digest) {
                    return Err(error.into());
                }
            }
        }
        for edit in &mut report.edits {
            (edit.phases_ms.commit, edit.phases_ms.publish) = (Some(commit_ms), Some(millis(publish_start)));
        }
        drop(publish);
        for (id, (member, text)) in turn.job.edits.iter().map(|edit| edit.id).zip(members) {
            self.roster.enter(id, member, text);
        }
        self.tools.count_reverts("supersede", replaced.iter().flatten().count());
        turn.finish(&mut report, "applied");
        Ok(report)
    }
}

impl<'a, B: Bench> EditTurn<'a, B> {
    /// A turn that begins now.
    pub fn new(tools: &Tools<B>, job: &'a EditJob) -> Self {
        Self { tools: tools.clone(), job, waited_ms: millis(job.received) }
    }

    /// The editor's deltas, as contributions.
    fn compute(
        &self,
        captured: Vec<Result<Captured<B>, String>>,
    ) -> Result<(Vec<Computed<B>>, Vec<Contribution>), Stop> {
        if captured.len() != self.job.edits.len() {
            return Err(Stop::Failed { index: None, message: "its factors were not captured".to_owned() });
        }
        let computed = captured.into_iter().enumerate();
        computed
            .map(|(index, captured)| {
                let _span = debug_span!("editor", edit = %self.job.edits[index].id);
                self.edit(captured).map_err(|message| Stop::Failed { index: Some(index), message })
            })
            .collect()
    }

    fn edit(&self, captured: Result<Captured<B>, String>) -> Result<(Computed<B>, Contribution), String> {
        let Captured { text, factors, ms: capture_ms } = captured?;
        let start = Instant::now();
        self.tools.bench.check(&factors)?;
        let (keys, spectra) = (self.tools.bench.keys(&text, &factors)?, self.tools.bench.spectra(&factors)?);
        faults::reach(Point::Editor).map_err(|error| error.to_string())?;
        let delta = self.tools.bench.edit(&text, &factors)?;
        let contribution = Contribution::from_delta(&delta).map_err(|error| error.to_string())?;
        let delta = self.delta_reports(&contribution).map_err(|error| error.to_string())?;
        let (echo, gradient) = (Echo::new(&contribution, &keys), self.gradient_reports(spectra));
        let bytes = contribution.to_bytes();
        let digest = Digest::of(&bytes);
        let editor_ms = millis(start);
        let computed = Computed { text, keys, echo, gradient, digest, bytes, delta, capture_ms, editor_ms };
        Ok((computed, contribution))
    }

    /// The change of the set, and of the sums.
    fn step(
        &self,
        ledger: &Ledger,
        parts: &[Computed<B>],
        added: Vec<Contribution>,
        replaced: &[Option<Uuid>],
    ) -> Result<(Step, Move), WriterError> {
        let entry = |(edit, part): (&super::admission::AdmittedEdit, &Computed<B>)| Entry {
            id: edit.id,
            digest: part.digest,
            prompt: Some(edit.prompt_key.clone()),
        };
        let step = Step {
            removed: replaced.iter().flatten().copied().collect(),
            added: self.job.edits.iter().zip(parts).map(entry).collect(),
        };
        let stored = self.tools.stored();
        let removed = step.removed.iter().map(|id| Ok(stored.contribution(*id, ledger.sums().shapes())?.1));
        let removed = removed.collect::<Result<Vec<_>, WriterError>>()?;
        Ok((step, Move::By { removed, added }))
    }
}

fn uncomposable(error: &WeightsError) -> Stop {
    match error {
        WeightsError::Overflow { matrix, limit } => Stop::Overflow { matrix: matrix.clone(), limit: *limit },
        other => Stop::Failed { index: None, message: other.to_string() },
    }
}
