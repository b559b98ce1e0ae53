//! A clock that goes backwards between two starts: what is written down is told by its place in the log, not by its time.

use serde_json::{Value, json};

use super::server::{Files, Server};

const DAY: i64 = 86_400;

async fn start(files: &Files, shift: i64) -> Server {
    Server::start_in(files, ("AMEND_CLOCK_SHIFT", &shift.to_string())).await
}

fn prompts(page: &Value) -> Vec<&str> {
    page["edits"].as_array().unwrap().iter().map(|edit| edit["request"]["prompt"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_goes_backwards_changes_no_order() {
    if !cfg!(debug_assertions) {
        eprintln!("skipped: this build's clock can not be turned back");
        return;
    }
    let files = Files::tiny();
    let server = start(&files, 0).await;
    let first = server.client.edit("One is", "uno").await;
    server.stop().await;
    let server = start(&files, -3 * DAY).await;
    let second = server.client.edit("Two is", "due").await;
    let replaced = server.client.edit("One is", "ein").await;
    assert_eq!(replaced["supersedes"], first["id"]);
    server.client.take_back(&second["id"]).await;
    server.stop().await;
    let server = start(&files, -DAY).await;
    let client = &server.client;
    client.edit("Three is", "tre").await;

    // Newest first by their place, page by page, whatever their times.
    let all = ["Three is", "One is", "Two is", "One is"];
    let page = client.get("/edits").await.with_status(200);
    assert_eq!(prompts(&page), all);
    let times: Vec<&str> =
        page["edits"].as_array().unwrap().iter().map(|edit| edit["received_at"].as_str().unwrap()).collect();
    assert!(times[3] > times[0] && times[0] > times[1], "the clock was turned back: {times:?}");
    let mut path = "/edits?limit=1".to_owned();
    for prompt in all {
        let page = client.get(&path).await.with_status(200);
        assert_eq!(prompts(&page), [prompt]);
        path = format!("/edits?limit=1&cursor={}", page["next_cursor"].as_str().unwrap_or_default());
    }
    // A filter by time is by what the clock said.
    let late = client.get(&format!("/edits?since={}", times[3])).await.with_status(200);
    assert_eq!(prompts(&late), ["One is"]);

    let newest = client.newest().await;
    assert_eq!((&newest["version"], newest["active_edits"].as_array().unwrap().len()), (&json!(5), 2));
    client.post("/rollback", &json!({"to_version": 2})).await.with_status(200);
    server.stop().await;
    files.verify().good();
    let server = start(&files, 0).await;
    assert_eq!(server.client.newest().await["digest"], server.client.version(2).await["digest"]);
    server.stop().await;
}
