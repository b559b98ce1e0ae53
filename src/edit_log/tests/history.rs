//! Committing and reading back; how an edit's status follows from the versions.

use std::collections::BTreeSet;

over_both_databases! {
    a_pinned_log_has_version_0,
    what_was_committed_is_read_back_by_another_opening,
    status_follows_from_the_last_change,
    rejected_and_failed_edits_change_no_version,
    reading_goes_on_while_another_opening_writes,
}

use super::{Database, Fixture, answer, edit, identity, over_both_databases, without_effect};
use crate::{
    digest::Digest,
    edit_log::{Change, ChangeKind, EditStatus, LogError, NewVersion, Outcome, VersionKind, open_read_only},
};

async fn a_pinned_log_has_version_0(database: &Database) {
    let fixture = Fixture::new(database).await;
    let head = fixture.log.head().await.unwrap();
    assert_eq!((head.number, head.kind, head.active), (0, VersionKind::Base, 0));
    assert_eq!((head.digest, head.set_digest), (identity().base_weights, identity().empty_set));
    assert!(fixture.log.active_set(0).await.unwrap().is_empty());
    assert_eq!(fixture.log.check_chain().await.unwrap(), 2);
    fixture.log.pin(&identity()).await.unwrap();
    assert_eq!(fixture.log.check_chain().await.unwrap(), 2, "pinning again adds nothing");
}

async fn what_was_committed_is_read_back_by_another_opening(database: &Database) {
    let fixture = Fixture::new(database).await;
    let (one, two) = (edit("The capital of ÄÖ\u{0}\u{1F600} is"), edit("two"));
    let version = NewVersion {
        edits: vec![one.clone(), two.clone()],
        idempotency: Some(answer("key")),
        ..fixture.next(VersionKind::Edit).await
    };
    let committed = fixture.log.commit(version).await.unwrap();
    fixture.log.close().await;

    let log = open_read_only(&fixture.url).await.unwrap();
    assert_eq!(log.head().await.unwrap(), committed);
    assert_eq!(log.version(1).await.unwrap().unwrap(), committed);
    assert!(log.version(2).await.unwrap().is_none());
    assert!(log.version(u64::MAX).await.unwrap().is_none());
    assert_eq!((committed.number, committed.active, committed.kind), (1, 2, VersionKind::Edit));

    let row = log.edit(one.id).await.unwrap().unwrap();
    assert_eq!((row.id, row.received_at, row.actor), (one.id, one.received_at, one.actor));
    assert_eq!((row.prompt, row.target), (one.prompt, one.target));
    assert_eq!((row.request, row.report), (one.request, one.report));
    assert_eq!((row.status, row.version, row.reason), (EditStatus::Applied, Some(1), None));
    let bytes = one.contribution.unwrap();
    assert_eq!(row.contribution, Some(Digest::of(&bytes)));
    assert_eq!(log.contribution(one.id).await.unwrap(), bytes);

    let added = |edit| Change { version: 1, edit, kind: ChangeKind::Added };
    assert_eq!(log.changes(0, 1).await.unwrap(), [added(one.id), added(two.id)]);
    assert_eq!(log.changes(1, 1).await.unwrap(), []);
    assert_eq!(log.active_set(1).await.unwrap(), BTreeSet::from([one.id, two.id]));
    assert_eq!(log.idempotent("key").await.unwrap(), Some(answer("key")));
    assert_eq!(log.idempotent("another").await.unwrap(), None);
    assert_eq!(log.check_chain().await.unwrap(), 5);
    log.ping().await.unwrap();
}

async fn status_follows_from_the_last_change(database: &Database) {
    let fixture = Fixture::new(database).await;
    let (old, new, other) = (edit("same"), edit("same"), edit("other"));
    let (old_id, new_id, other_id) = (old.id, new.id, other.id);
    fixture.apply(vec![old, other]).await;
    assert_eq!(fixture.status(old_id).await, EditStatus::Applied);

    fixture.supersede(old_id, new).await;
    let row = fixture.log.edit(old_id).await.unwrap().unwrap();
    assert_eq!((row.status, row.superseded_by, row.version), (EditStatus::Superseded, Some(new_id), Some(1)));
    assert_eq!(fixture.status(new_id).await, EditStatus::Applied);

    fixture.take_back(other_id).await;
    assert_eq!(fixture.status(other_id).await, EditStatus::TakenBack);

    let head = fixture.roll_back(1).await;
    assert_eq!((head.number, head.kind, head.active), (4, VersionKind::Rollback, 2));
    let row = fixture.log.edit(old_id).await.unwrap().unwrap();
    assert_eq!((row.status, row.superseded_by, row.version), (EditStatus::Applied, None, Some(1)));
    assert_eq!(fixture.status(new_id).await, EditStatus::TakenBack);
    assert_eq!(fixture.status(other_id).await, EditStatus::Applied);

    assert_eq!(fixture.log.active_set(2).await.unwrap(), BTreeSet::from([new_id, other_id]));
    assert_eq!(fixture.log.active_set(4).await.unwrap(), fixture.log.active_set(1).await.unwrap());
    assert_eq!(fixture.log.check_chain().await.unwrap(), 2 + 3 + 2 + 1 + 1);
}

async fn rejected_and_failed_edits_change_no_version(database: &Database) {
    let fixture = Fixture::new(database).await;
    let rejected = without_effect("one", Outcome::Rejected("p = 0.1 < 0.5".into()));
    let failed = without_effect("two", Outcome::Failed("no memory".into()));
    let ids = [rejected.id, failed.id];
    fixture.log.record(vec![rejected, failed]).await.unwrap();

    let row = fixture.log.edit(ids[0]).await.unwrap().unwrap();
    assert_eq!((row.status, row.reason.as_deref()), (EditStatus::Rejected, Some("p = 0.1 < 0.5")));
    assert_eq!((row.version, row.contribution), (None, None));
    let row = fixture.log.edit(ids[1]).await.unwrap().unwrap();
    assert_eq!((row.status, row.reason.as_deref()), (EditStatus::Failed, Some("no memory")));
    assert_eq!(fixture.log.head().await.unwrap().number, 0);
    assert!(matches!(fixture.log.contribution(ids[0]).await, Err(LogError::NoContribution(id)) if id == ids[0]));
    assert_eq!(fixture.log.check_chain().await.unwrap(), 4);
}

async fn reading_goes_on_while_another_opening_writes(database: &Database) {
    let fixture = Fixture::new(database).await;
    let reader = open_read_only(&fixture.url).await.unwrap();
    let writing = async {
        for number in 0..40 {
            fixture.apply(vec![edit(&format!("prompt {number}"))]).await;
        }
    };
    let reading = async {
        let mut last = 0;
        while last < 40 {
            let head = reader.head().await.unwrap();
            assert!(head.number >= last, "versions only grow");
            last = head.number;
            assert_eq!(reader.active_set(last).await.unwrap().len() as u64, head.active);
            reader.check_chain().await.unwrap();
        }
    };
    tokio::join!(writing, reading);
    assert!(matches!(reader.record(Vec::new()).await, Err(LogError::ReadOnly)));
}
