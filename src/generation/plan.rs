//! Validation: a request becomes a plan that can be carried out, or an error that names the field and the numbers.

use super::{
    budget::Cost,
    config::GenerateConfig,
    decoder::Text,
    error::GenerateError,
    request::{ClassifyRequest, GenerateRequest, ScoreRequest},
    sampler::SamplerSettings,
    stop::check_stops,
};
use crate::model::{Kind, Passage};

/// The most alternatives reported per token.
const MAX_LOGPROBS: usize = 20;
/// The most continuations scored by one request.
const MAX_CONTINUATIONS: usize = 64;
/// The longest name of a role, bytes.
const MAX_ROLE_BYTES: usize = 32;

/// A generation that is known to fit.
#[derive(Debug)]
pub(super) struct Plan {
    /// Prompt tokens, at least one; with `max_tokens` they fit into the context.
    pub ids: Vec<u32>,
    /// Of each text.
    pub max_tokens: usize,
    /// How many texts, at least one.
    pub n: usize,
    pub sampler: SamplerSettings,
    pub stop: Vec<String>,
    /// How many alternatives to report per token; none reports nothing.
    pub logprobs: Option<usize>,
}

impl Plan {
    /// Checks a request and turns its text into tokens. Takes milliseconds on a long prompt.
    pub fn new(request: GenerateRequest, text: &dyn Text, config: &GenerateConfig) -> Result<Self, GenerateError> {
        writes(text)?;
        let sampler = SamplerSettings::new(&request)?;
        check_stops(&request.stop, config.max_stops, config.max_stop_bytes)?;
        check_range("max_tokens", request.max_tokens, 1, config.max_tokens)?;
        check_range("logprobs", request.logprobs, 0, MAX_LOGPROBS)?;
        check_range("n", request.n, 1, config.max_sequences)?;
        let ids = prompt_ids(&request, text)?;
        let n = request.n.unwrap_or(1);
        let kept = config.kv_tokens.saturating_sub(ids.len()) / n;
        let default = if request.open_ended { config.max_tokens } else { config.default_max_tokens };
        let max_tokens = fit(ids.len(), request.max_tokens, text.context_length(), default.min(kept))?;
        let plan = Self { ids, max_tokens, n, sampler, stop: request.stop, logprobs: request.logprobs };
        let (tokens, limit) = (plan.cost().tokens, config.kv_tokens);
        if tokens > limit {
            return Err(GenerateError::CacheExceeded { prompt_tokens: plan.ids.len(), max_tokens, n, limit });
        }
        Ok(plan)
    }

    /// What it takes while it runs: the prompt's keys and values are the same for all of its texts.
    pub fn cost(&self) -> Cost {
        Cost { sequences: self.n, tokens: self.ids.len() + self.n * self.max_tokens }
    }
}

/// Checks a scoring request and turns it into one passage per continuation, in order.
pub(super) fn passages(
    request: &ScoreRequest,
    text: &dyn Text,
    config: &GenerateConfig,
) -> Result<Vec<Passage>, GenerateError> {
    if request.prompt.is_empty() {
        return Err(GenerateError::invalid("prompt", "must not be empty"));
    }
    check_range("continuations", Some(request.continuations.len()), 1, MAX_CONTINUATIONS)?;
    let passage = |(i, continuation): (usize, &String)| {
        let field = format!("continuations[{i}]");
        if continuation.is_empty() {
            return Err(GenerateError::invalid(&field, "must not be empty"));
        }
        let passage = text.encode_passage(&request.prompt, continuation).map_err(|error| error.about(&field))?;
        if passage.target.is_empty() || passage.target.start == 0 {
            return Err(GenerateError::invalid(&field, "prompt and continuation must be at least one token each"));
        }
        fits(passage.target.start, passage.target.len(), text.context_length())?;
        within(&field, " together with the prompt", passage.ids.len(), config.score_tokens)?;
        Ok(passage)
    };
    request.continuations.iter().enumerate().map(passage).collect()
}

