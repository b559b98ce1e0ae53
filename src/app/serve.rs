//! `amend serve`: starts the writer, the engine and the HTTP side, and stops them in order.

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::net::TcpListener;

use super::open::{self, Loaded};
use crate::{
    config::ServeArgs,
    edit_log::{EditLog, WriterLock, sqlite::SqliteLog},
    generation::{GenerateConfig, GenerateHandle, ModelDecoder},
    http::{self, AppState, EditorInfo, HttpLimits, MatrixInfo, ModelInfo, Readiness, ServiceInfo, ServiceLimits},
    telemetry::Metrics,
    writer::{self, Started, WriterConfig},
};

/// Serves until SIGTERM or SIGINT; a second signal ends at once.
pub(super) async fn run(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    // Before the model is loaded: an address or a database that is taken should be told at once.
    let listener =
        TcpListener::bind(args.http.listen).await.with_context(|| format!("listening on {}", args.http.listen))?;
    let lock = WriterLock::acquire(&args.database.database)?;
    let log = Arc::new(SqliteLog::open(&args.database.database).await?);
    let (model, editor) = (args.model.model.clone(), args.editor.editor.clone());
    let loaded = tokio::task::spawn_blocking(move || open::load(&model, &editor)).await??;

    let metrics = Metrics::new();
    let shared: Arc<dyn EditLog> = Arc::clone(&log) as _;
    let started = writer::start(
        Arc::clone(&loaded.model),
        Arc::clone(&loaded.editor),
        Arc::clone(&shared),
        writer_config(args),
        metrics.clone(),
    )
    .await?;
    let Started { handle, versions, task, .. } = started;
    let decoder = Arc::new(ModelDecoder::new(Arc::clone(&loaded.model), versions));
    let engine = GenerateHandle::start(decoder, generate_config(args), metrics.clone())?;
    let readiness = Readiness::new();
    let state = AppState {
        edits: Arc::new(handle),
        generates: Arc::new(engine.clone()),
        log: shared,
        metrics,
        info: Arc::new(info(&loaded, args)),
        readiness: readiness.clone(),
        limits: HttpLimits {
            body_bytes: args.http.body_limit.get(),
            request_time: Duration::from_secs(args.http.request_timeout.get()),
        },
    };
    readiness.ready();
    tracing::info!(address = %listener.local_addr()?, "serving");

    let limit = Duration::from_secs(args.http.drain_seconds);
    let drain = async move {
        stop_signal().await;
        tracing::info!(seconds = limit.as_secs(), "draining; a second signal ends at once");
        readiness.drain();
        tokio::spawn(exit_at_next_signal());
    };
    let (begin, begun) = tokio::sync::oneshot::channel();
    let shutdown = async move {
        drain.await;
        // The receiver waits for this below, so it is still there.
        let _ = begin.send(());
    };
    let server = tokio::spawn(http::serve(listener, http::router(state), shutdown));
    // Ends early only if the server failed, which its own result tells.
    let _ = begun.await;
    let (finished, ()) = tokio::join!(engine.drain(limit), task.stop(limit));
    let answered = tokio::time::timeout(limit.max(Duration::from_secs(1)), server).await;
    log.close().await;
    drop(lock);
    match answered {
        Ok(result) => result??,
        Err(_) => tracing::warn!("requests were still running at the end of the drain"),
    }
    tracing::info!(complete = finished, "stopped");
    Ok(ExitCode::SUCCESS)
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

fn writer_config(args: &ServeArgs) -> WriterConfig {
    let (writer, limits) = (&args.writer, &args.limits);
    WriterConfig {
        queue_capacity: writer.queue_capacity.get(),
        capture_batch: writer.capture_batch.get(),
        pass_tokens: writer.pass_tokens.get(),
        min_probability: writer.guard_min_probability,
        max_kl: writer.guard_max_kl,
        max_prompt_tokens: limits.max_prompt_tokens.get(),
        max_target_tokens: limits.max_target_tokens.get(),
        max_text_bytes: limits.max_text_bytes.get(),
        max_note_bytes: WriterConfig::default().max_note_bytes,
        max_submission_tokens: WriterConfig::default().max_submission_tokens,
        max_paraphrases: limits.max_paraphrases,
        max_locality: limits.max_locality,
        max_edits_per_batch: limits.max_edits_per_batch.get(),
        resident_versions: writer.resident_versions,
        replay_every_version: writer.replay_every_version,
    }
}

fn generate_config(args: &ServeArgs) -> GenerateConfig {
    let engine = &args.engine;
    GenerateConfig {
        queue_capacity: engine.generate_queue_capacity.get(),
        max_sequences: engine.max_sequences.get(),
        prefill_chunk: engine.prefill_chunk.get(),
        default_max_tokens: engine.default_max_tokens.get(),
        max_tokens: engine.max_tokens_limit.get(),
        ..GenerateConfig::default()
    }
}

fn info(loaded: &Loaded, args: &ServeArgs) -> ServiceInfo {
    let model = &loaded.model;
    let editable = model.editable().iter().map(|matrix| MatrixInfo {
        name: matrix.name.clone(),
        d_out: matrix.d_out,
        d_in: matrix.d_in,
    });
    ServiceInfo {
        service_version: env!("CARGO_PKG_VERSION").to_owned(),
        model: ModelInfo {
            name: model.name().to_owned(),
            architecture: model.architecture().to_owned(),
            digest: model.digest(),
            context_length: model.context_length(),
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
            generate_queue: args.engine.generate_queue_capacity.get(),
        },
    }
}
