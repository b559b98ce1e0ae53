//! Options of `amend eval`.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::Args;

use super::{DeviceArgs, ModelArgs};

/// What is measured, on what, and where the figures go.
#[derive(Debug, Clone, Args)]
pub struct EvalArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub what: EvalWhat,
}

/// The editors, the records and the outputs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Evaluation")]
pub struct EvalWhat {
    /// An editor's folder, or the word finetune, finetune-kl or ultraedit; required; repeat it or separate editors by commas
    #[arg(long = "editor", env = "AMEND_EDITOR", value_name = "DIR|METHOD", required = true, value_delimiter = ',')]
    pub editors: Vec<String>,

    /// Records to edit, JSON in a schema for the model's kind (docs/data.md): CounterFact, zsRE, label flips, running text;
    /// required; repeat it or separate files by commas
    #[arg(long, env = "AMEND_DATA", value_name = "FILE", required = true, value_delimiter = ',')]
    pub data: Vec<PathBuf>,

    /// Leave out records that lack a text, as zsRE has some without an answer, instead of refusing the file
    #[arg(long, env = "AMEND_SKIP_INCOMPLETE")]
    pub skip_incomplete: bool,

    /// How many records
    #[arg(long, env = "AMEND_RECORDS", value_name = "N", default_value = "500")]
    pub records: NonZeroUsize,

    /// How many records of the file to pass over first
    #[arg(long, env = "AMEND_OFFSET", value_name = "N", default_value = "0")]
    pub offset: usize,

    /// Numbers of edits that are active at once, in groups of records; repeat it or separate numbers by commas
    #[arg(long, env = "AMEND_SIMULTANEOUS", value_name = "N", default_value = "1", value_delimiter = ',')]
    pub simultaneous: Vec<NonZeroUsize>,

    /// How many records to measure for each of these numbers, evenly from each group, while all edits of the group are active;
    /// default: all
    #[arg(long, env = "AMEND_MEASURED", value_name = "N")]
    pub measured: Option<NonZeroUsize>,

    /// Rate of ultraedit: how far an answer's rows are moved, in deviations per squared size of a normalised input
    #[arg(long, env = "AMEND_ULTRAEDIT_RATE", value_name = "RATE", default_value = "5e-4")]
    pub ultraedit_rate: f64,

    /// Prompts of other records on which each edit should change nothing, per record, beside its own neighbour
    #[arg(long, env = "AMEND_UNRELATED", value_name = "N", default_value = "1")]
    pub unrelated: usize,

    /// Running text (UTF-8) of models that continue texts, for perplexity before and after; default: none, and the column stays empty
    #[arg(long, env = "AMEND_RUNNING_TEXT", value_name = "FILE")]
    pub running_text: Option<PathBuf>,

    /// Most tokens per answer in the free-running match
    #[arg(long, env = "AMEND_MAX_NEW_TOKENS", value_name = "N", default_value = "16")]
    pub max_new_tokens: NonZeroUsize,

    /// Seed of every choice that is drawn
    #[arg(long, env = "AMEND_SEED", value_name = "N", default_value = "0")]
    pub seed: u64,

    /// Also write the figures as JSON to this file, or to standard output in place of the table for -; default: the
    /// table alone
    #[arg(long, env = "AMEND_JSON", value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Also draw the figures against the number of edits that are active at once, as SVG, to this file; default: no plot
    #[arg(long, env = "AMEND_PLOT", value_name = "FILE")]
    pub plot: Option<PathBuf>,
}
