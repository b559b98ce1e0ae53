//! `/versions` and `/rollback`.

use serde_json::json;

use super::{World, doubles::id};
use crate::{digest::Digest, http::error::Code, writer::SetChange};

#[tokio::test]
async fn versions_are_paged_newest_first() {
    let world = World::new();
    let first = world.get("/versions?limit=2").await.ok(200);
    assert_eq!((&first["versions"][0]["version"], &first["versions"][1]["version"]), (&json!(2), &json!(1)));
    assert_eq!(first["versions"][0]["active"], 2);
    let next = first["next_cursor"].as_str().unwrap();
    let last = world.get(&format!("/versions?limit=2&cursor={next}")).await.ok(200);
    assert_eq!(last["versions"][0]["version"], 0);
    assert_eq!(last["versions"].as_array().unwrap().len(), 1);
    assert!(last["next_cursor"].is_null());
}

#[tokio::test]
async fn a_version_has_exactly_the_documented_fields() {
    let world = World::new();
    let version = world.get("/versions/1").await.ok(200);
    let expected = json!({
        "version": 1, "digest": Digest::of(&1_u64.to_le_bytes()), "set_digest": Digest::of(b"set"), "kind": "edit",
        "active_edits": [id(1), id(2)], "created_at": "2026-01-02T03:04:05Z", "actor": "someone",
    });
    assert_eq!(version, expected);
    assert_eq!(world.get("/versions/0").await.ok(200)["kind"], "base");
}

#[tokio::test]
async fn a_difference_compares_sets_either_way() {
    let world = World::new();
    let entry = |n: u128| json!({"id": id(n), "prompt": format!("p{n}"), "target": format!("t{n}")});
    let forward = world.get("/versions/2/diff?from=1").await.ok(200);
    assert_eq!(forward, json!({"from": 1, "to": 2, "added": [entry(3)], "removed": [entry(1)]}));
    let backward = world.get("/versions/1/diff?from=2").await.ok(200);
    assert_eq!(backward, json!({"from": 2, "to": 1, "added": [entry(1)], "removed": [entry(3)]}));
    let none = world.get("/versions/2/diff?from=2").await.ok(200);
    assert_eq!((&none["added"], &none["removed"]), (&json!([]), &json!([])));
}

#[tokio::test]
async fn an_unknown_version_is_told_with_the_newest() {
    let world = World::new();
    for path in ["/versions/9", "/versions/9/diff?from=1", "/versions/1/diff?from=9"] {
        let problem = world.get(path).await.problem(Code::UnknownVersion);
        assert_eq!((&problem["number"], &problem["newest"]), (&json!(9), &json!(2)), "{path}");
    }
}

#[tokio::test]
async fn rolling_back_restores_a_set() {
    let world = World::new();
    let headers = [("idempotency-key", "k"), ("x-amend-actor", "ada")];
    let body = json!({"to_version": 1, "expected_version": 2});
    let reply = world.post_with("/rollback", &headers, &body).await.ok(200);
    assert_eq!(reply["version"], 2);
    let (change, actor, expected, asked) = world.edits.changes.lock().unwrap()[0].clone();
    assert_eq!((change, actor.as_str(), expected), (SetChange::Rollback(1), "ada", Some(2)));
    assert_eq!(asked.unwrap().key, "k");
}
