//! The room as a whole, over a network of a few lines: what each request gets, whatever else runs.

mod classifying;
mod fake;
mod life;
mod requests;
mod turns;

use std::sync::Arc;

use fake::Fake;
use futures::StreamExt;

use super::{
    FinishReason, GenerateConfig, GenerateError, GenerateEvent, GenerateHandle, GenerateRequest, GenerateStream, Usage,
};
use crate::telemetry::Metrics;

/// An engine over a fake network.
struct Bench {
    handle: GenerateHandle,
    fake: Arc<Fake>,
    metrics: Metrics,
}

impl Bench {
    fn new(config: GenerateConfig) -> Self {
        Self::over(Fake::default(), config)
    }

    fn over(fake: Fake, config: GenerateConfig) -> Self {
        let (fake, metrics) = (Arc::new(fake), Metrics::new());
        let handle = GenerateHandle::start(Arc::clone(&fake), config, metrics.clone()).unwrap();
        Self { handle, fake, metrics }
    }

    fn outcomes(&self, outcome: &str) -> u64 {
        self.metrics.generate_requests.with_label_values(&[outcome]).get()
    }

    fn sequences(&self, state: &str) -> i64 {
        self.metrics.sequences.with_label_values(&[state]).get()
    }
}

/// Limits small enough for requests to meet at them.
fn narrow(max_sequences: usize) -> GenerateConfig {
    GenerateConfig { queue_capacity: 64, max_sequences, prefill_chunk: 16, ..GenerateConfig::default() }
}

/// The fake network takes a prompt to end at its colon.
fn request(prompt: &str, max_tokens: usize) -> GenerateRequest {
    GenerateRequest { prompt: Some(format!("{prompt}:")), max_tokens: Some(max_tokens), ..GenerateRequest::default() }
}

/// The rest of a stream of one text: the text, how it ended, and what it counted.
async fn rest(stream: &mut GenerateStream) -> Result<(String, FinishReason, Usage, u64), GenerateError> {
    let (mut all, mut ended) = (String::new(), None);
    while let Some(event) = stream.next().await {
        match event? {
            GenerateEvent::Text { text, choice: 0, .. } if ended.is_none() => all += &text,
            GenerateEvent::Ended { finish_reason, choice: 0 } if ended.is_none() => ended = Some(finish_reason),
            GenerateEvent::Done { version, usage } => {
                assert!(stream.next().await.is_none(), "nothing comes after the end");
                return Ok((all, ended.expect("the text ended before all did"), usage, version));
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("the stream ended without saying so");
}
