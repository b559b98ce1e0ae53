//! Traces to a collector: the spans of `tracing`, sent by OTLP over gRPC.
//!
//! No request waits for any of it. A span that ended goes into a bounded queue, which drops what does not fit; a thread and a
//! small runtime beside the service send what is there every few seconds. Without a collector none of this exists, and spans
//! that nothing else asks for are never made.
//!
//! Spans go out, events do not: what they say may quote a prompt.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ::tracing::{Level, Metadata, Subscriber, level_filters::LevelFilter};
use opentelemetry::{
    Key, KeyValue, Value,
    trace::{SpanKind, Status, TracerProvider},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{Sampler, SdkTracerProvider, SpanData, SpanExporter as Exporter},
};
use thiserror::Error;
use tokio::runtime::{self, Handle, Runtime};
use tracing_subscriber::{Layer, filter::FilterFn, registry::LookupSpan};
use uuid::Uuid;

/// The span around a whole request, and the names that OpenTelemetry has for what it records.
const REQUEST: &str = "request";
const REQUEST_FIELDS: [(&str, &str); 5] = [
    ("id", "amend.request_id"),
    ("method", "http.request.method"),
    ("route", "http.route"),
    ("status", "http.response.status_code"),
    ("client", "client.address"),
];
/// The span around a request that is handed on.
const RELAY: &str = "relay";
/// The field that the log needs and a span knows anyway.
const TRACE_ID: &str = "trace_id";

/// How often it is said that the collector does not take what it is sent.
const REMINDER: Duration = Duration::from_secs(60);

/// Where traces go, and which.
#[derive(Debug, Clone)]
pub struct TracesConfig {
    /// The collector, http://HOST:PORT.
    pub endpoint: String,
    /// The share of traces that are kept, 0 to 1, of those that begin here; of others, their caller has decided.
    pub sample: f64,
}

/// Why traces could not be set up.
#[derive(Debug, Error)]
pub enum TracesError {
    #[error("the threads that send traces can not be started: {0}")]
    Threads(#[from] std::io::Error),
    #[error("traces to {endpoint}: {message}")]
    Endpoint { endpoint: String, message: String },
}

/// Traces on their way to a collector.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    /// Sends. There until the end.
    runtime: Option<Runtime>,
}

impl Drop for Traces {
    /// A runtime that is dropped waits for what its threads do, for a name to be looked up for one: nothing waits for this.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Traces {
    /// Begins to collect. The collector need not be there yet.
    ///
    /// The sizes and times of OpenTelemetry's own variables count (`OTEL_BSP_*`, `OTEL_EXPORTER_OTLP_TIMEOUT`,
    /// `OTEL_EXPORTER_OTLP_HEADERS`), and so does the service's name in `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`.
    pub fn start(config: &TracesConfig) -> Result<Self, TracesError> {
        let runtime =
            runtime::Builder::new_multi_thread().worker_threads(1).thread_name("amend-traces").enable_all().build()?;
        let exporter = {
            let _inside = runtime.enter();
            SpanExporter::builder().with_tonic().with_endpoint(&config.endpoint).build().map_err(|error| {
                TracesError::Endpoint { endpoint: config.endpoint.clone(), message: error.to_string() }
            })?
        };
        let sender = Sender {
            exporter: Arc::new(exporter),
            runtime: runtime.handle().clone(),
            endpoint: config.endpoint.clone(),
            trouble: Mutex::default(),
        };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(sender)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample))))
            .with_resource(resource())
            .build();
        Ok(Self { provider, runtime: Some(runtime) })
    }

    /// What hands spans over: this crate's, of level debug and above.
    pub(super) fn layer<S>(&self) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let own = |metadata: &Metadata<'_>| {
            metadata.is_span()
                && *metadata.level() <= Level::DEBUG
                && metadata.target().starts_with(env!("CARGO_PKG_NAME"))
        };
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer(env!("CARGO_PKG_NAME")))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(FilterFn::new(own).with_max_level_hint(LevelFilter::DEBUG))
            .boxed()
    }

    /// Sends what is left, for so long at most. Spans that end later are lost.
    pub async fn finish(&self, limit: Duration) {
        let provider = self.provider.clone();
        let sent = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(limit)).await;
        let sent = sent.map_err(|error| error.to_string()).and_then(|sent| sent.map_err(|error| error.to_string()));
        if let Err(error) = sent {
            ::tracing::warn!(error, "the last traces were not sent");
        }
    }
}

