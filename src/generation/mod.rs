//! Generation and scoring: requests reach one engine thread through a bounded queue.

mod request;

pub use request::{
    Alternative, FinishReason, GenerateEvent, GenerateRequest, GenerateResponse, Message, Score, ScoreRequest,
    ScoreResponse, TokenLogprob, Usage,
};
