//! Options of `amend serve`.

use std::{
    net::SocketAddr,
    num::{NonZeroU64, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use clap::{ArgAction, Args};
use ipnet::IpNet;

use super::{DatabaseArgs, DeviceArgs, EditorArgs, ModelArgs, values};

/// Everything that the service is started with.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub editor: EditorArgs,
    #[command(flatten)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    pub replica: ReplicaArgs,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub writer: WriterArgs,
    #[command(flatten)]
    pub limits: EditLimitArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub traces: TracesArgs,
}

/// This process's place among those that share a log in PostgreSQL.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Replicas")]
pub struct ReplicaArgs {
    /// Whether this process may become the writer when there is none (auto), or never (follower); a log in a file has one
    /// process, which writes
    #[arg(long, env = "AMEND_ROLE", value_name = "ROLE", value_enum, default_value = "auto")]
    pub role: values::Role,

    /// Where other replicas reach this one while it writes (http://HOST:PORT); default: the address it listens on, if that is
    /// one
    #[arg(long, env = "AMEND_ADVERTISE", value_name = "URL", value_parser = values::server)]
    pub advertise: Option<String>,

    /// How long a request waits for the version that it asks for at least, seconds; after that the answer is 409
    #[arg(long, env = "AMEND_VERSION_WAIT", value_name = "SECONDS", default_value = "5")]
    #[arg(value_parser = values::seconds)]
    pub version_wait: Duration,

    /// How far behind a follower is ready, seconds; above it /readyz answers 503, and all else is answered still
    #[arg(long, env = "AMEND_MAX_LAG", value_name = "SECONDS", default_value = "30")]
    #[arg(value_parser = values::seconds)]
    pub max_lag: Duration,
}

/// The HTTP side.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpArgs {
    /// Address and port to listen on; without --keys, a loopback address
    #[arg(long, env = "AMEND_LISTEN", value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// File of the keys that callers must have (`amend keys new`), read again at SIGHUP; default: no keys are needed, and
    /// only this machine is listened to
    #[arg(long, env = "AMEND_KEYS", value_name = "FILE")]
    pub keys: Option<PathBuf>,

    /// The service's certificate and those that lead to it, PEM, to serve https with; needs --tls-key, and is read again at
    /// SIGHUP; default: http
    #[arg(long, env = "AMEND_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key, PEM; default: http
    #[arg(long, env = "AMEND_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Serve on an address that other machines can reach, and do what anyone who reaches it asks
    #[arg(long, env = "AMEND_ALLOW_UNAUTHENTICATED")]
    pub allow_unauthenticated: bool,

    /// Most requests a minute of each key on the routes of a scope, such as edit=60, of which a minute's worth may come at
    /// once; above it the answer is 429; repeat it for other scopes; without keys all callers count as one; default: no limit
    #[arg(long, env = "AMEND_RATE_LIMIT", value_name = "SCOPE=N", value_delimiter = ',', value_parser = values::rate_limit)]
    pub rate_limit: Vec<values::RateLimit>,

    /// Addresses or networks of proxies whose X-Forwarded-For is believed, such as 10.0.0.0/8; default: none
    #[arg(long, env = "AMEND_TRUSTED_PROXIES", value_name = "NETWORK", value_delimiter = ',')]
    #[arg(value_parser = values::network)]
    pub trusted_proxies: Vec<IpNet>,

    /// Write the bodies of requests, with all prompts and targets, to the log on standard error
    #[arg(long, env = "AMEND_LOG_PROMPTS")]
    pub log_prompts: bool,

    /// Largest request body, bytes; above it the answer is 413
    #[arg(long, env = "AMEND_BODY_LIMIT", value_name = "BYTES", default_value = "2000000")]
    pub body_limit: NonZeroUsize,

    /// Longest time until the head of an answer, seconds; streams may last longer
    #[arg(long, env = "AMEND_REQUEST_TIMEOUT", value_name = "SECONDS", default_value = "120")]
    pub request_timeout: NonZeroU64,

    /// Most connections that are served at the same time; above it the answer is 503, but for /livez
    #[arg(long, env = "AMEND_MAX_CONNECTIONS", value_name = "N", default_value = "1024")]
    pub max_connections: NonZeroUsize,

    /// Longest time until the head of a connection's next request is there, seconds; a connection that asks nothing for so
    /// long is closed
    #[arg(long, env = "AMEND_HEADER_TIMEOUT", value_name = "SECONDS", default_value = "30")]
    pub header_timeout: NonZeroU64,

    /// Most generations that are streamed at the same time; above it the answer is 429
    #[arg(long, env = "AMEND_MAX_STREAMS", value_name = "N", default_value = "256")]
    pub max_streams: NonZeroUsize,

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
    #[arg(long, env = "AMEND_CAPTURE_BATCH", value_name = "N", default_value = "64")]
    pub capture_batch: NonZeroUsize,

    /// Most tokens in one pass of capture or guard, which bounds their memory; more than a few hundred are no faster
    #[arg(long, env = "AMEND_PASS_TOKENS", value_name = "N", default_value = "256")]
    pub pass_tokens: NonZeroUsize,

    /// Least probability per target token after an edit, on its own prompt, 0 to 1; default: no check unless the
    /// request asks for one
    #[arg(long, env = "AMEND_GUARD_MIN_PROBABILITY", value_name = "P", value_parser = values::probability)]
    pub guard_min_probability: Option<f32>,

    /// Most KL divergence from before to after that a locality probe of the request may show, nats; default: no check
    /// unless the request asks for one
    #[arg(long, env = "AMEND_GUARD_MAX_KL", value_name = "NATS", value_parser = values::non_negative)]
    pub guard_max_kl: Option<f32>,

    /// What is done where an edit would break active edits or canaries, unless the request says it
    #[arg(long, env = "AMEND_GUARD_ON_BREAK", value_name = "POLICY", value_enum, default_value = "warn")]
    pub guard_on_break: values::Policy,

    /// Active edits that the guard scores again at each edit: half of them those most like it, the rest drawn; 0 for none
    #[arg(long, env = "AMEND_GUARD_SAMPLE", value_name = "N", default_value = "8")]
    pub guard_sample: usize,

    /// An active edit that held breaks when its target's probability falls below this share of what it was, 0 to 1,
    /// unless the request says it
    #[arg(long, env = "AMEND_GUARD_MIN_SHARE", value_name = "SHARE", default_value = "0.5")]
    #[arg(value_parser = values::probability)]
    pub guard_min_share: f32,

    /// Prompts that no edit should change, at most 256, scored at each edit and at each recheck: JSON, one a line,
    /// {"prompt": TEXT, "expected": TEXT}, of which "expected" may be left out; default: none
    #[arg(long, env = "AMEND_CANARIES", value_name = "FILE")]
    pub canaries: Option<PathBuf>,

    /// What is done where an edit conflicts with an active one, unless the request says it
    #[arg(long, env = "AMEND_GUARD_ON_CONFLICT", value_name = "POLICY", value_enum, default_value = "warn")]
    pub guard_on_conflict: values::Policy,

    /// Similarity of two prompts in the eyes of an active edit, 0 to 1, from which on the new one is its paraphrase
    #[arg(long, env = "AMEND_CONFLICT_SIMILARITY", value_name = "SHARE", default_value = "0.93")]
    #[arg(value_parser = values::probability)]
    pub conflict_similarity: f32,

    /// How long nothing must have been submitted before all active edits and canaries are scored again, seconds; 0 for
    /// never
    #[arg(long, env = "AMEND_RECHECK_IDLE", value_name = "SECONDS", default_value = "10")]
    #[arg(value_parser = values::seconds)]
    pub recheck_idle: Duration,

    /// How much edits yield to generation where both compute, 0 to 19 as nice(1) has it: the more, the steadier running
    /// streams, and the longer an edit beside them; on Linux only
    #[arg(long, env = "AMEND_EDIT_NICENESS", value_name = "N", default_value = "10")]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=19))]
    pub edit_niceness: u8,

    /// Versions, beside the newest and the base, whose weights stay in memory; others are rebuilt when asked for
    #[arg(long, env = "AMEND_RESIDENT_VERSIONS", value_name = "N", default_value = "4")]
    pub resident_versions: usize,

    /// At start, make the weights of every version and compare them with the log, as `amend verify` does; otherwise
    /// those of the newest alone. The hash chain, every stored contribution and every version's set are checked anyway
    #[arg(long, env = "AMEND_REPLAY_EVERY_VERSION", value_name = "BOOL", default_value = "false")]
    #[arg(action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub replay_every_version: bool,
}

