//! `/edits`.

use std::sync::atomic::Ordering;

use serde_json::json;

use super::{
    World,
    doubles::{TIME, fail, id, report},
};
use crate::{
    digest::Digest,
    edit_log::{EditStatus, IdempotencyRow},
    http::error::Code,
    writer::{Guard, PendingEdit, PendingState, RejectedBy, ReportStatus, SetChange, WriterError},
};

#[tokio::test]
async fn one_edit_is_created() {
    let world = World::new();
    let body =
        json!({"prompt": "p", "target": "t", "guard": null, "locality": [{"prompt": "l"}], "expected_version": 3});
    let reply = world.post_with("/edits", &[("x-amend-actor", "ada")], &body).await;
    let edit = reply.ok(201);
    assert_eq!(reply.header("location"), Some(format!("/edits/{}", id(1)).as_str()));
    let keys: Vec<_> = edit.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "id",
        "status",
        "version",
        "digest",
        "supersedes",
        "prompt",
        "paraphrases",
        "locality",
        "conflicts",
        "holding",
        "delta",
        "gradient",
        "phases_ms",
    ];
    assert_eq!(keys, expected);
    assert_eq!(edit["status"], "applied");
    assert!(edit["supersedes"].is_null());

    let submissions = world.edits.submissions.lock().unwrap();
    let submission = &submissions[0];
    assert_eq!((submission.actor.as_str(), submission.expected_version), ("ada", Some(3)));
    assert!(!submission.batch && !submission.dry_run && submission.idempotency.is_none());
    assert_eq!(submission.edits[0].guard, Guard::Off);
    assert_eq!(submission.edits[0].locality[0].prompt, "l");
}

#[tokio::test]
async fn a_batch_is_one_version() {
    let world = World::new();
    let body = json!({"edits": [{"prompt": "p", "target": "t"}, {"prompt": "q", "target": "u"}]});
    let reply = world.post_with("/edits", &[("if-match", "\"4\"")], &body).await;
    let batch = reply.ok(201);
    assert_eq!(batch["version"], 1);
    assert_eq!(batch["edits"].as_array().unwrap().len(), 2);
    assert_eq!(reply.header("location"), Some("/versions/1"));
    let submissions = world.edits.submissions.lock().unwrap();
    assert!(submissions[0].batch);
    assert_eq!((submissions[0].actor.as_str(), submissions[0].expected_version), ("anonymous", Some(4)));
    assert_eq!(submissions[0].edits[0].guard, Guard::Default);
}

#[tokio::test]
async fn a_dry_run_is_not_created() {
    let world = World::new();
    for (path, body) in [
        ("/edits", json!({"prompt": "p", "target": "t", "dry_run": true})),
        ("/edits?dry_run=true", json!({"prompt": "p", "target": "t"})),
        ("/edits", json!({"edits": [{"prompt": "p", "target": "t"}], "dry_run": true})),
    ] {
        let reply = world.post_with(path, &[("prefer", "respond-async")], &body).await;
        reply.ok(200);
        assert_eq!(reply.header("location"), None);
        assert!(world.edits.submissions.lock().unwrap().last().unwrap().dry_run, "{path} {body}");
    }
}

#[tokio::test]
async fn an_asynchronous_edit_is_accepted_without_waiting() {
    let world = World::new();
    world.edits.hangs.store(true, Ordering::SeqCst);
    let body = json!({"edits": [{"prompt": "p", "target": "t"}, {"prompt": "q", "target": "u"}]});
    let reply = world.post_with("/edits", &[("prefer", "respond-async")], &body).await;
    assert_eq!(reply.ok(202), json!({"ids": [id(1), id(2)], "status": "queued"}));
    assert_eq!(reply.header("location"), Some(format!("/edits/{}", id(1)).as_str()));
    assert_eq!(reply.header("preference-applied"), Some("respond-async"));
}

