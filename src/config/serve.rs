//! Options of `amend serve`.

use std::{
    net::SocketAddr,
    num::{NonZeroU64, NonZeroUsize},
};

use clap::Args;

use super::{DatabaseArgs, EditorArgs, ModelArgs, values};

/// Everything that the service is started with.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub editor: EditorArgs,
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub writer: WriterArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// The HTTP side.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpArgs {
    /// Address and port to listen on; there is no authentication, so keep it on loopback or behind a proxy
    #[arg(long, env = "AMEND_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Largest request body, bytes; above it the answer is 413
    #[arg(long, env = "AMEND_BODY_LIMIT", value_name = "BYTES", default_value = "2000000")]
    pub body_limit: NonZeroUsize,

    /// Longest time until the head of an answer, seconds; streams may last longer
    #[arg(long, env = "AMEND_REQUEST_TIMEOUT", value_name = "SECONDS", default_value = "300")]
    pub request_timeout: NonZeroU64,

    /// How long requests may finish after SIGTERM or SIGINT, seconds
    #[arg(long, env = "AMEND_DRAIN_SECONDS", value_name = "SECONDS", default_value = "30")]
    pub drain_seconds: u64,
}

/// The writer and its guard.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Edits")]
pub struct WriterArgs {
    /// Requests that may wait for the writer; above it the answer is 429
    #[arg(long, env = "AMEND_QUEUE_CAPACITY", value_name = "N", default_value = "256")]
    pub queue_capacity: NonZeroUsize,

    /// Most edits whose factors are captured in one pass
    #[arg(long, env = "AMEND_CAPTURE_BATCH", value_name = "N", default_value = "16")]
    pub capture_batch: NonZeroUsize,

    /// Least probability per target token after an edit, on its own prompt, 0 to 1; 0 switches the check off
    #[arg(long, env = "AMEND_GUARD_MIN_PROBABILITY", value_name = "P", default_value = "0.5")]
    #[arg(value_parser = values::probability)]
    pub guard_min_probability: f32,

    /// Most KL divergence from before to after that a locality probe of the request may show, nats
    #[arg(long, env = "AMEND_GUARD_MAX_KL", value_name = "NATS", default_value = "0.5")]
    #[arg(value_parser = values::non_negative)]
    pub guard_max_kl: f32,

    /// Versions whose weights stay in memory; older ones are rebuilt from the log when asked for
    #[arg(long, env = "AMEND_RESIDENT_VERSIONS", value_name = "N", default_value = "4")]
    pub resident_versions: NonZeroUsize,
}

/// The engine that generates and scores.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Generation")]
pub struct EngineArgs {
    /// Most sequences that are decoded at the same time
    #[arg(long, env = "AMEND_MAX_SEQUENCES", value_name = "N", default_value = "8")]
    pub max_sequences: NonZeroUsize,

    /// Generation and scoring requests that may wait; above it the answer is 429
    #[arg(long, env = "AMEND_GENERATE_QUEUE_CAPACITY", value_name = "N", default_value = "128")]
    pub generate_queue_capacity: NonZeroUsize,
}