/// The largest edit that is taken.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits of an edit")]
pub struct EditLimitArgs {
    /// Most tokens of a prompt, a paraphrase or a locality probe
    #[arg(long, env = "AMEND_MAX_PROMPT_TOKENS", value_name = "N", default_value = "512")]
    pub max_prompt_tokens: NonZeroUsize,

    /// Most tokens of a target
    #[arg(long, env = "AMEND_MAX_TARGET_TOKENS", value_name = "N", default_value = "64")]
    pub max_target_tokens: NonZeroUsize,

    /// Most bytes of any one text
    #[arg(long, env = "AMEND_MAX_TEXT_BYTES", value_name = "BYTES", default_value = "16384")]
    pub max_text_bytes: NonZeroUsize,

    /// Most bytes of an edit's note, which the log keeps for ever
    #[arg(long, env = "AMEND_MAX_NOTE_BYTES", value_name = "BYTES", default_value = "4096")]
    pub max_note_bytes: usize,

    /// Most paraphrases of an edit
    #[arg(long, env = "AMEND_MAX_PARAPHRASES", value_name = "N", default_value = "16")]
    pub max_paraphrases: usize,

    /// Most locality probes of an edit
    #[arg(long, env = "AMEND_MAX_LOCALITY", value_name = "N", default_value = "32")]
    pub max_locality: usize,