#[tokio::test]
async fn a_recorded_answer_is_given_again() {
    let world = World::new();
    let body = json!({"prompt": "p", "target": "t"});
    let key = [("idempotency-key", "k1")];
    world.post_with("/edits", &key, &body).await.ok(201);
    let asked = world.edits.submissions.lock().unwrap()[0].idempotency.clone().unwrap();
    assert_eq!(asked.key, "k1");

    let answer = json!({"id": id(9), "version": 5});
    let row = IdempotencyRow { key: asked.key, request: asked.request, http_status: 201, body: answer.clone() };
    *world.log.idempotent.lock().unwrap() = Some(row.clone());
    let again = world.post_with("/edits", &key, &json!({"target": "t", "prompt": "p"})).await;
    assert_eq!(again.ok(201), answer);
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.header("location"), Some(format!("/edits/{}", id(9)).as_str()));
    assert_eq!(world.edits.submissions.lock().unwrap().len(), 1, "the writer was not asked again");

    let other = world.post_with("/edits", &key, &json!({"prompt": "p", "target": "other"})).await;
    other.problem(Code::IdempotencyKeyReused);

    // The other request was still running when this one looked, and the writer finds its answer.
    *world.log.idempotent.lock().unwrap() = None;
    *world.edits.recorded.lock().unwrap() = Some(row);
    let late = world.post_with("/edits", &key, &body).await;
    assert_eq!(late.ok(201), answer);
    assert_eq!(late.header("idempotent-replayed"), Some("true"));
}

#[tokio::test]
async fn an_asynchronous_edit_is_never_told_ids_that_another_answer_has_made_void() {
    let world = World::new();
    let body = json!({"edits": [{"prompt": "p", "target": "t"}]});
    let send = || world.post_with("/edits", &[("idempotency-key", "k"), ("prefer", "respond-async")], &body);
    send().await.ok(202);
    let asked = world.edits.submissions.lock().unwrap()[0].idempotency.clone().unwrap();
    // The first request's answer is recorded just after the second one has looked for it.
    let recorded = |first: u128| {
        let body = json!({"version": 5, "edits": [{"id": id(first)}]});
        let row = IdempotencyRow { key: "k".into(), request: asked.request, http_status: 201, body: body.clone() };
        *world.log.idempotent.lock().unwrap() = Some(row);
        world.log.early.store(true, Ordering::SeqCst);
        body
    };
    let answer = recorded(9);
    let reply = send().await;
    assert_eq!(reply.ok(201), answer);
    assert_eq!(reply.header("idempotent-replayed"), Some("true"));
    // The answer found is about the very edits that were accepted: the writer was quick.
    recorded(1);
    assert_eq!(send().await.ok(202)["ids"], json!([id(1)]));
    assert_eq!(world.edits.submissions.lock().unwrap().len(), 3, "all three were too early to find an answer");
}

#[tokio::test]
async fn taking_back_and_its_recorded_answer() {
    let world = World::new();
    let path = format!("/edits/{}", id(2));
    let taken = world.delete(&path).await.ok(200);
    assert_eq!(taken, json!({"version": 2, "digest": Digest::of(b"weights")}));
    assert_eq!(world.edits.changes.lock().unwrap()[0].0, SetChange::TakeBack(id(2)));

    let request = |key: &str| {
        let request = axum::http::Request::delete(&path).header("idempotency-key", key).header("if-match", "\"1\"");
        request.body(axum::body::Body::empty()).unwrap()
    };
    world.reply(request("k")).await.ok(200);
    let (_, actor, expected, asked) = world.edits.changes.lock().unwrap()[1].clone();
    assert_eq!((actor.as_str(), expected), ("anonymous", Some(1)));
    let row = IdempotencyRow {
        key: "k".into(),
        request: asked.unwrap().request,
        http_status: 200,
        body: json!({"version": 2}),
    };
    *world.log.idempotent.lock().unwrap() = Some(row);
    let again = world.reply(request("k")).await;
    assert_eq!(again.ok(200), json!({"version": 2}));
    assert_eq!(again.header("location"), None);
}