/// Who sends: the name unless the environment has one, the version, and this process.
fn resource() -> Resource {
    let standard = Resource::builder().build();
    let name = Key::from_static_str("service.name");
    // What OpenTelemetry says of a service that has not told.
    let unnamed = standard.get(&name).is_none_or(|name| name.as_str().starts_with("unknown_service"));
    let own = [
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", Uuid::now_v7().to_string()),
    ];
    let named = unnamed.then(|| KeyValue::new(name, env!("CARGO_PKG_NAME")));
    Resource::builder().with_attributes(own).with_attributes(named).build()
}

/// Sends spans, under the names that others know, and says when that fails.
#[derive(Debug)]
struct Sender {
    exporter: Arc<SpanExporter>,
    runtime: Handle,
    endpoint: String,
    trouble: Mutex<Trouble>,
}

/// Since the last span that arrived.
#[derive(Debug, Default)]
struct Trouble {
    lost: usize,
    told: Option<Instant>,
}

impl Exporter for Sender {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        batch.iter_mut().for_each(translate);
        let (spans, exporter) = (batch.len(), Arc::clone(&self.exporter));
        // The connection and its clock are the runtime's.
        let sent = self.runtime.spawn(async move { exporter.export(batch).await }).await;
        let sent = sent.unwrap_or_else(|error| Err(OTelSdkError::InternalFailure(error.to_string())));
        self.tell(spans, &sent);
        sent
    }

    fn set_resource(&mut self, resource: &Resource) {
        // Before anything is sent, so nobody else holds it.
        if let Some(exporter) = Arc::get_mut(&mut self.exporter) {
            exporter.set_resource(resource);
        }
    }
}

impl Sender {
    fn tell(&self, spans: usize, sent: &OTelSdkResult) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match sent {
            Ok(()) => {
                if trouble.lost > 0 {
                    ::tracing::info!(endpoint = self.endpoint, lost = trouble.lost, "traces are sent again");
                }
                *trouble = Trouble::default();
            }
            Err(error) => {
                trouble.lost += spans;
                if trouble.told.is_none_or(|told| told.elapsed() >= REMINDER) {
                    trouble.told = Some(Instant::now());
                    ::tracing::warn!(endpoint = self.endpoint, %error, lost = trouble.lost, "traces can not be sent");
                }
            }
        }
    }
}

/// From the names that the log has to those of OpenTelemetry's conventions. What has none there is below `amend.`.
fn translate(span: &mut SpanData) {
    span.attributes.retain(|attribute| attribute.key.as_str() != TRACE_ID);
    if span.name == REQUEST {
        span.span_kind = SpanKind::Server;
        let said = |field| span.attributes.iter().find(|attribute| attribute.key.as_str() == field);
        let text = |field| said(field).map_or(Cow::Borrowed(""), |attribute| attribute.value.as_str());
        let name = format!("{} {}", text("method"), text("route"));
        let failed = matches!(said("status"), Some(KeyValue { value: Value::I64(500..), .. }));
        span.name = name.into();
        if failed {
            span.status = Status::error("");
        }
    } else if span.name == RELAY {
        span.span_kind = SpanKind::Client;
    }
    for attribute in &mut span.attributes {
        let field = attribute.key.as_str();
        let known = REQUEST_FIELDS.iter().find(|(own, _)| *own == field);
        attribute.key = match known {
            Some((_, name)) => Key::from_static_str(name),
            None => Key::new(format!("{}.{field}", env!("CARGO_PKG_NAME"))),
        };
    }
}
