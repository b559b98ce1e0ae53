//! The whole life of a service in one go, as the introduction tells it.

use serde_json::{Value, json};

use super::server::{Files, Server};

#[tokio::test]
async fn a_fact_is_changed_seen_taken_back_and_remembered() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = server.client.clone();
    assert_eq!(client.get("/livez").await.with_status(200), json!({"status": "ok"}));
    assert_eq!(client.get("/readyz").await.with_status(200), json!({"status": "ok"}));
    let info = client.get("/info").await.with_status(200);
    assert_eq!((&info["version"], &info["editor"]["method"]), (&json!(0), &json!("mend")));
    let say = async |client: &super::server::Client, version: Value| {
        let body = json!({"prompt": "The mother tongue of Ada is", "max_tokens": 8, "version": version});
        client.post("/generate", &body).await.with_status(200)
    };
    let base = client.version(0).await;
    let before = say(&client, Value::Null).await;

    let edit = client.edit("The mother tongue of Ada is", "Welsh").await;
    let after = say(&client, Value::Null).await;
    assert_eq!(after["version"], 1);
    assert_ne!(after["text"], before["text"]);
    assert_eq!(say(&client, json!(0)).await, before);

    let back = client.take_back(&edit["id"]).await;
    assert_eq!(back, json!({"version": 2, "digest": base["digest"]}));
    assert_eq!(say(&client, Value::Null).await["text"], before["text"]);
    server.stop().await;

    let server = Server::start(&files).await;
    assert_eq!(server.client.newest().await["digest"], base["digest"]);
    assert_eq!(say(&server.client, json!(1)).await, after);
    let kept = server.client.get("/edits").await.with_status(200);
    assert_eq!((&kept["edits"][0]["id"], &kept["edits"][0]["status"]), (&edit["id"], &json!("taken_back")));
    server.stop().await;
}
