//! Clients that stream edits, batches and take-backs until the service dies under them, and ask again when it is back.

use std::collections::BTreeSet;

use rand::{Rng, SeedableRng, seq::IteratorRandom};
use rand_chacha::ChaCha8Rng;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    history::Acknowledged,
    server::{Client, Reply},
    setting::Fact,
};

/// A request with its idempotency key, so that it can be sent again.
struct Asked {
    key: String,
    what: What,
}

enum What {
    /// One edit, or several as a batch.
    Edits(Vec<Fact>),
    TakeBack(String),
}

impl Asked {
    /// Sends the request. The error is that it was not answered.
    async fn send(&self, client: &Client) -> reqwest::Result<Reply> {
        let request = match &self.what {
            What::Edits(facts) => {
                let body = |fact: &Fact| json!({"prompt": fact.prompt, "target": fact.target, "guard": null});
                let edits: Vec<Value> = facts.iter().map(body).collect();
                let body = if let [one] = &edits[..] { one.clone() } else { json!({"edits": edits}) };
                client.request(Method::POST, "/edits").json(&body)
            }
            What::TakeBack(id) => client.request(Method::DELETE, &format!("/edits/{id}")),
        };
        client.try_send(request.header("idempotency-key", &self.key)).await
    }

    /// What an answer acknowledges.
    fn acknowledged(&self, reply: Reply) -> Acknowledged {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let (report, added, removed) = match &self.what {
            What::TakeBack(id) => (reply.with_status(200), Vec::new(), vec![id.clone()]),
            What::Edits(facts) => {
                let report = reply.with_status(201);
                let single = std::slice::from_ref(&report);
                let edits = report["edits"].as_array().map_or(single, Vec::as_slice);
                assert_eq!(edits.len(), facts.len(), "a batch is answered whole: {report}");
                let added = edits.iter().zip(facts).map(|(edit, fact)| {
                    assert_eq!((&edit["version"], &edit["digest"]), (&report["version"], &report["digest"]));
                    (text(&edit["id"]), fact.clone())
                });
                let removed = edits.iter().filter_map(|edit| edit["supersedes"].as_str().map(str::to_owned));
                let (added, removed) = (added.collect(), removed.collect());
                (report, added, removed)
            }
        };
        Acknowledged { version: report["version"].as_u64().unwrap(), digest: text(&report["digest"]), added, removed }
    }
}

/// One client. Its prompts are its own, so that nobody else takes its edits back or supersedes them.
pub struct Streamer {
    name: String,
    facts: Vec<Fact>,
    rng: ChaCha8Rng,
    sent: u64,
    /// Its edits that are active, as far as it was told.
    active: BTreeSet<String>,
    /// The request that the service died under.
    unanswered: Option<Asked>,
}

impl Streamer {
    pub fn new(name: String, facts: Vec<Fact>, seed: u64) -> Self {
        let (rng, active) = (ChaCha8Rng::seed_from_u64(seed), BTreeSet::new());
        Self { name, facts, rng, sent: 0, active, unanswered: None }
    }

    /// Sends requests until one is not answered. Returns what was acknowledged.
    pub async fn stream(&mut self, client: &Client) -> Vec<Acknowledged> {
        let mut acknowledged = Vec::new();
        while self.unanswered.is_none() {
            let asked = self.next();
            match asked.send(client).await {
                Ok(reply) => acknowledged.push(self.note(asked.acknowledged(reply))),
                Err(_) => self.unanswered = Some(asked),
            }
        }
        acknowledged
    }

    pub fn is_answered(&self) -> bool {
        self.unanswered.is_none()
    }

    /// Sends the unanswered request again. Also says whether the service had carried it out before it died.
    pub async fn ask_again(&mut self, client: &Client) -> Option<(Acknowledged, bool)> {
        let asked = self.unanswered.take()?;
        let reply = asked.send(client).await.unwrap();
        let replayed = reply.header("idempotent-replayed") == Some("true");
        Some((self.note(asked.acknowledged(reply)), replayed))
    }

    fn note(&mut self, acknowledged: Acknowledged) -> Acknowledged {
        self.active.retain(|id| !acknowledged.removed.contains(id));
        self.active.extend(acknowledged.added.iter().map(|(id, _)| id.clone()));
        acknowledged
    }

    fn next(&mut self) -> Asked {
        self.sent += 1;
        let what = match self.rng.random_range(0..10) {
            0..=2 if !self.active.is_empty() => {
                What::TakeBack(self.active.iter().choose(&mut self.rng).unwrap().clone())
            }
            0..=6 => What::Edits(self.choose(1)),
            _ => {
                let several = self.rng.random_range(2..=4);
                What::Edits(self.choose(several))
            }
        };
        Asked { key: format!("{}-{}", self.name, self.sent), what }
    }

    /// Distinct prompts, each with the target of any fact, so that an edit differs from the one that it supersedes.
    fn choose(&mut self, count: usize) -> Vec<Fact> {
        let mut facts: Vec<Fact> = self.facts.iter().cloned().choose_multiple(&mut self.rng, count);
        for fact in &mut facts {
            fact.target.clone_from(&self.facts.iter().choose(&mut self.rng).unwrap().target);
        }
        facts
    }
}
