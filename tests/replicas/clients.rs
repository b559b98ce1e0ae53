//! Clients that write at any replica, and send each request again, under its key, until it is answered.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use reqwest::Method;
use serde_json::json;

use super::server::Client;

/// How long a client waits before it asks again.
const PAUSE: Duration = Duration::from_millis(30);
/// How long it waits for an answer. A replica that was stopped gives none.
const ANSWER: Duration = Duration::from_secs(2);

/// What an answer promised.
#[derive(Debug, Clone)]
pub struct Acknowledged {
    pub id: String,
    pub digest: String,
    /// When the request was sent that was answered.
    pub asked: Instant,
    pub answered: Instant,
}

/// Clients at work, and what they were told.
#[derive(Default)]
pub struct Crowd {
    /// Where they write; a replica that is down is passed over by asking another.
    pub replicas: Mutex<Vec<Client>>,
    /// By version.
    pub acknowledged: Mutex<BTreeMap<u64, Acknowledged>>,
    pub requests: AtomicU64,
    pub ended: AtomicBool,
}

impl Crowd {
    /// So many clients at these replicas.
    pub fn start(replicas: Vec<Client>, clients: u64) -> (Arc<Self>, Vec<tokio::task::JoinHandle<()>>) {
        let crowd = Arc::new(Self { replicas: Mutex::new(replicas), ..Self::default() });
        let run = |number| tokio::spawn(Arc::clone(&crowd).write(number));
        let tasks = (0..clients).map(run).collect();
        (crowd, tasks)
    }

    async fn write(self: Arc<Self>, number: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(number);
        let mut sent = 0;
        while !self.ended.load(Ordering::SeqCst) {
            sent += 1;
            let (key, prompt) = (format!("{number}-{sent}"), format!("client {number} says {}", sent % 8));
            let target = ["red", "blue", "far away"].choose(&mut rng).unwrap();
            let body = json!({"prompt": prompt, "target": target, "guard": null});
            self.insist(&mut rng, &key, &body).await;
        }
    }

    /// Until it is answered.
    async fn insist(&self, rng: &mut ChaCha8Rng, key: &str, body: &serde_json::Value) {
        let mut silent = String::new();
        loop {
            let others: Vec<Client> = {
                let replicas = self.replicas.lock().unwrap();
                replicas.iter().filter(|client| client.server != silent || replicas.len() == 1).cloned().collect()
            };
            let replica = others.choose(rng).unwrap().clone();
            let asked = Instant::now();
            let request = replica.request(Method::POST, "/edits").header("idempotency-key", key).json(body);
            let answer = replica.try_send(request.timeout(ANSWER)).await;
            match answer {
                Ok(reply) if reply.status == 201 => {
                    let (version, text) = (reply.body["version"].as_u64().unwrap(), |name: &str| {
                        reply.body[name].as_str().unwrap().to_owned()
                    });
                    let told = Acknowledged { id: text("id"), digest: text("digest"), asked, answered: Instant::now() };
                    let twin = self.acknowledged.lock().unwrap().insert(version, told);
                    assert!(twin.is_none(), "version {version} answers two requests");
                    self.requests.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                // The writer changed, or can not be reached, or was lost with the answer.
                Ok(reply) if [502, 503].contains(&reply.status) => {}
                // The commit of the one before it came first, and its answer was lost.
                Ok(reply) if reply.status == 409 && reply.body["code"] == "version_conflict" => {}
                Ok(reply) => panic!("{} {}", reply.status, reply.text),
                Err(_) => silent.clone_from(&replica.server),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// How many versions were acknowledged so far.
    pub fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// When the first request was answered that was sent after `moment`.
    pub fn first_after(&self, moment: Instant) -> Option<Instant> {
        let acknowledged = self.acknowledged.lock().unwrap();
        acknowledged.values().filter(|told| told.asked > moment).map(|told| told.answered).min()
    }
}
