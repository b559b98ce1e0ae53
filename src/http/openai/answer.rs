//! What both routes put around their choices.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::asked::Asked;
use crate::generation::{FinishReason, GenerateResponse, TokenLogprob, Usage};

/// The fields of an answer, and of each of its chunks.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(in crate::http) struct Head {
    pub id: String,
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: i64,
    /// As it was asked for.
    pub model: String,
    /// The version that answered: `v17`.
    pub system_fingerprint: String,
}

impl Head {
    /// `prefix` begins the id, as OpenAI's clients know it.
    pub fn new(prefix: &str, object: &'static str, asked: &Asked, version: u64) -> Self {
        Self {
            id: format!("{prefix}-{}", Uuid::now_v7().simple()),
            object,
            created: Timestamp::now().as_second(),
            model: asked.model.clone(),
            system_fingerprint: format!("v{version}"),
        }
    }
}

/// Token counts.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
pub(in crate::http) struct OpenAiUsage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
}

impl OpenAiUsage {
    pub(super) fn add(&mut self, usage: Usage) {
        self.prompt_tokens += usage.prompt_tokens;
        self.completion_tokens += usage.completion_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// One text of an answer.
pub(super) struct Text {
    pub index: usize,
    pub text: String,
    pub finish_reason: FinishReason,
    pub logprobs: Option<Vec<TokenLogprob>>,
}

/// All texts of all prompts in order, and the tokens of all.
pub(super) fn texts(responses: Vec<GenerateResponse>) -> (Vec<Text>, OpenAiUsage) {
    let (mut texts, mut usage) = (Vec::new(), OpenAiUsage::default());
    for response in responses {
        usage.add(response.usage);
        let GenerateResponse { text, finish_reason, logprobs, choices, .. } = response;
        if choices.is_empty() {
            texts.push(Text { index: texts.len(), text, finish_reason, logprobs });
        }
        for choice in choices {
            let (text, finish_reason, logprobs) = (choice.text, choice.finish_reason, choice.logprobs);
            texts.push(Text { index: texts.len(), text, finish_reason, logprobs });
        }
    }
    (texts, usage)
}
