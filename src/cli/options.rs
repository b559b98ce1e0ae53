//! Tests of the rules that every option of every command keeps.

use std::{ffi::OsString, io::Write, process::Command as Process};

use clap::{Arg, ArgAction, Command, CommandFactory};

use super::{Cli, Command as Chosen};
use crate::config::{
    ServeArgs,
    file::{ConfigFile, configurable, key_of},
};

/// Options that `serve` can not do without.
const REQUIRED: [&str; 4] = ["--model", "m.gguf", "--editor", "e"];

fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
    Cli::from_args(std::iter::once("amend").chain(args.iter().copied()).map(OsString::from))
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// Parses with a configuration file.
fn with_file(text: &str, args: &[&str]) -> Result<Cli, String> {
    let file = file(text);
    let path = file.path().to_str().unwrap();
    parse(&[args, &["--config", path]].concat()).map_err(|error| error.to_string().replace(path, "FILE"))
}

fn serve(cli: Cli) -> ServeArgs {
    match cli.command {
        Chosen::Serve(args) => *args,
        other => panic!("not serve: {other:?}"),
    }
}

/// Every command that does something, with its full name.
fn leaves(command: &Command, name: &str) -> Vec<(String, Command)> {
    let mut below: Vec<(String, Command)> = command
        .get_subcommands()
        .flat_map(|command| leaves(command, format!("{name} {}", command.get_name()).trim()))
        .collect();
    below.push((name.to_owned(), command.clone()));
    below
}

#[test]
fn the_definition_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn every_option_has_an_environment_variable_and_says_its_default() {
    let mut seen = 0;
    for (name, command) in leaves(&Cli::command(), "") {
        for arg in command.get_arguments() {
            let id = format!("{name} {}", arg.get_id());
            let help = arg.get_help().unwrap_or_else(|| panic!("{id}: no help")).to_string();
            let Some(long) = arg.get_long() else { continue };
            let env = arg.get_env().unwrap_or_else(|| panic!("{id}: no environment variable"));
            assert_eq!(env.to_str(), Some(format!("AMEND_{}", key_of(long).to_uppercase()).as_str()), "{id}");
            let flag = matches!(arg.get_action(), ArgAction::SetTrue);
            let stated = !arg.get_default_values().is_empty() || help.contains("default") || help.contains("required");
            assert!(flag || stated, "{id}: neither a default nor the word: {help}");
            assert_eq!(arg.is_required_set(), help.contains("; required") && !help.contains("without"), "{id}: {help}");
            seen += 1;
        }
    }
    assert!(seen > 80, "{seen} options");
}

#[test]
fn numbers_say_their_unit() {
    let units = ["SECONDS", "BYTES", "MINUTES", "NATS", "N", "P", "T", "W", "RATE", "NORM", "SHARE", "NAME=W,..."];
    for (name, command) in leaves(&Cli::command(), "") {
        for arg in command.get_arguments().filter(|arg| configurable(arg)) {
            let numeric = arg.get_default_values().iter().any(|value| value.to_str().unwrap().parse::<f64>().is_ok());
            let value = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
            assert!(!numeric || value.is_some_and(|unit| units.contains(&unit.as_str())), "{name} {}", arg.get_id());
        }
    }
}

#[test]
fn every_option_can_stand_in_the_file_at_the_top_and_in_its_table() {
    let root = Cli::command();
    for (name, command) in leaves(&root, "") {
        for arg in command.get_arguments().filter(|arg| configurable(arg)) {
            let value = if matches!(arg.get_action(), ArgAction::SetTrue) { "true" } else { "\"1\"" };
            let line = format!("{} = {value}\n", key_of(arg.get_long().unwrap()));
            let table = format!("[{}]\n{line}", name.replace(' ', "."));
            for text in [&line, if name.is_empty() { &line } else { &table }] {
                let file = file(text);
                let file = ConfigFile::read(file.path()).unwrap();
                file.check(&root).unwrap_or_else(|error| panic!("{text}: {error}"));
                let injected = file.inject(root.clone());
                assert_eq!(default_of(&injected, &name, arg), Some(value.trim_matches('"').to_owned()), "{text}");
            }
        }
    }
}

fn default_of(root: &Command, name: &str, arg: &Arg) -> Option<String> {
    let command = name.split_whitespace().fold(root, |command, name| command.find_subcommand(name).unwrap());
    let arg = command.get_arguments().find(|other| other.get_id() == arg.get_id())?;
    assert!(!arg.is_required_set());
    Some(arg.get_default_values().first()?.to_str()?.to_owned())
}

#[test]
fn defaults_are_loopback_and_a_local_file() {
    let args = serve(parse(&[&["serve"], &REQUIRED[..]].concat()).unwrap());
    assert!(args.http.listen.ip().is_loopback());
    assert_eq!(args.http.listen.port(), 8080);
    assert_eq!(args.database.database, "sqlite://data/amend.db");
    assert!(args.model.compute.threads() >= 1);
}

