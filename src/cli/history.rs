//! Reads the log for `amend edits list`, `amend edits show` and `amend versions`, read-only and beside a running server.

use std::sync::Arc;

use anyhow::Context;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{ListArgs, Output, ShowArgs, VersionsArgs, edits::PrintArgs, table};
use crate::{
    edit_log::{EditLog, EditRow, VersionRow, open_read_only, without_password},
    writer::VersionReport,
};

impl PrintArgs {
    /// The log, for reading alone.
    async fn log(&self) -> anyhow::Result<Arc<dyn EditLog>> {
        let url = &self.database.database;
        open_read_only(url).await.with_context(|| format!("can not open the log {}", without_password(url)))
    }
}

/// `amend edits list`, as it is printed.
pub async fn list(args: &ListArgs) -> anyhow::Result<String> {
    list_from(args.page.print.log().await?.as_ref(), args).await
}

/// `amend edits show`, as it is printed.
pub async fn show(args: &ShowArgs) -> anyhow::Result<String> {
    show_from(args.print.log().await?.as_ref(), args).await
}

/// `amend versions`, as it is printed.
pub async fn versions(args: &VersionsArgs) -> anyhow::Result<String> {
    versions_from(args.page.print.log().await?.as_ref(), args).await
}

/// What `amend edits revert` prints about the version that it made.
pub fn reverted(id: Uuid, report: &VersionReport) -> String {
    format!("edit {id} was taken back; version {} has the digest {}", report.version, report.digest)
}

async fn list_from(log: &dyn EditLog, args: &ListArgs) -> anyhow::Result<String> {
    let page = log.edits(&args.query()).await?;
    match args.page.print.output {
        Output::Json => {
            let edits: Vec<Value> = page.items.iter().map(edit_json).collect();
            Ok(serde_json::to_string_pretty(&json!({"edits": edits, "next": page.next}))?)
        }
        Output::Text => Ok(table::edits(&page.items) + &next_page(page.next)),
    }
}

async fn show_from(log: &dyn EditLog, args: &ShowArgs) -> anyhow::Result<String> {
    let edit = log.edit(args.id).await?.with_context(|| format!("there is no edit {}", args.id))?;
    match args.print.output {
        Output::Json => Ok(serde_json::to_string_pretty(&edit_json(&edit))?),
        Output::Text => Ok(table::edit(&edit)),
    }
}

async fn versions_from(log: &dyn EditLog, args: &VersionsArgs) -> anyhow::Result<String> {
    let limit = args.page.limit.get();
    let versions = log.versions(args.page.before, limit).await?;
    let full = u32::try_from(versions.len()).is_ok_and(|found| found == limit);
    let next = versions.last().map(|version| version.number).filter(|number| full && *number > 0);
    match args.page.print.output {
        Output::Json => {
            let versions: Vec<Value> = versions.iter().map(version_json).collect();
            Ok(serde_json::to_string_pretty(&json!({"versions": versions, "next": next}))?)
        }
        Output::Text => Ok(table::versions(&versions) + &next_page(next)),
    }
}

fn next_page(next: Option<u64>) -> String {
    next.map(|before| format!("\nmore with --before {before}")).unwrap_or_default()
}

fn edit_json(edit: &EditRow) -> Value {
    json!({
        "id": edit.id,
        "status": edit.status,
        "reason": edit.reason,
        "version": edit.version,
        "superseded_by": edit.superseded_by,
        "received_at": edit.received_at,
        "actor": edit.actor,
        "prompt": edit.prompt,
        "target": edit.target,
        "contribution": edit.contribution,
        "request": edit.request,
        "report": edit.report,
    })
}

fn version_json(version: &VersionRow) -> Value {
    json!({
        "version": version.number,
        "kind": version.kind,
        "created_at": version.created_at,
        "actor": version.actor,
        "active": version.active,
        "digest": version.digest,
        "set_digest": version.set_digest,
        "entry_hash": version.entry_hash,
    })
}

#[cfg(test)]
mod tests {
    use clap::{Args, Parser};

    use super::*;
    use crate::{
        digest::Digest,
        edit_log::{Identity, NewEdit, NewVersion, Outcome, Removal, VersionKind},
    };

    /// One command alone, so that its options can be parsed without the program's others.
    #[derive(Parser)]
    struct Alone<A: Args> {
        #[command(flatten)]
        args: A,
    }

    fn args<A: Args>(log: &Log, args: &[&str]) -> A {
        let database = format!("--database={}", log.url);
        Alone::<A>::try_parse_from([&["amend", &database], args].concat())
            .unwrap_or_else(|error| panic!("{error}"))
            .args
    }

    struct Log {
        url: String,
        ids: [Uuid; 3],
        _folder: tempfile::TempDir,
    }

