//! What the operator decides about the writer.

use std::time::Duration;

use super::{CanaryText, Guard, Policy, WriterError, guard::Limits};

/// Active edits that the guard scores again, unless told otherwise.
const GUARD_SAMPLE: usize = 8;

/// What a token gains and an edit loses where both compute, unless told otherwise (`bench/RESULTS.md`).
const NICENESS: u8 = 10;

/// Similarity from which on a prompt counts as a paraphrase, unless told otherwise: on CounterFact half of the
/// paraphrases reach it and one in a thousand pairs of other prompts (`docs/holding.md`).
const CONFLICT_SIMILARITY: f32 = 0.93;

/// Limits and sizes of the writer. [`WriterConfig::default`] suits a small model on a small machine.
#[derive(Debug, Clone)]
pub struct WriterConfig {
    /// Requests that may wait; more are refused with `QueueFull`.
    pub queue_capacity: usize,
    /// Edits captured together at most.
    pub capture_batch: usize,
    /// Tokens in one pass through the model at most, every text counted as long as the longest of the pass, unless a
    /// single text has more. Bounds the memory of capture and of the guard.
    pub pass_tokens: usize,
    /// The guard's own least probability per target token on the edit's prompt. By default none: a sum of many edits
    /// weakens each of them, and a service that began to refuse after some edits would surprise more than the figures in
    /// its answers do.
    pub min_probability: Option<f32>,
    /// The guard's own largest KL divergence of a locality probe, nats. By default none.
    pub max_kl: Option<f32>,
    /// What is done where an edit would break active edits or canaries.
    pub on_break: Policy,
    /// An active edit that held breaks when its target's probability falls below this share of what it was.
    pub min_share: f32,
    /// How many active edits the guard scores again: half of them those most like the new edit, the rest drawn. The
    /// canaries are scored all.
    pub guard_sample: usize,
    /// Prompts that no edit should change.
    pub canaries: Vec<CanaryText>,
    /// What is done where an edit conflicts with an active one.
    pub on_conflict: Policy,
    /// Similarity, 0 to 1, from which on an edit's prompt is a paraphrase of an active one's.
    pub conflict_similarity: f32,
    /// How long nothing must have been submitted before all active edits are scored again; zero: never.
    pub recheck_idle: Duration,
    /// Tokens of a prompt, a paraphrase or a probe's prompt.
    pub max_prompt_tokens: usize,
    /// Tokens of a target.
    pub max_target_tokens: usize,
    /// Bytes of any one text, so that nothing absurd reaches the tokenizer.
    pub max_text_bytes: usize,
    /// Bytes of a note, which the log keeps for ever.
    pub max_note_bytes: usize,
    /// Tokens of the prompts and targets of a submission's edits together, and of those captured together: what the
    /// writer holds of each until its turn grows with them.
    pub max_submission_tokens: usize,
    pub max_paraphrases: usize,
    pub max_locality: usize,
    /// Edits of one submission.
    pub max_edits_per_batch: usize,
    /// Versions, besides the newest and the base, whose weights stay in memory when no request runs on them.
    pub resident_versions: usize,
    /// How much the threads that compute edits yield to those that generate, 0 to 19 ([`crate::threads::pool`]).
    pub niceness: u8,
    /// Whether a restart compares the weights of every version with the log, or those of the newest alone. The hash chain, every
    /// contribution and every set are checked either way.
    pub replay_every_version: bool,
}

impl Default for WriterConfig {
    fn default() -> Self {
        Self {
            queue_capacity: 256,
            capture_batch: 64,
            pass_tokens: 256,
            min_probability: None,
            max_kl: None,
            on_break: Policy::Warn,
            min_share: 0.5,
            guard_sample: GUARD_SAMPLE,
            canaries: Vec::new(),
            on_conflict: Policy::Warn,
            conflict_similarity: CONFLICT_SIMILARITY,
            recheck_idle: Duration::from_secs(10),
            max_prompt_tokens: 512,
            max_target_tokens: 64,
            max_text_bytes: 16 * 1024,
            max_note_bytes: 4096,
            max_submission_tokens: 4096,
            max_paraphrases: 16,
            max_locality: 32,
            max_edits_per_batch: 64,
            resident_versions: 4,
            niceness: NICENESS,
            replay_every_version: false,
        }
    }
}

impl WriterConfig {
    /// Refuses sizes and limits that can not work, by the option's name.
    pub fn check(&self) -> Result<(), WriterError> {
        let sizes = [
            ("queue_capacity", self.queue_capacity),
            ("capture_batch", self.capture_batch),
            ("pass_tokens", self.pass_tokens),
            ("max_prompt_tokens", self.max_prompt_tokens),
            ("max_target_tokens", self.max_target_tokens),
            ("max_text_bytes", self.max_text_bytes),
            ("max_submission_tokens", self.max_submission_tokens),
            ("max_edits_per_batch", self.max_edits_per_batch),
        ];
        if let Some((field, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(WriterError::Invalid { field: (*field).into(), message: "must be >= 1, given 0".into() });
        }
        let similarity = self.conflict_similarity;
        if !(0.0..=1.0).contains(&similarity) {
            let message = format!("must be between 0 and 1, given {similarity}");
            return Err(WriterError::Invalid { field: "conflict_similarity".into(), message });
        }
        self.limits(&Guard::Default).check("")
    }

    /// The limits that hold for an edit.
    pub(super) fn limits(&self, guard: &Guard) -> Limits {
        let own = Limits {
            min_probability: self.min_probability,
            max_kl: self.max_kl,
            on_break: self.on_break,
            min_share: self.min_share,
            on_conflict: self.on_conflict,
        };
        match guard {
            Guard::Default => own,
            Guard::Off => Limits::NONE,
            Guard::Limits(given) => Limits {
                min_probability: given.min_probability.or(own.min_probability),
                max_kl: given.max_kl.or(own.max_kl),
                on_break: given.on_break.unwrap_or(own.on_break),
                min_share: given.min_share.unwrap_or(own.min_share),
                on_conflict: given.on_conflict.unwrap_or(own.on_conflict),
            },
        }
    }
}
