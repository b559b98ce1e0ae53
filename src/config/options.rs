//! Options that several commands share.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::Args;

use super::values;
use crate::telemetry::tracing::LogFormat;

/// Where the other options may come from.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// TOML file with options: keys at the top for every command, tables named after commands; no default
    #[arg(long, global = true, env = "AMEND_CONFIG", value_name = "FILE", help_heading = "General")]
    pub config: Option<PathBuf>,
}

/// What the program tells about itself on standard error.
#[derive(Debug, Clone, Args)]
pub struct TracingArgs {
    /// Which events are written to standard error: error, warn, info, debug, trace, or directives such as
    /// info,amend::writer=debug
    #[arg(long, global = true, env = "AMEND_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    #[arg(help_heading = "General")]
    pub log_level: String,

    /// How they are written
    #[arg(long, global = true, env = "AMEND_LOG_FORMAT", value_name = "FORMAT", value_enum)]
    #[arg(default_value_t = LogFormat::Pretty, help_heading = "General")]
    pub log_format: LogFormat,
}

/// The language model.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// GGUF file, or folder in Hugging Face form (config.json, tokenizer.json, safetensors); required
    #[arg(long, env = "AMEND_MODEL", value_name = "PATH")]
    pub model: PathBuf,

    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// How much of the machine to use.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ComputeArgs {
    /// Threads that compute; default: as many as the process may use cores
    #[arg(long, env = "AMEND_THREADS", value_name = "N")]
    pub threads: Option<NonZeroUsize>,
}

/// Where the model computes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct DeviceArgs {
    /// What computes: cpu, cuda, or cuda:N for the GPU of number N; a GPU only where Amend was built with the feature cuda
    #[arg(long, env = "AMEND_DEVICE", value_name = "DEVICE", default_value_t = values::Device::Cpu)]
    pub device: values::Device,
}

impl ComputeArgs {
    /// The number of threads: as asked, or one per core that the process may use.
    pub fn threads(&self) -> usize {
        self.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get)
    }
}

/// The editor.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Editor")]
pub struct EditorArgs {
    /// Folder of the trained editor (editor.json, editor.safetensors); required
    #[arg(long, env = "AMEND_EDITOR", value_name = "DIR")]
    pub editor: PathBuf,
}

/// The log.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Log")]
pub struct DatabaseArgs {
    /// Database that holds the log of edits: sqlite://PATH, made by serve alone, or postgres://USER:PASSWORD@HOST/DATABASE,
    /// which several processes may share
    #[arg(long, env = "AMEND_DATABASE", value_name = "URL", default_value = DEFAULT_DATABASE, hide_env_values = true)]
    #[arg(value_parser = values::database)]
    pub database: String,
}

/// Where the log is unless something else is said.
pub(super) const DEFAULT_DATABASE: &str = "sqlite://data/amend.db";