    fn edit(id: Uuid, prompt: &str, outcome: Outcome) -> NewEdit {
        let figures = |probability| json!({"probability": probability, "greedy": probability > 0.5});
        let report = json!({
            "id": id, "status": "applied", "version": 1, "digest": Digest::of(b"w"), "supersedes": null,
            "prompt": {"text": prompt, "before": figures(0.125), "after": figures(0.9375)},
            "paraphrases": [], "locality": [{"prompt": "Rome is in", "kl": 0.00125, "greedy_unchanged": true}],
            "delta": [{"matrix": "model.layers.29.mlp.up_proj.weight", "norm": 0.5, "rank": 12}],
            "phases_ms": {"queue": 0.1, "capture": 20.0, "editor": 3.0, "guard": 9.0, "commit": 2.0, "publish": 0.1,
                "total": 34.2},
        });
        let applied = outcome == Outcome::Applied;
        NewEdit {
            id,
            received_at: "2026-01-02T03:04:05Z".parse().unwrap(),
            actor: "tester".to_owned(),
            prompt: prompt.to_owned(),
            target: "English".to_owned(),
            request: json!({"prompt": prompt, "target": "English"}),
            report: if applied { report } else { json!({}) },
            outcome,
            contribution: applied.then(|| vec![1, 2, 3]),
        }
    }

    /// A log with an edit, one that superseded it, and one that was rejected.
    async fn log() -> Log {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/amend.db", folder.path().display());
        let ids = [Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7()];
        let log = crate::edit_log::sqlite::SqliteLog::open(&url).await.unwrap();
        let digest = Digest::of(b"x");
        let composition = "sum".to_owned();
        let identity = Identity { base: digest, editor: digest, composition, base_weights: digest, empty_set: digest };
        log.pin(&identity).await.unwrap();
        for (index, removed) in
            [vec![], vec![Removal { edit: ids[0], superseded_by: Some(ids[1]) }]].into_iter().enumerate()
        {
            let version = NewVersion {
                number: index as u64 + 1,
                kind: VersionKind::Edit,
                actor: "tester".to_owned(),
                digest: Digest::of(b"w"),
                set_digest: Digest::of(b"s"),
                edits: vec![edit(ids[index], "Her mother tongue is", Outcome::Applied)],
                restored: vec![],
                removed,
                idempotency: None,
            };
            log.commit(version).await.unwrap();
        }
        log.record(vec![edit(ids[2], "The Eiffel tower is in", Outcome::Rejected("too little".to_owned()))])
            .await
            .unwrap();
        log.close().await;
        Log { url, ids, _folder: folder }
    }

    #[tokio::test]
    async fn edits_are_listed_newest_first_and_filtered() {
        let log = log().await;
        let text = list(&args(&log, &[])).await.unwrap();
        let at = |id: Uuid| text.find(&id.to_string()).unwrap_or_else(|| panic!("{id} is not in\n{text}"));
        assert!(at(log.ids[2]) < at(log.ids[1]) && at(log.ids[1]) < at(log.ids[0]), "{text}");
        assert!(text.contains("superseded") && text.contains("rejected"), "{text}");
        let json = list(&args(&log, &["--status", "superseded", "--output", "json"])).await.unwrap();
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["edits"].as_array().unwrap().len(), 1);
        assert_eq!(json["edits"][0]["superseded_by"], json!(log.ids[1]));
        assert_eq!(json["next"], Value::Null);
    }

    #[tokio::test]
    async fn a_page_says_where_the_next_begins() {
        let log = log().await;
        let page = list(&args(&log, &["--limit", "2", "--output", "json"])).await.unwrap();
        let next = serde_json::from_str::<Value>(&page).unwrap()["next"].to_string();
        let text = list(&args(&log, &["--limit", "2"])).await.unwrap();
        assert!(text.ends_with(&format!("more with --before {next}")), "{text}");
        let rest = list(&args(&log, &["--before", &next])).await.unwrap();
        assert!(rest.contains(&log.ids[0].to_string()) && !rest.contains(&log.ids[1].to_string()), "{rest}");
    }

    #[tokio::test]
    async fn one_edit_is_shown_with_its_figures() {
        let log = log().await;
        let text = show(&args(&log, &[&log.ids[1].to_string()])).await.unwrap();
        for part in ["0.1250", "0.9375", "0.00125", "up_proj", "capture 20.0", "Her mother tongue is"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let text = show(&args(&log, &[&log.ids[2].to_string()])).await.unwrap();
        assert!(text.contains("too little") && !text.contains("milliseconds"), "{text}");
        let unknown = Uuid::now_v7();
        let error = show(&args(&log, &[&unknown.to_string()])).await.unwrap_err().to_string();
        assert_eq!(error, format!("there is no edit {unknown}"));
    }

    #[tokio::test]
    async fn versions_are_listed_newest_first() {
        let log = log().await;
        let json = versions(&args(&log, &["--output", "json"])).await.unwrap();
        let json: Value = serde_json::from_str(&json).unwrap();
        let numbers: Vec<_> = json["versions"].as_array().unwrap().iter().map(|row| row["version"].clone()).collect();
        assert_eq!(numbers, [json!(2), json!(1), json!(0)]);
        let text = versions(&args(&log, &["--limit", "2"])).await.unwrap();
        assert!(text.ends_with("more with --before 1"), "{text}");
        assert!(text.contains(&Digest::of(b"w").to_string()[..12]), "{text}");
    }

    #[tokio::test]
    async fn a_log_that_is_not_there_is_named_and_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/none.db", folder.path().display());
        let log = Log { url: url.clone(), ids: [Uuid::nil(); 3], _folder: folder };
        let error = format!("{:#}", list(&args(&log, &[])).await.unwrap_err());
        assert!(error.contains(&url) && error.contains("there is no database"), "{error}");
        assert_eq!(std::fs::read_dir(log._folder.path()).unwrap().count(), 0);
    }
}
