//! Law 2 through the whole writer: whatever was done, the version is what its set makes.

use proptest::{prelude::*, test_runner::TestRunner};

use super::{super::testing::Fault, *};

#[derive(Debug, Clone)]
enum Action {
    Edit { prompt: usize, target: usize, dry: bool },
    Batch(Vec<usize>),
    TakeBack(prop::sample::Index),
    Rollback(prop::sample::Index),
    Failing,
    CommitFails,
    AnswerLost,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0..12_usize, 0..9_usize, prop::bool::weighted(0.2))
            .prop_map(|(prompt, target, dry)| Action::Edit { prompt, target, dry }),
        2 => prop::collection::btree_set(0..12_usize, 1..4).prop_map(|set| Action::Batch(set.into_iter().collect())),
        3 => any::<prop::sample::Index>().prop_map(Action::TakeBack),
        2 => any::<prop::sample::Index>().prop_map(Action::Rollback),
        1 => Just(Action::Failing),
        1 => Just(Action::CommitFails),
        1 => Just(Action::AnswerLost),
    ]
}

async fn act(world: &World, action: &Action) {
    let request = |prompt: usize, target: usize| edit(&format!("city {prompt} is"), &format!("colour{target}"));
    match action {
        Action::Edit { prompt, target, dry } => {
            let submission = Submission { dry_run: *dry, ..single(request(*prompt, *target)) };
            let _ = world.run(submission).await;
        }
        Action::Batch(prompts) => {
            let _ = world.run(batch(prompts.iter().map(|prompt| request(*prompt, 7)).collect())).await;
        }
        Action::TakeBack(index) => {
            let active: Vec<Uuid> = world.newest().await.active.iter().copied().collect();
            if !active.is_empty() {
                let _ = world.change(SetChange::TakeBack(*index.get(&active))).await;
            }
        }
        Action::Rollback(index) => {
            let to = index.index(world.newest().await.number as usize + 1) as u64;
            let _ = world.change(SetChange::Rollback(to)).await;
        }
        Action::Failing => assert!(world.run(single(edit("NAN-DELTA is", "x"))).await.is_err()),
        Action::CommitFails => world.log.at_next_commit(Fault::Refuse),
        Action::AnswerLost => world.log.at_next_commit(Fault::LoseAnswer),
    }
}

#[test]
fn any_history_ends_in_what_its_set_makes() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut runner = TestRunner::new(ProptestConfig { cases: 12, failure_persistence: None, ..Default::default() });
    let histories = prop::collection::vec(action(), 1..25);
    let outcome = runner.run(&histories, |history| {
        runtime.block_on(async {
            let world = World::new().await;
            for action in &history {
                act(&world, action).await;
            }
            let (number, digest) = (world.newest().await.number, world.check().await);
            let world = world.restart(config()).await;
            assert_eq!((world.newest().await.number, world.check().await), (number, digest));
        });
        Ok(())
    });
    outcome.unwrap();
}
