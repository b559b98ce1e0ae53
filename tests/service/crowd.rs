//! Many generations at once, on several versions, while edits are made and taken back: each says what the same request says
//! alone on its version.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    generation::events,
    server::{Client, Files, Server},
};

const STREAMS: usize = 64;

/// Prompts and answers of mixed lengths, greedy and sampled, on three versions and on the newest.
fn request(number: usize) -> Value {
    let prompt =
        ["Ada speaks", "Bob lives in the town of", "A long tale: "][number % 3].repeat(1 + number * number % 9);
    let mut body = json!({"prompt": prompt, "max_tokens": 5 + number * 11 % 90});
    if !number.is_multiple_of(4) {
        let sampling = json!({"temperature": 0.9, "top_p": 0.95, "top_k": 40, "min_p": 0.02, "seed": number,
            "repetition_penalty": 1.1, "presence_penalty": 0.3});
        body.as_object_mut().unwrap().extend(sampling.as_object().unwrap().clone());
    }
    if number % 5 < 3 {
        body["version"] = json!(number % 5);
    }
    body
}

/// A request's whole stream: the text, and the version that made it.
async fn streamed(client: Client, mut body: Value) -> (String, u64) {
    body["stream"] = json!(true);
    let reply = client.post("/generate", &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let events = events(&reply.text);
    let (last, tokens) = events.split_last().unwrap();
    assert_eq!(last.0, "done", "{}", reply.text);
    let text = tokens.iter().map(|(_, data)| data["text"].as_str().unwrap()).collect();
    (text, last.1["version"].as_u64().unwrap())
}

/// Edits and takes back until told to stop; how many versions that made.
async fn edit_and_take_back(client: Client, stop: Arc<AtomicBool>) -> usize {
    let mut versions = 0;
    for number in 0.. {
        if stop.load(SeqCst) && versions >= 6 {
            break;
        }
        let prompt = format!("Subject {} speaks", number % 7);
        let id = client.edit(&prompt, ["Greek", "Latin", "Irish"][number % 3]).await["id"].clone();
        versions += 1;
        if number % 2 == 1 {
            client.take_back(&id).await;
            versions += 1;
        }
    }
    versions
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_sixty_four_streams_says_what_it_says_alone_while_edits_run() {
    let files = Files::tiny();
    let options =
        ["--max-sequences", "12", "--kv-tokens", "3000", "--prefill-chunk", "24", "--prefix-cache-tokens", "400"];
    let server = Server::start_with(&files, &options).await;
    let client = &server.client;
    for (prompt, target) in [("Ada speaks", "Welsh"), ("Bob lives in the town of", "Ghent")] {
        client.edit(prompt, target).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(edit_and_take_back(client.clone(), Arc::clone(&stop)));
    // Some leave in the middle of their streams, which must not matter to the others.
    let leavers = (0..8).map(|number| {
        let client = client.clone();
        tokio::spawn(async move {
            let body =
                json!({"prompt": "I leave", "max_tokens": 900, "stream": true, "seed": number, "temperature": 1});
            let mut response = client.request(Method::POST, "/generate").json(&body).send().await.unwrap();
            response.chunk().await.unwrap().unwrap();
        })
    });
    let leavers: Vec<_> = leavers.collect();
    let together = join_all((0..STREAMS).map(|number| tokio::spawn(streamed(client.clone(), request(number))))).await;
    stop.store(true, SeqCst);
    let made = writer.await.unwrap();
    join_all(leavers).await.into_iter().for_each(|left| left.unwrap());

    let (mut versions, mut said) = (BTreeSet::new(), Vec::new());
    for (number, answer) in together.into_iter().enumerate() {
        let (text, version) = answer.unwrap();
        let mut alone = request(number);
        assert!(alone["version"].is_null() || alone["version"] == version);
        alone["version"] = json!(version);
        let answer = client.post("/generate", &alone).await.with_status(200);
        assert_eq!(answer["text"], json!(text), "request {number} on version {version}");
        versions.insert(version);
        said.push((alone, text));
    }
    assert!(versions.len() > 3 && made >= 6, "{versions:?} of {made}");

    // Another service over the same log, which has read nothing and runs one at a time, agrees.
    server.stop().await;
    let fresh = Server::start_with(&files, &["--max-sequences", "1", "--prefix-cache-tokens", "0"]).await;
    for (body, text) in said.iter().step_by(9) {
        assert_eq!(fresh.client.post("/generate", body).await.with_status(200)["text"], json!(text));
    }
    fresh.stop().await;
}

#[tokio::test]
async fn a_beginning_that_was_read_is_not_read_again_and_changes_nothing() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    client.edit("Ada speaks", "Welsh").await;
    let counted = async |kind: &str| {
        let text = client.get("/metrics").await.text;
        let name = format!("amend_tokens_total{{kind=\"{kind}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(name.as_str())).map_or(0, |count| count.parse().unwrap())
    };
    let prompt = "Once upon a time in a land far away, Ada speaks ".repeat(3);
    let ask = async |prompt: &str, version: u64| {
        let body = json!({"prompt": prompt, "max_tokens": 20, "version": version});
        client.post("/generate", &body).await.with_status(200)["text"].clone()
    };
    let tokens = prompt.len() as u64;
    let first = ask(&prompt, 1).await;
    assert_eq!((counted("prompt").await, counted("cached").await), (tokens, 0));
    assert_eq!(ask(&prompt, 1).await, first);
    // Full pages of 16 tokens, all but the last token of the prompt at the most.
    let kept = (tokens - 1) / 16 * 16;
    assert_eq!((counted("prompt").await, counted("cached").await), (2 * tokens - kept, kept));
    // The trunk's pages serve every version, but the tail reads all of it for another one.
    let base = ask(&prompt, 0).await;
    assert_eq!((counted("prompt").await, counted("cached").await), (3 * tokens - kept, kept));
    assert_ne!(base, first);
    assert_eq!(ask(&prompt, 0).await, base);
    assert_eq!(counted("cached").await, 2 * kept);
    server.stop().await;

    let fresh = Server::start_with(&files, &["--prefix-cache-tokens", "0"]).await;
    for (version, expected) in [(0, base), (1, first)] {
        let body = json!({"prompt": prompt, "max_tokens": 20, "version": version});
        assert_eq!(fresh.client.post("/generate", &body).await.with_status(200)["text"], expected);
    }
    fresh.stop().await;
}
