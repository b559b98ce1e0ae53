//! Keeps the walls between the rooms: a room uses only the rooms below it, and some never name certain crates.
//!
//! It reads the paths in `src/`, whole or in `use` groups, in tests beside the code as well; comments and strings do not
//! count.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The rooms from the top down. What is used must stand below its user.
const ROOMS: [&str; 12] = [
    "main",
    "app",
    "cli",
    "http",
    "writer",
    "generation",
    "weights",
    "training",
    "editor",
    "model",
    "edit_log",
    "telemetry",
];

/// Rooms and the beginnings of names of crates that they never name.
const FORBIDDEN: [(&str, &[&str]); 3] =
    [("http", &["candle", "sqlx"]), ("edit_log", &["candle"]), ("model", &["sqlx", "axum"])];

/// Whether `room` may use `other`. `digest`, `faults`, `files`, `keys`, `panics` and `threads` are for all; options are read at the top
/// alone, rooms have their own.
fn may_use(room: &str, other: &str) -> bool {
    let rank = |room| ROOMS.iter().position(|other| *other == room);
    match (room, other) {
        _ if room == other => true,
        (_, "digest" | "faults" | "files" | "keys" | "panics" | "threads") => true,
        ("lib", _) => true,
        (_, "config") => ["main", "app", "cli"].contains(&room),
        ("config", _) => other == "telemetry",
        _ => matches!((rank(room), rank(other)), (Some(room), Some(other)) if room < other),
    }
}

/// What is wrong in a file of `src/`, by its path below `src/`.
fn violations(file: &Path, source: &str) -> Vec<String> {
    let module = module_of(file);
    let room = module.first().map_or("lib", String::as_str);
    let tokens = tokens(source);
    let mut found: Vec<String> = used_rooms(&tokens, module.len())
        .into_iter()
        .filter(|other| !may_use(room, other))
        .map(|other| format!("{}: `{room}` uses `{other}`", file.display()))
        .collect();
    for names in FORBIDDEN.iter().filter(|(owner, _)| *owner == room).map(|(_, names)| names) {
        for name in names.iter().filter(|name| tokens.iter().any(|token| names_crate(token, name))) {
            found.push(format!("{}: `{room}` names `{name}`", file.display()));
        }
    }
    found.dedup();
    found
}

