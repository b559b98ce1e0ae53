//! The whole service in this process, over the tiny model.

use std::{
    path::Path,
    sync::{Arc, LazyLock},
    time::Duration,
};

use amend::{
    edit_log::{EditLog, sqlite::SqliteLog},
    editor,
    generation::{GenerateConfig, GenerateHandle, ModelDecoder},
    http::{
        self, Admits, AppState, EditorInfo, Gate, HttpLimits, MatrixInfo, ModelInfo, Proxies, RateLimits, Readiness,
        Relay, Replica, ServiceInfo, ServiceLimits, Streams,
    },
    telemetry::Metrics,
    writer::{self, Place, Started, WriterConfig},
};
use axum::Router;
use tempfile::TempDir;

use super::GOOD;

/// A whole service in this process.
pub struct Service {
    pub runtime: tokio::runtime::Runtime,
    pub routes: Router,
    _folder: TempDir,
}

pub static SERVICE: LazyLock<Service> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let routes = runtime.block_on(routes(folder.path()));
    Service { runtime, routes, _folder: folder }
});

async fn routes(folder: &Path) -> Router {
    let model = Arc::clone(&GOOD.model);
    let (manifest, editor) = editor::load(&GOOD.folder.path().join("editor"), &model).unwrap();
    let editor: Arc<dyn editor::Editor> = Arc::from(editor);
    let log: Arc<dyn EditLog> =
        Arc::new(SqliteLog::open(&format!("sqlite://{}", folder.join("log.db").display())).await.unwrap());
    let metrics = Metrics::new();
    let config = WriterConfig { recheck_idle: Duration::ZERO, ..WriterConfig::default() };
    let (digest, method) = (editor.digest(), editor.method().to_owned());
    let started = writer::start(Arc::clone(&model), editor, Arc::clone(&log), Place::Alone, config, metrics.clone());
    let started = started.await.unwrap();
    let Started { handle, versions, replica, task, .. } = started;
    // It works for as long as the process does.
    std::mem::forget(task);
    let config = GenerateConfig { max_tokens: 8, default_max_tokens: 4, ..GenerateConfig::default() };
    let decoder = Arc::new(ModelDecoder::new(Arc::clone(&model), versions));
    let engine = GenerateHandle::start(decoder, config, metrics.clone()).unwrap();
    let readiness = Readiness::new();
    readiness.ready();
    let limits = HttpLimits { body_bytes: 20_000, request_time: Duration::from_secs(60), ..HttpLimits::default() };
    let replica: Arc<dyn Replica> = Arc::new(replica);
    http::router(AppState {
        relay: Relay::new(Arc::clone(&replica), &limits),
        replica,
        edits: Arc::new(handle),
        generates: Arc::new(engine),
        log,
        metrics,
        info: Arc::new(ServiceInfo {
            service_version: "0".to_owned(),
            model: ModelInfo {
                name: model.name().to_owned(),
                family: model.architecture().to_owned(),
                kind: model.kind().name(),
                capabilities: Vec::new(),
                labels: Vec::new(),
                digest: model.digest(),
                context_length: model.context_length(),
                trunk_blocks: 1,
                tail_blocks: 2,
                editable: Vec::<MatrixInfo>::new(),
            },
            editor: EditorInfo { name: manifest.name, method, digest },
            limits: ServiceLimits::default(),
        }),
        readiness,
        limits,
        streams: Streams::new(16),
        gate: Gate::new(Admits::Anyone, RateLimits::default()),
        proxies: Proxies::default(),
        log_bodies: false,
    })
}
