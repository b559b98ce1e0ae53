//! A follower that is cut off from the log: it serves the version that it has, says how far behind it is, and catches up.

use std::{path::PathBuf, time::Duration};

use serde_json::json;
use tokio::{
    io,
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
};

use super::{
    server::Server,
    setting::{Setting, metric, reached, replica, until},
};

/// A way to the database that can be cut: what is on its way then is lost from sight, and nothing is closed, as where a cable
/// is pulled.
struct Proxy {
    address: String,
    cut: watch::Sender<bool>,
}

impl Proxy {
    async fn to(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (cut, state) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, socket.clone(), state.clone()));
            }
        });
        Self { address, cut }
    }
}

/// Carries bytes both ways while the way is not cut.
async fn carry(near: TcpStream, socket: PathBuf, cut: watch::Receiver<bool>) {
    let mut opened = cut.clone();
    opened.wait_for(|cut| !*cut).await.unwrap();
    let far = UnixStream::connect(socket).await.unwrap();
    let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
    tokio::join!(pump(from_near, to_far, cut.clone()), pump(from_far, to_near, cut));
}

async fn pump(
    mut from: impl io::AsyncRead + Unpin,
    mut to: impl io::AsyncWrite + Unpin,
    mut cut: watch::Receiver<bool>,
) {
    use io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        cut.wait_for(|cut| !*cut).await.unwrap();
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_is_cut_off_serves_its_version_says_so_and_catches_up() {
    let Some(setting) = Setting::new() else { return };
    let proxy = Proxy::to(setting.server.socket()).await;
    let far = setting.files.over(setting.database_at(&proxy.address));
    let writer = Server::start(&setting.files).await;
    let options = ["--role", "follower", "--max-lag", "4", "--version-wait", "1"];
    let follower = Server::start_with(&far, &options).await;
    writer.client.edit("Rome is", "red").await;
    let digest = reached(&follower.client, 1).await;

    proxy.cut.send_replace(true);
    writer.client.edit("Oslo is", "cold").await;
    writer.client.edit("Bern is", "old").await;
    // It serves what it has, and knows that it does not know.
    let ask = json!({"prompt": "Rome is", "max_tokens": 4});
    assert_eq!(follower.client.post("/generate", &ask).await.with_status(200)["version"], 1);
    let least = json!({"prompt": "Rome is", "max_tokens": 4, "min_version": 3});
    let refused = follower.client.post("/generate", &least).await.problem(409, "version_not_reached");
    assert_eq!((&refused["min_version"], &refused["version"]), (&json!(3), &json!(1)));
    until("it is too far behind to be ready", async || follower.client.get("/readyz").await.status == 503).await;
    let refused = follower.client.get("/readyz").await.problem(503, "replica_behind");
    assert!(refused["lag_seconds"].as_f64().unwrap() > 4.0, "{refused}");
    let place = replica(&follower.client).await;
    assert!(place["lag_seconds"].as_f64().unwrap() > 4.0 && place["digest"] == digest.as_str(), "{place}");
    assert!(metric(&follower.client, "amend_follower_lag_seconds").await > 4.0);
    assert_eq!(follower.client.post("/generate", &ask).await.with_status(200)["version"], 1, "and serves still");
    follower.client.get("/livez").await.with_status(200);
    // The writer itself is not cut off from it.
    assert_eq!(follower.client.edit("Wien is", "far").await["version"], 4);

    proxy.cut.send_replace(false);
    let newest = writer.client.newest().await;
    let took = until("it has caught up", async || replica(&follower.client).await["digest"] == newest["digest"]).await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    until("it is ready", async || follower.client.get("/readyz").await.body == json!({"status": "ok"})).await;
    follower.client.get("/versions").await.with_status(200);
}

/// A writer that is cut off is followed by another, and does not take back its place by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_cut_off_is_followed() {
    let Some(setting) = Setting::new() else { return };
    let proxy = Proxy::to(setting.server.socket()).await;
    let far = setting.files.over(setting.database_at(&proxy.address));
    let old = Server::start(&far).await;
    let new = Server::start(&setting.files).await;
    old.client.edit("Rome is", "red").await;
    reached(&new.client, 1).await;
    proxy.cut.send_replace(true);
    let took = until("another writes", async || replica(&new.client).await["role"] == "writer").await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    until("the old one knows", async || replica(&old.client).await["role"] == "follower").await;
    assert_eq!(new.client.edit("Oslo is", "cold").await["version"], 2);
    proxy.cut.send_replace(false);
    let digest = reached(&old.client, 2).await;
    assert_eq!(digest, new.client.newest().await["digest"].as_str().unwrap());
    assert_eq!(replica(&new.client).await["role"], "writer");
    assert_eq!(old.client.edit("Bern is", "old").await["version"], 3, "handed on");
    setting.files.verify().good();
}
