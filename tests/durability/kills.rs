//! Law 3: what was acknowledged survives a kill at any instruction; what was not is there whole or not at all.

use std::time::{Duration, Instant};

use futures::future;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    clients::Streamer,
    history::History,
    server::{Files, Launched, Server},
    setting::{Setting, number},
};

const CLIENTS: usize = 4;
/// Prompts of one client, few enough that edits supersede each other.
const PROMPTS: usize = 12;
/// Kills of one log before the next begins. A start replays the whole log, so that a long one would take all the time.
const KILLS_PER_LOG: u64 = 10;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9() {
    let plan = Plan { kills: number("AMEND_KILLS", 50), longest: Duration::from_millis(400) };
    println!("{}", plan.carry_out(&Setting::tiny()).await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "on a real model, for people: see scripts/show-durability"]
async fn show_that_what_was_acknowledged_survives_kill_9() {
    let plan = Plan { kills: number("AMEND_KILLS", 200), longest: Duration::from_millis(2500) };
    println!("{}", plan.carry_out(&Setting::of_environment()).await);
}

struct Plan {
    kills: u64,
    /// The longest time from the first request to the kill.
    longest: Duration,
}

/// Figures of all rounds.
#[derive(Default)]
struct Figures {
    logs: u64,
    /// Kills of a service that was not ready yet, beside the others.
    while_starting: u64,
    acknowledged: usize,
    unanswered: usize,
    /// Of those, found in the log whole.
    written: usize,
    starts: Vec<Duration>,
}

impl Plan {
    async fn carry_out(&self, setting: &Setting) -> String {
        let begun = Instant::now();
        let mut rng = ChaCha8Rng::seed_from_u64(number("AMEND_SHOW_SEED", 1));
        let mut figures = Figures::default();
        let mut left = self.kills;
        while left > 0 {
            let kills = left.min(KILLS_PER_LOG);
            self.one_log(setting, kills, &mut rng, &mut figures).await;
            left -= kills;
            eprintln!("{left} kills are left after {:.0} s", begun.elapsed().as_secs_f64());
        }
        assert!(figures.acknowledged as u64 > self.kills, "the clients were too slow for this to say anything");
        figures.starts.sort();
        format!(
            "kills: {} kills -9 while edits streamed in, {} more while the service started again; {} logs, {CLIENTS} \
             clients; {} versions acknowledged, all there after each restart with their digests and sets; {} requests \
             unanswered, {} of them in the log, whole; verify clean after each kill; a start took {:.0} ms in the \
             median, {:.0} ms at most; {:.0} s",
            self.kills,
            figures.while_starting,
            figures.logs,
            figures.acknowledged,
            figures.unanswered,
            figures.written,
            figures.starts[figures.starts.len() / 2].as_secs_f64() * 1e3,
            figures.starts[figures.starts.len() - 1].as_secs_f64() * 1e3,
            begun.elapsed().as_secs_f64()
        )
    }

    async fn one_log(&self, setting: &Setting, kills: u64, rng: &mut ChaCha8Rng, figures: &mut Figures) {
        let clients = setting.facts.chunks(PROMPTS).take(CLIENTS).enumerate();
        let clients = clients.map(|(i, facts)| Streamer::new(format!("client-{i}"), facts.to_vec(), rng.random()));
        let mut log = Log { files: setting.files.afresh(), clients: clients.collect(), history: History::default() };
        assert_eq!(log.clients.len(), CLIENTS, "there are too few facts");
        let mut start = log.served(figures).await;
        for kill in 0..kills {
            let (server, took) = start;
            log.stream(server, self.longest.mul_f64(rng.random()), figures).await;
            // Some of the starts are killed as well.
            if kill + 1 < kills && rng.random_ratio(1, 5) {
                Launched::new(&log.files, &[]).kill_after(took.mul_f64(rng.random())).await;
                figures.while_starting += 1;
            }
            log.files.verify().good();
            start = log.served(figures).await;
        }
        let (server, _) = start;
        log.history.check_empty(&server.client).await;
        server.stop().await;
        log.files.verify().good();
        figures.acknowledged += log.history.len();
        figures.logs += 1;
    }
}

/// One log, those who write to it, and what they were told.
struct Log {
    files: Files,
    clients: Vec<Streamer>,
    history: History,
}

impl Log {
    /// Starts the service, holds it against what was acknowledged, and has the clients ask again.
    async fn served(&mut self, figures: &mut Figures) -> (Server, Duration) {
        let begun = Instant::now();
        let server = Server::start(&self.files).await;
        let took = begun.elapsed();
        figures.starts.push(took);
        let unanswered = self.clients.iter().filter(|client| !client.is_answered()).count();
        self.history.check_acknowledged(&server.client, unanswered).await;
        for client in &mut self.clients {
            if let Some((acknowledged, replayed)) = client.ask_again(&server.client).await {
                self.history.note(acknowledged);
                figures.written += usize::from(replayed);
            }
        }
        self.history.check_sets(&server.client).await;
        (server, took)
    }

    /// Lets the clients write until the service is killed.
    async fn stream(&mut self, server: Server, kill: Duration, figures: &mut Figures) {
        let client = server.client.clone();
        let killing = async {
            tokio::time::sleep(kill).await;
            server.kill();
        };
        let streams = future::join_all(self.clients.iter_mut().map(|streamer| streamer.stream(&client)));
        let (acknowledged, ()) = future::join(streams, killing).await;
        acknowledged.into_iter().flatten().for_each(|acknowledged| self.history.note(acknowledged));
        figures.unanswered += self.clients.len();
    }
}
