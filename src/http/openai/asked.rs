//! A request as the engine gets it, and what the answer needs to know of it.

use super::{
    body::{Common, Stop},
    names::version_of,
};
use crate::{
    generation::GenerateRequest,
    http::{error::Problem, reach, state::AppState},
};

/// OpenAI's default.
const TEMPERATURE: f64 = 1.0;

/// What was asked, of either route.
pub(super) struct Asked {
    /// One for each prompt; at least one.
    pub requests: Vec<GenerateRequest>,
    /// Texts for each prompt.
    pub n: usize,
    pub stream: bool,
    pub include_usage: bool,
    /// The model by the name it was asked for.
    pub model: String,
}

impl Asked {
    /// One request for each of `prompts`, which hold what is to be continued and nothing else.
    pub fn new(app: &AppState, common: Common, prompts: Vec<GenerateRequest>) -> Result<Self, Problem> {
        let version = version_of(app, &common.model)?;
        let stop = match common.stop {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop],
            Some(Stop::Many(stops)) => stops,
        };
        // A negative seed is as good as any other.
        let seed = common.seed.map_or_else(rand::random, i64::cast_unsigned);
        let request = |prompt: GenerateRequest| GenerateRequest {
            max_tokens: common.max_tokens.or(prompt.max_tokens),
            temperature: Some(common.temperature.unwrap_or(TEMPERATURE)),
            top_p: common.top_p,
            top_k: common.top_k,
            min_p: common.min_p,
            repetition_penalty: common.repetition_penalty,
            presence_penalty: common.presence_penalty,
            frequency_penalty: common.frequency_penalty,
            n: common.n,
            stop: stop.clone(),
            seed: Some(seed),
            version,
            min_version: common.min_version,
            ..prompt
        };
        Ok(Self {
            requests: prompts.into_iter().map(request).collect(),
            n: common.n.unwrap_or(1),
            stream: common.stream.unwrap_or(false),
            include_usage: common.stream_options.unwrap_or_default().include_usage,
            model: common.model,
        })
    }

    /// Waits for the version that it asks for, at least or by name.
    pub async fn reached(&self, app: &AppState) -> Result<(), Problem> {
        let Some(first) = self.requests.first() else { return Ok(()) };
        reach::at_least(app, first.min_version).await?;
        reach::named(app, [first.version]).await
    }
}
