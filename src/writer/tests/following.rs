//! A process that shares its log: it takes up what another commits, takes over, and notices what does not fit. The place is a
//! double; what the database does is tested with the log.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;

use super::*;
use crate::{
    edit_log::{LogError, Seat, Survey},
    writer::{ReplicaStatus, Role},
};

/// A writer's place that is free when the test says so.
struct FakeSeat {
    log: Arc<FaultyLog>,
    free: AtomicBool,
    /// The database can not be reached.
    cut: AtomicBool,
}

#[async_trait]
impl Seat for FakeSeat {
    async fn take(&self) -> Result<Option<u64>, LogError> {
        Ok(self.free.swap(false, Ordering::SeqCst).then_some(1))
    }

    async fn keep(&self) -> Result<(), LogError> {
        if self.cut.load(Ordering::SeqCst) { Err(LogError::Storage("cut off".into())) } else { Ok(()) }
    }

    async fn leave(&self) {}

    async fn survey(&self) -> Result<Survey, LogError> {
        if self.cut.load(Ordering::SeqCst) {
            return Err(LogError::Storage("cut off".into()));
        }
        let newest = self.log.head().await?.number;
        Ok(Survey { newest: Some(newest), epoch: 1, holder: "another".into(), address: Some("http://writer".into()) })
    }

    async fn changed(&self, _: Duration) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A process that follows another's log.
struct Follower {
    started: Started,
    seat: Arc<FakeSeat>,
    metrics: Metrics,
}

impl Follower {
    async fn of(world: &World) -> Self {
        let url = format!("sqlite://{}", world.folder.path().join("log.db").display());
        let log = Arc::new(FaultyLog::new(SqliteLog::open(&url).await.unwrap()));
        let seat = FakeSeat { log: Arc::clone(&log), free: AtomicBool::new(false), cut: AtomicBool::new(false) };
        let (seat, metrics) = (Arc::new(seat), Metrics::new());
        let place = Place::Shared { seat: Arc::clone(&seat) as _, candidate: true };
        let started = start_with(SmallBench::default(), log as _, place, config(), metrics.clone()).await.unwrap();
        Self { started, seat, metrics }
    }

    fn status(&self) -> ReplicaStatus {
        self.started.replica.status()
    }

