//! A submission's judgement: which active edits and canaries are watched beside it, what the figures say, and what the
//! policies make of it.

use std::sync::Arc;

use uuid::Uuid;

use super::{
    BrokenCanary, BrokenEdit, HoldingReport, Policy, RejectedBy,
    bench::Bench,
    canaries::Canary,
    conflicts::{self, Conflict, ConflictReason, Newcomer, Search, same_answer},
    edit_turn::{Computed, EditTurn, Stop},
    guard::Limits,
    holding::CanaryFigures,
    measuring::{Measured, Measuring, Want, Watched, WatchedFigures},
    roster::{Member, Roster},
    task::Task,
};
use crate::weights::Version;

/// One edit's figures, what it does to others, and the guard's objection, if it has any.
pub struct Verdict {
    pub figures: Measured,
    /// None where its policy did not ask for it.
    pub holding: Option<HoldingReport>,
    pub conflicts: Vec<Conflict>,
    pub objection: Option<Objection>,
}

/// Why the guard rejects an edit.
pub struct Objection {
    pub by: RejectedBy,
    pub reason: String,
}

/// What is watched beside a submission's own texts.
pub struct Watch<T> {
    /// By edit of the submission: how like it the active edits are.
    similar: Vec<Vec<(Uuid, f32)>>,
    edits: Vec<(Uuid, Arc<Member>, T)>,
    canaries: Arc<[Canary<T>]>,
}

/// The versions around a submission.
#[derive(Clone, Copy)]
pub struct Around<'a> {
    /// The one that it goes on.
    pub before: &'a Version,
    /// The one that it would make.
    pub after: &'a Version,
}

impl<B: Bench> Task<B> {
    /// Chooses what is watched: a sample of the active edits that stay, and every canary.
    pub(super) fn watch(
        &mut self,
        turn: &EditTurn<'_, B>,
        parts: &[Computed<B>],
        replaced: &[Uuid],
    ) -> Result<Watch<B::Text>, Stop> {
        if let Err(error) = self.follow() {
            // The others are watched all the same, and the report says how many they were.
            tracing::warn!(error, "not every active edit can be watched");
        }
        let (bench, config) = (self.tools.bench.as_ref(), &self.tools.shared.config);
        let similar: Vec<_> = parts.iter().map(|part| self.roster.similarities(&part.keys)).collect();
        let wanted = turn.limits().any(|limits| limits.on_break != Policy::Off);
        if !wanted {
            return Ok(Watch { similar, edits: Vec::new(), canaries: Arc::new([]) });
        }
        // The same set draws the same sample.
        let seed = self.ledger.set_digest();
        let ids = self.roster.sample(config.guard_sample, &similar, replaced, seed);
        let texts = self.roster.texts(bench, &ids, config.pass_tokens);
        let canaries = self.canaries.all(bench, config.pass_tokens);
        let failed = |message| Stop::Failed { index: None, message };
        let (texts, canaries) = (texts.map_err(failed)?, canaries.map_err(failed)?);
        let members = self.roster.members();
        let edits = ids.into_iter().zip(texts).map(|(id, text)| (id, Arc::clone(&members[&id]), text)).collect();
        Ok(Watch { similar, edits, canaries })
    }

    /// Brings the roster to the ledger's set.
    pub(super) fn follow(&mut self) -> Result<(), String> {
        let (tools, shapes) = (&self.tools, self.ledger.sums().shapes());
        self.roster.follow(self.ledger.active(), |id| {
            let row = tools.runtime.block_on(tools.log.edit(id)).map_err(|error| error.to_string())?;
            let row = row.ok_or("it is not in the log")?;
            let member = Member::from_row(&row, tools.bench.as_ref(), &tools.shared.config)?;
            let (_, contribution) = tools.stored().contribution(id, shapes).map_err(|error| error.to_string())?;
            Ok(member.with_contribution(&contribution))
        })
    }
}

