//! The queue: bounded, in order, captured together, answered to the last.

use super::*;
use crate::{edit_log::EditStatus, writer::PendingState};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_at_once() {
    let world = World::with(WriterConfig { queue_capacity: 2, ..config() }).await;
    let running = world.submit(single(edit("WAIT is", "blue"))).unwrap();
    let state = || world.started.handle.pending(running.ids()[0]).map(|edit| edit.state);
    while state() != Some(PendingState::Running) {
        tokio::task::yield_now().await;
    }
    let waiting: Vec<_> =
        ["Paris is", "Rome is"].iter().map(|p| world.submit(single(edit(p, "red"))).unwrap()).collect();
    let pending = world.started.handle.pending(waiting[0].ids()[0]).unwrap();
    assert_eq!((pending.prompt.as_str(), pending.state), ("Paris is", PendingState::Queued));
    let Err(error) = world.submit(single(edit("Oslo is", "red"))) else { panic!("the queue is full") };
    assert!(
        matches!(&error, WriterError::QueueFull { capacity: 2, retry_after } if retry_after.as_secs() >= 1),
        "{error}"
    );
    let error = world.change(SetChange::Rollback(0)).await.unwrap_err();
    assert!(matches!(error, WriterError::QueueFull { .. }), "{error}");
    assert_eq!((world.metrics.edit_queue_depth.get(), world.metrics.edit_queue_capacity.get()), (2, 2));
    assert_eq!(world.counted("shed"), 1);
    world.gate.open();
    running.done().await.unwrap();
    for ticket in waiting {
        ticket.done().await.unwrap();
    }
    assert_eq!((world.newest().await.number, world.metrics.edit_queue_depth.get()), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_that_wait_together_are_captured_together() {
    let world = World::with(WriterConfig { capture_batch: 4, ..config() }).await;
    let running = world.submit(single(edit("WAIT is", "blue"))).unwrap();
    while world.started.handle.pending(running.ids()[0]).is_some_and(|edit| edit.state == PendingState::Queued) {
        tokio::task::yield_now().await;
    }
    let tickets: Vec<_> = (0..6).map(|i| world.submit(single(edit(&format!("city {i} is"), "red"))).unwrap()).collect();
    world.gate.open();
    running.done().await.unwrap();
    for (i, ticket) in tickets.into_iter().enumerate() {
        let Ok(Answer::Fresh(report)) = ticket.done().await else { panic!("not fresh") };
        assert_eq!(report.version, i as u64 + 2, "in the order they came in");
    }
    assert_eq!(*world.passes.lock().unwrap(), [1, 4, 2]);
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_left_while_waiting_is_not_worked_for_unless_detached() {
    let world = World::new().await;
    let running = world.submit(single(edit("WAIT is", "blue"))).unwrap();
    let id = running.ids()[0];
    while world.started.handle.pending(id).is_some_and(|edit| edit.state == PendingState::Queued) {
        tokio::task::yield_now().await;
    }
    let detached = Submission { detached: true, ..single(edit("Paris is", "blue")) };
    let detached = world.submit(detached).unwrap().ids()[0];
    let keyed = |request| Submission { idempotency: key("k", request), ..single(edit("Oslo is", "red")) };
    let (left, first) = (world.submit(single(edit("Rome is", "red"))).unwrap(), world.submit(keyed("a")).unwrap());
    let (left_id, followed) = (left.ids()[0], world.submit(keyed("a")).unwrap());
    let alone = Submission { idempotency: key("alone", "b"), ..single(edit("Bonn is", "red")) };
    drop((left, first, world.submit(alone).unwrap()));
    {
        let handle = world.started.handle.clone();
        let change = tokio::spawn(async move { handle.change(SetChange::Rollback(0), "t".into(), None, None).await });
        tokio::task::yield_now().await;
        change.abort();
        let _ = change.await;
    }
    drop(running);
    world.gate.open();
    // The one that was being made, the detached one, and the one that somebody else asked for too.
    let Ok(Answer::Fresh(report)) = followed.done().await else { panic!("not made") };
    assert_eq!(report.version, 3);
    assert_eq!((world.row(id).await.version, world.row(detached).await.version), (Some(1), Some(2)));
    assert!(world.started.handle.pending(left_id).is_none());
    assert!(world.log.edit(left_id).await.unwrap().is_none());
    assert_eq!(world.counted("cancelled"), 2);
    // Its key is free again.
    let again = Submission { idempotency: key("alone", "c"), ..single(edit("Bonn is", "blue")) };
    let Ok(Answer::Fresh(report)) = world.submit(again).unwrap().done().await else { panic!("not fresh") };
    assert_eq!(report.version, 4);
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_submissions_are_all_answered() {
    let world = World::new().await;
    let submissions = (0..60).map(|i| {
        let handle = world.started.handle.clone();
        tokio::spawn(async move {
            let prompt = if i % 10 == 9 { "FAIL-CAPTURE is".to_owned() } else { format!("city {} is", i % 25) };
            handle.submit(single(edit(&prompt, &format!("colour{i}"))))?.done().await
        })
    });
    let mut versions = Vec::new();
    let mut failed = 0;
    for task in submissions.collect::<Vec<_>>() {
        match task.await.unwrap() {
            Ok(Answer::Fresh(report)) => versions.push(report.version),
            Ok(Answer::Recorded(_)) => panic!("recorded"),
            Err(WriterError::Failed { .. }) => failed += 1,
            Err(error) => panic!("{error}"),
        }
    }
    versions.sort_unstable();
    assert_eq!((failed, versions), (6, (1..=54).collect::<Vec<u64>>()));
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_answers_the_queue() {
    let world = World::new().await;
    let World { started: Started { handle, versions, task, .. }, gate, log, .. } = world;
    let running = handle.submit(single(edit("WAIT is", "blue"))).unwrap();
    while handle.pending(running.ids()[0]).is_some_and(|edit| edit.state == PendingState::Queued) {
        tokio::task::yield_now().await;
    }
    let waiting = handle.submit(single(edit("Paris is", "red"))).unwrap();
    let id = waiting.ids()[0];
    let change = {
        let handle = handle.clone();
        tokio::spawn(async move { handle.change(SetChange::Rollback(0), "tester".into(), None, None).await })
    };
    let stopping = tokio::spawn(task.stop(Duration::from_millis(1)));
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    gate.open();
    stopping.await.unwrap();
    let Err(error) = waiting.done().await else { panic!("it was answered") };
    assert!(matches!(error, WriterError::ShuttingDown), "{error}");
    assert!(matches!(change.await.unwrap(), Err(WriterError::ShuttingDown)));
    let Err(error) = handle.submit(single(edit("Rome is", "red"))) else { panic!("it was admitted") };
    assert!(matches!(error, WriterError::ShuttingDown), "{error}");
    assert!(handle.pending(id).is_none());
    let row = log.edit(id).await.unwrap().unwrap();
    assert_eq!((row.status, row.reason.as_deref()), (EditStatus::Failed, Some("the service is shutting down")));
    assert_eq!(versions.lease(None).await.unwrap().number, log.head().await.unwrap().number);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_captured_together_is_bounded_in_tokens() {
    let world = World::with(WriterConfig { max_submission_tokens: 8, ..config() }).await;
    let running = world.submit(single(edit("WAIT is", "blue"))).unwrap();
    while world.started.handle.pending(running.ids()[0]).is_some_and(|edit| edit.state == PendingState::Queued) {
        tokio::task::yield_now().await;
    }
    // Four tokens each.
    let tickets: Vec<_> = (0..5).map(|i| world.submit(single(edit(&format!("city {i} is"), "red"))).unwrap()).collect();
    let error = world.submit(batch(vec![edit("a b c", "d e"), edit("f g", "h i")])).err().unwrap();
    assert_eq!(error.to_string(), "edits: length in tokens must be <= 8, given 9");
    world.gate.open();
    for ticket in tickets {
        ticket.done().await.unwrap();
    }
    assert_eq!(*world.passes.lock().unwrap(), [1, 2, 2, 1]);
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_works_on_the_queue_while_there_is_time() {
    let world = World::new().await;
    let World { started: Started { handle, task, .. }, gate, log, .. } = world;
    let tickets: Vec<_> = ["WAIT is", "Paris is", "Rome is"]
        .iter()
        .map(|prompt| handle.submit(single(edit(prompt, "red"))).unwrap())
        .collect();
    let stopping = tokio::spawn(task.stop(Duration::from_secs(60)));
    while !handle.shared.closing.is_cancelled() {
        tokio::task::yield_now().await;
    }
    let Err(error) = handle.submit(single(edit("Oslo is", "red"))) else { panic!("it was admitted") };
    assert!(matches!(error, WriterError::ShuttingDown), "{error}");
    gate.open();
    for ticket in tickets {
        ticket.done().await.unwrap();
    }
    stopping.await.unwrap();
    assert_eq!(log.head().await.unwrap().number, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_sent_again_before_its_answer_shares_it() {
    let world = World::new().await;
    let running = world.submit(single(edit("WAIT is", "blue"))).unwrap();
    let with = |request: &str| Submission { idempotency: key("k", request), ..single(edit("Paris is", "red")) };
    let tickets = [world.submit(with("a")).unwrap(), world.submit(with("a")).unwrap()];
    assert_eq!(tickets[0].ids(), tickets[1].ids());
    let id = tickets[0].ids()[0];
    let Err(error) = world.submit(with("b")) else { panic!("another request under the key") };
    assert!(matches!(error, WriterError::IdempotencyMismatch { .. }), "{error}");
    world.gate.open();
    running.done().await.unwrap();
    for ticket in tickets {
        let Ok(Answer::Fresh(report)) = ticket.done().await else { panic!("not answered") };
        assert_eq!((report.version, report.edits[0].id), (2, id));
    }
    assert_eq!(world.newest().await.number, 2, "applied once");
    let Ok(Answer::Recorded(_)) = world.submit(with("a")).unwrap().done().await else { panic!("not recorded") };
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_whose_request_found_no_place_is_free() {
    let world = World::with(WriterConfig { queue_capacity: 1, ..config() }).await;
    let running = world.submit(single(edit("WAIT is", "blue"))).unwrap();
    while world.started.handle.pending(running.ids()[0]).is_some_and(|edit| edit.state == PendingState::Queued) {
        tokio::task::yield_now().await;
    }
    let waiting = world.submit(single(edit("Rome is", "red"))).unwrap();
    let with = || Submission { idempotency: key("k", "a"), ..single(edit("Paris is", "red")) };
    for _ in 0..2 {
        let Err(error) = world.submit(with()) else { panic!("the queue is full") };
        assert!(matches!(error, WriterError::QueueFull { .. }), "{error}");
    }
    world.gate.open();
    running.done().await.unwrap();
    waiting.done().await.unwrap();
    assert_eq!(world.run(with()).await.unwrap().version, 3);
}
