//! Limits of the engine.

use super::error::GenerateError;

/// Limits of the engine; all counts are at least 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerateConfig {
    /// Requests that may wait for a slot; a request with `compare_to` counts twice, so at least 2.
    pub queue_capacity: usize,
    /// Sequences that are decoded side by side.
    pub max_sequences: usize,
    /// Tokens whose keys and values all running sequences together may keep; a request counts its prompt and all that it
    /// may generate. Memory comes in pages of 16 tokens, so each sequence takes up to two pages more.
    pub kv_tokens: usize,
    /// Prompt tokens that are read between two tokens of the sequences already decoding.
    pub prefill_chunk: usize,
    /// `max_tokens` of a request that names none.
    pub default_max_tokens: usize,
    /// The most that a request may name as `max_tokens`.
    pub max_tokens: usize,
    /// The most tokens of a prompt with a continuation to score, where the context allows as many. Such a passage is
    /// read in one turn, so this bounds how long the others wait and how much memory it takes.
    pub score_tokens: usize,
    /// The most stop strings of a request.
    pub max_stops: usize,
    /// The longest stop string, bytes.
    pub max_stop_bytes: usize,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            queue_capacity: 128,
            max_sequences: 16,
            kv_tokens: 32_768,
            prefill_chunk: 64,
            default_max_tokens: 64,
            max_tokens: 4096,
            score_tokens: 2048,
            max_stops: 16,
            max_stop_bytes: 256,
        }
    }
}

impl GenerateConfig {
    /// [`GenerateError::Invalid`] names the first limit that is out of range.
    pub fn check(&self) -> Result<(), GenerateError> {
        let least = [
            ("queue_capacity", self.queue_capacity, 2),
            ("max_sequences", self.max_sequences, 1),
            ("kv_tokens", self.kv_tokens, 2),
            ("prefill_chunk", self.prefill_chunk, 1),
            ("default_max_tokens", self.default_max_tokens, 1),
            ("score_tokens", self.score_tokens, 2),
        ];
        if let Some((field, value, least)) = least.into_iter().find(|(_, value, least)| value < least) {
            return Err(GenerateError::invalid(field, format!("must be at least {least}. Given: {value}")));
        }
        if self.default_max_tokens > self.max_tokens {
            let (limit, given) = (self.max_tokens, self.default_max_tokens);
            let message = format!("must be at most {limit}, the most that a request may ask for. Given: {given}");
            return Err(GenerateError::invalid("default_max_tokens", message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_pass_and_a_zero_is_named() {
        assert_eq!(GenerateConfig::default().check(), Ok(()));
        let error = GenerateConfig { max_sequences: 0, ..GenerateConfig::default() }.check().unwrap_err();
        assert_eq!(error.to_string(), "max_sequences: must be at least 1. Given: 0");
        let error = GenerateConfig { max_tokens: 10, ..GenerateConfig::default() }.check().unwrap_err();
        let want = "default_max_tokens: must be at most 10, the most that a request may ask for. Given: 64";
        assert_eq!(error.to_string(), want);
    }
}