impl<B: Bench> EditTurn<'_, B> {
    /// The limits of each edit.
    pub(super) fn limits(&self) -> impl Iterator<Item = Limits> {
        self.job.submission.edits.iter().map(|request| self.tools.shared.config.limits(&request.guard))
    }

    /// Measures every edit and what is watched beside it, and holds the figures against the limits and policies.
    pub(super) fn judge(
        &self,
        parts: &[Computed<B>],
        around: Around<'_>,
        watch: &Watch<B::Text>,
        roster: &Roster<B::Text>,
        replaced: &[Uuid],
    ) -> Result<Vec<Verdict>, Stop> {
        let (submission, config) = (&self.job.submission, &self.tools.shared.config);
        let measuring =
            Measuring { bench: self.tools.bench.as_ref(), config, before: around.before, after: around.after };
        let prompts = parts.iter().map(|part| part.text.clone()).collect();
        let share = self.limits().map(|limits| limits.min_share).fold(0.0, f32::max);
        let (measured, watched) = measuring
            .run(submission, &self.job.edits, prompts, watch.texts(share))
            .map_err(|(index, message)| Stop::Failed { index, message })?;
        let base = self.tools.bench.foundation().base;
        let search = Search {
            bench: self.tools.bench.as_ref(),
            roster,
            replaced,
            current: around.before,
            base: base.as_ref(),
            threshold: config.conflict_similarity,
            budget: config.pass_tokens,
        };
        let verdicts = measured.into_iter().zip(self.limits()).enumerate().map(|(i, (figures, limits))| {
            let conflicts = match limits.on_conflict {
                Policy::Off => Vec::new(),
                Policy::Warn | Policy::Reject => self.conflicts(i, parts, &figures, watch, &search)?,
            };
            let holding = (limits.on_break != Policy::Off).then(|| watch.report(&watched, &limits));
            let objection = object(&limits, &figures, holding.as_ref(), &conflicts);
            Ok(Verdict { figures, holding, conflicts, objection })
        });
        let verdicts = verdicts.collect::<Result<Vec<_>, Stop>>()?;
        self.count(&verdicts);
        Ok(verdicts)
    }

    /// An edit's conflicts with active edits and with earlier ones of its submission.
    fn conflicts(
        &self,
        index: usize,
        parts: &[Computed<B>],
        figures: &Measured,
        watch: &Watch<B::Text>,
        search: &Search<'_, B>,
    ) -> Result<Vec<Conflict>, Stop> {
        let requests = &self.job.submission.edits;
        let request = &requests[index];
        let new = Newcomer { request, similar: &watch.similar[index], leading: figures.leading };
        let mut found = search.conflicts(&new).map_err(|message| Stop::Failed { index: Some(index), message })?;
        for (peer, other) in requests.iter().enumerate().take(index) {
            let similarity = parts[peer].echo.as_ref().map(|echo| echo.similarity(&parts[index].keys));
            if similarity.is_some_and(|similarity| similarity >= search.threshold) {
                let (prompt, target) = (other.prompt.clone(), other.target.clone());
                let same_target = same_answer(&target, &request.target);
                let (edit, reason) = (self.job.edits[peer].id, ConflictReason::Paraphrase);
                found.push(Conflict { edit, reason, similarity, prompt, target, same_target });
            }
        }
        Ok(found)
    }

    fn count(&self, verdicts: &[Verdict]) {
        let metrics = &self.tools.shared.metrics;
        // Each edit of a submission reports the same others.
        if let Some(holding) = verdicts.iter().find_map(|verdict| verdict.holding.as_ref()) {
            metrics.edit_breaks.with_label_values(&["edit"]).inc_by(holding.broken_edits.len() as u64);
            metrics.edit_breaks.with_label_values(&["canary"]).inc_by(holding.broken_canaries.len() as u64);
        }
        for conflict in verdicts.iter().flat_map(|verdict| &verdict.conflicts) {
            metrics.edit_conflicts.with_label_values(&[conflict.reason.as_str()]).inc();
        }
    }
}

impl<T: Clone> Watch<T> {
    /// The edits, then the canaries; `share` is the largest that an edit must keep by any of the limits. An edit that is
    /// greedy after and at least that probable has lost no more, whatever it was before.
    fn texts(&self, share: f32) -> Vec<Watched<'_, T>> {
        let edits = self.edits.iter().map(|(_, member, text)| Watched {
            label: member.prompt.as_str(),
            passage: &member.passage,
            text: text.clone(),
            want: Want::TargetBelow(share.max(member.minimum.unwrap_or(0.0))),
        });
        let canaries = self.canaries.iter().map(|canary| Watched {
            label: canary.text.prompt.as_str(),
            passage: &canary.passage,
            text: canary.state.clone(),
            want: Want::Everything,
        });
        edits.chain(canaries).collect()
    }

    /// What of it breaks, by an edit's limits; `figures` are of [`Watch::texts`].
    fn report(&self, figures: &[WatchedFigures], limits: &Limits) -> HoldingReport {
        let (of_edits, of_canaries) = figures.split_at(self.edits.len());
        let broken_edits = self.edits.iter().zip(of_edits).filter_map(|((id, member, _), figures)| {
            let (before, after) = figures.target?;
            let reason = limits.break_of_edit(before, after, member.minimum)?;
            let (prompt, target) = (member.prompt.clone(), member.target.clone());
            Some(BrokenEdit { edit: *id, prompt, target, reason, before, after })
        });
        let broken_canaries = self.canaries.iter().zip(of_canaries).filter_map(|(canary, figures)| {
            let (kl, greedy_unchanged) = figures.divergence?;
            let reason = limits.break_of_canary(&CanaryFigures { expected: figures.target, kl, greedy_unchanged })?;
            let (prompt, expected) = (canary.text.prompt.clone(), canary.text.expected.clone());
            let (before, after) = figures.target.unzip();
            Some(BrokenCanary { prompt, expected, reason, kl, before, after })
        });
        HoldingReport {
            edits_checked: self.edits.len(),
            canaries_checked: self.canaries.len(),
            broken_edits: broken_edits.collect(),
            broken_canaries: broken_canaries.collect(),
        }
    }
}

/// Why an edit is rejected, if it is: every reason, under the name of the first.
fn object(
    limits: &Limits,
    figures: &Measured,
    holding: Option<&HoldingReport>,
    conflicts: &[Conflict],
) -> Option<Objection> {
    let own = limits.objection(figures.prompt.after, &figures.locality);
    let breaks = holding.filter(|_| limits.on_break == Policy::Reject).and_then(HoldingReport::objection);
    let conflicts = if limits.on_conflict == Policy::Reject { conflicts::objection(conflicts) } else { None };
    let all = [(RejectedBy::Limits, own), (RejectedBy::Breaks, breaks), (RejectedBy::Conflicts, conflicts)];
    let mut reasons = all.into_iter().filter_map(|(by, reason)| Some((by, reason?)));
    let (by, mut reason) = reasons.next()?;
    for (_, more) in reasons {
        reason.push_str("; ");
        reason.push_str(&more);
    }
    Some(Objection { by, reason })
}
