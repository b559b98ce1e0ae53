//! Taking back, rolling back, and older versions.

use super::*;
use crate::{
    edit_log::{EditStatus, VersionKind},
    weights::WeightsError,
};

#[tokio::test(flavor = "multi_thread")]
async fn taking_back_leads_to_the_set_without_it() {
    let world = World::new().await;
    let base = world.check().await;
    let first = world.edit("Paris is", "blue").await;
    let second = world.edit("Rome is", "red").await;
    let report = world.change(SetChange::TakeBack(first.id)).await.unwrap();
    assert_eq!((report.version, report.digest), (3, world.check().await));
    assert_eq!(world.row(first.id).await.status, EditStatus::TakenBack);
    let error = world.change(SetChange::TakeBack(first.id)).await.unwrap_err();
    assert!(matches!(error, WriterError::NotActive { status: EditStatus::TakenBack, .. }), "{error}");
    let error = world.change(SetChange::TakeBack(Uuid::nil())).await.unwrap_err();
    assert!(matches!(error, WriterError::UnknownEdit(_)), "{error}");
    let report = world.change(SetChange::TakeBack(second.id)).await.unwrap();
    assert_eq!((report.version, report.digest), (4, base), "the empty set is the base model, bit for bit");
    assert_eq!(world.metrics.reverts.with_label_values(&["take_back"]).get(), 2);
    let again = world.edit("Paris is", "blue").await;
    assert_eq!(again.supersedes, None, "what was taken back is not superseded");
}

#[tokio::test(flavor = "multi_thread")]
async fn rolling_back_restores_a_versions_set() {
    let world = World::new().await;
    let first = world.edit("Paris is", "blue").await;
    world.edit("Paris is", "red").await;
    world.edit("Rome is", "red").await;
    let report = world.change(SetChange::Rollback(1)).await.unwrap();
    assert_eq!((report.version, report.digest), (4, first.digest));
    world.check().await;
    assert_eq!(world.row(first.id).await.status, EditStatus::Applied);
    let superseding = world.edit("Paris is", "green").await;
    assert_eq!(superseding.supersedes, Some(first.id), "a restored edit has its prompt again");
    let error = world.change(SetChange::Rollback(9)).await.unwrap_err();
    assert!(matches!(error, WriterError::UnknownVersion { number: 9, newest: 5 }), "{error}");
    let row = world.log.version(4).await.unwrap().unwrap();
    assert_eq!((row.kind, row.active), (VersionKind::Rollback, 1));
    let report = world.change(SetChange::Rollback(5)).await.unwrap();
    assert_eq!((report.version, report.digest), (6, superseding.digest), "to the newest: the same set again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_over_many_edits_moves_a_copy_of_the_sums() {
    let world = World::new().await;
    let edits = |range: std::ops::Range<usize>| range.map(|i| edit(&format!("city {i} is"), "blue")).collect();
    world.run(batch(edits(0..40))).await.unwrap();
    let full = world.run(batch(edits(40..80))).await.unwrap();
    world.change(SetChange::Rollback(0)).await.unwrap();
    world.check().await;
    let report = world.change(SetChange::Rollback(2)).await.unwrap();
    assert_eq!(report.digest, full.digest);
    world.check().await;
    world.log.at_next_commit(super::super::testing::Fault::Refuse);
    world.change(SetChange::Rollback(0)).await.unwrap_err();
    world.check().await;
    world.edit("Rome is", "red").await;
    world.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_compare_versions_and_keep_their_answers() {
    let world = World::new().await;
    let first = world.edit("Paris is", "blue").await;
    let handle = &world.started.handle;
    let change = |expected, key| handle.change(SetChange::TakeBack(first.id), "tester".into(), expected, key);
    let error = change(Some(0), None).await.unwrap_err();
    assert!(matches!(error, WriterError::VersionConflict { expected: 0, current: 1 }), "{error}");
    let Ok(Answer::Fresh(report)) = change(Some(1), key("k", "a")).await else { panic!("not fresh") };
    let Ok(Answer::Recorded(row)) = change(Some(1), key("k", "a")).await else { panic!("not recorded") };
    assert_eq!((row.http_status, row.body), (200, serde_json::to_value(report).unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_version_is_made_anew_and_checked() {
    let world = World::with(WriterConfig { resident_versions: 1, ..config() }).await;
    let mut digests = vec![world.newest().await.digest];
    for i in 0..5 {
        digests.push(world.edit(&format!("city {i} is"), "blue").await.digest);
    }
    world.change(SetChange::Rollback(2)).await.unwrap();
    world.edit("city 9 is", "red").await;
    let lease = async |number| world.started.versions.lease(Some(number)).await;
    for number in [3, 5, 1, 0, 2, 4] {
        let version = lease(number).await.unwrap();
        assert_eq!((version.number, version.digest), (number, digests[number as usize]));
        assert_eq!(*version.active, world.log.active_set(number).await.unwrap());
        assert_eq!(weights_digest(&shapes(), &weights_of(&version)), version.digest);
    }
    let (a, b) = tokio::join!(lease(1), lease(1));
    assert!(std::ptr::eq(&*a.unwrap(), &*b.unwrap()), "made once for both");
    let Err(error) = lease(8).await else { panic!("there is no version 8") };
    assert!(matches!(error, WeightsError::UnknownVersion { number: 8, newest: 7 }), "{error}");
    world.log.lying.store(5, std::sync::atomic::Ordering::SeqCst);
    let Err(error) = lease(5).await else { panic!("version 5 does not fit the log") };
    assert!(matches!(error, WeightsError::Unavailable(_)), "{error}");
    assert_eq!(world.metrics.version_leases.get(), 0);
}
