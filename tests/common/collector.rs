//! A collector of traces: a real receiver of OTLP over gRPC that keeps what it is sent.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::{ResourceSpans, Span},
};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

/// Listens as long as the test runs.
#[derive(Clone, Default)]
pub struct Collector {
    received: Arc<Mutex<Vec<ResourceSpans>>>,
    pub endpoint: String,
}

#[async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.received.lock().unwrap().extend(request.into_inner().resource_spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let collector = Self { received: Arc::default(), endpoint };
        let service = TraceServiceServer::new(collector.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        collector
    }

    /// What each sender says of itself and its spans, as it came.
    pub fn received(&self) -> Vec<ResourceSpans> {
        self.received.lock().unwrap().clone()
    }

    /// The spans of one trace, whoever sent them, in the order in which they began.
    pub fn trace(&self, id: &str) -> Vec<Span> {
        let received = self.received();
        let scopes = received.iter().flat_map(|sender| &sender.scope_spans);
        let mut spans: Vec<Span> =
            scopes.flat_map(|scope| &scope.spans).filter(|span| hex(&span.trace_id) == id).cloned().collect();
        spans.sort_by_key(|span| span.start_time_unix_nano);
        spans
    }
}

/// As `traceparent` has it.
pub fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The one span of this name.
#[track_caller]
pub fn one<'a>(trace: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<&Span> = trace.iter().filter(|span| span.name == name).collect();
    let names: Vec<&str> = trace.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(found.len(), 1, "{name} in {names:?}");
    found[0]
}

/// An attribute as text.
pub fn attribute(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(truth) => truth.to_string(),
        other => panic!("{key} is {other:?}"),
    })
}