#[tokio::test]
async fn the_log_is_paged_and_filtered() {
    let world = World::new();
    let first = world.get("/edits?limit=3").await.ok(200);
    let ids: Vec<_> = first["edits"].as_array().unwrap().iter().map(|edit| edit["id"].clone()).collect();
    assert_eq!(json!(ids), json!([id(4), id(3), id(2)]));
    let next = first["next_cursor"].as_str().unwrap();
    let second = world.get(&format!("/edits?limit=3&cursor={next}")).await.ok(200);
    assert_eq!(second["edits"][0]["id"], json!(id(1)));
    assert!(second["next_cursor"].is_null());

    let path = "/edits?status=taken_back&text=Danielle%20D&actor=ada&since=2026-01-01T00:00:00Z&until=2026-02-01T00:00:00%2B01:00";
    world.get(path).await.ok(200);
    let query = world.log.queries.lock().unwrap().pop().unwrap();
    assert_eq!(query.status, Some(EditStatus::TakenBack));
    assert_eq!((query.text.as_deref(), query.actor.as_deref()), (Some("Danielle D"), Some("ada")));
    assert_eq!(query.until.unwrap().to_string(), "2026-01-31T23:00:00Z");
    assert_eq!((query.limit, query.before), (50, None));
}

#[tokio::test]
async fn an_edit_shows_its_figures_and_where_it_stands() {
    let world = World::new();
    let edit = world.get(&format!("/edits/{}", id(1))).await.ok(200);
    assert_eq!(edit["status"], "superseded");
    assert_eq!(edit["superseded_by"], json!(id(3)));
    assert_eq!(edit["request"], json!({"prompt": "p1", "target": "t1"}));
    assert_eq!(edit["received_at"], TIME);
    assert_eq!((&edit["actor"], &edit["version"]), (&json!("someone"), &json!(1)));
    assert_eq!(edit["prompt"]["after"]["greedy"], true);
    assert_eq!(edit["digest"], json!(Digest::of(b"weights")));

    let failed = world.get(&format!("/edits/{}", id(4))).await.ok(200);
    assert_eq!((&failed["status"], &failed["reason"]), (&json!("failed"), &json!("not finite")));
    assert!(failed["prompt"].is_null() && failed["version"].is_null());
    assert_eq!(failed["phases_ms"], json!({"queue": 1.5, "total": 2.5}));
}

#[tokio::test]
async fn an_edit_that_is_not_in_the_log_yet_is_found() {
    let world = World::new();
    for (state, name) in [(PendingState::Queued, "queued"), (PendingState::Running, "running")] {
        let pending = PendingEdit {
            id: id(8),
            prompt: "p".into(),
            target: "t".into(),
            actor: "ada".into(),
            received_at: TIME.parse().unwrap(),
            state,
        };
        *world.edits.pending.lock().unwrap() = Some(pending);
        let edit = world.get(&format!("/edits/{}", id(8))).await.ok(200);
        assert_eq!(edit["status"], name);
        assert_eq!(edit["request"], json!({"prompt": "p", "target": "t"}));
    }
}

#[tokio::test]
async fn a_rejection_carries_the_figures() {
    let world = World::new();
    let single = json!({"prompt": "p", "target": "t"});
    let several = json!({"edits": [{"prompt": "p", "target": "t"}, {"prompt": "q", "target": "t"}]});
    for (batch, body, by, code) in [
        (false, &single, RejectedBy::Limits, Code::GuardRejected),
        (true, &several, RejectedBy::Limits, Code::GuardRejected),
        (false, &single, RejectedBy::Breaks, Code::BreaksEdits),
        (true, &several, RejectedBy::Conflicts, Code::ConflictingEdit),
    ] {
        fail(&world.edits.fails, move || WriterError::Rejected {
            reason: "probability 0.1 is under 0.5".into(),
            by,
            report: Box::new(report(2, ReportStatus::Rejected)),
            batch,
        });
        let problem = world.post("/edits", body).await.problem(code);
        let edit = if batch { &problem["report"]["edits"][1] } else { &problem["report"] };
        assert_eq!(edit["status"], "rejected", "{problem}");
        assert_eq!(edit["prompt"]["after"]["probability"], 0.5);
    }
}
