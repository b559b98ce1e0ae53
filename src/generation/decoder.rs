//! What this room needs of the model and of the versions; nothing else of them is visible here.

use async_trait::async_trait;

use super::{error::GenerateError, request::Message};
use crate::model::{Kind, Passage, measure::TargetScore};

/// Text to tokens and back.
pub trait Text: Send + Sync + 'static {
    /// What the model makes of a prompt.
    fn kind(&self) -> Kind;

    /// A classifier's labels, in the order of its output; none of any other model.
    fn labels(&self) -> &[String];

    /// The most tokens that a sequence may hold.
    fn context_length(&self) -> usize;

    /// Size of the output distribution; ids are below it.
    fn vocabulary(&self) -> usize;

    /// Tokens of a plain prompt, with what the model wants at its start and end.
    fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, GenerateError>;

    /// A prompt whose own tokens are given, with what the network is asked for its answer by.
    fn frame_prompt(&self, ids: Vec<u32>) -> Vec<u32>;

    /// Tokens of a conversation, up to where the assistant begins to speak. [`GenerateError::Invalid`] if the model
    /// has no chat template or the template refuses the messages.
    fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>, GenerateError>;

    /// Tokens of a prompt and of its continuation, encoded apart and joined with one space unless the continuation
    /// begins with white space.
    fn encode_passage(&self, prompt: &str, continuation: &str) -> Result<Passage, GenerateError>;

    /// Tokens of a text that is to be given a label.
    fn encode_text(&self, text: &str) -> Result<Passage, GenerateError>;

    /// Whether this token ends a text or a turn.
    fn is_end(&self, id: u32) -> bool;

    /// The bytes that one token stands for, for log-probabilities.
    fn token_bytes(&self, id: u32) -> Vec<u8>;

    /// A fresh detokenizer for one sequence.
    fn detokenizer(&self) -> Box<dyn Detokenizer + '_>;
}

/// Tokens to text, one sequence's worth of memory.
pub trait Detokenizer {
    /// The text that became whole with this token; never a part of a character.
    fn push(&mut self, id: u32) -> Result<Option<String>, GenerateError>;
}

/// One sequence's part of a pass.
pub struct Feed<'a, D: Decoder + ?Sized> {
    pub state: &'a mut D::State,
    /// At least one token, after what `state` already holds.
    pub ids: &'a [u32],
    pub weights: &'a D::Lease,
    /// Whether the logits after the last of `ids` are wanted.
    pub logits: bool,
}

/// The network and the versions of its weights.
#[async_trait]
pub trait Decoder: Text {
    /// What a sequence has read so far (the KV cache).
    type State: Send;
    /// A version's weights, kept alive until it is dropped.
    type Lease: Send + Sync + 'static;

    /// The newest version, or the one asked for. [`GenerateError::UnknownVersion`] if there is none such.
    async fn lease(&self, number: Option<u64>) -> Result<Self::Lease, GenerateError>;

    /// The number of a leased version.
    fn version(&self, lease: &Self::Lease) -> u64;

    /// A sequence that is to read `ids` (at least one) under these weights. It may have read a beginning of them already,
    /// never all.
    fn start(&self, ids: &[u32], weights: &Self::Lease) -> Self::State;

    /// `state` has read `ids` under these weights: what it holds of them may be kept for sequences that begin the same.
    fn keep(&self, state: &Self::State, ids: &[u32], weights: &Self::Lease);

    /// Another sequence that has read the same.
    fn fork(&self, state: &Self::State) -> Result<Self::State, GenerateError>;

    /// How many tokens a sequence has read.
    fn read(&self, state: &Self::State) -> usize;

    /// Forgets all but the first `read` tokens.
    fn rewind(&self, state: &mut Self::State, read: usize) -> Result<(), GenerateError>;

    /// Feeds all of these sequences in one pass, whatever their versions; for each the logits, one per token of the
    /// vocabulary, if they are wanted. They depend on nothing but the sequence's own state, ids and weights. After an error
    /// or a panic a state may hold a part of its ids, which [`rewind`](Self::rewind) takes away.
    fn forward(&self, feeds: &mut [Feed<'_, Self>]) -> Result<Vec<Option<Vec<f32>>>, GenerateError>;

    /// How probable each passage's target is after its prompt; one score per passage, in order.
    fn score(&self, passages: &[Passage], weights: &Self::Lease) -> Result<Vec<TargetScore>, GenerateError>;

    /// How probable each label of a text is, as logarithms, in the order of [`Text::labels`].
    fn classify(&self, text: &Passage, weights: &Self::Lease) -> Result<Vec<f32>, GenerateError>;
}
