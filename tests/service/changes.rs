//! Superseding, taking back, rolling back, and what the versions say about it.

use serde_json::{Value, json};

use super::server::{Files, Server, keys};

#[tokio::test]
async fn an_edit_of_the_same_prompt_supersedes_the_old_one() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    let base = client.version(0).await;
    let old = client.edit("Ada speaks", "Welsh").await;
    let alone = client.edit("Bob speaks", "Dutch").await;
    let new = client.edit("  Ada speaks\n", "Irish").await;
    assert_eq!((&new["supersedes"], &new["version"]), (&old["id"], &json!(3)));
    let entry = client.get(&format!("/edits/{}", old["id"].as_str().unwrap())).await.with_status(200);
    assert_eq!((&entry["status"], &entry["superseded_by"]), (&json!("superseded"), &new["id"]));
    assert_eq!(client.newest().await["active_edits"], json!([alone["id"], new["id"]]));
    client.delete(&format!("/edits/{}", old["id"].as_str().unwrap())).await.problem(409, "edit_not_active");

    client.take_back(&alone["id"]).await;
    assert_eq!(client.take_back(&new["id"]).await["digest"], base["digest"]);
    server.stop().await;
}

#[tokio::test]
async fn taking_everything_back_gives_the_base_models_bits() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    let base = client.version(0).await;
    assert_eq!((&base["kind"], &base["active_edits"]), (&json!("base"), &json!([])));
    let edits = [client.edit("One is", "uno").await, client.edit("Two is", "due").await];
    assert_ne!(edits[0]["digest"], base["digest"]);
    let first = client.take_back(&edits[0]["id"]).await;
    assert_eq!(keys(&first), ["version", "digest"]);
    assert_ne!(first["digest"], base["digest"]);
    let last = client.take_back(&edits[1]["id"]).await;
    assert_eq!((&last["version"], &last["digest"]), (&json!(4), &base["digest"]));
    let newest = client.newest().await;
    assert_eq!((&newest["set_digest"], &newest["kind"]), (&base["set_digest"], &json!("take_back")));

    let path = format!("/edits/{}", edits[0]["id"].as_str().unwrap());
    let problem = client.delete(&path).await.problem(409, "edit_not_active");
    assert_eq!(problem["edit_status"], "taken_back");
    assert_eq!(client.get(&path).await.with_status(200)["status"], "taken_back");
    server.stop().await;
}

#[tokio::test]
async fn a_rollback_restores_a_set_and_keeps_what_came_between() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    let one = client.edit("One is", "uno").await;
    let two = client.edit("Two is", "due").await;
    let three = client.edit("One is", "ein").await;
    let rolled = client.post("/rollback", &json!({"to_version": 2})).await.with_status(200);
    assert_eq!(rolled, json!({"version": 4, "digest": two["digest"]}));
    let newest = client.newest().await;
    assert_eq!(keys(&newest), ["version", "digest", "set_digest", "kind", "active_edits", "created_at", "actor"]);
    assert_eq!((&newest["kind"], &newest["active_edits"]), (&json!("rollback"), &json!([one["id"], two["id"]])));
    assert_eq!(newest["set_digest"], client.version(2).await["set_digest"]);
    let status = async |edit: &Value| {
        client.get(&format!("/edits/{}", edit["id"].as_str().unwrap())).await.with_status(200)["status"].clone()
    };
    assert_eq!((status(&one).await, status(&three).await), (json!("applied"), json!("taken_back")));

    let diff = client.get("/versions/3/diff?from=4").await.with_status(200);
    let described = |edit: &Value, target: &str| json!([{"id": edit["id"], "prompt": "One is", "target": target}]);
    assert_eq!(diff, json!({"from": 4, "to": 3, "added": described(&three, "ein"), "removed": described(&one, "uno")}));
    let base = client.version(0).await;
    let rolled = client.post("/rollback", &json!({"to_version": 0, "expected_version": 4})).await.with_status(200);
    assert_eq!(rolled, json!({"version": 5, "digest": base["digest"]}));
    server.stop().await;
}

#[tokio::test]
async fn versions_and_edits_are_listed_newest_first_page_by_page() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let client = &server.client;
    for i in 0..5 {
        let body = json!({"prompt": format!("Number {i} is"), "target": "odd", "guard": null});
        let request =
            client.request(reqwest::Method::POST, "/edits").header("x-amend-actor", format!("actor-{}", i % 2));
        client.send(request.json(&body)).await.with_status(201);
    }
    let mut numbers = Vec::new();
    let mut path = "/versions?limit=4".to_owned();
    loop {
        let page = client.get(&path).await.with_status(200);
        assert_eq!(keys(&page), ["versions", "next_cursor"]);
        for version in page["versions"].as_array().unwrap() {
            let fields = ["version", "digest", "set_digest", "kind", "active", "created_at", "actor"];
            assert_eq!(keys(version), fields);
            numbers.push(version["version"].as_u64().unwrap());
        }
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/versions?limit=4&cursor={cursor}");
    }
    assert_eq!(numbers, [5, 4, 3, 2, 1, 0]);

    let mut prompts = Vec::new();
    let mut path = "/edits?limit=2".to_owned();
    loop {
        let page = client.get(&path).await.with_status(200);
        prompts.extend(page["edits"].as_array().unwrap().iter().map(|edit| edit["request"]["prompt"].clone()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/edits?limit=2&cursor={cursor}");
    }
    assert_eq!(prompts, [4, 3, 2, 1, 0].map(|i| json!(format!("Number {i} is"))));
    let found = async |query: &str| {
        client.get(&format!("/edits?{query}")).await.with_status(200)["edits"].as_array().unwrap().len()
    };
    assert_eq!(found("actor=actor-1").await, 2);
    assert_eq!(found("text=NUMBER%203").await, 1);
    assert_eq!(found("status=taken_back").await, 0);
    assert_eq!(found("since=2100-01-01T00:00:00Z").await, 0);
    server.stop().await;
}
