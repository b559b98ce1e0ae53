//! The way of an edit that meets nothing unusual, of one that the guard refuses, and of one that is not valid.

use super::*;
use crate::{
    edit_log::EditStatus,
    writer::{GuardLimits, ReportStatus},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_makes_a_version_and_reports_what_it_did() {
    let world = World::new().await;
    let base = world.check().await;
    let request = EditRequest {
        paraphrases: vec!["Paris is".into(), "Tell me: Paris is".into()],
        locality: vec![probe("Rome is", Some("old")), probe("Oslo is", None)],
        note: Some("why not".into()),
        editor: Some("small".into()),
        ..edit("The city of Paris is", "blue")
    };
    let report = world.run(single(request)).await.unwrap();
    let one = &report.edits[0];
    assert_eq!((report.version, one.version, one.status), (1, 1, ReportStatus::Applied));
    assert_eq!((one.supersedes, one.reason.as_deref()), (None, None));
    assert!(one.prompt.before.probability < 0.2 && !one.prompt.before.greedy);
    assert!(one.prompt.after.probability > 0.9 && one.prompt.after.greedy);
    assert_eq!(one.prompt.text, "The city of Paris is");
    assert_eq!(one.paraphrases.iter().map(|p| p.text.as_str()).collect::<Vec<_>>(), ["Paris is", "Tell me: Paris is"]);
    assert_eq!(one.locality.iter().map(|p| p.prompt.as_str()).collect::<Vec<_>>(), ["Rome is", "Oslo is"]);
    assert!(one.locality.iter().all(|probe| probe.kl >= 0.0));
    assert_eq!(one.delta.iter().map(|d| (d.matrix.as_str(), d.rank)).collect::<Vec<_>>(), [("head", 1), ("other", 1)]);
    assert!(one.delta[0].norm > 1.0);
    let phases = one.phases_ms;
    assert!(phases.guard > 0.0 && phases.total >= phases.commit.unwrap() + phases.guard);

    let digest = world.check().await;
    assert_ne!(digest, base);
    assert_eq!((report.digest, one.digest), (digest, digest));
    let row = world.row(one.id).await;
    assert_eq!((row.status, row.version, row.actor.as_str()), (EditStatus::Applied, Some(1), "tester"));
    assert_eq!(row.prompt, "The city of Paris is");
    assert_eq!(row.request["note"], "why not");
    let named = |report: &serde_json::Value| -> Vec<String> {
        report["phases_ms"].as_object().unwrap().keys().cloned().collect()
    };
    let mut all = named(&serde_json::to_value(one).unwrap());
    all.sort();
    assert_eq!(all, ["capture", "commit", "editor", "guard", "publish", "queue", "total"]);
    let mut kept = named(&row.report);
    kept.sort();
    assert_eq!(kept, ["capture", "editor", "guard", "queue", "total"], "the log keeps what was measured before it");
    let stored: crate::writer::EditReport = serde_json::from_value(row.report).unwrap();
    assert_eq!((stored.id, stored.digest, stored.prompt.after), (one.id, digest, one.prompt.after));
    assert_eq!((world.counted("applied"), world.metrics.version.get(), world.metrics.active_edits.get()), (1, 1, 1));
    assert_eq!(world.metrics.edit_locality_kl.get_sample_count(), 2);
    assert!(world.started.handle.pending(one.id).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_with_an_active_prompt_supersedes_it() {
    let world = World::new().await;
    let first = world.edit("Paris is", "blue").await;
    let alone = World::new().await;
    let second = world.edit("  Paris is\n", "red").await;
    assert_eq!(second.supersedes, Some(first.id));
    assert_eq!(world.newest().await.active.iter().copied().collect::<Vec<_>>(), [second.id]);
    let row = world.row(first.id).await;
    assert_eq!((row.status, row.superseded_by), (EditStatus::Superseded, Some(second.id)));
    assert_eq!(world.metrics.reverts.with_label_values(&["supersede"]).get(), 1);
    alone.edit("  Paris is\n", "red").await;
    assert_eq!(world.check().await, alone.check().await, "as if the first had never been");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_one_version() {
    let world = World::new().await;
    let first = world.edit("Paris is", "blue").await;
    let edits = vec![edit("Rome is", "red"), edit("Paris is", "green"), edit("Oslo is", "cold")];
    let report = world.run(batch(edits)).await.unwrap();
    assert_eq!(report.version, 2);
    assert!(report.edits.iter().all(|edit| edit.version == 2 && edit.digest == report.digest));
    assert_eq!(report.edits.iter().map(|e| e.supersedes).collect::<Vec<_>>(), [None, Some(first.id), None]);
    assert_eq!(world.newest().await.active.len(), 3);
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_all_or_nothing() {
    let world = World::new().await;
    world.edit("Paris is", "blue").await;
    let before = world.check().await;
    let impossible = Guard::Limits(GuardLimits { min_probability: Some(1.0), ..GuardLimits::default() });
    let bad = EditRequest { guard: impossible, ..edit("Rome is", "red") };
    let error = world.run(batch(vec![edit("Oslo is", "cold"), bad])).await.unwrap_err();
    let WriterError::Rejected { reason, report, batch, by: crate::writer::RejectedBy::Limits } = error else {
        panic!("{error}")
    };
    assert!(batch && reason.contains("at least 1"), "{reason}");
    assert!(report.edits.iter().all(|edit| edit.status == ReportStatus::Rejected && edit.version == 1));
    assert!(report.edits[0].reason.as_ref().unwrap().contains("edits[1]"), "{:?}", report.edits[0].reason);
    assert_eq!(world.check().await, before);
    for edit in &report.edits {
        let row = world.row(edit.id).await;
        assert_eq!((row.status, row.reason), (EditStatus::Rejected, edit.reason.clone()));
    }
    assert_eq!(world.counted("rejected"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_edit_changes_nothing_and_the_guard_can_be_switched_off() {
    let world = World::with(WriterConfig { max_kl: Some(1e-9), ..config() }).await;
    let before = world.check().await;
    let request = EditRequest { locality: vec![probe("Rome is", None)], ..edit("Paris is", "blue") };
    let error = world.run(single(request.clone())).await.unwrap_err();
    assert!(matches!(&error, WriterError::Rejected { batch: false, .. }), "{error}");
    assert_eq!(world.check().await, before);
    assert_eq!(world.newest().await.number, 0);
    let report = world.run(single(EditRequest { guard: Guard::Off, ..request })).await.unwrap();
    assert_eq!(report.version, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_changes_and_records_nothing() {
    let world = World::new().await;
    let first = world.edit("Paris is", "blue").await;
    let before = world.check().await;
    let dry = Submission { dry_run: true, ..single(edit("Paris is", "red")) };
    let tried = world.run(dry).await.unwrap();
    let one = &tried.edits[0];
    assert_eq!((one.status, one.version, one.supersedes), (ReportStatus::DryRun, 1, Some(first.id)));
    assert_eq!((world.check().await, world.newest().await.number), (before, 1));
    assert!(world.log.edit(one.id).await.unwrap().is_none());
    let failing = Submission { dry_run: true, ..single(edit("FAIL-CAPTURE is", "red")) };
    let error = world.run(failing).await.unwrap_err();
    let WriterError::Failed { id, .. } = error else { panic!("{error}") };
    assert!(world.log.edit(id).await.unwrap().is_none());
    assert_eq!(world.edit("Paris is", "red").await.digest, one.digest, "the digest it would have had");
}

#[tokio::test(flavor = "multi_thread")]
async fn expected_version_is_compared_and_swapped() {
    let world = World::new().await;
    world.edit("Paris is", "blue").await;
    let with = |expected| Submission { expected_version: Some(expected), ..single(edit("Rome is", "red")) };
    let error = world.run(with(0)).await.unwrap_err();
    assert!(matches!(error, WriterError::VersionConflict { expected: 0, current: 1 }), "{error}");
    assert_eq!(world.run(with(1)).await.unwrap().version, 2);
    let late = world.submit(with(1)).unwrap();
    let id = late.ids()[0];
    late.done().await.unwrap_err();
    let row = world.row(id).await;
    assert_eq!(
        (row.status, row.reason.as_deref()),
        (EditStatus::Failed, Some("expected version 1, but the newest is 2"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_gets_the_recorded_answer() {
    let world = World::new().await;
    let with = |request: &str| Submission { idempotency: key("k1", request), ..single(edit("Paris is", "blue")) };
    let first = world.run(with("a")).await.unwrap();
    let before = world.check().await;
    let Ok(Answer::Recorded(row)) = world.submit(with("a")).unwrap().done().await else { panic!("not recorded") };
    assert_eq!((row.http_status, row.body["id"].as_str()), (201, Some(first.edits[0].id.to_string().as_str())));
    assert_eq!(row.body["status"], "applied");
    assert!(row.body["phases_ms"].get("commit").is_none(), "it was not known yet");
    let Err(error) = world.submit(with("b")).unwrap().done().await else { panic!("another request passed") };
    assert!(matches!(error, WriterError::IdempotencyMismatch { .. }));
    assert_eq!(world.check().await, before);
    let batch = Submission { idempotency: key("k2", "c"), ..batch(vec![edit("Rome is", "red")]) };
    world.run(batch.clone()).await.unwrap();
    let Ok(Answer::Recorded(row)) = world.submit(batch).unwrap().done().await else { panic!("not recorded") };
    assert_eq!((row.body["version"].as_u64(), row.body["edits"].as_array().map(Vec::len)), (Some(2), Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_carried_out_is_refused_with_the_numbers() {
    let limits = WriterConfig { max_edits_per_batch: 2, max_paraphrases: 1, max_target_tokens: 2, ..config() };
    let world = World::with(limits).await;
    let text = |submission| world.submit(submission).err().map(|error| error.to_string()).unwrap_or_default();
    let long = "word ".repeat(21);
    let other = |change: fn(&mut EditRequest)| {
        let mut request = edit("Paris is", "blue");
        change(&mut request);
        single(request)
    };
    assert_eq!(text(single(edit(" ", "blue"))), "prompt: must not be empty");
    assert_eq!(text(single(edit("Paris is", ""))), "target: must not be empty");
    assert_eq!(text(single(edit(&long, "x"))), "prompt: length in tokens must be <= 20, given 21");
    assert_eq!(text(single(edit("Paris is", "a b c"))), "target: length in tokens must be <= 2, given 3");
    assert_eq!(text(batch(vec![])), "edits: must not be empty");
    assert_eq!(text(batch(vec![edit("a", "b"); 3])), "edits: length must be <= 2, given 3");
    assert_eq!(text(batch(vec![edit("a", "b"), edit(" a ", "c")])), "edits[1].prompt: is the same as that of edits[0]");
    assert_eq!(text(batch(vec![edit("a", "b"), edit("c", "")])), "edits[1].target: must not be empty");
    let huge = "x".repeat(20_000);
    assert_eq!(text(single(edit(&huge, "x"))), "prompt: length in bytes must be <= 16384, given 20000");
    let paraphrases = other(|e| e.paraphrases = vec!["a".into(), "b".into()]);
    assert_eq!(text(paraphrases), "paraphrases: length must be <= 1, given 2");
    let empty = other(|e| e.locality = vec![LocalityProbe { prompt: "Rome is".into(), target: Some(String::new()) }]);
    assert_eq!(text(empty), "locality[0].target: must not be empty");
    assert_eq!(text(other(|e| e.editor = Some("rome".into()))), "editor: must be \"small\", given \"rome\"");
    let note = other(|e| e.note = Some("x".repeat(4097)));
    assert_eq!(text(note), "note: length in bytes must be <= 4096, given 4097");
    let guard =
        other(|e| e.guard = Guard::Limits(GuardLimits { min_probability: Some(2.0), ..GuardLimits::default() }));
    assert_eq!(text(guard), "guard.min_probability: must be between 0 and 1, given 2");
    assert_eq!(world.counted("invalid"), 18);
    assert_eq!(world.metrics.edit_queue_depth.get(), 0);
}
