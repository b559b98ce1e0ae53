//! What an edit does to others: the guard over the composed weights, conflicts, and the recheck at idle.

use std::time::Instant;

use super::*;
use crate::{
    edit_log::EditStatus,
    writer::{
        BreakReason, CanaryText, CheckReport, ConflictReason, GuardLimits, Policy, RejectedBy, ReportStatus,
        bench::{Bench, Texts},
    },
};

/// An edit under these policies.
fn guarded(prompt: &str, target: &str, guard: GuardLimits) -> EditRequest {
    EditRequest { guard: Guard::Limits(guard), ..edit(prompt, target) }
}

fn on_break(policy: Policy) -> GuardLimits {
    GuardLimits { on_break: Some(policy), ..GuardLimits::default() }
}

fn canary(prompt: &str, expected: Option<&str>) -> CanaryText {
    CanaryText { prompt: prompt.into(), expected: expected.map(Into::into) }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_that_breaks_an_earlier_one_is_applied_with_a_warning_by_default() {
    let world = World::new().await;
    let first = world.edit("ALIKE one is", "red").await;
    assert!(first.prompt.after.greedy);
    let holding = first.holding.unwrap();
    assert_eq!((holding.edits_checked, holding.canaries_checked, holding.broken_edits.len()), (0, 0, 0));
    let second = world.edit("ALIKE two is", "blue").await;
    assert_eq!(second.status, ReportStatus::Applied);
    let holding = second.holding.clone().unwrap();
    assert_eq!((holding.edits_checked, holding.broken_edits.len()), (1, 1));
    let broken = &holding.broken_edits[0];
    assert_eq!((broken.edit, broken.reason), (first.id, BreakReason::NoLongerGreedy));
    assert_eq!((broken.prompt.as_str(), broken.target.as_str()), ("ALIKE one is", "red"));
    assert_eq!(broken.before, first.prompt.after, "as it stood before the edit");
    assert!(!broken.after.greedy && broken.after.probability < broken.before.probability);
    let stored: EditReport = serde_json::from_value(world.row(second.id).await.report).unwrap();
    assert_eq!(serde_json::to_value(stored.holding).unwrap(), serde_json::to_value(second.holding).unwrap());
    assert_eq!(world.metrics.edit_breaks.with_label_values(&["edit"]).get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_that_breaks_an_earlier_one_is_rejected_where_the_policy_says_so() {
    let world = World::new().await;
    let first = world.edit("ALIKE one is", "red").await;
    let before = world.check().await;
    let request = guarded("ALIKE two is", "blue", on_break(Policy::Reject));
    let error = world.run(single(request.clone())).await.unwrap_err();
    let WriterError::Rejected { reason, by, report, .. } = error else { panic!("{error}") };
    assert_eq!(by, RejectedBy::Breaks);
    assert!(reason.contains("1 of 1 active edits") && reason.contains(&first.id.to_string()), "{reason}");
    assert_eq!(report.edits[0].holding.as_ref().unwrap().broken_edits[0].edit, first.id);
    assert_eq!(world.check().await, before);
    let row = world.row(report.edits[0].id).await;
    assert_eq!((row.status, row.reason.as_deref()), (EditStatus::Rejected, Some(reason.as_str())));
    // What leaves the set in the same version can not be broken.
    world.run(single(guarded("ALIKE one is", "blue", on_break(Policy::Reject)))).await.unwrap();
    let off = world.run(single(guarded("ALIKE three is", "red", on_break(Policy::Off)))).await.unwrap();
    assert!(off.edits[0].holding.is_none());
    let off = world.run(single(EditRequest { guard: Guard::Off, ..edit("ALIKE four is", "blue") })).await.unwrap();
    assert!(off.edits[0].holding.is_none() && off.edits[0].conflicts.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_policy_holds_where_a_request_has_none() {
    let world = World::with(WriterConfig { on_break: Policy::Reject, ..config() }).await;
    world.edit("ALIKE one is", "red").await;
    let error = world.run(single(edit("ALIKE two is", "blue"))).await.unwrap_err();
    assert!(matches!(error, WriterError::Rejected { by: RejectedBy::Breaks, .. }), "{error}");
    // Those of one batch do not break each other: none of them is active yet.
    world.run(batch(vec![edit("HALFALIKE one is", "red"), edit("HALFALIKE two is", "red")])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_active_edits_own_minimum_counts() {
    let world = World::with(WriterConfig { min_share: 0.0, ..config() }).await;
    let dry = Submission { dry_run: true, ..single(edit("one is", "red")) };
    let probability = world.run(dry).await.unwrap().edits[0].prompt.after.probability;
    let least = GuardLimits { min_probability: Some(0.999 * probability), ..GuardLimits::default() };
    let first = world.run(single(guarded("one is", "red", least))).await.unwrap().edits.remove(0);
    for i in 0..40 {
        let broken = world.edit(&format!("city number {i} is"), "blue").await.holding.unwrap().broken_edits;
        if let Some(broken) = broken.first() {
            assert_eq!((broken.edit, broken.reason), (first.id, BreakReason::BelowMinimum));
            assert!(broken.after.greedy && broken.after.probability < 0.999 * probability, "{broken:?}");
            return;
        }
    }
    panic!("nothing took away a thousandth of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn canaries_are_watched_and_can_reject() {
    let canaries = vec![canary("ALIKE canary", None), canary("far away", Some("old"))];
    let world = World::with(WriterConfig { canaries: canaries.clone(), ..config() }).await;
    let report = world.edit("ALIKE one is", "red").await;
    let holding = report.holding.unwrap();
    assert_eq!((holding.canaries_checked, holding.broken_canaries.len()), (2, 1), "{holding:?}");
    let broken = &holding.broken_canaries[0];
    assert_eq!((broken.prompt.as_str(), broken.reason), ("ALIKE canary", BreakReason::AnswerChanged));
    assert!(broken.kl > 0.1 && broken.before.is_none(), "{broken:?}");
    assert_eq!(world.metrics.edit_breaks.with_label_values(&["canary"]).get(), 1);
    let world = World::with(WriterConfig { canaries, on_break: Policy::Reject, ..config() }).await;
    let error = world.run(single(edit("ALIKE one is", "red"))).await.unwrap_err();
    assert!(error.to_string().contains("canary \"ALIKE canary\""), "{error}");
    assert_eq!(world.newest().await.number, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_no_edit_could_probe_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("log.db").display());
    let log = Arc::new(SqliteLog::open(&url).await.unwrap());
    let config = WriterConfig { canaries: vec![canary("fine", None), canary(" ", None)], ..config() };
    let refused =
        start_with(SmallBench::default(), log as _, Place::Alone, config, Metrics::new()).await.err().unwrap();
    assert_eq!(refused.to_string(), "canaries[1].prompt: must not be empty");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_has_the_most_similar_edit_and_no_more_than_asked_for() {
    let world = World::with(WriterConfig { guard_sample: 1, ..config() }).await;
    let mut alike = None;
    for i in 0..12 {
        let prompt = if i == 5 { "ALIKE one is".to_owned() } else { format!("city number {i} is") };
        let report = world.edit(&prompt, "red").await;
        alike = if i == 5 { Some(report.id) } else { alike };
        assert_eq!(report.holding.unwrap().edits_checked, usize::from(i > 0));
    }
    let broken = world.edit("ALIKE two is", "blue").await.holding.unwrap().broken_edits;
    assert_eq!(broken.iter().map(|broken| Some(broken.edit)).collect::<Vec<_>>(), [alike]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_set_is_sampled_alike_by_another_process() {
    // Whatever takes anything from an edit breaks it, so that the sample shows.
    let limits = || WriterConfig { guard_sample: 3, min_share: 1.0, ..config() };
    let world = World::with(limits()).await;
    for i in 0..12 {
        world.edit(&format!("city number {i} is"), "red").await;
    }
    let dry = || Submission { dry_run: true, ..single(edit("the last city is", "blue")) };
    let named = |report: BatchReport| {
        let broken = report.edits[0].holding.clone().unwrap().broken_edits;
        broken.iter().map(|broken| (broken.edit, broken.before.probability)).collect::<Vec<_>>()
    };
    let before = named(world.run(dry()).await.unwrap());
    assert!(!before.is_empty() && before.len() <= 3, "{before:?}");
    // The small bench's composition keeps no keys: who is near is known again once it was rechecked.
    let world = world.restart(WriterConfig { recheck_idle: Duration::from_millis(20), ..limits() }).await;
    checked(&world, 12).await;
    assert_eq!(named(world.run(dry()).await.unwrap()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paraphrase_of_an_active_edit_is_reported() {
    let world = World::new().await;
    let first = world.edit("ALIKE one is", "red").await;
    assert!(first.conflicts.is_empty());
    let other = world.edit("the sea was", "blue").await;
    assert!(other.conflicts.is_empty(), "{:?}", other.conflicts);
    let second = world.edit("ALIKE two is", "red").await;
    assert_eq!(second.conflicts.len(), 1, "{:?}", second.conflicts);
    let conflict = &second.conflicts[0];
    assert_eq!((conflict.edit, conflict.reason), (first.id, ConflictReason::Paraphrase));
    assert!(conflict.same_target && conflict.similarity.unwrap() > 0.99, "{conflict:?}");
    assert_eq!((conflict.prompt.as_str(), conflict.target.as_str()), ("ALIKE one is", "red"));
    // The one that is replaced is no conflict.
    let again = world.edit("ALIKE one is", "red").await;
    assert_eq!(again.conflicts.iter().map(|conflict| conflict.edit).collect::<Vec<_>>(), [second.id]);
    assert_eq!(world.metrics.edit_conflicts.with_label_values(&["paraphrase"]).get(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_an_active_edit_gives_is_a_contradiction() {
    let world = World::with(WriterConfig { conflict_similarity: 1.0, ..config() }).await;
    let first = world.edit("HALFALIKE one is", "red").await;
    let second = world.edit("ALIKE two is", "blue").await;
    let found: Vec<_> = second.conflicts.iter().map(|conflict| (conflict.edit, conflict.reason)).collect();
    assert_eq!(found, [(first.id, ConflictReason::Contradiction)], "{:?}", second.conflicts);
    assert!(!second.conflicts[0].same_target && second.conflicts[0].target == "red");
    let similarity = second.conflicts[0].similarity.unwrap();
    assert!(similarity > 0.2 && similarity < 1.0, "{similarity}");
    let agreeing = World::with(WriterConfig { conflict_similarity: 1.0, ..config() }).await;
    agreeing.edit("HALFALIKE one is", "red").await;
    let same = agreeing.edit("ALIKE two is", " red").await.conflicts;
    assert!(same.is_empty(), "it asks for the same answer: {same:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_model_said_without_any_edit_contradicts_nothing() {
    let world = World::with(WriterConfig { conflict_similarity: 1.0, ..config() }).await;
    // Which word the base says to this prompt, an edit of another prompt says too.
    let said = base_answer("the sea was");
    world.edit("a far off place had", &said).await;
    let report = world.edit("the sea was", "another").await;
    assert!(report.conflicts.is_empty(), "{:?}", report.conflicts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_refused_where_the_policy_says_so() {
    let world = World::with(WriterConfig { on_conflict: Policy::Reject, on_break: Policy::Off, ..config() }).await;
    let first = world.edit("ALIKE one is", "red").await;
    let error = world.run(single(edit("ALIKE two is", "blue"))).await.unwrap_err();
    let WriterError::Rejected { reason, by, report, .. } = error else { panic!("{error}") };
    assert_eq!(by, RejectedBy::Conflicts);
    assert!(reason.contains(&first.id.to_string()) && reason.contains("similarity 1.00"), "{reason}");
    assert!(!report.edits[0].conflicts.is_empty());
    let warn = GuardLimits { on_conflict: Some(Policy::Warn), ..GuardLimits::default() };
    world.run(single(guarded("ALIKE two is", "blue", warn))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn paraphrases_within_a_batch_are_reported() {
    let world = World::new().await;
    let report = world.run(batch(vec![edit("ALIKE one is", "red"), edit("ALIKE two is", "blue")])).await.unwrap();
    assert!(report.edits[0].conflicts.is_empty());
    let found: Vec<_> = report.edits[1].conflicts.iter().map(|c| (c.edit, c.reason, c.same_target)).collect();
    assert_eq!(found, [(report.edits[0].id, ConflictReason::Paraphrase, false)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spread_of_the_gradient_is_reported_and_kept() {
    let world = World::new().await;
    let report = world.edit("Paris is", "red").await;
    let names: Vec<&str> = report.gradient.iter().map(|gradient| gradient.matrix.as_str()).collect();
    assert_eq!(names, ["head", "other"]);
    let first = &report.gradient[0];
    assert!((first.nuclear_norm - 1.0).abs() < 1e-5, "the probabilities of the small bench add up to one");
    assert!(first.effective_rank > 1.0 && first.effective_rank <= 16.0 && first.norm < first.nuclear_norm);
    assert_eq!((report.gradient[1].norm, report.gradient[1].effective_rank), (0.5, 1.0));
    let row = world.row(report.id).await;
    assert_eq!(row.report["gradient"], serde_json::to_value(&report.gradient).unwrap());
}

/// Rechecks as soon as nothing happens.
fn eager() -> WriterConfig {
    WriterConfig { recheck_idle: Duration::from_millis(20), ..config() }
}

/// Waits for a complete check of a version.
async fn checked(world: &World, version: u64) -> CheckReport {
    let begun = Instant::now();
    loop {
        let health = world.started.handle.health();
        if let Some(report) = health.checked.filter(|report| report.version == version) {
            return report;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "no check of version {version}: {:?}", health.failed);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_idle_all_active_edits_are_scored_and_those_that_do_not_hold_are_named() {
    let world = World::with(WriterConfig { canaries: vec![canary("ALIKE canary", Some("red"))], ..eager() }).await;
    let empty = checked(&world, 0).await;
    assert_eq!((empty.edits, empty.holding, empty.share), (0, 0, None));
    assert_eq!((empty.canaries[0].kl, empty.canaries[0].greedy_unchanged), (0.0, true));
    let first = world.edit("ALIKE one is", "red").await;
    let second = world.edit("ALIKE two is", "blue").await;
    let report = checked(&world, 2).await;
    assert_eq!((report.version, report.edits, report.holding, report.share), (2, 2, 1, Some(0.5)));
    let lost = &report.lost[0];
    assert_eq!((lost.id, lost.target.as_str(), report.lost.len()), (first.id, "red", 1));
    assert_eq!(lost.applied, Some(first.prompt.after));
    assert!(!lost.now.greedy && lost.now.probability < lost.applied.unwrap().probability);
    let drift = &report.canaries[0];
    assert!(drift.kl > 0.1 && !drift.greedy_unchanged && drift.expected.as_deref() == Some("red"), "{drift:?}");
    assert_eq!((drift.base.unwrap().greedy, drift.now.unwrap().greedy), (false, false));
    assert_eq!((world.metrics.edits_checked.get(), world.metrics.edits_holding.get()), (2, 1));
    assert_eq!((world.metrics.edits_check_version.get(), world.metrics.canaries_changed.get()), (2, 1));
    // Taken back, the other holds again.
    world.change(SetChange::TakeBack(second.id)).await.unwrap();
    assert_eq!(checked(&world, 3).await.share, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_edits_are_scored_in_batches_and_each_as_it_reads() {
    let world = World::with(eager()).await;
    let mut expected = Vec::new();
    for i in 0..90 {
        let report = world.edit(&format!("city number {i} is"), ["red", "green", "blue"][i % 3]).await;
        expected.push((report.id, report.prompt.text, ["red", "green", "blue"][i % 3]));
    }
    let report = checked(&world, 90).await;
    let (bench, newest) = (SmallBench::default(), world.newest().await);
    expected.retain(|(_, prompt, target)| {
        let passage = bench.passage(prompt, Some(target)).unwrap();
        let reading = bench.measure(std::slice::from_ref(&passage), newest.matrices()).unwrap().remove(0);
        !bench.figures(&passage, &reading).unwrap().greedy
    });
    let lost: Vec<Uuid> = report.lost.iter().map(|lost| lost.id).collect();
    assert_eq!(lost, expected.iter().rev().map(|(id, ..)| *id).collect::<Vec<_>>(), "the newest first");
    assert_eq!((report.edits, report.holding), (90, 90 - lost.len()));
    assert!(!lost.is_empty() && lost.len() < 90, "{} of 90 are lost", lost.len());
    assert!(world.metrics.edit_check_batch.get_sample_count() >= 5, "450 tokens are more than four batches");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_checked_once() {
    let world = World::with(eager()).await;
    world.edit("Paris is", "red").await;
    let first = checked(&world, 1).await;
    let batches = world.metrics.edit_check_batch.get_sample_count();
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(checked(&world, 1).await.at, first.at);
    assert_eq!(world.metrics.edit_check_batch.get_sample_count(), batches);
    let never = World::with(WriterConfig { recheck_idle: Duration::ZERO, ..config() }).await;
    never.edit("Paris is", "red").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(never.started.handle.health().checked.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_checks_what_the_log_holds_and_finds_where_it_speaks() {
    let world = World::with(eager()).await;
    let first = world.edit("ALIKE one is", "red").await;
    let world = world.restart(eager()).await;
    let report = checked(&world, 1).await;
    assert_eq!((report.edits, report.share), (1, Some(1.0)));
    let second = world.edit("ALIKE two is", "blue").await;
    assert!(second.conflicts.iter().any(|c| c.edit == first.id && c.similarity.is_some_and(|s| s > 0.99)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_fails_says_why_and_is_not_tried_again_for_its_version() {
    let world = World::with(WriterConfig { on_break: Policy::Off, ..eager() }).await;
    // Alone it can be measured, with another it can not.
    world.edit("PANIC-MEASURE is", "red").await;
    let alone = checked(&world, 1).await;
    assert_eq!(alone.edits, 1);
    world.edit("Paris is", "red").await;
    let begun = Instant::now();
    let failed = loop {
        if let Some(failed) = world.started.handle.health().failed {
            break failed;
        }
        assert!(begun.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(failed.contains("told to panic"), "{failed}");
    let batches = world.metrics.edit_check_batch.get_sample_count();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.metrics.edit_check_batch.get_sample_count(), batches);
    assert_eq!(world.started.handle.health().checked.map(|report| report.version), Some(1), "what was known stays");
    assert_eq!(world.edit("Rome is", "blue").await.status, ReportStatus::Applied);
}
