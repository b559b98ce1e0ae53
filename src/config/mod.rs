//! Options: one struct per group, and where their values come from.
//!
//! A value is looked for on the command line, then in the environment (`AMEND_` and the option's name in capitals), then
//! in the file that `--config` names ([`mod@file`]), and last in the defaults, which `--help` shows.

mod eval;
pub mod file;
mod offline;
mod options;
mod serve;
mod train;
pub mod values;

use std::{ffi::OsString, path::PathBuf};

use clap::{
    ArgMatches, Parser,
    error::{ContextKind, ContextValue, ErrorKind},
};

pub use eval::{EvalArgs, EvalWhat};
pub use offline::{Place, PlaceArgs};
pub use options::{ComputeArgs, ConfigArgs, DatabaseArgs, DeviceArgs, EditorArgs, ModelArgs, TracingArgs};
pub use serve::{EditLimitArgs, EngineArgs, HttpArgs, ReplicaArgs, ServeArgs, TracesArgs, WriterArgs};
pub use train::{Recipe, Schedule, TrainArgs, TrainFiles};

use file::ConfigFile;

/// Parses `args` (the program's name first) with the values of the configuration file, if one is named, below those of
/// the command line and the environment. The error is ready to be shown; it also stands for `--help`.
pub fn parse<P: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<P, clap::Error> {
    let args: Vec<OsString> = args.into_iter().collect();
    let mut command = P::command();
    let file = match named_file(command.clone(), &args).map(|path| ConfigFile::read(&path)) {
        Some(Ok(file)) => Some(file),
        Some(Err(error)) => return Err(command.error(ErrorKind::Io, error)),
        None => None,
    };
    if let Some(file) = &file {
        file.check(&command).map_err(|error| command.error(ErrorKind::UnknownArgument, error))?;
        command = file.inject(command);
    }
    let matches = command.try_get_matches_from_mut(args).map_err(|error| match &file {
        Some(file) => name_file(error, file, &mut command),
        None => error,
    })?;
    P::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// What `--config` or `AMEND_CONFIG` says. Anything else that is wrong with `args` is left to the real parse.
fn named_file(command: clap::Command, args: &[OsString]) -> Option<PathBuf> {
    let matches = command.ignore_errors(true).try_get_matches_from(args).ok()?;
    let mut level: &ArgMatches = &matches;
    while let Some((_, below)) = level.subcommand() {
        level = below;
    }
    level.try_get_one::<PathBuf>("config").ok().flatten().cloned()
}

/// Says that a bad value stands in the file, where clap only knows it as a default.
fn name_file(error: clap::Error, file: &ConfigFile, command: &mut clap::Command) -> clap::Error {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let (Some(option), Some(value)) = (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue)) else {
        return error;
    };
    let Some(key) = option.strip_prefix("--").and_then(|rest| rest.split([' ', '=', '[']).next()) else { return error };
    if !file.holds(&file::key_of(key), value) {
        return error;
    }
    let message = error.render().to_string();
    let message = message.trim_start_matches("error: ").split("\n\nFor more information").next().unwrap_or_default();
    command.error(error.kind(), format!("{message}\n\nThe value stands in {}.", file.path().display()))
}
