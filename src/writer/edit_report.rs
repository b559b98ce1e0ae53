//! What a submission's turn reports: to the client, to the log, to the metrics.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    BatchReport, DeltaReport, EditReport, GradientReport, PhasesMs, ReportStatus, WriterError,
    bench::Bench,
    capturing::millis,
    echo::Echo,
    edit_turn::{Computed, EditTurn, Stop},
    judging::Verdict,
    measuring::Measured,
    roster::Member,
};
use crate::{
    edit_log::{IdempotencyRow, NewEdit, NewVersion, Outcome, Removal, VersionKind},
    editor::spectrum::Spectrum,
    weights::{Contribution, Version, WeightsError},
};

/// Status under which an applied submission's answer is kept for its idempotency key.
const CREATED: u16 = 201;

/// What the roster takes of an applied edit.
type Entering<B> = Vec<(Member, <B as Bench>::Text)>;

impl<B: Bench> EditTurn<'_, B> {
    /// What a contribution adds to each matrix.
    pub fn delta_reports(&self, contribution: &Contribution) -> Result<Vec<DeltaReport>, WeightsError> {
        let matrices = self.tools.bench.foundation().shapes.into_iter().enumerate();
        let report = |(m, shape): (usize, crate::model::EditableMatrix)| {
            Ok(DeltaReport { matrix: shape.name, norm: contribution.norm(m)?, rank: contribution.rank(m) })
        };
        matrices.map(report).collect()
    }

    /// How each matrix's gradient is spread, by name.
    pub fn gradient_reports(&self, spectra: Vec<Spectrum>) -> Vec<GradientReport> {
        let shapes = self.tools.bench.foundation().shapes;
        let report = |(shape, spectrum): (crate::model::EditableMatrix, Spectrum)| {
            let Spectrum { norm, nuclear_norm, effective_rank } = spectrum;
            GradientReport { matrix: shape.name, norm, nuclear_norm, effective_rank }
        };
        shapes.into_iter().zip(spectra).map(report).collect()
    }

    /// The submission's report, as applied to `version` or, if the guard objects to any edit, as rejected. An applied
    /// submission becomes `version`; all others were only tried on the version before.
    pub fn report(
        &self,
        parts: &[Computed<B>],
        replaced: &[Option<Uuid>],
        version: &Version,
        verdicts: Vec<Verdict>,
        guard_ms: f64,
    ) -> BatchReport {
        let dry_run = self.job.submission.dry_run;
        let refused = verdicts.iter().position(|verdict| verdict.objection.is_some());
        let status = match (refused, dry_run) {
            (Some(_), _) => ReportStatus::Rejected,
            (None, true) => ReportStatus::DryRun,
            (None, false) => ReportStatus::Applied,
        };
        let number = if status == ReportStatus::Applied { version.number } else { version.number - 1 };
        let edits = self.job.edits.iter().zip(parts).zip(replaced).zip(verdicts);
        let report =
            |(((edit, part), replaced), verdict): (((&super::admission::AdmittedEdit, _), &Option<Uuid>), _)| {
                let part: &Computed<B> = part;
                let Verdict { figures, holding, conflicts, objection } = verdict;
                observe_figures(&self.tools.shared.metrics, &figures);
                let reason = objection
                    .map(|objection| objection.reason)
                    .or_else(|| refused.map(|other| self.not_alone("was rejected", other)));
                EditReport {
                    id: edit.id,
                    status,
                    version: number,
                    digest: version.digest,
                    supersedes: *replaced,
                    prompt: figures.prompt,
                    paraphrases: figures.paraphrases,
                    locality: figures.locality,
                    conflicts,
                    holding,
                    delta: part.delta.clone(),
                    gradient: part.gradient.clone(),
                    phases_ms: self.phases(part, guard_ms),
                    reason,
                }
            };
        BatchReport { version: number, digest: version.digest, edits: edits.map(report).collect() }
    }

    /// The row of an applied submission, and its edits for the roster. Its phases end before the commit, whose time can not be part of what it
    /// writes.
    pub fn row(
        &self,
        parts: Vec<Computed<B>>,
        replaced: &[Option<Uuid>],
        version: &Version,
        report: &BatchReport,
    ) -> Result<(NewVersion, Entering<B>), WriterError> {
        let mut edits = self.rows(report, |_| Outcome::Applied)?;
        let mut members = Vec::with_capacity(edits.len());
        for (i, (edit, part)) in edits.iter_mut().zip(parts).enumerate() {
            edit.contribution = Some(part.bytes);
            members.push((self.member(i, &report.edits[i], part.echo), part.text));
        }
        let removed = self.job.edits.iter().zip(replaced).filter_map(|(edit, replaced)| {
            replaced.map(|edit_replaced| Removal { edit: edit_replaced, superseded_by: Some(edit.id) })
        });
        let submission = &self.job.submission;
        let body = if submission.batch { value(report)? } else { value(&report.edits[0])? };
        let idempotency = submission.idempotency.as_ref().map(|idempotency| IdempotencyRow {
            key: idempotency.key.clone(),
            request: idempotency.request,
            http_status: CREATED,
            body,
        });
        let row = NewVersion {
            number: version.number,
            kind: VersionKind::Edit,
            actor: submission.actor.clone(),
            digest: version.digest,
            set_digest: version.set_digest,
            edits,
            restored: Vec::new(),
            removed: removed.collect(),
            idempotency,
        };
        Ok((row, members))
    }

    fn member(&self, index: usize, report: &EditReport, echo: Option<Echo>) -> Member {
        let (edit, request) = (&self.job.edits[index], &self.job.submission.edits[index]);
        Member {
            prompt: request.prompt.clone(),
            target: request.target.clone(),
            passage: edit.passage.clone(),
            minimum: self.tools.shared.config.limits(&request.guard).min_probability,
            applied: Some(report.prompt.after),
            echo,
        }
    }

    /// Writes down a turn that ended without a version, and what to answer. A dry run leaves no trace.
    pub fn explain(&self, stop: Stop) -> WriterError {
        match stop {
            Stop::Error(error) => {
                // Someone may look for the edits by ids that were given out. After a commit whose fate is open they
                // may be in the log already, which then refuses this.
                if let Err(unrecorded) = self.record_failure(None, &error.to_string()) {
                    tracing::warn!(id = %self.job.edits[0].id, %error, %unrecorded, "a refused edit is not in the log");
                }
                error
            }
            Stop::Rejected { mut report, by } => {
                self.finish(&mut report, "rejected");
                let reasons = report.edits.iter().filter_map(|edit| edit.reason.as_deref());
                let reason = reasons.clone().find(|text| !text.starts_with(NOT_ALONE)).unwrap_or_default().to_owned();
                let outcome = |edit: &EditReport| Outcome::Rejected(edit.reason.clone().unwrap_or_default());
                match self.rows(&report, outcome).and_then(|rows| self.record(rows)) {
                    Err(error) => error,
                    Ok(()) => {
                        report.name_every_phase();
                        let batch = self.job.submission.batch;
                        WriterError::Rejected { reason, by, report: Box::new(report), batch }
                    }
                }
            }
            Stop::Failed { index, message } => {
                let id = self.job.edits[index.unwrap_or(0)].id;
                let message = self.located(index, message);
                match self.record_failed(index, &message) {
                    Err(error) => error,
                    Ok(()) => WriterError::Failed { id, message },
                }
            }
            Stop::Overflow { matrix, limit } => {
                let error = WriterError::Overflow { matrix, limit };
                self.record_failed(None, &self.located(None, error.to_string())).err().unwrap_or(error)
            }
        }
    }

    /// Completes the timings and counts the edits under an outcome.
    pub fn finish(&self, report: &mut BatchReport, outcome: &str) {
        self.tools.shared.count(outcome, report.edits.len());
        for edit in &mut report.edits {
            edit.phases_ms.total = millis(self.job.received);
            observe_phases(&self.tools.shared.metrics, &edit.phases_ms);
        }
    }

    fn phases(&self, part: &Computed<B>, guard_ms: f64) -> PhasesMs {
        let (capture, editor) = (part.capture_ms, part.editor_ms);
        // Everything before the turn that was not this edit's own capture was waiting, also for others of its lot.
        let queue = (self.waited_ms - capture).max(0.0);
        PhasesMs {
            queue,
            capture,
            editor,
            guard: guard_ms,
            commit: None,
            publish: None,
            total: millis(self.job.received),
        }
    }

    /// A message that says so where it is about one of several edits, but not known which.
    fn located(&self, index: Option<usize>, message: String) -> String {
        match index {
            None if self.job.edits.len() > 1 => format!("{message} (this or another edit of the batch)"),
            _ => message,
        }
    }

    fn not_alone(&self, what: &str, other: usize) -> String {
        format!("{NOT_ALONE}edits[{other}] ({}) of the same batch {what}", self.job.edits[other].id)
    }

    fn rows(
        &self,
        report: &BatchReport,
        outcome: impl Fn(&EditReport) -> Outcome,
    ) -> Result<Vec<NewEdit>, WriterError> {
        let reports = report.edits.iter().enumerate();
        reports.map(|(i, edit)| self.new_edit(i, value(edit)?, outcome(edit))).collect()
    }

    fn record_failed(&self, index: Option<usize>, message: &str) -> Result<(), WriterError> {
        self.tools.shared.count("failed", self.job.edits.len());
        tracing::warn!(id = %self.job.edits[index.unwrap_or(0)].id, message, "an edit failed");
        self.record_failure(index, message)
    }

    /// Writes the message down for the edit that it is about, or for all.
    fn record_failure(&self, index: Option<usize>, message: &str) -> Result<(), WriterError> {
        let row = |i: usize| {
            let reason = match index {
                Some(index) if index != i => self.not_alone("failed", index),
                _ => message.to_owned(),
            };
            let total = millis(self.job.received);
            let report = json!({
                "id": self.job.edits[i].id, "status": "failed", "reason": reason,
                "phases_ms": { "queue": self.waited_ms, "total": total },
            });
            self.new_edit(i, report, Outcome::Failed(reason))
        };
        self.record((0..self.job.edits.len()).map(row).collect::<Result<_, _>>()?)
    }

    fn record(&self, rows: Vec<NewEdit>) -> Result<(), WriterError> {
        if self.job.submission.dry_run {
            return Ok(());
        }
        Ok(self.tools.append(self.tools.log.record(rows))?)
    }

    fn new_edit(&self, index: usize, report: Value, outcome: Outcome) -> Result<NewEdit, WriterError> {
        let (edit, request) = (&self.job.edits[index], &self.job.submission.edits[index]);
        let received_at: Timestamp = self.job.received_at;
        Ok(NewEdit {
            id: edit.id,
            received_at,
            actor: self.job.submission.actor.clone(),
            prompt: edit.prompt_key.clone(),
            target: request.target.clone(),
            request: value(request)?,
            report,
            outcome,
            contribution: None,
        })
    }
}

/// Begins the reason of an edit that has none of its own.
const NOT_ALONE: &str = "not applied, because ";

fn value<T: Serialize>(of: &T) -> Result<Value, WriterError> {
    serde_json::to_value(of).map_err(super::task::internal)
}

fn observe_figures(metrics: &crate::telemetry::Metrics, figures: &Measured) {
    metrics.edit_success_probability.observe(f64::from(figures.prompt.after.probability));
    for probe in &figures.locality {
        metrics.edit_locality_kl.observe(f64::from(probe.kl));
    }
}

fn observe_phases(metrics: &crate::telemetry::Metrics, phases: &PhasesMs) {
    let PhasesMs { queue, capture, editor, guard, commit, publish, total } = *phases;
    let named = [("queue", queue), ("capture", capture), ("editor", editor), ("guard", guard), ("total", total)];
    let reached = [("commit", commit), ("publish", publish)];
    let reached = reached.into_iter().filter_map(|(phase, ms)| ms.map(|ms| (phase, ms)));
    for (phase, ms) in named.into_iter().chain(reached) {
        metrics.edit_duration.with_label_values(&[phase]).observe(ms / 1e3);
    }
}
