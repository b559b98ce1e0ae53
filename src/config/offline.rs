//! Options of the commands that either ask a running server or do the work themselves.

use std::path::PathBuf;

use clap::Args;

use super::{DatabaseArgs, EditorArgs, ModelArgs, options::ComputeArgs, values};

/// Where a command does its work: on a server, or here.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Where")]
pub struct PlaceArgs {
    /// Ask this running server (http://ADDRESS:PORT) instead of loading the model here; no default
    #[arg(long, env = "AMEND_SERVER", value_name = "URL", value_parser = values::server)]
    pub server: Option<String>,

    /// The key that the server asks for (`amend keys new`); default: none
    #[arg(long, env = "AMEND_API_KEY", value_name = "KEY", hide_env_values = true, value_parser = values::api_key)]
    pub api_key: Option<String>,

    /// GGUF file or Hugging Face folder; required without --server
    #[arg(long, env = "AMEND_MODEL", value_name = "PATH")]
    pub model: Option<PathBuf>,

    /// Folder of the trained editor; required without --server
    #[arg(long, env = "AMEND_EDITOR", value_name = "DIR")]
    pub editor: Option<PathBuf>,

    #[command(flatten)]
    pub database: DatabaseArgs,

    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// Where a command does its work, decided.
#[derive(Debug, Clone)]
pub enum Place {
    /// On the server with this address (`http://...`, no slash at the end), by this key.
    Server { address: String, key: Option<String> },
    /// In this process.
    Here { model: ModelArgs, editor: EditorArgs, database: DatabaseArgs },
}

impl PlaceArgs {
    /// The place; the error names the options that are missing.
    pub fn place(self) -> anyhow::Result<Place> {
        match (self.server, self.model, self.editor) {
            (Some(address), _, _) => Ok(Place::Server { address, key: self.api_key }),
            (None, Some(model), Some(editor)) => Ok(Place::Here {
                model: ModelArgs { model, compute: self.compute },
                editor: EditorArgs { editor },
                database: self.database,
            }),
            (None, model, editor) => {
                let missing = match (model, editor) {
                    (None, None) => "--model and --editor are",
                    (None, _) => "--model is",
                    _ => "--editor is",
                };
                anyhow::bail!("{missing} missing; give them to work on the database here, or name a server by --server")
            }
        }
    }
}
