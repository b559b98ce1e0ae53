//! The real engine behind http's trait.

use async_trait::async_trait;
use futures::StreamExt;

use crate::{
    generation::{
        ClassifyRequest, ClassifyResponse, GenerateError, GenerateHandle, GenerateRequest, GenerateResponse,
        ScoreRequest, ScoreResponse,
    },
    http::state::{Generates, Streaming},
};

#[async_trait]
impl Generates for GenerateHandle {
    async fn generate(&self, request: GenerateRequest) -> Result<GenerateResponse, GenerateError> {
        Self::generate(self, request).await
    }

    async fn stream(&self, request: GenerateRequest) -> Result<Streaming, GenerateError> {
        let stream = Self::stream(self, request).await?;
        Ok(Streaming { version: stream.version(), events: stream.boxed() })
    }

    async fn score(&self, request: ScoreRequest) -> Result<ScoreResponse, GenerateError> {
        Self::score(self, request).await
    }

    async fn classify(&self, request: ClassifyRequest) -> Result<ClassifyResponse, GenerateError> {
        Self::classify(self, request).await
    }
}
