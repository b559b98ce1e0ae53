//! The real writer behind http's trait.

use async_trait::async_trait;
use futures::FutureExt;
use tracing::Span;
use uuid::Uuid;

use crate::{
    http::state::{Edits, Submitted},
    writer::{
        Answer, EditHandle, EditsHealth, Idempotency, PendingEdit, SetChange, Submission, VersionReport, WriterError,
    },
};

#[async_trait]
impl Edits for EditHandle {
    async fn submit(&self, submission: Submission) -> Result<Submitted, WriterError> {
        // Megabytes of text take long to tokenize, and nothing else would run on this worker meanwhile.
        let (handle, span) = (self.clone(), Span::current());
        let admitted = tokio::task::spawn_blocking(move || span.in_scope(|| Self::submit(&handle, submission))).await;
        let ticket = admitted.map_err(|error| WriterError::Internal(format!("admission failed: {error}")))??;
        Ok(Submitted { ids: ticket.ids().to_vec(), done: ticket.done().boxed() })
    }

    async fn change(
        &self,
        change: SetChange,
        actor: String,
        expected_version: Option<u64>,
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<VersionReport>, WriterError> {
        Self::change(self, change, actor, expected_version, idempotency).await
    }

    fn pending(&self, id: Uuid) -> Option<PendingEdit> {
        Self::pending(self, id)
    }

    fn health(&self) -> EditsHealth {
        Self::health(self)
    }
}
