//! Requests that can not be carried out: each is answered with a problem document, and none with a failure of the
//! service.

use reqwest::{Method, header};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    server::{Files, Server},
    tiny,
};

#[expect(clippy::needless_pass_by_value, reason = "every caller makes the value on the spot")]
fn edit(fields: Value) -> Value {
    let mut edit = json!({"prompt": "Ada speaks", "target": "Welsh"});
    edit.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    edit
}

/// Path, body, status and code.
fn bad_posts() -> Vec<(&'static str, Value, u16, &'static str)> {
    let invalid = |path, body| (path, body, 422, "invalid_request");
    let edits = [
        json!({}),
        json!([]),
        json!(null),
        json!("Ada"),
        json!({"prompt": "Ada speaks"}),
        edit(json!({"prompt": ""})),
        edit(json!({"prompt": " \n\t "})),
        edit(json!({"prompt": "x".repeat(513)})),
        edit(json!({"prompt": "x".repeat(20_000)})),
        edit(json!({"prompt": 3})),
        edit(json!({"prompt": null})),
        edit(json!({"target": "   "})),
        edit(json!({"target": "y".repeat(65)})),
        edit(json!({"target": ["Welsh"]})),
        edit(json!({"paraphrases": "Ada"})),
        edit(json!({"paraphrases": [""]})),
        edit(json!({"paraphrases": vec!["Ada grew up speaking"; 17]})),
        edit(json!({"paraphrases": null})),
        edit(json!({"locality": [{"target": "white"}]})),
        edit(json!({"locality": [{"prompt": "Snow is", "target": ""}]})),
        edit(json!({"locality": vec![json!({"prompt": "Snow is"}); 33]})),
        edit(json!({"locality": [{"prompt": "Snow is", "weight": 1}]})),
        edit(json!({"guard": {"min_probability": 1.01}})),
        edit(json!({"guard": {"min_probability": -0.1}})),
        edit(json!({"guard": {"max_kl": -1}})),
        edit(json!({"guard": {"max_kl": 1e300}})),
        edit(json!({"guard": {"max": 1}})),
        edit(json!({"guard": "off"})),
        edit(json!({"guard": []})),
        edit(json!({"locality": [["Snow is"]]})),
        json!(["Ada speaks", "Welsh"]),
        json!({"edits": [["Ada speaks", "Welsh"]]}),
        edit(json!({"editor": "rome"})),
        edit(json!({"dry_run": "yes"})),
        edit(json!({"expected_version": -1})),
        edit(json!({"expected_version": 1.5})),
        edit(json!({"note": {"text": "n"}})),
        edit(json!({"colour": "red"})),
        json!({"edits": []}),
        json!({"edits": null}),
        json!({"edits": [edit(json!({})), edit(json!({"prompt": " Ada speaks "}))]}),
        json!({"edits": [edit(json!({})), edit(json!({"prompt": "Bob speaks", "target": ""}))]}),
        json!({"edits": (0..65).map(|i| edit(json!({"prompt": format!("{i} is")}))).collect::<Vec<_>>()}),
        edit(json!({"edits": [edit(json!({}))]})),
    ];
    let generations = [
        json!({}),
        json!({"prompt": ""}),
        json!({"messages": []}),
        json!({"messages": [{"role": "user", "content": "Hi"}]}),
        json!({"prompt": "x", "messages": [{"role": "user", "content": "Hi"}]}),
        json!({"prompt": "x", "max_tokens": 0}),
        json!({"prompt": "x", "max_tokens": -1}),
        json!({"prompt": "x", "max_tokens": 1_000_000}),
        json!({"prompt": "x", "max_tokens": u64::MAX}),
        json!({"prompt": "x", "temperature": -1}),
        json!({"prompt": "x", "temperature": 1e308}),
        json!({"prompt": "x", "temperature": "hot"}),
        json!({"prompt": "x", "temperature": 1, "top_p": 0}),
        json!({"prompt": "x", "temperature": 1, "top_p": 1.5}),
        json!({"prompt": "x", "temperature": 1, "top_k": 0}),
        json!({"prompt": "x", "stop": [""]}),
        json!({"prompt": "x", "stop": vec!["a"; 1000]}),
        json!({"prompt": "x", "stop": "a"}),
        json!({"prompt": "x", "seed": -1}),
        json!({"prompt": "x", "logprobs": 1_000_000}),
        json!({"prompt": "x", "stream": 1}),
        json!({"prompt": "x", "version": "new"}),
        json!({"prompt": "x", "colour": "red"}),
    ];
    let scores = [
        json!({}),
        json!({"prompt": "x"}),
        json!({"prompt": "x", "continuations": []}),
        json!({"prompt": "x", "continuations": [""]}),
        json!({"prompt": "", "continuations": ["a"]}),
        json!({"prompt": "x", "continuations": [1]}),
        json!({"prompt": "x", "continuations": vec!["a"; 100_000]}),
    ];
    let rollbacks = [
        json!({}),
        json!([0]),
        json!({"to_version": -1}),
        json!({"to_version": "0"}),
        json!({"to_version": 0, "x": 1}),
    ];
    let mut table: Vec<_> = edits.into_iter().map(|body| invalid("/edits", body)).collect();
    table.extend(generations.into_iter().map(|body| invalid("/generate", body)));
    table.extend(scores.into_iter().map(|body| invalid("/score", body)));
    table.extend(rollbacks.into_iter().map(|body| invalid("/rollback", body)));
    let long = "x".repeat(tiny::CONTEXT + 1);
    table.extend([
        ("/edits", edit(json!({"expected_version": 1})), 409, "version_conflict"),
        ("/edits?dry_run=perhaps", edit(json!({})), 400, "invalid_parameter"),
        ("/rollback", json!({"to_version": 1}), 404, "unknown_version"),
        ("/rollback", json!({"to_version": u64::MAX}), 404, "unknown_version"),
        ("/generate", json!({"prompt": "x", "version": 1}), 404, "unknown_version"),
        ("/generate", json!({"prompt": "x", "version": u64::MAX}), 404, "unknown_version"),
        ("/generate", json!({"prompt": "x", "compare_to": 1}), 404, "unknown_version"),
        ("/generate", json!({"prompt": long}), 422, "context_exceeded"),
        ("/score", json!({"prompt": "x", "continuations": ["a"], "version": 1}), 404, "unknown_version"),
        ("/score", json!({"prompt": long, "continuations": ["a"]}), 422, "context_exceeded"),
        ("/nowhere", json!({}), 404, "not_found"),
        ("/versions", json!({}), 405, "method_not_allowed"),
    ]);
    table
}

