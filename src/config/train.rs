//! Options of `amend train`.

use std::{
    num::{NonZeroU64, NonZeroUsize},
    path::PathBuf,
};

use clap::Args;

use super::{
    ModelArgs,
    values::{self, Composition, LocalityMix},
};

/// Everything that a training run is started with.
#[derive(Debug, Clone, Args)]
pub struct TrainArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub files: TrainFiles,
    #[command(flatten)]
    pub recipe: Recipe,
    #[command(flatten)]
    pub schedule: Schedule,
}

/// What is read and written.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Files")]
pub struct TrainFiles {
    /// Records to train on, JSON in a schema for the model's kind (docs/data.md): CounterFact, zsRE, label flips, running
    /// text; required; repeat it or separate files by commas
    #[arg(long, env = "AMEND_DATA", value_name = "FILE", required = true, value_delimiter = ',')]
    pub data: Vec<PathBuf>,

    /// Records to validate and stop on, in the same way; required
    #[arg(long, env = "AMEND_VALIDATION", value_name = "FILE")]
    pub validation: PathBuf,

    /// Leave out records that lack a text, as zsRE has some without an answer, instead of refusing the file
    #[arg(long, env = "AMEND_SKIP_INCOMPLETE")]
    pub skip_incomplete: bool,

    /// Running text (UTF-8) for locality, of models that continue texts; default: none, and the mix does without it
    #[arg(long, env = "AMEND_RUNNING_TEXT", value_name = "FILE")]
    pub running_text: Option<PathBuf>,

    /// Folder for the editor, its checkpoints and the loss plot; required
    #[arg(long, env = "AMEND_OUT", value_name = "DIR")]
    pub out: PathBuf,

    /// Folder under whose amend/hidden-states the hidden states are kept between runs; default: $XDG_CACHE_HOME, or
    /// ~/.cache
    #[arg(long, env = "AMEND_CACHE", value_name = "DIR")]
    pub cache: Option<PathBuf>,

    /// Begin with the weights, the statistics and the whitening of this editor, of the same model, blocks, rank and
    /// composition, or with the mean of several; default: none, and all of them are new; repeat it or separate folders by
    /// commas
    #[arg(long, env = "AMEND_FROM", value_name = "DIR", value_delimiter = ',')]
    pub from: Vec<PathBuf>,

    /// Continue the run whose state is in the --out folder, bit for bit; of its options only --steps may differ, and the
    /// schedule goes on from where it is
    #[arg(long, env = "AMEND_RESUME")]
    pub resume: bool,
}

impl TrainFiles {
    /// Where hidden states are kept; beside the editor's folder where the user has no home.
    pub fn hidden_states(&self) -> PathBuf {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        self.cache
            .clone()
            .or_else(|| variable("XDG_CACHE_HOME"))
            .or_else(|| variable("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(|| self.out.clone())
            .join("amend/hidden-states")
    }
}

/// The network and the objective.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Recipe")]
pub struct Recipe {
    /// Blocks at the end of the model, or of encoder and decoder each, whose MLP matrices are edited
    #[arg(long, env = "AMEND_TAIL_BLOCKS", value_name = "N", default_value = "3")]
    pub tail_blocks: NonZeroUsize,

    /// Rank of the editor's layers
    #[arg(long, env = "AMEND_RANK", value_name = "N", default_value = "128")]
    pub rank: NonZeroUsize,

    /// How the changes of the active edits become one: their sum, a joint solve, or each by itself behind a learned gate
    #[arg(long = "compose", env = "AMEND_COMPOSE", value_name = "KIND", default_value = "joint")]
    pub composition: Composition,

    /// Whiten reading directions by the inputs that the matrices commonly see; the ridge, as a share of their mean
    /// second moment; 0: no whitening
    #[arg(long, env = "AMEND_WHITENING", value_name = "W", default_value = "0.001")]
    #[arg(value_parser = values::share)]
    pub whitening: f64,

    /// Weight in the whitening of what tells a prompt and its paraphrase apart, beside 1 for the inputs that the matrices
    /// commonly see; 0: left out
    #[arg(long, env = "AMEND_WHITENING_PARAPHRASES", value_name = "W", default_value = "0")]
    #[arg(value_parser = values::share)]
    pub whitening_paraphrases: f64,

    /// What each matrix's own step size starts at; below 0 it goes down the gradient
    #[arg(long, env = "AMEND_INITIAL_STEP_SIZE", value_name = "RATE", default_value = "-0.001")]
    #[arg(allow_negative_numbers = true)]
    pub initial_step_size: f64,

    /// Numbers of edits that are active together; each step draws one; repeat it or separate numbers by commas
    #[arg(
        long,
        env = "AMEND_SIMULTANEOUS",
        value_name = "N,...",
        default_value = "1,1,4,16,64,256",
        value_delimiter = ','
    )]
    pub simultaneous: Vec<NonZeroUsize>,

