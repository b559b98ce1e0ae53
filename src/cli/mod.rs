//! The commands: what each takes, and those that need no model.
//!
//! `main` parses a [`Cli`] and matches on its [`Command`]. What reads the log ([`history`]) or asks a running server
//! ([`client`]) is here; what needs the model is wired in `app`.

pub mod backup;
pub mod client;
pub mod compact;
pub mod edits;
pub mod generate;
pub mod history;
pub mod keys;
mod table;

use std::{
    ffi::OsString,
    io::{self, Write},
};

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use backup::{BackupArgs, RestoreArgs};
pub use compact::CompactArgs;
pub use edits::{EditsCommand, ListArgs, RevertArgs, ShowArgs, VersionsArgs};
pub use generate::GenerateArgs;
pub use keys::KeysCommand;

use crate::config::{
    self, ConfigArgs, DatabaseArgs, EditorArgs, EvalArgs, ModelArgs, ServeArgs, TracingArgs, TrainArgs, values,
};

/// Edits facts inside a language model, keeps every edit in a durable log, and takes any of them back exactly.
#[derive(Debug, Parser)]
#[command(name = "amend", version, max_term_width = 120)]
#[command(
    after_help = "Every option can also be set by the environment variable that its help names and, under its name \
                        with _ for -, in the TOML file that --config names. A flag goes before the environment, the \
                        environment before the file, the file before the default."
)]
pub struct Cli {
    #[command(flatten)]
    pub config: ConfigArgs,
    #[command(flatten)]
    pub tracing: TracingArgs,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Parses `args`, the program's name first. The error is ready to be shown; it also stands for `--help`.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        config::parse(args)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the HTTP service
    Serve(Box<ServeArgs>),
    /// Train an editor for a model
    Train(Box<TrainArgs>),
    /// Measure editors on a file of records, one edit at a time from the base weights
    Eval(Box<EvalArgs>),
    /// Look at the edits in the log, or take one back
    #[command(subcommand)]
    Edits(EditsCommand),
    /// List the versions in the log, newest first
    Versions(VersionsArgs),
    /// Continue a text, on a server or with the model loaded here
    Generate(Box<GenerateArgs>),
    /// Replay the log and check every digest and hash; names the first row that does not fit
    Verify(VerifyArgs),
    /// Copy the log to a new file, also while a server writes to it
    Backup(BackupArgs),
    /// Make a backup the log, where there is none
    Restore(RestoreArgs),
    /// Drop what edits changed that were taken back long ago; their history stays. No server may be running
    Compact(CompactArgs),
    /// Make keys for callers of the service
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Print the description of the HTTP interface (OpenAPI, JSON)
    Openapi,
    /// Ask a running server whether it is ready; the exit status says it too
    Health(HealthArgs),
}

/// What `verify` needs.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub editor: EditorArgs,
    #[command(flatten)]
    pub database: DatabaseArgs,
}

/// Whom `health` asks.
#[derive(Debug, Clone, Args)]
pub struct HealthArgs {
    /// The server, http://ADDRESS:PORT
    #[arg(long, env = "AMEND_SERVER", value_name = "URL", default_value = "http://127.0.0.1:8080")]
    #[arg(value_parser = values::server)]
    pub server: String,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Prints a result and ends it with a line break. A reader that has gone (`amend edits list | head`) is no error.
pub fn print(text: &str) -> io::Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod options;
#[cfg(test)]
mod tests;
