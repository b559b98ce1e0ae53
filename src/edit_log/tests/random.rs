//! Law 2, the log's part: the set of a version is what its changes fold to, over random histories.

use std::collections::BTreeSet;

use proptest::{
    prelude::*,
    test_runner::{TestCaseError, TestRunner},
};
use uuid::Uuid;

use super::{Database, Fixture, edit};
use crate::edit_log::{ChangeKind, EditQuery, EditStatus};

/// One step; the numbers pick among what is there.
#[derive(Debug, Clone)]
enum Step {
    Apply(usize),
    Supersede(prop::sample::Index),
    TakeBack(prop::sample::Index),
    RollBack(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..4usize).prop_map(Step::Apply),
        1 => any::<prop::sample::Index>().prop_map(Step::Supersede),
        2 => any::<prop::sample::Index>().prop_map(Step::TakeBack),
        1 => any::<prop::sample::Index>().prop_map(Step::RollBack),
    ]
}

/// Carries out `steps` and keeps the set of every version beside the log.
async fn play(fixture: &Fixture, steps: Vec<Step>) -> Vec<BTreeSet<Uuid>> {
    let mut sets: Vec<BTreeSet<Uuid>> = vec![BTreeSet::new()];
    for (number, step) in steps.into_iter().enumerate() {
        let mut set = sets.last().unwrap().clone();
        let active: Vec<Uuid> = set.iter().copied().collect();
        match step {
            Step::Apply(count) => {
                let edits: Vec<_> = (0..count).map(|index| edit(&format!("prompt {number}.{index}"))).collect();
                set.extend(edits.iter().map(|edit| edit.id));
                fixture.apply(edits).await;
            }
            Step::Supersede(index) if !active.is_empty() => {
                let old = *index.get(&active);
                let prompt = fixture.log.edit(old).await.unwrap().unwrap().prompt;
                let new = edit(&prompt);
                set.remove(&old);
                set.insert(new.id);
                fixture.supersede(old, new).await;
            }
            Step::TakeBack(index) if !active.is_empty() => {
                let id = *index.get(&active);
                set.remove(&id);
                fixture.take_back(id).await;
            }
            Step::RollBack(index) => {
                let to = index.index(sets.len());
                set = sets[to].clone();
                fixture.roll_back(to as u64).await;
            }
            Step::Supersede(_) | Step::TakeBack(_) => continue,
        }
        sets.push(set);
    }
    sets
}

async fn check(database: &Database, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let fixture = Fixture::new(database).await;
    let sets = play(&fixture, steps).await;
    let head = sets.len() as u64 - 1;
    prop_assert_eq!(fixture.log.head().await.unwrap().number, head);
    for (number, set) in (0..).zip(&sets) {
        prop_assert_eq!(&fixture.log.active_set(number).await.unwrap(), set);
        prop_assert_eq!(fixture.log.version(number).await.unwrap().unwrap().active, set.len() as u64);
        let mut folded = set.clone();
        for change in fixture.log.changes(number, head).await.unwrap() {
            let fits = match change.kind {
                ChangeKind::Added => folded.insert(change.edit),
                ChangeKind::Removed => folded.remove(&change.edit),
            };
            prop_assert!(fits, "{change:?} repeats the set");
        }
        prop_assert_eq!(&folded, &sets[sets.len() - 1]);
    }
    let applied = EditQuery { status: Some(EditStatus::Applied), limit: 1000, ..EditQuery::default() };
    let applied = fixture.log.edits(&applied).await.unwrap().items.iter().map(|row| row.id).collect::<BTreeSet<_>>();
    prop_assert_eq!(&applied, &sets[sets.len() - 1]);
    fixture.log.check_chain().await.unwrap();
    Ok(())
}

/// Holds the law against random histories over a database.
fn check_all(database: &Database, cases: u32) {
    let config = ProptestConfig { cases, max_shrink_iters: 64, ..ProptestConfig::default() };
    let steps = prop::collection::vec(step(), 1..24);
    let result = TestRunner::new(config).run(&steps, |steps| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(database, steps))
    });
    result.unwrap();
}

#[test]
fn the_set_of_a_version_is_the_fold_of_its_changes() {
    check_all(&Database::Sqlite, 24);
}

#[test]
fn the_set_of_a_version_is_the_fold_of_its_changes_on_postgres() {
    if let Some(database) = Database::postgres() {
        check_all(&database, 8);
    }
}
