//! What a client asks the engine for, and what it gets.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Who speaks in a chat message.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Message {
    #[schema(example = "user")]
    pub role: String,
    #[schema(example = "What is the mother tongue of Danielle Darrieux?")]
    pub content: String,
}

/// Text to continue.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GenerateRequest {
    /// Plain text to continue; either this or `messages`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "The mother tongue of Danielle Darrieux is")]
    pub prompt: Option<String>,
    /// A conversation, rendered with the model's own chat template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<Message>>,
    /// The most tokens to generate; default 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// 0 (the default) takes the most probable token; above, samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Sample from the smallest set of tokens whose probability reaches this; 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Sample from this many most probable tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Sample from tokens that have at least this share of the most probable one's probability; 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,
    /// Divides the logits of tokens that the prompt or the text has already (multiplies them below zero); above 0, at
    /// most 10. 1 changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
    /// Taken from the logits of tokens that the generated text has already; -2 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f64>,
    /// Taken from the logits of tokens once for each time that the generated text has them; -2 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f64>,
    /// How many texts to generate, each with draws of its own; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
    /// Strings at which to stop; they are not part of the text.
    #[serde(default)]
    pub stop: Vec<String>,
    /// Seed of the sampler: the same seed on the same version gives the same text; default 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Answer as server-sent events, a piece of text each.
    #[serde(default)]
    pub stream: bool,
    /// How many alternatives to report with the log-probability of each token; 0 reports the chosen token alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<usize>,
    /// Which version answers; default the newest, 0 the base model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The oldest version that may answer, as a change's answer gave it: the request waits for it, and is answered 409 if it does
    /// not come in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_version: Option<u64>,
    /// A second version to answer the same request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compare_to: Option<u64>,
    /// Token ids in place of `prompt`, for callers inside the service.
    #[serde(skip)]
    pub prompt_ids: Option<Vec<u32>>,
    /// Without `max_tokens`, generate as many as fit and the limit allows instead of the default, for callers inside the
    /// service.
    #[serde(skip)]
    pub open_ended: bool,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its text, or a stop string came.
    Stop,
    /// `max_tokens` or the end of the context was reached.
    Length,
}

/// Token counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
}

/// A token and its log-probability (nats).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenLogprob {
    /// The token as text; bytes that are no text on their own are shown as U+FFFD.
    pub token: String,
    pub logprob: f32,
    /// The bytes that it stands for.
    #[serde(skip)]
    pub bytes: Vec<u8>,
    /// The most probable tokens at this position, best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<Alternative>,
}

/// Another token that could have come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Alternative {
    pub token: String,
    pub logprob: f32,
    /// The bytes that it stands for.
    #[serde(skip)]
    pub bytes: Vec<u8>,
}

/// One of several texts of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Choice {
    pub text: String,
    pub finish_reason: FinishReason,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<TokenLogprob>>,
}

/// Generated text, and which version generated it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GenerateResponse {
    /// The text, the first one if there are several.
    pub text: String,
    pub version: u64,
    pub finish_reason: FinishReason,
    /// Of all texts together; the prompt counts once.
    pub usage: Usage,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// All texts, the first one too, where `n` asked for more than one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Choice>,
    /// What the version named by `compare_to` answered.
    #[schema(no_recursion)]
    pub compared: Option<Box<GenerateResponse>>,
}

/// Continuations to score.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ScoreRequest {
    #[schema(example = "The mother tongue of Danielle Darrieux is")]
    pub prompt: String,
    /// Joined to the prompt with one space unless they begin with white space; where an encoder reads the prompt, answers of
    /// their own; for a classifier, labels.
    #[schema(example = json!(["French", "English"]))]
    pub continuations: Vec<String>,
    /// Which version scores; default the newest, 0 the base model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The oldest version that may answer, as a change's answer gave it: the request waits for it, and is answered 409 if it does
    /// not come in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_version: Option<u64>,
}

/// Scores under one version.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ScoreResponse {
    pub version: u64,
    pub scores: Vec<Score>,
}

/// One continuation's score.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Score {
    pub continuation: String,
    /// Sum of the log-probabilities of its tokens, nats.
    pub logprob: f32,
    pub tokens: usize,
    /// Whether each of its tokens is the most probable one.
    pub greedy: bool,
}

/// A text to give a label.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassifyRequest {
    #[schema(example = "Danielle Darrieux was born in Bordeaux.")]
    pub text: String,
    /// Which version answers; default the newest, 0 the base model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The oldest version that may answer, as a change's answer gave it: the request waits for it, and is answered 409 if it does
    /// not come in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_version: Option<u64>,
}

/// The labels of a text under one version.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ClassifyResponse {
    /// The most probable one.
    #[schema(example = "SUPPORTS")]
    pub label: String,
    pub version: u64,
    /// All of them, the most probable first.
    pub labels: Vec<LabelProbability>,
}

/// How probable a label is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LabelProbability {
    #[schema(example = "SUPPORTS")]
    pub label: String,
    /// 0 to 1; those of all labels add up to 1.
    pub probability: f32,
}

/// What a stream of generation carries. `choice` counts from 0 and is below the request's `n`.
#[derive(Debug, Clone)]
pub enum GenerateEvent {
    /// Text that is ready to show: whole characters, no part of a stop string.
    Text { choice: usize, text: String, logprobs: Vec<TokenLogprob> },
    /// The end of one text.
    Ended { choice: usize, finish_reason: FinishReason },
    /// The end of all.
    Done { version: u64, usage: Usage },
}
