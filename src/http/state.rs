//! What handlers share, and the traits through which they reach the writer, the engine and the other replicas.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{future::BoxFuture, stream::BoxStream};
use uuid::Uuid;

use super::{access::Gate, info::ServiceInfo, peer::Proxies, readiness::Readiness, relay::Relay, streams::Streams};
use crate::{
    edit_log::EditLog,
    generation::{
        ClassifyRequest, ClassifyResponse, GenerateError, GenerateEvent, GenerateRequest, GenerateResponse,
        ScoreRequest, ScoreResponse,
    },
    telemetry::Metrics,
    writer::{
        Answer, BatchReport, EditsHealth, Idempotency, PendingEdit, ReplicaStatus, SetChange, Submission,
        VersionReport, WriterError,
    },
};

/// An admitted submission. Dropping it drops the edits too, unless they are detached or being made already.
pub struct Submitted {
    /// The ids given to the edits, in the order they were asked for.
    pub ids: Vec<Uuid>,
    /// Ends when the edits are in the log, or are known not to be.
    pub done: BoxFuture<'static, Result<Answer<BatchReport>, WriterError>>,
}

/// The writer, as http sees it.
#[async_trait]
pub trait Edits: Send + Sync {
    /// Admits edits to the bounded queue; waits for nothing but their texts to be tokenized.
    async fn submit(&self, submission: Submission) -> Result<Submitted, WriterError>;

    /// Changes the set without computing anything new.
    async fn change(
        &self,
        change: SetChange,
        actor: String,
        expected_version: Option<u64>,
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<VersionReport>, WriterError>;

    /// An edit that is waiting or running; none once it is in the log or gone.
    fn pending(&self, id: Uuid) -> Option<PendingEdit>;

    /// How healthy the active edits are, as far as it was checked.
    fn health(&self) -> EditsHealth;
}

/// This process's place among those that share its log, as http sees it.
#[async_trait]
pub trait Replica: Send + Sync {
    /// As of now.
    fn status(&self) -> ReplicaStatus;

    /// Waits until new requests run on this version or a newer one. The error is the newest after `limit`.
    async fn reach(&self, version: u64, limit: Duration) -> Result<(), u64>;
}

/// A generation that has begun. Dropping `events` ends it.
pub struct Streaming {
    /// The version that every token comes from.
    pub version: u64,
    pub events: BoxStream<'static, Result<GenerateEvent, GenerateError>>,
}

/// The engine, as http sees it.
#[async_trait]
pub trait Generates: Send + Sync {
    /// The whole text at once.
    async fn generate(&self, request: GenerateRequest) -> Result<GenerateResponse, GenerateError>;

    /// The text as it comes.
    async fn stream(&self, request: GenerateRequest) -> Result<Streaming, GenerateError>;

    /// Log-probabilities of given continuations.
    async fn score(&self, request: ScoreRequest) -> Result<ScoreResponse, GenerateError>;

    /// How probable each label of a text is.
    async fn classify(&self, request: ClassifyRequest) -> Result<ClassifyResponse, GenerateError>;
}

/// Limits that http itself keeps; the writer and the engine keep their own.
#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// From the request to the head of its response; a stream's body may take longer.
    pub request_time: Duration,
    /// How long a request waits for the version that it asks for at least.
    pub version_wait: Duration,
    /// How far behind a follower is ready.
    pub max_lag: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            body_bytes: 2_000_000,
            request_time: Duration::from_secs(120),
            version_wait: Duration::from_secs(5),
            max_lag: Duration::from_secs(30),
        }
    }
}

/// Everything a handler can reach. Cloning shares it.
#[derive(Clone)]
pub struct AppState {
    pub edits: Arc<dyn Edits>,
    pub generates: Arc<dyn Generates>,
    pub log: Arc<dyn EditLog>,
    pub replica: Arc<dyn Replica>,
    /// The way to the writer, where it is another replica.
    pub relay: Relay,
    pub metrics: Metrics,
    pub info: Arc<ServiceInfo>,
    pub readiness: Readiness,
    pub limits: HttpLimits,
    pub streams: Streams,
    /// Who is admitted.
    pub gate: Gate,
    /// Whose word on where a request comes from is taken.
    pub proxies: Proxies,
    /// Whether the bodies of requests, with all their prompts and targets, are written to the operator's log.
    pub log_bodies: bool,
}
