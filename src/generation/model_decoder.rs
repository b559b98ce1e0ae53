//! The real network behind [`Decoder`]: a loaded model, and versions leased from their source.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use candle_core::Tensor;

use super::{
    decoder::{Decoder, Detokenizer, Feed, Text},
    error::GenerateError,
    prefix_cache::{Found, PrefixCache},
    request::Message,
};
use crate::{
    model::{
        self, Kind, Model, ModelError, Passage, Sequence, TrunkState, capture,
        chat_template::ChatMessage,
        measure::{TargetScore, score_target, target_log_probs},
        pages::PAGE,
        tokenizer::DecodeStream,
    },
    weights::{Lease, VersionSource, WeightsError},
};

/// Target positions whose distribution over the whole vocabulary is in memory at once while scoring.
const SCORED_ROWS: usize = 128;

/// A model and the versions of its weights.
pub struct ModelDecoder {
    model: Arc<Model>,
    versions: Arc<dyn VersionSource>,
    prefixes: Mutex<PrefixCache>,
}

impl ModelDecoder {
    /// `versions` are versions of `model`; nothing that was read is kept.
    pub fn new(model: Arc<Model>, versions: Arc<dyn VersionSource>) -> Self {
        Self::with_prefix_cache(model, versions, 0)
    }

    /// Keeps what was read of at most so many tokens, for texts that begin the same.
    pub fn with_prefix_cache(model: Arc<Model>, versions: Arc<dyn VersionSource>, tokens: usize) -> Self {
        let (trunk, tail) = model.network().batching().map_or((0, 0), |network| {
            let (trunk, tail) = network.pages();
            (trunk.values(), tail.values())
        });
        let prefixes = Mutex::new(PrefixCache::new(tokens.saturating_mul((trunk + tail).div_ceil(PAGE))));
        Self { model, versions, prefixes }
    }

    fn prefixes(&self) -> MutexGuard<'_, PrefixCache> {
        // Nothing under the lock panics half-way through a change.
        self.prefixes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Scores stretches that belong to the passages `owners`, in one pass of the tail.
    fn score_stretches(
        &self,
        stretches: &[TrunkState],
        owners: &[usize],
        weights: &Lease,
        scores: &mut [TargetScore],
    ) -> Result<(), ModelError> {
        let log_probs = target_log_probs(&self.model, stretches, &**weights)?;
        for ((stretch, log_probs), owner) in stretches.iter().zip(log_probs).zip(owners) {
            let score = score_target(&log_probs, stretch.passage.target_ids())?;
            let total = &mut scores[*owner];
            total.logprob += score.logprob;
            total.tokens += score.tokens;
            total.greedy &= score.greedy;
        }
        Ok(())
    }

    fn score_states(&self, states: &[TrunkState], weights: &Lease) -> Result<Vec<TargetScore>, ModelError> {
        let mut scores = vec![TargetScore { logprob: 0.0, tokens: 0, greedy: true }; states.len()];
        let (mut stretches, mut owners, mut rows) = (Vec::new(), Vec::new(), 0);
        for (owner, state) in states.iter().enumerate() {
            for stretch in cut(state)? {
                let own = stretch.passage.target.len();
                if rows + own > SCORED_ROWS {
                    self.score_stretches(&stretches, &owners, weights, &mut scores)?;
                    (stretches, owners, rows) = (Vec::new(), Vec::new(), 0);
                }
                rows += own;
                stretches.push(stretch);
                owners.push(owner);
            }
        }
        self.score_stretches(&stretches, &owners, weights, &mut scores)?;
        Ok(scores)
    }
}

/// Cuts a target into stretches of at most [`SCORED_ROWS`]. A stretch needs the passage only up to its own end, because
/// a causal network looks at nothing later.
fn cut(state: &TrunkState) -> Result<Vec<TrunkState>, ModelError> {
    let target = state.passage.target.clone();
    let stretch = |start: usize| {
        let end = target.end.min(start + SCORED_ROWS);
        let ids = state.passage.ids[..end].to_vec();
        let passage = Passage { ids, source: state.passage.source, target: start..end };
        Ok(TrunkState { hidden: state.hidden.narrow(0, 0, end)?, passage })
    };
    target.clone().step_by(SCORED_ROWS).map(stretch).collect()
}

impl Text for ModelDecoder {
    fn kind(&self) -> Kind {
        self.model.kind()
    }

    fn labels(&self) -> &[String] {
        self.model.labels()
    }

    fn context_length(&self) -> usize {
        self.model.context_length()
    }

    fn vocabulary(&self) -> usize {
        self.model.vocab_size()
    }

    fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, GenerateError> {
        self.model.tokenizer().encode_prompt(text).map_err(refused("prompt"))
    }

    fn frame_prompt(&self, ids: Vec<u32>) -> Vec<u32> {
        self.model.tokenizer().asked(ids)
    }

    fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, GenerateError> {
        let template = self
            .model
            .chat_template()
            .ok_or_else(|| GenerateError::invalid("messages", "the model has no chat template; give a prompt"))?;
        let message = |message: &Message| ChatMessage { role: message.role.clone(), content: message.content.clone() };
        let messages: Vec<ChatMessage> = messages.iter().map(message).collect();
        // The template writes the beginning of the text itself where the model wants one.
        let text = template.render(&messages, true).map_err(refused("messages"))?;
        let ids = self.model.tokenizer().encode(&text).map_err(refused("messages"))?;
        Ok(self.model.tokenizer().asked(ids))
    }

    fn encode_passage(&self, prompt: &str, continuation: &str) -> Result<Passage, GenerateError> {
        self.model.tokenizer().encode_passage(prompt, continuation).map_err(refused("continuations"))
    }

    fn encode_text(&self, text: &str) -> Result<Passage, GenerateError> {
        self.model.tokenizer().encode_open(text).map_err(refused("text"))
    }

    fn is_end(&self, id: u32) -> bool {
        self.model.tokenizer().is_end(id)
    }

    fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.model.tokenizer().token_bytes(id).unwrap_or_default().to_vec()
    }

    fn detokenizer(&self) -> Box<dyn Detokenizer + '_> {
        let stream = self.model.tokenizer().decode_stream();
        match self.model.kind() {
            // A completion goes on with a text, so the space before its first word is its own.
            Kind::Causal => Box::new(stream.continuing()),
            Kind::EncoderDecoder | Kind::Classifier => Box::new(stream),
        }
    }
}

impl Detokenizer for DecodeStream<'_> {
    fn push(&mut self, id: u32) -> Result<Option<String>, GenerateError> {
        Ok(DecodeStream::push(self, id))
    }
}

#[async_trait]
impl Decoder for ModelDecoder {
    type State = Sequence;
    type Lease = Lease;

    async fn lease(&self, number: Option<u64>) -> Result<Lease, GenerateError> {
        self.versions.lease(number).await.map_err(|error| match error {
            WeightsError::UnknownVersion { number, newest } => GenerateError::UnknownVersion { number, newest },
            WeightsError::Dropped { number, edit } => GenerateError::VersionDropped { number, edit },
            other => GenerateError::Internal(other.to_string()),
        })
    }

    fn version(&self, lease: &Lease) -> u64 {
        lease.number
    }

    fn start(&self, ids: &[u32], weights: &Lease) -> Sequence {
        let Found { trunk, tail } = self.prefixes().find(ids, weights.number);
        self.model.resume(trunk, tail)
    }

    fn keep(&self, state: &Sequence, ids: &[u32], weights: &Lease) {
        let pages = (0..).map_while(|index| state.full_pages(index));
        let pages = pages.map(|(trunk, tail)| (Arc::clone(trunk), Arc::clone(tail)));
        self.prefixes().keep(ids, weights.number, pages);
    }

    fn fork(&self, state: &Sequence) -> Result<Sequence, GenerateError> {
        state.fork().map_err(|error| internal(error.into()))
    }

    fn read(&self, state: &Sequence) -> usize {
        state.len()
    }

    fn rewind(&self, state: &mut Sequence, read: usize) -> Result<(), GenerateError> {
        state.truncate(read).map_err(|error| internal(error.into()))
    }

    fn forward(&self, feeds: &mut [Feed<'_, Self>]) -> Result<Vec<Option<Vec<f32>>>, GenerateError> {
        let mut feeds: Vec<model::Feed<'_>> = feeds.iter_mut().map(of_model).collect();
        self.model.forward_batch(&mut feeds).map_err(internal)
    }

    fn score(&self, passages: &[Passage], weights: &Lease) -> Result<Vec<TargetScore>, GenerateError> {
        let states = capture::read(&self.model, passages).map_err(internal)?;
        self.score_states(&states, weights).map_err(internal)
    }

    fn classify(&self, text: &Passage, weights: &Lease) -> Result<Vec<f32>, GenerateError> {
        let rows = || -> Result<Vec<f32>, ModelError> {
            let states = capture::read(&self.model, std::slice::from_ref(text))?;
            let log_probs = target_log_probs(&self.model, &states, &**weights)?;
            Ok(Tensor::cat(&log_probs, 0)?.flatten_all()?.to_vec1()?)
        };
        rows().map_err(internal)
    }
}

fn of_model<'a>(feed: &'a mut Feed<'_, ModelDecoder>) -> model::Feed<'a> {
    let Feed { state, ids, weights, logits } = feed;
    model::Feed { sequence: state, ids, version: weights.number, weights: &***weights, logits: *logits }
}

/// What the tokenizer or the template says about the request's text is about `field`; the rest is internal.
fn refused(field: &'static str) -> impl Fn(ModelError) -> GenerateError {
    move |error| match error {
        ModelError::UnknownLabel { label, labels } => {
            GenerateError::UnknownLabel { field: field.to_owned(), label, labels }
        }
        ModelError::Template(_) | ModelError::TooLong { .. } | ModelError::Empty { .. } => {
            GenerateError::invalid(field, error.to_string())
        }
        other => internal(other),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "handed to map_err")]
fn internal(error: ModelError) -> GenerateError {
    GenerateError::Internal(error.to_string())
}
