//! More is asked than can be done: what can not wait is refused at once, those who left are not worked for, and how the service
//! is can be seen all the time.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use super::{
    process::PATIENCE,
    server::{Client, Files, Server},
};

/// What a probe waits for at most.
const PROBE: Duration = Duration::from_millis(50);

/// Sends this again and again, whatever is answered.
async fn flood(client: Client, path: &'static str, number: usize) {
    for i in 0.. {
        let body = match path {
            "/generate" => json!({"prompt": format!("Once {number}"), "max_tokens": 400}),
            _ => json!({"prompt": format!("Number {number} is {i}"), "target": "odd", "guard": null}),
        };
        let _ = client.try_send(client.request(Method::POST, path).json(&body)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_are_answered_while_everything_else_is_saturated() {
    let files = Files::tiny();
    let options = ["--queue-capacity", "4", "--generate-queue-capacity", "4", "--max-sequences", "4"];
    let server = Server::start_with(&files, &options).await;
    let floods: Vec<_> = (0..24)
        .map(|i| {
            let path = if i % 2 == 0 { "/generate" } else { "/edits" };
            tokio::spawn(flood(server.client.clone(), path, i))
        })
        .collect();
    let refused = async {
        let body = json!({"prompt": "Once", "max_tokens": 400});
        loop {
            let reply = server.client.post("/generate", &body).await;
            if reply.status == 429 {
                break reply;
            }
        }
    };
    let refused = tokio::time::timeout(PATIENCE, refused).await.expect("nothing is ever refused");
    assert!(refused.header("retry-after").is_some());
    refused.problem(429, "queue_full");
    let mut times = Vec::new();
    for _ in 0..50 {
        for path in ["/livez", "/metrics"] {
            let begun = Instant::now();
            server.client.get(path).await.with_status(200);
            times.push(begun.elapsed());
        }
    }
    floods.iter().for_each(tokio::task::JoinHandle::abort);
    times.sort();
    let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
    println!("probes: {median:?} in the median, {most:?} at most");
    // What the slowest waits for is also up to the machine, which runs other tests at the same time.
    assert!(median < PROBE, "{times:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_whose_client_leaves_while_it_waits_is_not_made() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    let begun = Instant::now();
    let edit = |prompt: String| json!({"prompt": prompt, "target": "odd", "guard": null});
    let mut asked = 0;
    let dropped = loop {
        assert!(begun.elapsed() < PATIENCE, "nothing is ever dropped");
        // Long enough for the others to wait behind it.
        let batch: Vec<_> = (0..64).map(|i| edit(format!("Number {i} is"))).collect();
        let first = client.request(Method::POST, "/edits").header("prefer", "respond-async");
        client.send(first.json(&json!({"edits": batch}))).await.with_status(202);
        let impatient = (asked..asked + 8).map(|i| {
            let request = client.request(Method::POST, "/edits").timeout(Duration::from_millis(30));
            client.try_send(request.json(&edit(format!("Late {i} is"))))
        });
        futures::future::join_all(impatient).await;
        asked += 8;
        // Its turn comes after all of them.
        client.edit("The last is", "even").await;
        let metrics = client.get("/metrics").await.text;
        let dropped = metrics.lines().find_map(|line| line.strip_prefix("amend_edits_total{outcome=\"cancelled\"} "));
        if let Some(dropped) = dropped.and_then(|number| number.parse::<usize>().ok()).filter(|number| *number > 0) {
            break dropped;
        }
    };
    let listed = client.get("/edits?text=Late&limit=200").await.with_status(200);
    let made = listed["edits"].as_array().unwrap().len();
    assert!(made + dropped <= asked, "{asked} asked, {made} made, {dropped} dropped");
    server.stop().await;
}
