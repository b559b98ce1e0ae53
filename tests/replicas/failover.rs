//! Law 5 under fire: the writer is killed or stopped while edits stream in; another takes over within seconds, nothing that
//! was acknowledged is lost, and one that was only stopped can not commit any more.

use std::time::{Duration, Instant};

use super::{
    clients::Crowd,
    postgres::PostgresServer,
    server::{Files, Server},
    setting::{Setting, reached, replica, until},
};

/// The longest time from the loss of the writer to the first change after it.
const LIMIT: Duration = Duration::from_secs(5);
const REPLICAS: usize = 3;
const CLIENTS: u64 = 4;

fn failovers() -> u64 {
    let given = std::env::var("AMEND_FAILOVERS").ok();
    given.map_or(4, |number| number.parse().expect("AMEND_FAILOVERS is a number"))
}

/// Failovers of one log before the next begins: a start replays the whole log, so that a long one would take all the time.
const FAILOVERS_PER_LOG: u64 = 10;

/// Kills and stops take turns. `AMEND_FAILOVERS` says how many.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_whichever_way_the_writer_goes() {
    let Some(server) = PostgresServer::start() else { return };
    let mut figures = Figures::default();
    let mut left = failovers();
    while left > 0 {
        let failovers = left.min(FAILOVERS_PER_LOG);
        one_log(&Files::tiny().over(server.database()), failovers, &mut figures).await;
        left -= failovers;
        eprintln!("{left} failovers are left");
    }
    let Figures { acknowledged, mut killed, mut stopped } = figures;
    println!(
        "{acknowledged} versions acknowledged, all there, one request each; from the loss of the writer to the next change: {} \
         after {} kills, {} after {} stops",
        range(&mut killed),
        killed.len(),
        range(&mut stopped),
        stopped.len()
    );
}

/// What was measured.
#[derive(Default)]
struct Figures {
    acknowledged: usize,
    killed: Vec<Duration>,
    stopped: Vec<Duration>,
}

/// Failovers of a log of its own.
async fn one_log(files: &Files, failovers: u64, figures: &mut Figures) {
    let mut replicas = Vec::new();
    for _ in 0..REPLICAS {
        replicas.push(Server::start(files).await);
    }
    let clients = replicas.iter().map(|server| server.client.clone()).collect();
    let (crowd, tasks) = Crowd::start(clients, CLIENTS);
    for round in 0..failovers {
        let before = crowd.count();
        until("the clients are at work", async || crowd.count() >= before + 5).await;
        let writer = writer_of(&replicas).await;
        if round % 2 == 0 {
            let (server, lost) = (replicas.remove(writer), Instant::now());
            server.kill();
            figures.killed.push(taken_over(&crowd, lost).await);
            replicas.push(Server::start(files).await);
            *crowd.replicas.lock().unwrap() = replicas.iter().map(|server| server.client.clone()).collect();
        } else {
            let lost = Instant::now();
            replicas[writer].pause();
            figures.stopped.push(taken_over(&crowd, lost).await);
            replicas[writer].resume();
            let old = &replicas[writer].client;
            until("the old writer follows", async || replica(old).await["role"] == "follower").await;
        }
    }
    crowd.ended.store(true, std::sync::atomic::Ordering::SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    check(files, &replicas, &crowd).await;
    figures.acknowledged += crowd.count();
}

/// The one that writes; the others know it.
async fn writer_of(replicas: &[Server]) -> usize {
    let mut found = None;
    until("one replica writes", async || {
        let mut roles = Vec::new();
        for server in replicas {
            roles.push(replica(&server.client).await["role"] == "writer");
        }
        found = roles.iter().position(|writes| *writes);
        roles.iter().filter(|writes| **writes).count() == 1
    })
    .await;
    found.unwrap()
}

/// Waits for the first change that was asked for after the loss; how long after.
async fn taken_over(crowd: &Crowd, lost: Instant) -> Duration {
    until("a change after the loss", async || crowd.first_after(lost).is_some()).await;
    let took = crowd.first_after(lost).unwrap() - lost;
    assert!(took < LIMIT, "{took:?} without a writer");
    took
}

/// Every acknowledged version is in the log with its digest and edit, every replica has the newest, and the log verifies.
async fn check(files: &Files, replicas: &[Server], crowd: &Crowd) {
    let client = &replicas[0].client;
    let acknowledged = crowd.acknowledged.lock().unwrap().clone();
    let newest = *acknowledged.keys().next_back().unwrap();
    assert!(acknowledged.keys().copied().eq(1..=newest), "each version up to {newest} answers one request");
    let mut digest = String::new();
    for (version, told) in &acknowledged {
        let row = client.version(*version).await;
        assert_eq!(row["digest"], told.digest, "version {version}");
        let edit = client.get(&format!("/edits/{}", told.id)).await.with_status(200);
        assert_eq!(edit["version"], *version, "{edit}");
        digest.clone_from(&told.digest);
    }
    for server in replicas {
        assert_eq!(reached(&server.client, newest).await, digest);
        assert_eq!(client.newest().await["version"], newest, "nothing beyond what was acknowledged");
    }
    files.verify().good();
}

fn range(times: &mut [Duration]) -> String {
    times.sort();
    let ms = |time: Option<&Duration>| time.map_or(0, Duration::as_millis);
    format!("{} ms in the median and {} ms at most", ms(times.get(times.len() / 2)), ms(times.last()))
}

/// A writer that stops in good order leaves its place at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_told_to_stop_hands_over() {
    let Some(setting) = Setting::new() else { return };
    let (one, two) = (Server::start(&setting.files).await, Server::start(&setting.files).await);
    one.client.edit("Rome is", "red").await;
    assert_eq!(replica(&two.client).await["role"], "follower");
    one.stop().await;
    let took = until("the other writes", async || replica(&two.client).await["role"] == "writer").await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(two.client.edit("Oslo is", "cold").await["version"], 2);
}

