//! Listing edits and versions: pages and each filter.

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

over_both_databases! {
    every_status_is_found_by_its_filter,
    text_is_found_in_prompt_and_target_without_wildcards,
    actor_and_time_filter,
    pages_follow_each_other_without_gap_or_overlap,
    versions_are_listed_newest_first,
}

use super::{Database, Fixture, edit, over_both_databases, without_effect};
use crate::edit_log::{EditQuery, EditStatus, NewEdit, Outcome};

/// Five edits, one of each status, oldest first.
async fn five(fixture: &Fixture) -> Vec<Uuid> {
    let start: Timestamp = "2025-03-01T00:00:00Z".parse().unwrap();
    let names = ["Paris is IN France", "100% sure", "Rome is in", "refused", "broken"];
    let outcomes = [
        Outcome::Applied,
        Outcome::Applied,
        Outcome::Applied,
        Outcome::Rejected("no".into()),
        Outcome::Failed("no".into()),
    ];
    let mut edits: Vec<NewEdit> = names
        .iter()
        .zip(outcomes)
        .map(|(name, outcome)| match outcome {
            Outcome::Applied => edit(name),
            outcome => without_effect(name, outcome),
        })
        .collect();
    for (second, edit) in (0..).zip(&mut edits) {
        // Half a second apart, so that fractions have to sort right too.
        edit.received_at = start + SignedDuration::from_millis(500 * second);
    }
    edits[1].actor = "bob".into();
    let ids: Vec<Uuid> = edits.iter().map(|edit| edit.id).collect();
    let without = edits.split_off(3);
    let successor = edit("successor");
    fixture.apply(edits).await;
    fixture.log.record(without).await.unwrap();
    fixture.take_back(ids[1]).await;
    fixture.supersede(ids[2], successor).await;
    let successor = fixture.log.active_set(3).await.unwrap().into_iter().find(|id| !ids.contains(id)).unwrap();
    fixture.take_back(successor).await;
    ids
}

async fn found(fixture: &Fixture, query: EditQuery) -> Vec<Uuid> {
    let page = fixture.log.edits(&EditQuery { limit: 100, ..query }).await.unwrap();
    assert_eq!(page.next, None);
    page.items.iter().map(|row| row.id).collect()
}

async fn every_status_is_found_by_its_filter(database: &Database) {
    let fixture = Fixture::new(database).await;
    let ids = five(&fixture).await;
    let with = |status| EditQuery { status: Some(status), ..EditQuery::default() };
    assert_eq!(found(&fixture, with(EditStatus::Applied)).await, [ids[0]]);
    assert_eq!(found(&fixture, with(EditStatus::TakenBack)).await[1..], [ids[1]]);
    assert_eq!(found(&fixture, with(EditStatus::Superseded)).await, [ids[2]]);
    assert_eq!(found(&fixture, with(EditStatus::Rejected)).await, [ids[3]]);
    assert_eq!(found(&fixture, with(EditStatus::Failed)).await, [ids[4]]);
    for row in fixture.log.edits(&EditQuery { limit: 100, ..EditQuery::default() }).await.unwrap().items {
        assert!(found(&fixture, with(row.status)).await.contains(&row.id), "{:?}", row.status);
    }
}

async fn text_is_found_in_prompt_and_target_without_wildcards(database: &Database) {
    let fixture = Fixture::new(database).await;
    let ids = five(&fixture).await;
    let with = |text: &str| EditQuery { text: Some(text.into()), ..EditQuery::default() };
    assert_eq!(found(&fixture, with("is in")).await, [ids[2], ids[0]], "ASCII case does not matter");
    assert_eq!(found(&fixture, with("TARGET OF rome")).await, [ids[2]]);
    assert_eq!(found(&fixture, with("0% s")).await, [ids[1]]);
    assert!(found(&fixture, with("%")).await == [ids[1]] && found(&fixture, with("_")).await.is_empty());
}

async fn actor_and_time_filter(database: &Database) {
    let fixture = Fixture::new(database).await;
    let ids = five(&fixture).await;
    let bob = EditQuery { actor: Some("bob".into()), ..EditQuery::default() };
    assert_eq!(found(&fixture, bob).await, [ids[1]]);
    let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
    let between =
        EditQuery { since: at("2025-03-01T00:00:00.5Z"), until: at("2025-03-01T00:00:01.5Z"), ..EditQuery::default() };
    assert_eq!(found(&fixture, between).await, [ids[2], ids[1]], "since is included, until is not");
}

async fn pages_follow_each_other_without_gap_or_overlap(database: &Database) {
    let fixture = Fixture::new(database).await;
    let mut expected = Vec::new();
    for number in 0..7 {
        let edit = edit(&format!("prompt {number}"));
        expected.insert(0, edit.id);
        fixture.apply(vec![edit]).await;
    }
    for limit in [0, 1, 2, 3, 7, 8] {
        let mut listed = Vec::new();
        let mut before = None;
        loop {
            let page = fixture.log.edits(&EditQuery { before, limit, ..EditQuery::default() }).await.unwrap();
            assert!(page.items.len() <= limit.max(1) as usize && !page.items.is_empty());
            listed.extend(page.items.iter().map(|row| row.id));
            before = page.next;
            if before.is_none() {
                break;
            }
        }
        assert_eq!(listed, expected, "limit {limit}");
    }
}

async fn versions_are_listed_newest_first(database: &Database) {
    let fixture = Fixture::new(database).await;
    for number in 0..5 {
        fixture.apply(vec![edit(&format!("prompt {number}"))]).await;
    }
    let numbers = async |before, limit| -> Vec<u64> {
        fixture.log.versions(before, limit).await.unwrap().iter().map(|row| row.number).collect()
    };
    assert_eq!(numbers(None, 2).await, [5, 4]);
    assert_eq!(numbers(Some(4), 10).await, [3, 2, 1, 0]);
    assert_eq!(numbers(Some(0), 10).await, [0; 0]);
    assert_eq!(numbers(Some(u64::MAX), 1).await, [5]);
}
