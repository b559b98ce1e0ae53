//! Restart and offline verification.

use std::sync::atomic::Ordering;

use super::{
    super::{ReplayError, StartError, verify},
    *,
};
use crate::edit_log::LogError;

async fn with_history() -> World {
    let world = World::new().await;
    let first = world.edit("Paris is", "blue").await;
    world.edit("Rome is", "red").await;
    world.edit("Paris is", "green").await;
    world.run(batch(vec![edit("Oslo is", "cold"), edit("Bonn is", "small")])).await.unwrap();
    world.run(single(edit("FAIL-CAPTURE is", "red"))).await.unwrap_err();
    world.change(SetChange::Rollback(1)).await.unwrap();
    world.change(SetChange::TakeBack(first.id)).await.unwrap();
    world.change(SetChange::Rollback(4)).await.unwrap();
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_leads_to_the_same_version() {
    let world = with_history().await;
    let (number, digest) = (world.newest().await.number, world.check().await);
    for replay_every_version in [true, false] {
        let copy = tempfile::tempdir().unwrap();
        world.log.log.check_chain().await.unwrap();
        for name in ["log.db", "log.db-wal"] {
            std::fs::copy(world.folder.path().join(name), copy.path().join(name)).unwrap();
        }
        let again = World::over(copy, WriterConfig { replay_every_version, ..config() }).await;
        assert_eq!((again.newest().await.number, again.check().await), (number, digest));
        let replay = again.started.replay;
        assert_eq!((replay.versions, replay.active, replay.changes), (7, 4, 16));
        let superseding = again.edit(" Rome is", "old").await;
        assert!(superseding.supersedes.is_some(), "prompts are known again");
        again.check().await;
    }
    let world = world.restart(config()).await;
    assert_eq!(world.check().await, digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_names_the_first_version_that_does_not_fit() {
    let world = with_history().await;
    let log = Arc::clone(&world.log) as Arc<dyn EditLog>;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let progress = Arc::clone(&seen);
    let report = verify(Arc::clone(&log), foundation(), move |done, all| progress.lock().unwrap().push((done, all)));
    assert_eq!(report.await.unwrap().versions, 7);
    assert_eq!(*seen.lock().unwrap(), (1..=7).map(|n| (n, 7)).collect::<Vec<_>>());
    world.log.lying.store(4, Ordering::SeqCst);
    let error = verify(Arc::clone(&log), foundation(), |_, _| {}).await.unwrap_err();
    assert!(matches!(error, ReplayError::Version { number: 4, .. }), "{error}");
    let mut other = foundation();
    other.editor = Digest::of(b"another editor");
    let error = verify(log, other, |_, _| {}).await.unwrap_err();
    assert!(matches!(error, ReplayError::Log(LogError::IdentityMismatch { what: "editor", .. })), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_does_not_fit_does_not_start() {
    let world = with_history().await;
    let start = async |replay_every_version| {
        let config = WriterConfig { replay_every_version, ..config() };
        start_with(SmallBench::default(), Arc::clone(&world.log) as _, Place::Alone, config, Metrics::new()).await
    };
    let refused = async |replay_every_version, version| {
        let Err(error) = start(replay_every_version).await else { panic!("it started") };
        assert!(
            matches!(&error, StartError::Replay(ReplayError::Version { number, .. }) if *number == version),
            "{error}"
        );
    };
    for every in [true, false] {
        world.log.lying.store(7, Ordering::SeqCst);
        refused(every, 7).await;
        world.log.lying.store(0, Ordering::SeqCst);
        world.log.lying_of_set.store(4, Ordering::SeqCst);
        refused(every, 4).await;
        world.log.lying_of_set.store(0, Ordering::SeqCst);
    }
    world.log.lying.store(4, Ordering::SeqCst);
    refused(true, 4).await;
    start(false).await.unwrap().task.stop(Duration::ZERO).await;
    world.log.lying.store(0, Ordering::SeqCst);
    let other = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", other.path().join("log.db").display());
    let log = SqliteLog::open(&url).await.unwrap();
    let mut identity = super::super::ledger::Ledger::new(foundation()).unwrap().identity().clone();
    identity.editor = Digest::of(b"another editor");
    log.pin(&identity).await.unwrap();
    let start = start_with(SmallBench::default(), Arc::new(log), Place::Alone, config(), Metrics::new()).await;
    let Err(error) = start else { panic!("it started") };
    assert!(matches!(&error, StartError::Log(LogError::IdentityMismatch { what: "editor", .. })), "{error}");
}
