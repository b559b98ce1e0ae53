//! What goes wrong stays with the edit it belongs to, is written down, and leaves the sums as they were.

use super::{super::testing::Fault, *};
use crate::edit_log::EditStatus;

/// Applies one edit, fails another, and applies a third.
async fn fails_alone(prompt: &str, reason: &str) {
    let world = World::new().await;
    world.edit("Paris is", "blue").await;
    let before = world.check().await;
    let request = EditRequest { paraphrases: vec!["any".into()], ..edit(prompt, "red") };
    let error = world.run(single(request)).await.unwrap_err();
    assert!(error.to_string().contains(reason), "{error}");
    assert_eq!(world.check().await, before, "after {prompt}");
    let page = world.log.edits(&crate::edit_log::EditQuery { limit: 1, ..Default::default() }).await.unwrap();
    let row = &page.items[0];
    assert_eq!((row.status, row.version, row.prompt.as_str()), (EditStatus::Failed, None, prompt));
    assert!(row.reason.as_ref().unwrap().contains(reason), "{:?}", row.reason);
    if let WriterError::Failed { id, .. } = error {
        assert_eq!(id, row.id);
    }
    assert_eq!(world.counted("failed"), 1);
    world.edit("Rome is", "red").await;
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn capture_fails() {
    fails_alone("FAIL-CAPTURE is", "capture was told to fail").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn capture_panics() {
    fails_alone("PANIC-CAPTURE is", "capture was told to panic").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_is_not_a_number() {
    fails_alone("NAN-LOSS is", "the loss is NaN").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_factor_is_not_a_number() {
    fails_alone("NAN-FACTOR is", "a factor is not finite").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_editor_panics() {
    fails_alone("PANIC-EDITOR is", "the editor was told to panic").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_delta_is_not_a_number() {
    fails_alone("NAN-DELTA is", "not finite").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sum_would_overflow() {
    fails_alone("HUGE-DELTA is", "would overflow the accumulator of head").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_measurement_panics_while_the_sums_hold_the_edit() {
    fails_alone("PANIC-MEASURE is", "measure was told to panic").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_several_captured_together_fails_alone() {
    let world = World::new().await;
    let waiting = world.submit(single(edit("WAIT is", "blue"))).unwrap();
    let prompts = ["Paris is", "FAIL-CAPTURE is", "PANIC-CAPTURE is", "Rome is", "NAN-LOSS is"];
    let tickets: Vec<_> = prompts.iter().map(|p| world.submit(single(edit(p, "red"))).unwrap()).collect();
    world.gate.open();
    waiting.done().await.unwrap();
    let mut versions = Vec::new();
    for ticket in tickets {
        versions.push(match ticket.done().await {
            Ok(Answer::Fresh(report)) => Some(report.version),
            Ok(Answer::Recorded(_)) => panic!("recorded"),
            Err(_) => None,
        });
    }
    assert_eq!(versions, [Some(2), None, None, Some(3), None]);
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_a_batch_fails_all_of_it() {
    let world = World::new().await;
    let before = world.check().await;
    let ticket = world.submit(batch(vec![edit("Paris is", "blue"), edit("FAIL-CAPTURE is", "red")])).unwrap();
    let ids = ticket.ids().to_vec();
    let Err(WriterError::Failed { id, .. }) = ticket.done().await else { panic!("it did not fail") };
    assert_eq!(id, ids[1]);
    let rows = [world.row(ids[0]).await, world.row(ids[1]).await];
    assert!(rows.iter().all(|row| row.status == EditStatus::Failed));
    assert!(rows[0].reason.as_ref().unwrap().contains("edits[1]"));
    assert_eq!(world.check().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_commit_changes_nothing() {
    let world = World::new().await;
    let first = world.edit("Paris is", "blue").await;
    let before = world.check().await;
    world.log.at_next_commit(Fault::Refuse);
    let error = world.run(single(edit("Paris is", "red"))).await.unwrap_err();
    assert!(matches!(error, WriterError::Log(_)), "{error}");
    assert_eq!(world.check().await, before);
    world.log.at_next_commit(Fault::Refuse);
    world.change(SetChange::TakeBack(first.id)).await.unwrap_err();
    assert_eq!(world.check().await, before);
    assert_eq!(world.edit("Paris is", "red").await.version, 2);
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_was_lost_is_taken_up() {
    let world = World::new().await;
    world.log.at_next_commit(Fault::LoseAnswer);
    let first = world.edit("Paris is", "blue").await;
    assert_eq!((first.version, first.digest), (1, world.check().await));
    world.log.at_next_commit(Fault::LoseAnswer);
    let report = world.change(SetChange::TakeBack(first.id)).await.unwrap();
    assert_eq!((report.version, report.digest), (2, world.check().await));
    assert_eq!(world.edit("Rome is", "red").await.version, 3);
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn taking_up_a_lost_commit_can_be_tried_again() {
    let world = World::new().await;
    world.edit("Paris is", "blue").await;
    world.log.at_next_commit(Fault::LoseAnswer);
    // The first read is the turn's own; the repair takes the old edit off the sums and fails to read the new one.
    world.log.failing_read.store(3, std::sync::atomic::Ordering::SeqCst);
    world.run(single(edit("Paris is", "red"))).await.unwrap_err();
    let next = world.edit("Rome is", "red").await;
    assert_eq!((next.version, next.digest), (3, world.check().await));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_built_on_a_version_that_does_not_fit() {
    let world = World::new().await;
    let lie = |number| world.log.lying.store(number, std::sync::atomic::Ordering::SeqCst);
    lie(1);
    world.log.at_next_commit(Fault::LoseAnswer);
    world.run(single(edit("Paris is", "blue"))).await.unwrap_err();
    for _ in 0..2 {
        let error = world.run(single(edit("Rome is", "red"))).await.unwrap_err();
        assert!(matches!(error, WriterError::Internal(_)), "{error}");
    }
    assert_eq!(world.newest().await.number, 0, "nothing was published");
    lie(0);
    assert_eq!(world.edit("Rome is", "red").await.version, 2);
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_measurement_is_the_right_edits() {
    let world = World::new().await;
    let bad = EditRequest { locality: vec![probe("FAIL-MEASURE is", None)], ..edit("Rome is", "red") };
    let ticket = world.submit(batch(vec![edit("Paris is", "blue"), bad, edit("Oslo is", "cold")])).unwrap();
    let ids = ticket.ids().to_vec();
    let Err(WriterError::Failed { id, .. }) = ticket.done().await else { panic!("it did not fail") };
    assert_eq!(id, ids[1]);
    assert_eq!(world.row(ids[1]).await.reason.as_deref(), Some("measure was told to fail"));
    assert!(world.row(ids[0]).await.reason.unwrap().contains("edits[1]"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overflow_in_a_batch_blames_no_edit_alone() {
    let world = World::new().await;
    let ticket = world.submit(batch(vec![edit("Paris is", "blue"), edit("HUGE-DELTA is", "red")])).unwrap();
    let ids = ticket.ids().to_vec();
    let Err(WriterError::Overflow { .. }) = ticket.done().await else { panic!("it did not overflow") };
    for id in ids {
        let reason = world.row(id).await.reason.unwrap();
        assert!(reason.contains("overflow") && reason.ends_with("(this or another edit of the batch)"), "{reason}");
    }
}