/// A follower does not wait for ever for a writer that was stopped with its request.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_handed_to_a_stopped_writer_is_given_up_when_another_takes_over() {
    let Some(setting) = Setting::new() else { return };
    let (one, two) = (Server::start(&setting.files).await, Server::start(&setting.files).await);
    let ask = || {
        let body = serde_json::json!({"prompt": "Rome is", "target": "red", "guard": null});
        two.client.request(reqwest::Method::POST, "/edits").header("idempotency-key", "k").json(&body)
    };
    one.pause();
    let begun = Instant::now();
    let lost = two.client.send(ask()).await.problem(502, "writer_lost");
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    assert_eq!(lost["writer"], one.client.server);
    assert_eq!(two.client.send(ask()).await.with_status(201)["version"], 1);
    one.resume();
    until("the old writer follows", async || replica(&one.client).await["role"] == "follower").await;
    reached(&one.client, 1).await;
    assert_eq!(two.client.newest().await["version"], 1, "what it was handed was done once");
}

/// One that may not become the writer does not, and says that there is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_never_takes_over() {
    let Some(setting) = Setting::new() else { return };
    let (writer, followers) = setting.with_followers(1).await;
    let follower = &followers[0].client;
    writer.client.edit("Rome is", "red").await;
    reached(follower, 1).await;
    writer.kill();
    let edit = serde_json::json!({"prompt": "Oslo is", "target": "cold"});
    let refused = follower.post("/edits", &edit).await;
    assert_eq!(refused.header("retry-after"), Some("2"));
    refused.problem(503, "no_writer");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(replica(follower).await["role"], "follower");
    follower.get("/readyz").await.with_status(200);
    let ask = serde_json::json!({"prompt": "Rome is", "max_tokens": 2, "min_version": 1});
    follower.post("/generate", &ask).await.with_status(200);
    // The next writer is known to it as soon as there is one.
    let next = Server::start(&setting.files).await;
    until("the follower knows the writer", async || replica(follower).await["writer"] == next.client.server).await;
    assert_eq!(follower.edit("Oslo is", "cold").await["version"], 2);
}
