//! The configuration file: TOML whose keys are the options' names with `_` for `-`.
//!
//! A key at the top goes to every command that has the option; a key in a table named after a command (`[serve]`,
//! `[edits.list]`) goes to that command alone and wins. The values become clap's defaults, so that flags and environment
//! variables stand above them and are parsed and checked in the same way.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, Command, builder::OsStr};
use thiserror::Error;
use toml::{Table, Value};

/// Why a configuration file was refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It can not be read.
    #[error("can not read the configuration file {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    /// It is not TOML.
    #[error("the configuration file {} is not valid TOML: {source}", path.display())]
    Syntax { path: PathBuf, source: Box<toml::de::Error> },
    /// It holds a key that no option has.
    #[error("the configuration file {} has the unknown key `{key}`; known {place}: {}", path.display(), known.join(", "))]
    UnknownKey { path: PathBuf, key: String, place: String, known: Vec<String> },
    /// A value has the wrong shape.
    #[error("the configuration file {}: `{key}` must be {expected}, not {found}", path.display())]
    WrongType { path: PathBuf, key: String, expected: &'static str, found: &'static str },
}

/// A configuration file that was read, not yet held against the options.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    table: Table,
}

impl ConfigFile {
    /// Reads and parses the file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        let table =
            text.parse().map_err(|source| ConfigError::Syntax { path: path.to_owned(), source: Box::new(source) })?;
        Ok(Self { path: path.to_owned(), table })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that every key is an option of `command` or of a command below it and that its value has the right shape.
    pub fn check(&self, command: &Command) -> Result<(), ConfigError> {
        self.check_table(command, &self.table, "")
    }

    /// Makes the file's values the defaults of `command` and the commands below it; the file has passed
    /// [`ConfigFile::check`].
    pub fn inject(&self, command: Command) -> Command {
        inject_table(command, &self.table)
    }

    /// Whether `key` has this value (as text) anywhere in the file.
    pub fn holds(&self, key: &str, value: &str) -> bool {
        fn search(table: &Table, key: &str, value: &str) -> bool {
            table.iter().any(|(name, entry)| match entry {
                Value::Table(below) => search(below, key, value),
                _ => name == key && texts(entry).iter().any(|text| text == value),
            })
        }
        search(&self.table, key, value)
    }

    fn check_table(&self, command: &Command, table: &Table, prefix: &str) -> Result<(), ConfigError> {
        for (key, value) in table {
            let full = format!("{prefix}{key}");
            if let (Some(below), Value::Table(inner)) = (command.find_subcommand(key), value) {
                self.check_table(below, inner, &format!("{full}."))?;
                continue;
            }
            let Some(arg) = find(command, key) else {
                let place = match prefix.trim_end_matches('.') {
                    "" => "keys and tables".to_owned(),
                    table => format!("in [{table}]"),
                };
                return Err(ConfigError::UnknownKey {
                    path: self.path.clone(),
                    key: full,
                    place,
                    known: known(command).into_iter().collect(),
                });
            };
            if let Some(expected) = mismatch(arg, value) {
                return Err(ConfigError::WrongType {
                    path: self.path.clone(),
                    key: full,
                    expected,
                    found: kind(value),
                });
            }
        }
        Ok(())
    }
}

/// The file's key for an option's long name.
pub fn key_of(long: &str) -> String {
    long.replace('-', "_")
}

/// Whether an argument can stand in the file: it has a name and is none of those that end or redirect the program.
pub fn configurable(arg: &Arg) -> bool {
    arg.get_long().is_some_and(|long| long != "config")
        && !matches!(
            arg.get_action(),
            ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
        )
}

fn is(arg: &Arg, key: &str) -> bool {
    configurable(arg) && arg.get_long().is_some_and(|long| key_of(long) == key)
}

/// The option that `key` means, in `command` or the first command below it that has one.
fn find<'a>(command: &'a Command, key: &str) -> Option<&'a Arg> {
    command
        .get_arguments()
        .find(|arg| is(arg, key))
        .or_else(|| command.get_subcommands().find_map(|below| find(below, key)))
}

/// Every key and table that may stand in `command`'s table.
fn known(command: &Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter(|arg| configurable(arg)).filter_map(Arg::get_long).map(key_of);
    let below = command.get_subcommands().flat_map(|command| {
        let mut keys = known(command);
        keys.retain(|key| !key.starts_with('['));
        keys.insert(format!("[{}]", command.get_name()));
        keys
    });
    own.chain(below).collect()
}

/// What `value` should be, where it can not be the option's.
fn mismatch(arg: &Arg, value: &Value) -> Option<&'static str> {
    let scalar = |value: &Value| !matches!(value, Value::Table(_) | Value::Array(_));
    match arg.get_action() {
        ArgAction::SetTrue => (!value.is_bool()).then_some("true or false"),
        ArgAction::Append => {
            let fits = scalar(value) || value.as_array().is_some_and(|values| values.iter().all(scalar));
            (!fits).then_some("one value or an array of values")
        }
        _ => (!scalar(value)).then_some("one value"),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Array(_) => "an array",
        Value::Table(_) => "a table",
        Value::Boolean(_) => "a truth value",
        Value::Integer(_) | Value::Float(_) => "a number",
        Value::Datetime(_) => "a time",
        Value::String(_) => "a string",
    }
}

fn inject_table(mut command: Command, table: &Table) -> Command {
    // What stands here goes to all commands below; their own tables come after and win.
    for (key, value) in table.iter().filter(|(_, value)| !value.is_table()) {
        command = set(command, key, &texts(value));
    }
    for (key, value) in table {
        if let Value::Table(inner) = value {
            command = command.mut_subcommand(key, |below| inject_table(below, inner));
        }
    }
    command
}

fn set(command: Command, key: &str, values: &[String]) -> Command {
    command
        .mut_args(|arg| {
            if is(&arg, key) {
                // clap counts a default as absent when it looks for required arguments.
                arg.required(false).default_values(values.iter().map(OsStr::from))
            } else {
                arg
            }
        })
        .mut_subcommands(|below| set(below, key, values))
}

/// The value as the command line would say it.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(values) => values.iter().flat_map(texts).collect(),
        other => vec![other.to_string()],
    }
}
