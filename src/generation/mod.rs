//! Generation, scoring and classification: requests reach one engine thread through a bounded queue.
//!
//! The way of a request: [`GenerateHandle`] validates it and turns its text into tokens, `queue` admits it or says
//! when to come back, `dispatch` gives it its part of the `budget` and leases its version, and `engine` (an OS thread,
//! the only one that runs the network) advances all that run, one pass a turn. A [`GenerateStream`] carries the text out;
//! dropping it ends the sequence at the next turn.
//!
//! Law 4 (a request runs on one version, from its first token to its last, and says which) is kept by
//! `engine::Active`: it owns the one lease that a request ever sees.
//!
//! The network and the versions are seen through [`Decoder`] alone, which [`ModelDecoder`] is in the service and a few
//! lines are in the tests.

mod budget;
mod config;
mod decoder;
mod dispatch;
mod engine;
mod error;
mod guarded;
mod handle;
mod job;
mod model_decoder;
mod plan;
mod prefix_cache;
mod queue;
mod request;
mod sampler;
mod scoring;
mod sequence;
mod shares;
mod stop;
mod stream;
mod text_out;
mod writing;

#[cfg(test)]
mod tests;

pub use config::GenerateConfig;
pub use decoder::{Decoder, Detokenizer, Feed, Text};
pub use error::GenerateError;
pub use handle::GenerateHandle;
pub use model_decoder::ModelDecoder;
pub use request::{
    Alternative, Choice, ClassifyRequest, ClassifyResponse, FinishReason, GenerateEvent, GenerateRequest,
    GenerateResponse, LabelProbability, Message, Score, ScoreRequest, ScoreResponse, TokenLogprob, Usage,
};
pub use stop::{Released, StopMatcher};
pub use stream::GenerateStream;
