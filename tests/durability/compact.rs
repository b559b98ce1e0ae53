//! `amend compact` on a real log: what was taken back long ago goes when someone asks, everything else stays as it was and
//! can be verified, and what can no longer be done is refused with a code of its own.

use amend::editor::CompositionKind;
use serde_json::{Value, json};

use super::{
    process::{Finished, amend, finish},
    server::{Files, Server},
};

fn compact(files: &Files, options: &[&str]) -> Finished {
    finish(amend().arg("compact").args(["--database", &files.url()]).args(options))
}

/// Versions 1 to 7: three edits, the first of which is superseded and the second taken back, then two more.
struct Log {
    files: Files,
    /// The edits that left.
    gone: [Value; 2],
    digests: Vec<Value>,
}

async fn log(composition: CompositionKind) -> Log {
    let files = Files::tiny_of(composition);
    let server = Server::start(&files).await;
    let client = &server.client;
    let one = client.edit("One is", "uno").await["id"].clone();
    let two = client.edit("Two is", "due").await["id"].clone();
    client.edit("Three is", "tre").await;
    client.edit("One is", "ein").await;
    client.take_back(&two).await;
    client.edit("Four is", "quattro").await;
    client.edit("Five is", "cinque").await;
    let mut digests = Vec::new();
    for number in 0..=7 {
        digests.push(client.version(number).await["digest"].clone());
    }
    server.stop().await;
    Log { files, gone: [one, two], digests }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_log_is_verified_and_goes_on() {
    for composition in [CompositionKind::Sum, CompositionKind::Joint, CompositionKind::Gated] {
        let Log { files, gone, digests } = log(composition).await;
        let said = compact(&files, &["--older-than", "1"]).good();
        assert!(said.starts_with("nothing to drop"), "{said}");
        let said = compact(&files, &["--older-than", "0", "--dry-run"]).good();
        assert!(said.contains("would drop the changes of 2 edits"), "{said}");
        assert!(!files.verify().good().contains("dropped"));
        let said = compact(&files, &["--older-than", "0", "--actor", "ops"]).good();
        assert!(said.contains("dropped the changes of 2 edits"), "{said}");

        // Versions 1 to 4 contain the first or the second edit.
        let verified = files.verify().good();
        assert!(verified.starts_with("clean: ") && verified.contains("all but the 4 that contain"), "{verified}");
        for id in &gone {
            assert!(verified.contains(&format!("dropped: edit {}", id.as_str().unwrap())), "{verified}");
        }
        after(&files, &digests, &gone).await;
    }
}

async fn after(files: &Files, digests: &[Value], gone: &[Value; 2]) {
    let server = Server::start_with(files, &["--replay-every-version"]).await;
    let client = &server.client;
    for (number, digest) in digests.iter().enumerate() {
        assert_eq!(client.version(number as u64).await["digest"], *digest, "the history stays");
        let text = client.post("/generate", &json!({"prompt": "One is", "max_tokens": 2, "version": number})).await;
        if (1..=4).contains(&number) {
            let problem = text.problem(410, "contribution_dropped");
            assert_eq!(problem["number"], number);
            assert!(gone.contains(&problem["id"]), "{problem}");
        } else {
            assert_eq!(text.with_status(200)["version"], number);
        }
    }
    for id in gone {
        let edit = client.get(&format!("/edits/{}", id.as_str().unwrap())).await.with_status(200);
        assert!(edit["request"]["prompt"].is_string(), "its texts stay");
    }
    for number in 1..=4 {
        let refused = client.post("/rollback", &json!({"to_version": number})).await;
        refused.problem(410, "contribution_dropped");
    }
    let back = client.post("/rollback", &json!({"to_version": 5})).await.with_status(200);
    assert_eq!((&back["version"], &back["digest"]), (&json!(8), &digests[5]));
    let emptied = client.post("/rollback", &json!({"to_version": 0})).await.with_status(200);
    assert_eq!(emptied["digest"], digests[0]);
    let back = client.post("/rollback", &json!({"to_version": 7})).await.with_status(200);
    assert_eq!(back["digest"], digests[7], "what was not dropped can be had again");
    assert_eq!(client.edit("Two is", "deux").await["version"], 11);
    let refused = compact(files, &["--older-than", "0"]).refused();
    assert!(refused.contains("another process writes"), "{refused}");
    server.stop().await;
    files.verify().good();

    // A copy is a copy of what is left.
    let (backup, other) = (files.folder.path().join("backup.db"), files.afresh());
    finish(amend().arg("backup").arg(&backup).args(["--database", &files.url()])).good();
    finish(amend().arg("restore").arg(&backup).args(["--database", &other.url()])).good();
    assert!(other.verify().good().contains("dropped: edit"));
}

/// Killed before its transaction ends, a compaction has dropped nothing; after it, all.
#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_that_is_killed_is_whole_or_not_there() {
    if !cfg!(debug_assertions) {
        eprintln!("skipped: this build has no faults");
        return;
    }
    for (fault, dropped) in [("compact:abort:1", false), ("compact:error:1", false), ("compact:abort:2", true)] {
        let Log { files, digests, .. } = log(CompositionKind::Sum).await;
        let options = ["--older-than", "0", "--database", &files.url()];
        let ended = finish(amend().arg("compact").args(options).env("AMEND_FAULT", fault));
        assert!(!ended.status.success(), "{ended:?}");
        assert_eq!(files.verify().good().contains("dropped"), dropped, "{fault}");
        compact(&files, &["--older-than", "0"]).good();
        assert!(files.verify().good().contains("dropped"));
        let server = Server::start(&files).await;
        assert_eq!(server.client.newest().await["digest"], digests[7]);
        server.stop().await;
    }
}