    /// Most edits of one request
    #[arg(long, env = "AMEND_MAX_EDITS_PER_BATCH", value_name = "N", default_value = "64")]
    pub max_edits_per_batch: NonZeroUsize,

    /// Most tokens of the prompts and targets of a request's edits together; also of the edits that are captured
    /// together, whose factors are in memory at once
    #[arg(long, env = "AMEND_MAX_SUBMISSION_TOKENS", value_name = "N", default_value = "4096")]
    pub max_submission_tokens: NonZeroUsize,
}

/// The engine that generates and scores.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Generation")]
pub struct EngineArgs {
    /// Most sequences that are decoded at the same time, and so the most texts of one request
    #[arg(long, env = "AMEND_MAX_SEQUENCES", value_name = "N", default_value = "16")]
    pub max_sequences: NonZeroUsize,

    /// Most tokens whose keys and values are kept in memory for all running requests together, at least 2; a request
    /// counts its prompt and all that it may generate, and waits until there is room
    #[arg(long, env = "AMEND_KV_TOKENS", value_name = "N", default_value = "32768")]
    #[arg(value_parser = values::at_least_two)]
    pub kv_tokens: usize,

    /// Generation and scoring requests that may wait, at least 2 (one that compares counts twice); above it the answer
    /// is 429
    #[arg(long, env = "AMEND_GENERATE_QUEUE_CAPACITY", value_name = "N", default_value = "128")]
    #[arg(value_parser = values::at_least_two)]
    pub generate_queue_capacity: usize,

    /// Most tokens of ended requests whose keys and values stay in memory, beside those of running ones, for texts that
    /// begin the same; 0 keeps none
    #[arg(long, env = "AMEND_PREFIX_CACHE_TOKENS", value_name = "N", default_value = "8192")]
    pub prefix_cache_tokens: usize,

    /// Prompt tokens that are read between two tokens of the sequences that are being decoded
    #[arg(long, env = "AMEND_PREFILL_CHUNK", value_name = "N", default_value = "64")]
    pub prefill_chunk: NonZeroUsize,

    /// Tokens to generate for a request that does not say how many
    #[arg(long, env = "AMEND_DEFAULT_MAX_TOKENS", value_name = "N", default_value = "64")]
    pub default_max_tokens: NonZeroUsize,

    /// Most tokens that a request may ask for
    #[arg(long, env = "AMEND_MAX_TOKENS_LIMIT", value_name = "N", default_value = "4096")]
    pub max_tokens_limit: NonZeroUsize,

    /// Most stop strings of a request
    #[arg(long, env = "AMEND_MAX_STOP_STRINGS", value_name = "N", default_value = "16")]
    pub max_stop_strings: usize,

    /// Most bytes of a stop string
    #[arg(long, env = "AMEND_MAX_STOP_BYTES", value_name = "BYTES", default_value = "256")]
    pub max_stop_bytes: NonZeroUsize,

    /// Most tokens of a prompt with one continuation to score, at least 2; such a text is read in one turn, so this
    /// bounds memory and how long the others wait
    #[arg(long, env = "AMEND_SCORE_TOKENS_LIMIT", value_name = "N", default_value = "2048")]
    #[arg(value_parser = values::at_least_two)]
    pub score_tokens_limit: usize,
}

/// Where traces go.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Traces")]
pub struct TracesArgs {
    /// Collector that traces are sent to by OTLP over gRPC, http://HOST:PORT, which is usually port 4317; default: what
    /// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT says, or none
    #[arg(long, env = "AMEND_OTLP_ENDPOINT", value_name = "URL", value_parser = values::collector)]
    pub otlp_endpoint: Option<String>,

    /// Share of the requests whose traces are sent, 0 to 1; where a request comes with a traceparent, that decides
    #[arg(long, env = "AMEND_OTLP_SAMPLE", value_name = "SHARE", default_value = "1")]
    #[arg(value_parser = values::probability)]
    pub otlp_sample: f32,
}