#[test]
fn the_file_satisfies_required_options_and_its_tables_win_over_its_top() {
    let text = "model = 'top.gguf'\neditor = 'e'\nthreads = 3\n[serve]\nthreads = 2\nguard_max_kl = 0.25\n";
    let args = serve(with_file(text, &["serve"]).unwrap());
    assert_eq!(args.model.model.to_str(), Some("top.gguf"));
    assert_eq!(args.model.compute.threads(), 2);
    assert_eq!(args.writer.guard_max_kl, Some(0.25));
    let Chosen::Verify(args) = with_file(text, &["verify"]).unwrap().command else { panic!("not verify") };
    assert_eq!(args.model.compute.threads(), 3);
}

#[test]
fn arrays_stand_for_repeated_options_and_truth_for_flags() {
    let text = "[train]\nmodel = 'm'\ndata = ['a.json', 'b.json']\nvalidation = 'v'\nout = 'o'\nresume = true\n";
    let Chosen::Train(args) = with_file(text, &["train"]).unwrap().command else { panic!("not train") };
    assert_eq!(args.files.data.len(), 2);
    assert!(args.files.resume);
    let Chosen::Train(args) = with_file(text, &["train", "--data", "c.json"]).unwrap().command else {
        panic!("not train")
    };
    assert_eq!(args.files.data, [std::path::PathBuf::from("c.json")]);
}

#[test]
fn an_unknown_key_is_named_with_the_file_and_the_known_keys() {
    let error = with_file("[serve]\nqueue-capacity = 3\n", &["serve"]).unwrap_err();
    assert!(error.contains("FILE has the unknown key `serve.queue-capacity`"), "{error}");
    assert!(error.contains("known in [serve]: ") && error.contains("queue_capacity"), "{error}");
    let error = with_file("[server]\n", &["serve"]).unwrap_err();
    assert!(error.contains("unknown key `server`") || error.contains("`server` must be one value"), "{error}");
    assert!(with_file("[serve]\nconfig = 'x'\n", &["serve"]).is_err());
    assert!(with_file("[verify]\nlisten = '[::1]:1'\n", &["serve"]).is_err());
}

#[test]
fn a_bad_value_is_named_with_where_it_stands() {
    let error = with_file("threads = 'many'\n", &[&["serve"], &REQUIRED[..]].concat()).unwrap_err();
    assert!(error.contains("'many'") && error.contains("--threads"), "{error}");
    assert!(error.contains("The value stands in FILE"), "{error}");
    let error = with_file("threads = [1, 2]\n", &["serve"]).unwrap_err();
    assert!(error.contains("`threads` must be one value, not an array"), "{error}");
    let error = with_file("[train]\nresume = 1\n", &["serve"]).unwrap_err();
    assert!(error.contains("`train.resume` must be true or false, not a number"), "{error}");
    let error = parse(&[&["serve", "--guard-min-probability", "1.5"], &REQUIRED[..]].concat()).unwrap_err();
    assert!(error.to_string().contains("a number from 0 to 1 is needed"), "{error}");
    assert!(!error.to_string().contains("stands in"), "{error}");
}

#[test]
fn a_file_that_can_not_be_read_is_named() {
    let error = parse(&["openapi", "--config", "nowhere/amend.toml"]).unwrap_err().to_string();
    assert!(error.contains("can not read the configuration file nowhere/amend.toml"), "{error}");
    let error = with_file("threads = = 2\n", &["openapi"]).unwrap_err();
    assert!(error.contains("FILE is not valid TOML") && error.contains("line 1"), "{error}");
}

/// Not a test of its own: prints what `serve` would use, for the test below, which sets the environment.
#[test]
#[ignore = "run by the test of precedence, as a process of its own"]
fn prints_the_queue_capacity() {
    let file = std::env::var("TEST_FILE").unwrap();
    let flag = std::env::var("TEST_FLAG").ok();
    let mut args = vec!["serve", "--config", &file];
    args.extend(REQUIRED);
    args.extend(flag.iter().flat_map(|flag| ["--queue-capacity", flag.as_str()]));
    println!("capacity={}", serve(parse(&args).unwrap()).writer.queue_capacity);
}

#[test]
fn a_flag_goes_before_the_environment_before_the_file_before_the_default() {
    let set = file("queue_capacity = 33\n");
    let empty = file("");
    let capacity = |file: &tempfile::NamedTempFile, env: Option<&str>, flag: Option<&str>| {
        // The environment of a process can not be changed safely while its threads run, hence another process.
        let mut child = Process::new(std::env::current_exe().unwrap());
        child.args(["--exact", "cli::options::prints_the_queue_capacity", "--ignored", "--nocapture"]);
        child.env("TEST_FILE", file.path()).env_remove("AMEND_QUEUE_CAPACITY").env_remove("TEST_FLAG");
        child.envs(env.map(|value| ("AMEND_QUEUE_CAPACITY", value)));
        child.envs(flag.map(|value| ("TEST_FLAG", value)));
        let output = String::from_utf8(child.output().unwrap().stdout).unwrap();
        let at = output.find("capacity=").unwrap_or_else(|| panic!("{output}")) + "capacity=".len();
        output[at..].lines().next().unwrap().to_owned()
    };
    assert_eq!(capacity(&set, Some("22"), Some("11")), "11");
    assert_eq!(capacity(&set, Some("22"), None), "22");
    assert_eq!(capacity(&set, None, None), "33");
    assert_eq!(capacity(&empty, None, None), "256");
}
