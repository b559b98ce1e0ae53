//! The other commands over a log in PostgreSQL.

use serde_json::Value;

use super::{
    process::{amend, finish},
    server::Server,
    setting::Setting,
};

#[tokio::test(flavor = "multi_thread")]
async fn commands_read_the_log_and_write_where_no_service_does() {
    let Some(setting) = Setting::new() else { return };
    let (files, url) = (&setting.files, setting.files.url());
    let read = |words: &[&str]| finish(amend().args(words).args(["--database", &url]));
    let empty = finish(amend().arg("verify").args(files.options())).refused();
    assert!(empty.contains("no model is pinned"), "{empty}");

    let server = Server::start(files).await;
    let edit = server.client.edit("Rome is", "red").await;
    let id = edit["id"].as_str().unwrap();
    let listed: Value = serde_json::from_str(&read(&["edits", "list", "--output", "json"]).good()).unwrap();
    assert_eq!(listed["edits"][0]["id"], id);
    assert!(read(&["edits", "show", id]).good().contains("Rome is"));
    let versions: Value = serde_json::from_str(&read(&["versions", "--output", "json"]).good()).unwrap();
    assert_eq!(versions["versions"][0]["digest"], edit["digest"]);
    files.verify().good();
    let refused = finish(amend().args(["edits", "revert", id]).args(files.options())).refused();
    assert!(refused.contains("another process writes") && refused.contains("process "), "{refused}");
    let generated =
        finish(amend().args(["generate", "--prompt", "Rome is", "--max-tokens", "2"]).args(files.options()));
    generated.good();
    server.stop().await;

    let reverted = finish(amend().args(["edits", "revert", id]).args(files.options())).good();
    assert!(reverted.contains("version 2"), "{reverted}");
    files.verify().good();
    let copy = files.folder.path().join("copy.db");
    for words in [["backup", copy.to_str().unwrap()], ["restore", copy.to_str().unwrap()]] {
        let refused = read(&words).refused();
        assert!(refused.contains("pg_dump") || refused.contains("pg_restore"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_do_not_fit_are_told_at_once() {
    let Some(setting) = Setting::new() else { return };
    let mut serve = amend();
    serve.args(["serve", "--listen", "0.0.0.0:0", "--allow-unauthenticated"]).args(setting.files.options());
    let refused = finish(&mut serve).refused();
    assert!(refused.contains("--advertise"), "{refused}");
    let mut serve = amend();
    serve.args(["serve", "--listen", "127.0.0.1:0", "--role", "follower"]).args(setting.files.afresh().options());
    let refused = finish(&mut serve).refused();
    assert!(refused.contains("postgres://"), "{refused}");
    let mut serve = amend();
    let nobody = setting.files.over("postgres://me:secret@127.0.0.1:1/amend".to_owned());
    serve.args(["serve", "--listen", "127.0.0.1:0"]).args(nobody.options());
    let finished = finish(&mut serve);
    assert!(!finished.stderr.contains("secret"), "{}", finished.stderr);
    assert!(finished.refused().contains("127.0.0.1:1"));
}