    /// Edits that are measured per optimizer step
    #[arg(long, env = "AMEND_EDITS_PER_STEP", value_name = "N", default_value = "32")]
    pub edits_per_step: NonZeroUsize,

    /// Highest learning rate (Adam) of the editor's networks, per step
    #[arg(long, env = "AMEND_LEARNING_RATE", value_name = "RATE", default_value = "0.001")]
    #[arg(value_parser = values::positive)]
    pub learning_rate: f64,

    /// Highest learning rate (Adam) of the scales of the matrices' own step sizes, per step
    #[arg(long, env = "AMEND_LR_SCALE_RATE", value_name = "RATE", default_value = "0.01")]
    #[arg(value_parser = values::positive)]
    pub lr_scale_rate: f64,

    /// Most global norm of the gradient; larger ones are scaled down to it
    #[arg(long, env = "AMEND_CLIP", value_name = "NORM", default_value = "1")]
    #[arg(value_parser = values::positive)]
    pub clip: f64,

    /// Weight of the edit loss (c_edit)
    #[arg(long, env = "AMEND_EDIT_WEIGHT", value_name = "W", default_value = "0.3")]
    #[arg(value_parser = values::positive)]
    pub edit_weight: f64,

    /// Weight of the locality loss (c_loc)
    #[arg(long, env = "AMEND_LOCALITY_WEIGHT", value_name = "W", default_value = "1")]
    #[arg(value_parser = values::positive)]
    pub locality_weight: f64,

    /// How often each kind of text is the locality input, as weights; text needs --running-text
    #[arg(long, env = "AMEND_LOCALITY_MIX", value_name = "NAME=W,...")]
    #[arg(default_value = "neighbour=0.5,other=0.3,text=0.2")]
    pub locality_mix: LocalityMix,
}

/// How long, and when to stop.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Schedule")]
pub struct Schedule {
    /// Optimizer steps at most; 0 validates and writes what --from begins with
    #[arg(long, env = "AMEND_STEPS", value_name = "N", default_value = "1800")]
    pub steps: u64,

    /// Steps over which the learning rates rise from 0; a cosine takes them down after that
    #[arg(long, env = "AMEND_WARMUP", value_name = "N", default_value = "50")]
    pub warmup: u64,

    /// Steps between two validations
    #[arg(long, env = "AMEND_VALIDATE_EVERY", value_name = "N", default_value = "150")]
    pub validate_every: NonZeroU64,

    /// Records per validation
    #[arg(long, env = "AMEND_VALIDATION_RECORDS", value_name = "N", default_value = "256")]
    pub validation_records: NonZeroUsize,

    /// Validations without a better one after which training stops
    #[arg(long, env = "AMEND_PATIENCE", value_name = "N", default_value = "8")]
    pub patience: NonZeroUsize,

    /// Wall-clock minutes after which training saves and stops; default: no limit
    #[arg(long, env = "AMEND_MAX_MINUTES", value_name = "MINUTES", value_parser = values::positive)]
    pub max_minutes: Option<f64>,

    /// Seed of the initial weights and the order of the data
    #[arg(long, env = "AMEND_SEED", value_name = "N", default_value = "0")]
    pub seed: u64,
}
