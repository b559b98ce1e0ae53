//! What the commands make of their options.

use std::ffi::OsString;

use super::{Cli, Command, EditsCommand, Output};
use crate::config::Place;

fn parse(args: &[&str]) -> Command {
    let args = std::iter::once("amend").chain(args.iter().copied()).map(OsString::from);
    Cli::from_args(args).unwrap_or_else(|error| panic!("{error}")).command
}

#[test]
fn taking_back_happens_on_a_server_or_here() {
    let id = "01890a5d-ac96-774b-bcce-b302099a8057";
    let place = |rest: &[&str]| match parse(&[&["edits", "revert", id], rest].concat()) {
        Command::Edits(EditsCommand::Revert(args)) => args.place.place(),
        other => panic!("{other:?}"),
    };
    assert!(
        matches!(place(&["--server", "http://a:1/"]), Ok(Place::Server { address, key: None }) if address == "http://a:1")
    );
    assert!(matches!(place(&["--model", "m", "--editor", "e"]), Ok(Place::Here { .. })));
    let error = place(&["--model", "m"]).unwrap_err().to_string();
    assert!(error.contains("--editor is missing") && error.contains("--server"), "{error}");
    assert!(place(&[]).unwrap_err().to_string().contains("--model and --editor are missing"));
}

#[test]
fn generation_options_become_the_request() {
    let Command::Generate(args) =
        parse(&["generate", "--prompt", "- a", "--top-p", "0.5", "--stop", "x", "--stop", "y", "--version", "0"])
    else {
        panic!("not generate")
    };
    let request = args.text.request();
    assert_eq!(request.prompt.as_deref(), Some("- a"));
    assert_eq!((request.top_p, request.version, request.max_tokens), (Some(0.5), Some(0), Some(64)));
    assert_eq!(request.stop, ["x", "y"]);
    let Command::Generate(args) = parse(&["generate", "--prompt", "hi", "--chat"]) else { panic!("not generate") };
    let request = args.text.request();
    assert_eq!(request.prompt, None);
    assert_eq!(request.messages.map(|messages| messages[0].content.clone()).as_deref(), Some("hi"));
}

#[test]
fn a_comparison_names_both_versions() {
    let Command::Generate(mut args) = parse(&["generate", "--prompt", "p", "--compare-to", "0"]) else {
        panic!("not generate")
    };
    let answer = serde_json::json!({"text": " new", "version": 4, "finish_reason": "length",
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
        "compared": {"text": " old", "version": 0, "finish_reason": "length",
            "usage": {"prompt_tokens": 1, "completion_tokens": 1}, "compared": null}});
    let answer = serde_json::from_value(answer).unwrap();
    assert_eq!(args.text.render(&answer).unwrap(), "version 4:  new\nversion 0:  old");
    args.text.output = Output::Json;
    assert!(args.text.render(&answer).unwrap().contains("\"compared\": {"));
}

#[test]
fn filters_become_the_query() {
    let Command::Edits(EditsCommand::List(args)) = parse(&[
        "edits",
        "list",
        "--status",
        "taken-back",
        "--text",
        "France",
        "--since",
        "2026-01-02T03:04:05Z",
        "--limit",
        "5",
    ]) else {
        panic!("not edits list")
    };
    let query = args.query();
    assert_eq!(query.status, Some(crate::edit_log::EditStatus::TakenBack));
    assert_eq!((query.text.as_deref(), query.limit), (Some("France"), 5));
    assert_eq!(query.since.map(|time| time.to_string()).as_deref(), Some("2026-01-02T03:04:05Z"));
}
