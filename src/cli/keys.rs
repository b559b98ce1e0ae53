//! `amend keys`: makes API keys.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::keys::{self, KeysError, Scope};

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key: print it, this once, and append its hash to a file
    New(NewKeyArgs),
}

/// The key to make.
#[derive(Debug, Clone, Args)]
pub struct NewKeyArgs {
    /// What the key may do; repeat it, or separate by commas; required
    #[arg(long, env = "AMEND_SCOPE", value_name = "SCOPE", value_enum, value_delimiter = ',', required = true)]
    pub scope: Vec<Scope>,

    /// The name under which the log records what its holder does: letters, digits, . _ - @; required
    #[arg(long, env = "AMEND_NAME", value_name = "NAME")]
    pub name: String,

    /// The file that `amend serve --keys` reads, made if need be; required
    #[arg(long, env = "AMEND_FILE", value_name = "FILE")]
    pub file: PathBuf,
}

/// Makes the key and returns it.
pub fn new(args: &NewKeyArgs) -> Result<String, KeysError> {
    keys::file::add(&args.file, &args.name, &args.scope)
}