#[tokio::test]
async fn bad_bodies_are_refused_and_change_nothing() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    for (path, body, status, code) in bad_posts() {
        let shown: String = body.to_string().chars().take(200).collect();
        let reply = client.post(path, &body).await;
        assert_eq!((reply.status, reply.body["code"].as_str()), (status, Some(code)), "{path} {shown}: {}", reply.text);
        reply.problem(status, code);
    }
    assert_eq!(client.get("/info").await.with_status(200)["version"], 0);
    // What was only late is in the log, as failed.
    let logged = client.get("/edits").await.with_status(200);
    let logged: Vec<&Value> = logged["edits"].as_array().unwrap().iter().map(|edit| &edit["reason"]).collect();
    assert_eq!(logged, ["expected version 1, but the newest is 0"]);
    client.edit("Ada speaks", "Welsh").await;
    server.stop().await;
}

#[tokio::test]
async fn numbers_stand_beside_what_is_wrong() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    let problem =
        client.post("/edits", &edit(json!({"prompt": "x".repeat(513)}))).await.problem(422, "invalid_request");
    assert_eq!(problem["field"], "prompt");
    assert!(problem["detail"].as_str().unwrap().contains("512, given 513"), "{problem}");
    let problem = client.post("/generate", &json!({"prompt": "x", "version": 3})).await.problem(404, "unknown_version");
    assert_eq!((&problem["number"], &problem["newest"]), (&json!(3), &json!(0)));
    let body = json!({"prompt": "x".repeat(4000), "max_tokens": 97});
    let problem = client.post("/generate", &body).await.problem(422, "context_exceeded");
    let numbers = ["prompt_tokens", "max_tokens", "limit"].map(|name| problem[name].as_u64().unwrap());
    assert_eq!(numbers, [4000, 97, tiny::CONTEXT as u64]);
    server.stop().await;
}

#[tokio::test]
async fn what_an_edit_may_hold_is_the_operators_to_say() {
    let files = Files::tiny();
    let options = ["--max-note-bytes", "5", "--max-submission-tokens", "12", "--max-text-bytes", "20"];
    let server = Server::start_with(&files, &options).await;
    let client = &server.client;
    let limits = client.get("/info").await.with_status(200)["limits"].clone();
    let told = ["note_bytes", "submission_tokens", "text_bytes"].map(|name| limits[name].as_u64().unwrap());
    assert_eq!(told, [5, 12, 20]);
    let refused = async |body: Value| client.post("/edits", &body).await.problem(422, "invalid_request");
    let problem = refused(json!({"prompt": "Ada is", "target": "x", "note": "longer"})).await;
    assert_eq!(problem["field"], "note");
    assert!(problem["detail"].as_str().unwrap().contains("must be <= 5, given 6"), "{problem}");
    // Every byte is a token, and so is the space before the target: 9 and 4 of them.
    let edits = [json!({"prompt": "Ada is", "target": "in"}), json!({"prompt": "Al", "target": "x"})];
    let problem = refused(json!({"edits": edits})).await;
    assert_eq!(problem["field"], "edits");
    assert!(problem["detail"].as_str().unwrap().contains("must be <= 12, given 13"), "{problem}");
    let problem = refused(json!({"prompt": "x".repeat(21), "target": "x"})).await;
    assert!(problem["detail"].as_str().unwrap().contains("must be <= 20, given 21"), "{problem}");
    let whole = json!({"edits": [edits[0], {"prompt": "A", "target": "x", "note": "short"}]});
    client.post("/edits", &whole).await.with_status(201);
    server.stop().await;
}

