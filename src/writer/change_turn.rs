//! The turn of a change that computes nothing new: taking an edit back, rolling the set back.

use std::{collections::BTreeSet, sync::Arc};

use tracing::debug_span;
use uuid::Uuid;

use super::{
    Answer, SetChange, VersionReport, WriterError,
    bench::Bench,
    command::ChangeJob,
    task::{Task, about_to_publish, internal, revert_kind},
};
use crate::{
    edit_log::{IdempotencyRow, NewVersion, Removal},
    telemetry::course::number,
    weights::{Version, WeightsError},
};

/// Status under which an answer is kept for its idempotency key.
const OK: u16 = 200;

impl<B: Bench> Task<B> {
    /// The way of a change, to its answer. Whatever this returns, the sums are those of the newest version when it
    /// does.
    pub(super) fn change_turn(&mut self, job: &ChangeJob) -> Result<Answer<VersionReport>, WriterError> {
        self.reconcile()?;
        if let Some(row) = self.tools.recorded(job.idempotency.as_ref())? {
            return Ok(Answer::Recorded(row));
        }
        self.expect(job.expected_version)?;
        let compose = debug_span!("compose");
        let (removed, restored) = self.difference(job.change)?;
        let (step, how) = self.tools.stored().step(&self.ledger, removed, &restored)?;
        let removed = step.removed.clone();
        let tried = self.ledger.attempt(step, how, &self.tools.shared.metrics).map_err(|error| match error {
            WeightsError::Overflow { matrix, limit } => WriterError::Overflow { matrix, limit },
            other => internal(other),
        })?;
        let version = Arc::clone(tried.version());
        let report = VersionReport { version: version.number, digest: version.digest };
        drop(compose);
        let commit = debug_span!("commit", version = number(version.number));
        let row = set_row(job, &version, &report, &removed, restored)?;
        let committed = self.tools.append(self.tools.log.commit(row)).and_then(about_to_publish);
        drop(commit);
        let _publish = debug_span!("publish");
        match committed {
            Ok(_) => self.tools.published.publish(tried.settle()),
            Err(error) => {
                drop(tried);
                if !self.committed_after_all(version.number, version.set_digest) {
                    return Err(error.into());
                }
            }
        }
        self.tools.count_reverts(revert_kind(job.change), removed.len());
        Ok(Answer::Fresh(report))
    }

    /// The edits that leave the set, and those that come back.
    fn difference(&self, change: SetChange) -> Result<(Vec<Uuid>, Vec<Uuid>), WriterError> {
        match change {
            SetChange::TakeBack(id) if self.ledger.active().contains_key(&id) => Ok((vec![id], Vec::new())),
            SetChange::TakeBack(id) => {
                let row = self.tools.runtime.block_on(self.tools.log.edit(id))?;
                let row = row.ok_or(WriterError::UnknownEdit(id))?;
                Err(WriterError::NotActive { id, status: row.status })
            }
            SetChange::Rollback(number) if number > self.ledger.head() => {
                Err(WriterError::UnknownVersion { number, newest: self.ledger.head() })
            }
            SetChange::Rollback(number) => {
                let then = self.tools.runtime.block_on(self.tools.log.active_set(number))?;
                let now: BTreeSet<Uuid> = self.ledger.active().keys().copied().collect();
                Ok((now.difference(&then).copied().collect(), then.difference(&now).copied().collect()))
            }
        }
    }
}

fn set_row(
    job: &ChangeJob,
    version: &Version,
    report: &VersionReport,
    removed: &[Uuid],
    restored: Vec<Uuid>,
) -> Result<NewVersion, WriterError> {
    let body = serde_json::to_value(report).map_err(internal)?;
    Ok(NewVersion {
        number: version.number,
        kind: job.change.kind(),
        actor: job.actor.clone(),
        digest: version.digest,
        set_digest: version.set_digest,
        edits: Vec::new(),
        restored,
        removed: removed.iter().map(|&edit| Removal { edit, superseded_by: None }).collect(),
        idempotency: job.idempotency.as_ref().map(|idempotency| IdempotencyRow {
            key: idempotency.key.clone(),
            request: idempotency.request,
            http_status: OK,
            body,
        }),
    })
}
