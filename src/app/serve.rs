//! `amend serve`: starts the writer, the engine and the HTTP side, and stops them in order.

use std::{
    net::SocketAddr,
    pin::pin,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use candle_core::Device;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    access,
    log::{Log, Purpose},
    open::{self, Loaded},
};
use crate::{
    config::{ServeArgs, values},
    edit_log::shared_by_replicas,
    generation::{GenerateConfig, GenerateHandle, ModelDecoder},
    http::{
        self, AppState, ConnectionLimits, Doors, EditorInfo, Gate, HttpLimits, MatrixInfo, ModelInfo, Proxies,
        Readiness, Relay, Replica, ServiceInfo, ServiceLimits, Streams,
    },
    model::{Kind, Model},
    telemetry::{Metrics, Traces},
    writer::{self, Policy, Started, WriterConfig, WriterTask},
};

/// How long the last traces may take to be sent, within what is left of the drain.
const LAST_TRACES: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT; a second signal ends at once.
///
/// The port answers from the start, so that a probe can tell a long replay from a process that hangs.
pub(super) async fn run(args: &ServeArgs, traces: Option<&Traces>) -> anyhow::Result<ExitCode> {
    // Before the model is loaded: options that do not fit, and an address or a database that is taken, should be told at
    // once.
    writer_config(args)?.check()?;
    generate_config(args).check()?;
    let device = open::device(args.device.device)?;
    let (gate, tls) = (access::gate(&args.http)?, access::tls(&args.http)?);
    let listener =
        TcpListener::bind(args.http.listen).await.with_context(|| format!("listening on {}", args.http.listen))?;
    let address = listener.local_addr()?;
    let (purpose, advertised) = (purpose(args)?, advertised(args, address)?);

    let (readiness, stop) = (Readiness::new(), CancellationToken::new());
    let doors = Doors::new(readiness.clone());
    let connections = ConnectionLimits {
        connections: args.http.max_connections.get(),
        head_time: Duration::from_secs(args.http.header_timeout.get()),
    };
    let mut server = tokio::spawn(http::serve(
        listener,
        doors.router(),
        http::crowded(connections.connections),
        connections,
        tls.clone(),
        stop.clone().cancelled_owned(),
    ));
    // One future for the whole life: a signal that comes between two of them would be lost.
    let mut stopping = pin!(stop_signal());
    let started = async {
        let log = Log::open(&args.database.database, purpose).await?;
        Service::start(args, device, gate, log, advertised, readiness.clone()).await
    };
    let service = tokio::select! {
        service = Box::pin(started) => service?,
        () = &mut stopping => {
            // Loading and replay change nothing, so they need not come to an end.
            readiness.drain();
            tracing::info!("stopped before the service was ready");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let Service { routes, engine, task, log } = service;
    doors.open(routes);
    readiness.ready();
    tracing::info!(%address, tls = tls.is_some(), "serving");

    let failed = tokio::select! {
        () = &mut stopping => None,
        ended = &mut server => Some(ended),
    };
    let limit = Duration::from_secs(args.http.drain_seconds);
    tracing::info!(seconds = limit.as_secs(), "draining; a second signal ends at once");
    readiness.drain();
    tokio::spawn(exit_at_next_signal());
    // One deadline for all that drains.
    let deadline = Instant::now() + limit;
    let left = || deadline.saturating_duration_since(Instant::now());
    let (finished, ()) = tokio::join!(engine.drain(left()), task.stop(left()));
    // Only now: until then new requests were answered that the service drains.
    stop.cancel();
    let answered = match failed {
        Some(ended) => Ok(ended),
        // What the engine and the writer answered last has yet to be written out.
        None => tokio::time::timeout(left().max(Duration::from_secs(1)), server).await,
    };
    log.close().await;
    drop(log);
    // Last, so that what just ended is among it.
    if let Some(traces) = traces {
        traces.finish(left().clamp(Duration::from_secs(1), LAST_TRACES)).await;
    }
    match answered {
        Ok(result) => result??,
        Err(_) => tracing::warn!("requests were still running at the end of the drain"),
    }
    tracing::info!(complete = finished, "stopped");
    Ok(ExitCode::SUCCESS)
}

/// What is there once the model is loaded and the log replayed.
struct Service {
    routes: axum::Router,
    engine: GenerateHandle,
    task: WriterTask,
    log: Log,
}

impl Service {
    async fn start(
        args: &ServeArgs,
        device: Device,
        gate: Gate,
        log: Log,
        advertised: Option<String>,
        readiness: Readiness,
    ) -> anyhow::Result<Self> {
        let (model, editor) = (args.model.model.clone(), args.editor.editor.clone());
        let loaded = tokio::task::spawn_blocking(move || open::load(&model, &editor, device)).await??;
        let metrics = Metrics::new();
        let started = writer::start(
            Arc::clone(&loaded.model),
            Arc::clone(&loaded.editor),
            Arc::clone(&log.log),
            log.place(advertised),
            writer_config(args)?,
            metrics.clone(),
        )
        .await?;
        let Started { handle, versions, replica, task, .. } = started;
        let kept = args.engine.prefix_cache_tokens;
        let decoder = Arc::new(ModelDecoder::with_prefix_cache(Arc::clone(&loaded.model), versions, kept));
        let engine = GenerateHandle::start(decoder, generate_config(args), metrics.clone())?;
        let limits = HttpLimits {
            body_bytes: args.http.body_limit.get(),
            request_time: Duration::from_secs(args.http.request_timeout.get()),
            version_wait: args.replica.version_wait,
            max_lag: args.replica.max_lag,
        };
        let replica: Arc<dyn Replica> = Arc::new(replica);
        let routes = http::router(AppState {
            edits: Arc::new(handle),
            generates: Arc::new(engine.clone()),
            log: Arc::clone(&log.log),
            relay: Relay::new(Arc::clone(&replica), &limits),
            replica,
            metrics,
            info: Arc::new(info(&loaded, args)),
            readiness,
            limits,
            streams: Streams::new(args.http.max_streams.get()),
            gate,
            proxies: Proxies::new(args.http.trusted_proxies.iter().copied()),
            log_bodies: args.http.log_prompts,
        });
        Ok(Self { routes, engine, task, log })
    }
}

/// What the process is for at its log.
fn purpose(args: &ServeArgs) -> anyhow::Result<Purpose> {
    match args.replica.role {
        values::Role::Auto => Ok(Purpose::Write),
        values::Role::Follower if shared_by_replicas(&args.database.database) => Ok(Purpose::Read),
        values::Role::Follower => {
            bail!("--role follower needs a log that another process can write: --database postgres://...")
        }
    }
}

/// Where other replicas reach this one, where there are others and it may become the writer.
fn advertised(args: &ServeArgs, address: SocketAddr) -> anyhow::Result<Option<String>> {
    let may_write = args.replica.role == values::Role::Auto;
    if !may_write || !shared_by_replicas(&args.database.database) || args.replica.advertise.is_some() {
        return Ok(args.replica.advertise.clone());
    }
    if address.ip().is_unspecified() {
        bail!("other replicas can not reach {address}: say where they reach this one, --advertise http://HOST:PORT");
    }
    Ok(Some(format!("http://{address}")))
}

async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        Err(error) => {
            tracing::warn!(%error, "SIGTERM can not be watched; SIGINT stops the service");
            // A failure here means that no signal can be watched, and waiting for ever is right.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

async fn exit_at_next_signal() {
    stop_signal().await;
    tracing::warn!("second signal: ending at once");
    std::process::exit(1);
}

fn writer_config(args: &ServeArgs) -> anyhow::Result<WriterConfig> {
    let (writer, limits) = (&args.writer, &args.limits);
    let canaries = writer.canaries.as_deref().map(writer::read_canaries).transpose()?.unwrap_or_default();
    Ok(WriterConfig {
        queue_capacity: writer.queue_capacity.get(),
        capture_batch: writer.capture_batch.get(),
        pass_tokens: writer.pass_tokens.get(),
        min_probability: writer.guard_min_probability,
        max_kl: writer.guard_max_kl,
        on_break: policy(writer.guard_on_break),
        min_share: writer.guard_min_share,
        guard_sample: writer.guard_sample,
        canaries,
        on_conflict: policy(writer.guard_on_conflict),
        conflict_similarity: writer.conflict_similarity,
        recheck_idle: writer.recheck_idle,
        max_prompt_tokens: limits.max_prompt_tokens.get(),
        max_target_tokens: limits.max_target_tokens.get(),
        max_text_bytes: limits.max_text_bytes.get(),
        max_note_bytes: limits.max_note_bytes,
        max_submission_tokens: limits.max_submission_tokens.get(),
        max_paraphrases: limits.max_paraphrases,
        max_locality: limits.max_locality,
        max_edits_per_batch: limits.max_edits_per_batch.get(),
        resident_versions: writer.resident_versions,
        niceness: writer.edit_niceness,
        replay_every_version: writer.replay_every_version,
    })
}

fn policy(policy: values::Policy) -> Policy {
    match policy {
        values::Policy::Off => Policy::Off,
        values::Policy::Warn => Policy::Warn,
        values::Policy::Reject => Policy::Reject,
    }
}

fn generate_config(args: &ServeArgs) -> GenerateConfig {
    let engine = &args.engine;
    GenerateConfig {
        queue_capacity: engine.generate_queue_capacity,
        max_sequences: engine.max_sequences.get(),
        kv_tokens: engine.kv_tokens,
        prefill_chunk: engine.prefill_chunk.get(),
        default_max_tokens: engine.default_max_tokens.get(),
        max_tokens: engine.max_tokens_limit.get(),
        score_tokens: engine.score_tokens_limit,
        max_stops: engine.max_stop_strings,
        max_stop_bytes: engine.max_stop_bytes.get(),
    }
}

/// What the service does with a model of this kind.
fn capabilities(model: &Model) -> Vec<&'static str> {
    match model.kind() {
        Kind::Classifier => vec!["edits", "classify", "score"],
        Kind::Causal | Kind::EncoderDecoder if model.chat_template().is_some() => {
            vec!["edits", "generate", "chat", "score"]
        }
        Kind::Causal | Kind::EncoderDecoder => vec!["edits", "generate", "score"],
    }
}

fn info(loaded: &Loaded, args: &ServeArgs) -> ServiceInfo {
    let model = &loaded.model;
    let shape = model.network().shape();
    let editable = model.editable().iter().map(|matrix| MatrixInfo {
        name: matrix.name.clone(),
        d_out: matrix.d_out,
        d_in: matrix.d_in,
    });
    ServiceInfo {
        service_version: env!("CARGO_PKG_VERSION").to_owned(),
        model: ModelInfo {
            name: model.name().to_owned(),
            family: model.architecture().to_owned(),
            kind: model.kind().name(),
            capabilities: capabilities(model),
            labels: model.labels().to_vec(),
            digest: model.digest(),
            context_length: model.context_length(),
            trunk_blocks: shape.trunk_blocks,
            tail_blocks: shape.tail_blocks,
            editable: editable.collect(),
        },
        editor: EditorInfo {
            name: loaded.manifest.name.clone(),
            method: loaded.editor.method().to_owned(),
            digest: loaded.editor.digest(),
        },
        limits: ServiceLimits {
            edit_queue: args.writer.queue_capacity.get(),
            edits_per_request: args.limits.max_edits_per_batch.get(),
            prompt_tokens: args.limits.max_prompt_tokens.get(),
            target_tokens: args.limits.max_target_tokens.get(),
            submission_tokens: args.limits.max_submission_tokens.get(),
            text_bytes: args.limits.max_text_bytes.get(),
            note_bytes: args.limits.max_note_bytes,
            paraphrases: args.limits.max_paraphrases,
            locality: args.limits.max_locality,
            generate_queue: args.engine.generate_queue_capacity,
            max_tokens: args.engine.max_tokens_limit.get(),
            sequences: args.engine.max_sequences.get(),
            kv_tokens: args.engine.kv_tokens,
            score_tokens: args.engine.score_tokens_limit.min(model.context_length()),
        },
    }
}