    async fn until(&self, holds: impl Fn(&ReplicaStatus) -> bool) -> ReplicaStatus {
        let begun = Instant::now();
        while !holds(&self.status()) {
            assert!(begun.elapsed() < Duration::from_secs(60), "never: {:?}", self.status());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.status()
    }

    /// Until it has the world's newest version; compares the weights.
    async fn agrees_with(&self, world: &World) {
        let newest = world.newest().await;
        let status = self.until(|status| status.version >= newest.number).await;
        assert_eq!((status.version, status.digest), (newest.number, newest.digest));
        let own = self.started.versions.lease(None).await.unwrap();
        assert_eq!(weights_of(&own), weights_of(&newest));
        assert_eq!((*own.active).clone(), (*newest.active).clone());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_takes_up_every_kind_of_version() {
    let world = World::new().await;
    let first = world.edit("a b", "blue").await;
    let follower = Follower::of(&world).await;
    follower.agrees_with(&world).await;
    assert_eq!(follower.status().role, Role::Follower);
    world.edit("a b", "red").await;
    world.edit("c d", "blue").await;
    follower.agrees_with(&world).await;
    let batched = world.run(batch(vec![edit("e f", "red"), edit("g h", "blue")])).await.unwrap();
    world.change(SetChange::TakeBack(batched.edits[0].id)).await.unwrap();
    world.change(SetChange::Rollback(1)).await.unwrap();
    follower.agrees_with(&world).await;
    assert_eq!(world.row(first.id).await.status, crate::edit_log::EditStatus::Applied);
    // One that it never had in memory.
    let old = world.started.versions.lease(Some(3)).await.unwrap();
    assert_eq!(follower.started.versions.lease(Some(3)).await.unwrap().digest, old.digest);
    assert!(follower.metrics.follower_apply.get_sample_count() > 0);
    let refused = follower.started.handle.submit(single(edit("x", "red"))).err().unwrap();
    assert!(matches!(&refused, WriterError::NotWriter { writer: Some(at) } if at == "http://writer"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_was_cut_off_says_so_and_catches_up_with_many_versions() {
    let world = World::new().await;
    world.edit("a b", "blue").await;
    let follower = Follower::of(&world).await;
    follower.agrees_with(&world).await;
    follower.seat.cut.store(true, Ordering::SeqCst);
    for i in 0..70 {
        world.edit(&format!("p{}", i % 7), if i % 2 == 0 { "red" } else { "blue" }).await;
    }
    let behind = follower.until(|status| status.lag > Duration::from_millis(50)).await;
    assert_eq!((behind.version, behind.role), (1, Role::Follower));
    let (reached, waited) = (follower.started.replica.reach(2, Duration::from_millis(20)).await, Instant::now());
    assert_eq!(reached, Err(1));
    follower.seat.cut.store(false, Ordering::SeqCst);
    follower.started.replica.reach(71, Duration::from_secs(60)).await.unwrap();
    assert!(waited.elapsed() < Duration::from_secs(60));
    follower.agrees_with(&world).await;
    assert_eq!(follower.metrics.follower_apply.get_sample_count(), 0, "it went to the newest at once");
    // And goes on from there.
    world.edit("a b", "red").await;
    follower.agrees_with(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_becomes_the_writer_when_the_place_is_free_and_gives_it_up_when_it_is_lost() {
    let world = World::new().await;
    world.edit("a b", "blue").await;
    let follower = Follower::of(&world).await;
    follower.agrees_with(&world).await;
    world.started.task.stop(Duration::ZERO).await;
    follower.seat.free.store(true, Ordering::SeqCst);
    let status = follower.until(|status| status.role == Role::Writer).await;
    assert_eq!((status.lag, status.writer), (Duration::ZERO, None));
    assert_eq!((follower.metrics.writer.get(), follower.metrics.takeovers.get()), (1, 1));
    let ticket = follower.started.handle.submit(single(edit("a b", "red"))).unwrap();
    let Answer::Fresh(report) = ticket.done().await.unwrap() else { panic!("recorded") };
    assert_eq!((report.version, report.edits[0].supersedes.is_some()), (2, true), "it knows the edits before it");

    follower.seat.cut.store(true, Ordering::SeqCst);
    follower.until(|status| status.role == Role::Follower).await;
    assert_eq!(follower.metrics.writer.get(), 0);
    let refused = follower.started.handle.change(SetChange::Rollback(0), "x".into(), None, None).await.err().unwrap();
    assert!(matches!(refused, WriterError::NotWriter { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_weights_differ_goes_out_of_service_and_stays_where_it_was() {
    let world = World::new().await;
    world.edit("a b", "blue").await;
    let follower = Follower::of(&world).await;
    follower.agrees_with(&world).await;
    let before = follower.status();
    follower.seat.log.lying.store(2, Ordering::SeqCst);
    world.edit("c d", "red").await;
    let status = follower.until(|status| status.diverged.is_some()).await;
    assert_eq!((status.version, status.digest), (before.version, before.digest));
    assert!(status.diverged.unwrap().contains("version 2: the log has digest"));
    assert_eq!(follower.metrics.diverged.get(), 1);
    follower.seat.free.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(follower.status().role, Role::Follower);
    assert!(follower.seat.free.load(Ordering::SeqCst), "it does not even try");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_fails_is_tried_again() {
    let world = World::new().await;
    let follower = Follower::of(&world).await;
    follower.seat.log.failing_read.store(1, Ordering::SeqCst);
    world.edit("a b", "blue").await;
    follower.agrees_with(&world).await;
    assert_eq!(follower.seat.log.failing_read.load(Ordering::SeqCst), 0, "it did fail");
    assert_eq!(follower.status().diverged, None);
}