/// Whether an identifier is the crate or one of its family: `candle_nn` is `candle`.
fn names_crate(token: &str, name: &str) -> bool {
    token.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

/// `a/b.rs` and `a/b/mod.rs` are the module a::b; `lib.rs` is the root, `main.rs` a room of its own.
fn module_of(file: &Path) -> Vec<String> {
    let mut parts: Vec<String> = file.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let name = parts.pop().unwrap_or_default();
    match name.trim_end_matches(".rs") {
        "mod" => {}
        "lib" if parts.is_empty() => {}
        stem => parts.push(stem.to_owned()),
    }
    parts
}

/// The rooms at the head of paths that begin at the crate's root: `crate::room`, `amend::room`, as many `super::` as lead
/// there, and groups of them. `depth` is how far below the root the file's module is.
fn used_rooms(tokens: &[String], depth: usize) -> Vec<String> {
    let is = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token == text);
    let mut rooms = Vec::new();
    let mut inline = Vec::new(); // brace depths at which inline modules began
    let mut braces = 0;
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].as_str() {
            "{" => {
                if at >= 2 && tokens[at - 2] == "mod" {
                    inline.push(braces);
                }
                braces += 1;
            }
            "}" => {
                braces -= 1;
                if inline.last() == Some(&braces) {
                    inline.pop();
                }
            }
            // Only a whole path starts at the root: `self::amend::x` and `$crate` in a macro do not matter here.
            "crate" | "amend" if is(at + 1, "::") => rooms.extend(heads(tokens, at + 2)),
            "super" => {
                let mut ups = 0;
                while is(at, "super") && is(at + 1, "::") {
                    ups += 1;
                    at += 2;
                }
                if ups >= depth + inline.len() && ups > 0 {
                    rooms.extend(heads(tokens, at));
                }
                if ups > 0 {
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    rooms.retain(|room| {
        room.starts_with(|first: char| first.is_lowercase()) && !["self", "super"].contains(&room.as_str())
    });
    rooms
}

/// The first names of the path or of the group of paths that begins at `at`.
fn heads(tokens: &[String], at: usize) -> Vec<String> {
    if tokens.get(at).is_none_or(|token| token != "{") {
        return tokens.get(at).cloned().into_iter().collect();
    }
    let (mut heads, mut depth, mut first) = (Vec::new(), 0, true);
    for token in &tokens[at..] {
        match token.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 1 => first = true,
            name if depth == 1 && first => {
                heads.push(name.to_owned());
                first = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

/// Identifiers, `::` and single signs, without comments, strings, characters and lifetimes.
fn tokens(source: &str) -> Vec<String> {
    let chars: Vec<char> = source.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&first) = chars.get(at) {
        let rest = &chars[at..];
        at += match first {
            '/' if rest.starts_with(&['/', '/']) => rest.iter().take_while(|c| **c != '\n').count(),
            '/' if rest.starts_with(&['/', '*']) => block_comment(rest),
            '"' => string(rest),
            'r' if raw_hashes(rest).is_some() => raw_string(rest),
            // A character, or a lifetime, whose name is skipped like one.
            '\'' if rest.get(1) == Some(&'\\') => 2 + rest[3..].iter().take_while(|c| **c != '\'').count() + 2,
            '\'' if rest.get(2) == Some(&'\'') => 3,
            '\'' => 1 + rest[1..].iter().take_while(|c| is_word(**c)).count(),
            ':' if rest.get(1) == Some(&':') => {
                tokens.push("::".to_owned());
                2
            }
            c if is_word(c) => {
                let word: String = rest.iter().take_while(|c| is_word(**c)).collect();
                let length = word.chars().count();
                tokens.push(word);
                length
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push(c.to_string());
                }
                1
            }
        };
    }
    tokens
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != '"' {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// How many `#` open the raw string here, if one begins here.
fn raw_hashes(rest: &[char]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
    (rest.get(1 + hashes) == Some(&'"')).then_some(hashes)
}

fn raw_string(rest: &[char]) -> usize {
    let hashes = raw_hashes(rest).unwrap_or_default();
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let start = hashes + 2;
    let length = rest[start..].windows(end.len()).position(|window| window == end.as_slice());
    length.map_or(rest.len(), |length| start + length + end.len())
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("its entries can be read").path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn the_walls_hold() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    assert!(files.len() > 10, "only {} files were found in {}", files.len(), src.display());
    let broken: Vec<String> = files
        .iter()
        .flat_map(|file| violations(file.strip_prefix(&src).unwrap(), &fs::read_to_string(file).unwrap()))
        .collect();
    assert!(broken.is_empty(), "walls are broken:\n{}", broken.join("\n"));
}

fn check(file: &str, source: &str) -> Vec<String> {
    violations(Path::new(file), source)
}

#[test]
fn a_room_that_uses_one_above_it_is_found() {
    assert_eq!(check("model/kv.rs", "use crate::weights::Lease;"), ["model/kv.rs: `model` uses `weights`"]);
    assert_eq!(check("weights/mod.rs", "fn f() { crate::writer::run() }"), ["weights/mod.rs: `weights` uses `writer`"]);
    assert_eq!(check("telemetry/metrics.rs", "use crate::{digest::Digest, app};").len(), 1);
    assert_eq!(check("editor/mend/mod.rs", "use crate::{\n model::{Model, kv},\n training::Loop,\n};").len(), 1);
    assert_eq!(check("http/router.rs", "use crate::config::ServeArgs;"), ["http/router.rs: `http` uses `config`"]);
    assert_eq!(check("cli/client.rs", "use crate::app;").len(), 1);
    assert!(check("writer/task.rs", "use crate::{weights::Lease, edit_log::EditLog};").is_empty());
    assert!(check("app.rs", "use crate::{config::ServeArgs, http, writer};").is_empty());
    assert!(check("main.rs", "use amend::{app, cli::Cli};").is_empty());
}

#[test]
fn a_room_that_nobody_placed_is_found() {
    assert_eq!(check("app.rs", "use crate::util::shorten;"), ["app.rs: `app` uses `util`"]);
    assert_eq!(check("util.rs", "use crate::telemetry::Metrics;"), ["util.rs: `util` uses `telemetry`"]);
}

#[test]
fn forbidden_crates_are_found() {
    assert_eq!(check("http/edits.rs", "use candle_core::Tensor;"), ["http/edits.rs: `http` names `candle`"]);
    assert_eq!(check("http/edits.rs", "type T = ::sqlx::Pool;"), ["http/edits.rs: `http` names `sqlx`"]);
    assert_eq!(
        check("edit_log/sqlite.rs", "use candle_nn::VarMap;"),
        ["edit_log/sqlite.rs: `edit_log` names `candle`"]
    );
    assert!(check("edit_log/sqlite.rs", "use sqlx::Row;").is_empty());
    assert!(check("model/kv.rs", "use candle_core::Tensor;").is_empty());
}

#[test]
fn a_model_that_names_an_edit_is_found() {
    for room in ["editor", "writer", "weights"] {
        assert_eq!(
            check("model/kv.rs", &format!("use crate::{room}::Edit;")),
            [format!("model/kv.rs: `model` uses `{room}`")]
        );
    }
}

#[test]
fn a_way_around_by_super_is_found() {
    assert_eq!(check("model/mod.rs", "use super::weights::Lease;").len(), 1);
    assert_eq!(check("model/kv.rs", "use super::super::weights::Lease;").len(), 1);
    assert!(check("model/kv.rs", "use super::weights::Lease;").is_empty(), "this is model::weights");
    assert!(check("model/kv.rs", "mod tests { use super::super::weights::Lease; }").is_empty());
    assert_eq!(check("model/kv.rs", "mod tests { use super::super::super::weights::Lease; }").len(), 1);
    assert_eq!(check("model/kv.rs", "mod a { fn f() {} }\nuse super::super::weights::Lease;").len(), 1);
}

#[test]
fn comments_and_strings_do_not_count() {
    let source = r##"
        //! See [`crate::weights`]; candle and sqlx do the rest.
        /* use crate::app; /* nested */ use crate::app; */
        const A: &str = "crate::weights::\"x\" candle";
        const B: &str = r#"use crate::app; "candle""#;
        const C: char = '"';
        const D: char = '\'';
        fn f<'a>(x: &'a str) -> &'a str { x }
        use crate::telemetry::Metrics;
    "##;
    assert!(check("edit_log/mod.rs", source).is_empty(), "{:?}", check("edit_log/mod.rs", source));
    assert_eq!(check("edit_log/mod.rs", &format!("{source} use crate::weights::Lease;")).len(), 1);
}