#[tokio::test]
async fn bad_paths_headers_and_media_are_refused() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    let unknown = "01890a5d-ac96-774b-bcce-b302099a8057";
    for (path, status, code) in [
        ("/", 404, "not_found"),
        ("/edits/", 404, "not_found"),
        ("/docs/none.js", 404, "not_found"),
        ("/edits/7", 400, "invalid_parameter"),
        (&*format!("/edits/{unknown}"), 404, "unknown_edit"),
        ("/edits?limit=0", 400, "invalid_parameter"),
        ("/edits?limit=201", 400, "invalid_parameter"),
        ("/edits?cursor=x", 400, "invalid_parameter"),
        ("/edits?status=gone", 400, "invalid_parameter"),
        ("/edits?since=soon", 400, "invalid_parameter"),
        ("/versions/1", 404, "unknown_version"),
        ("/versions/-1", 400, "invalid_parameter"),
        ("/versions/18446744073709551615", 404, "unknown_version"),
        ("/versions/18446744073709551616", 400, "invalid_parameter"),
        ("/versions/0/diff", 400, "invalid_parameter"),
        ("/versions/0/diff?from=1", 404, "unknown_version"),
        ("/generate", 405, "method_not_allowed"),
    ] {
        let reply = client.get(path).await;
        assert_eq!(reply.status, status, "{path}: {}", reply.text);
        reply.problem(status, code);
    }
    client.delete(&format!("/edits/{unknown}")).await.problem(404, "unknown_edit");
    client.delete("/edits").await.problem(405, "method_not_allowed");

    let post = || client.request(Method::POST, "/edits").header(header::CONTENT_TYPE, "application/json");
    for (name, value) in [
        ("idempotency-key", ""),
        ("idempotency-key", "two words"),
        ("x-amend-actor", "Ada Lovelace"),
        ("if-match", "7"),
    ] {
        client.send(post().header(name, value).body(edit(json!({})).to_string())).await.problem(400, "invalid_header");
    }
    for body in ["", "{", "{\"prompt\": \"Ada\",}", "\u{feff}{}", "NaN", "{\"prompt\": \"\\ud800\"}"] {
        client.send(post().body(body)).await.problem(400, "malformed_json");
    }
    client.send(post().body("[".repeat(100_000))).await.problem(400, "malformed_json");
    client.send(post().body(&b"{\"prompt\": \"\xff\"}"[..])).await.problem(400, "malformed_json");
    let large = edit(json!({"note": "n".repeat(2_000_001)})).to_string();
    client.send(post().body(large)).await.problem(413, "payload_too_large");
    let plain = client.request(Method::POST, "/edits").header(header::CONTENT_TYPE, "text/plain").body("{}");
    client.send(plain).await.problem(415, "unsupported_media_type");
    assert_eq!(client.get("/livez").await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_again() {
    let files = Files::tiny();
    let server = Server::start_with(&files, &["--queue-capacity", "1", "--capture-batch", "1"]).await;
    let client = &server.client;
    let slow = json!({"edits": (0..64).map(|i| edit(json!({"prompt": format!("Number {i} of a long row of numbers is")})))
        .collect::<Vec<_>>()});
    let asked = (0..12).map(|_| client.post("/edits", &slow));
    let replies = futures::future::join_all(asked).await;
    let statuses: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
    assert!(statuses.iter().all(|status| [201, 429].contains(status)), "{statuses:?}");
    assert!(statuses.contains(&201), "{statuses:?}");
    let refused = replies.into_iter().find(|reply| reply.status == 429).expect("twelve at once, and room for two");
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(refused.problem(429, "queue_full")["capacity"], 1);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_told_at_once() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let address = server.client.server.trim_start_matches("http://").to_owned();
    let mut connection = TcpStream::connect(&address).await.unwrap();
    let head = format!(
        "POST /edits HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: 2000001\r\n\
         expect: 100-continue\r\n\r\n"
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("\"given\":2000001"), "{answer}");
    server.stop().await;
}
