//! A database server, and services at its log.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{
    postgres::PostgresServer,
    process::PATIENCE,
    server::{Client, Files, Server},
};

/// A database server with one log.
pub struct Setting {
    pub server: PostgresServer,
    /// Model, editor and log of the services.
    pub files: Files,
}

impl Setting {
    /// None, said aloud, where there is no PostgreSQL.
    pub fn new() -> Option<Self> {
        Self::at(PostgresServer::start()?)
    }

    /// At this server.
    pub fn at(server: PostgresServer) -> Option<Self> {
        let files = Files::tiny().over(server.database());
        Some(Self { server, files })
    }

    /// The URL of its database, reached at another address.
    pub fn database_at(&self, address: &str) -> String {
        let url = self.files.url();
        let (name, _) = url.rsplit_once("localhost/").unwrap().1.split_once('?').unwrap();
        format!("postgres://postgres@{address}/{name}")
    }

    /// The writer of an empty log, and followers that never write.
    pub async fn with_followers(&self, followers: usize) -> (Server, Vec<Server>) {
        let writer = Server::start(&self.files).await;
        let mut others = Vec::new();
        for _ in 0..followers {
            others.push(Server::start_with(&self.files, &["--role", "follower"]).await);
        }
        (writer, others)
    }
}

/// What a service says of itself among the replicas.
pub async fn replica(client: &Client) -> Value {
    client.get("/info").await.with_status(200)["replica"].clone()
}

/// Waits until something is so.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    begun.elapsed()
}

/// Waits until a service has this version; returns the digest that it made.
pub async fn reached(client: &Client, version: u64) -> String {
    until("the version is there", async || {
        client.get("/info").await.with_status(200)["version"].as_u64().unwrap() >= version
    })
    .await;
    replica(client).await["digest"].as_str().unwrap().to_owned()
}

/// The value of a metric without labels.
pub async fn metric(client: &Client, name: &str) -> f64 {
    let text = client.get("/metrics").await.text;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}
