//! What one writer and four followers do on this machine: changes a second, how long until followers have them, texts from the
//! followers; and what a long log costs at a start. For people: `scripts/show-replicas`.

use std::{
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future;
use serde_json::{Value, json};

use super::{
    clients::Crowd,
    postgres::PostgresServer,
    process::{amend, finish},
    server::{Client, Server},
    setting::{Setting, reached},
};

const FOLLOWERS: usize = 4;
const CLIENTS: u64 = 4;
/// Of the log whose start is measured.
const VERSIONS: u64 = 1000;
/// Tokens of a text.
const TOKENS: u64 = 32;

fn seconds() -> Duration {
    let given = std::env::var("AMEND_SHOW_SECONDS").ok();
    Duration::from_secs(given.map_or(20, |number| number.parse().expect("AMEND_SHOW_SECONDS is a number")))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "figures for people: see scripts/show-replicas"]
async fn show_what_a_writer_and_four_followers_do() {
    // With its syncs, as it would be.
    let setting = PostgresServer::start_with(&[]).and_then(Setting::at).expect("PostgreSQL is needed");
    let (writer, servers) = setting.with_followers(FOLLOWERS).await;
    let followers: Vec<Client> = servers.iter().map(|server| server.client.clone()).collect();
    writer.client.edit("Rome is", "red").await;

    let quiet = texts(&followers, seconds()).await;
    println!(
        "{quiet:.0} tokens/s from {FOLLOWERS} followers, {CLIENTS} clients each, texts of {TOKENS} tokens, no edits"
    );
    let (edits, lags) = edits(&writer.client, &followers, seconds()).await;
    println!("{edits:.0} edits/s by {CLIENTS} clients at the writer; {}", said(lags));
    let busy = tokio::join!(texts(&followers, seconds()), self::edits(&writer.client, &followers, seconds()));
    let (tokens, (edits, lags)) = busy;
    println!("both at once: {tokens:.0} tokens/s, {edits:.0} edits/s; {}", said(lags));

    let newest = writer.client.newest().await;
    for follower in &followers {
        assert_eq!(reached(follower, newest["version"].as_u64().unwrap()).await, newest["digest"].as_str().unwrap());
    }
    println!("{FOLLOWERS} followers have version {} and its digest", newest["version"]);
}

/// `AMEND_SHOW_OTHER` may name another build, which checks the same log.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "figures for people: see scripts/show-replicas"]
async fn show_how_long_a_log_of_a_thousand_versions_takes() {
    let setting = Setting::new().expect("PostgreSQL is needed");
    let writer = Server::start(&setting.files).await;
    for version in 0..VERSIONS {
        writer.client.edit(&format!("Number {version} is"), "odd").await;
    }
    writer.stop().await;
    let writer = Server::start(&setting.files).await;
    let log = writer.log();
    let replayed = log.lines().find(|line| line.contains("log replayed and checked")).unwrap();
    let replayed: Value = serde_json::from_str(replayed).unwrap();
    println!("a start with {VERSIONS} versions in PostgreSQL: {} s until the log is replayed", replayed["seconds"]);
    writer.stop().await;
    let other = std::env::var_os("AMEND_SHOW_OTHER").map(Command::new);
    for (what, mut program) in [("this build", amend())].into_iter().chain(other.map(|other| ("the other", other))) {
        let begun = Instant::now();
        finish(program.arg("verify").args(setting.files.options())).good();
        println!("amend verify of them, {what}: {:.2} s", begun.elapsed().as_secs_f64());
    }
}

/// Tokens a second that clients get from the followers.
async fn texts(followers: &[Client], time: Duration) -> f64 {
    let (tokens, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    let ask = |client: &Client, number: u64| {
        let (client, tokens, ended) = (client.clone(), &tokens, &ended);
        let body = json!({"prompt": format!("Client {number} says"), "max_tokens": TOKENS, "temperature": 1.0});
        async move {
            while !ended.load(Ordering::SeqCst) {
                let answer = client.post("/generate", &body).await.with_status(200);
                tokens.fetch_add(answer["usage"]["completion_tokens"].as_u64().unwrap(), Ordering::SeqCst);
            }
        }
    };
    let asking = followers.iter().flat_map(|client| (0..CLIENTS).map(move |number| (client, number)));
    let asking = future::join_all(asking.map(|(client, number)| ask(client, number)));
    let begun = Instant::now();
    let ending = async {
        tokio::time::sleep(time).await;
        ended.store(true, Ordering::SeqCst);
    };
    tokio::join!(asking, ending);
    tokens.load(Ordering::SeqCst) as f64 / begun.elapsed().as_secs_f64()
}

/// Edits a second at the writer, and how long after each answer each follower had the version.
async fn edits(writer: &Client, followers: &[Client], time: Duration) -> (f64, Vec<Duration>) {
    let (crowd, tasks) = Crowd::start(vec![writer.clone()], CLIENTS);
    let lags = Arc::new(Mutex::new(Vec::new()));
    let begun = Instant::now();
    let watching = future::join_all(followers.iter().map(|follower| watch(follower, &crowd, &lags, time)));
    watching.await;
    crowd.ended.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    let rate = crowd.count() as f64 / begun.elapsed().as_secs_f64();
    let lags = std::mem::take(&mut *lags.lock().unwrap());
    (rate, lags)
}

/// Asks a follower for the version that was acknowledged last, time and again.
async fn watch(follower: &Client, crowd: &Crowd, lags: &Mutex<Vec<Duration>>, time: Duration) {
    let begun = Instant::now();
    let mut last = 0;
    while begun.elapsed() < time {
        let newest =
            crowd.acknowledged.lock().unwrap().iter().next_back().map(|(version, told)| (*version, told.answered));
        let Some((version, answered)) = newest.filter(|(version, _)| *version > last) else {
            tokio::time::sleep(Duration::from_millis(2)).await;
            continue;
        };
        follower.get(&format!("/versions/0?min_version={version}")).await.with_status(200);
        lags.lock().unwrap().push(answered.elapsed());
        last = version;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn said(mut lags: Vec<Duration>) -> String {
    lags.sort();
    let at = |share: f64| lags[((lags.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let (half, most, count) = (at(0.5), at(0.99), lags.len());
    format!("from an answer until a follower has it {half:.1} ms p50, {most:.1} ms p99 ({count} asked)")
}