/// Checks a text that is to be given a label.
pub(super) fn text_of(
    request: &ClassifyRequest,
    text: &dyn Text,
    config: &GenerateConfig,
) -> Result<Passage, GenerateError> {
    if text.kind() != Kind::Classifier {
        return Err(GenerateError::WrongKind { kind: text.kind() });
    }
    if request.text.is_empty() {
        return Err(GenerateError::invalid("text", "must not be empty"));
    }
    let passage = text.encode_text(&request.text)?;
    fits(passage.ids.len(), passage.target.len(), text.context_length())?;
    within("text", "", passage.ids.len(), config.score_tokens)?;
    Ok(passage)
}

/// At most `limit` tokens; `with` says of what beside the field.
fn within(field: &str, with: &str, given: usize, limit: usize) -> Result<(), GenerateError> {
    match given > limit {
        true => Err(GenerateError::invalid(field, format!("must be at most {limit} tokens{with}. Given: {given}"))),
        false => Ok(()),
    }
}

/// Refuses a model that writes no text.
fn writes(text: &dyn Text) -> Result<(), GenerateError> {
    match text.kind() {
        Kind::Classifier => Err(GenerateError::WrongKind { kind: Kind::Classifier }),
        Kind::Causal | Kind::EncoderDecoder => Ok(()),
    }
}

fn check_range(field: &str, value: Option<usize>, least: usize, most: usize) -> Result<(), GenerateError> {
    match value.filter(|value| !(least..=most).contains(value)) {
        Some(value) => Err(GenerateError::invalid(field, format!("must be from {least} to {most}. Given: {value}"))),
        None => Ok(()),
    }
}

fn prompt_ids(request: &GenerateRequest, text: &dyn Text) -> Result<Vec<u32>, GenerateError> {
    if let Some(ids) = &request.prompt_ids {
        return Ok(text.frame_prompt(check_ids(ids, text.vocabulary())?));
    }
    let (field, ids) = match (request.prompt.as_deref(), request.messages.as_deref()) {
        (Some(_), Some(_)) => {
            return Err(GenerateError::invalid("messages", "give either prompt or messages, not both"));
        }
        (None, None) => return Err(GenerateError::invalid("prompt", "give either prompt or messages")),
        (Some(""), None) => return Err(GenerateError::invalid("prompt", "must not be empty")),
        (Some(prompt), None) => ("prompt", text.encode_prompt(prompt)?),
        (None, Some([])) => return Err(GenerateError::invalid("messages", "must be at least 1. Given: 0")),
        (None, Some(messages)) => {
            messages.iter().enumerate().try_for_each(|(i, message)| check_role(i, &message.role))?;
            ("messages", text.encode_chat(messages)?)
        }
    };
    if ids.is_empty() {
        return Err(GenerateError::invalid(field, "must be at least one token"));
    }
    Ok(ids)
}

fn check_ids(ids: &[u32], vocabulary: usize) -> Result<Vec<u32>, GenerateError> {
    if ids.is_empty() {
        return Err(GenerateError::invalid("prompt", "must be at least one token"));
    }
    match ids.iter().find(|id| **id as usize >= vocabulary) {
        Some(id) => Err(GenerateError::invalid("prompt", format!("token ids must be below {vocabulary}. Given: {id}"))),
        None => Ok(ids.to_vec()),
    }
}

/// A role goes into the template between special tokens, so it has to be a plain name.
fn check_role(i: usize, role: &str) -> Result<(), GenerateError> {
    let plain = role.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if plain && (1..=MAX_ROLE_BYTES).contains(&role.len()) {
        return Ok(());
    }
    let message = format!("must be 1 to {MAX_ROLE_BYTES} letters, digits, - or _. Given: {} bytes", role.len());
    Err(GenerateError::invalid(&format!("messages[{i}].role"), message))
}

/// How many tokens to generate: what was asked for, which has to fit, or the default, cut to what fits.
fn fit(prompt: usize, asked: Option<usize>, limit: usize, default: usize) -> Result<usize, GenerateError> {
    let room = limit.saturating_sub(prompt);
    let max_tokens = asked.unwrap_or(default.min(room).max(1));
    fits(prompt, max_tokens, limit)?;
    Ok(max_tokens)
}

fn fits(prompt_tokens: usize, max_tokens: usize, limit: usize) -> Result<(), GenerateError> {
    if prompt_tokens + max_tokens > limit {
        return Err(GenerateError::ContextExceeded { prompt_tokens, max_tokens, limit });
    }
    Ok(())
}
