//! The routes that OpenAI's clients know: `/v1/completions`, `/v1/chat/completions`, `/v1/models`.
//!
//! | file | holds |
//! |---|---|
//! | `body` | reading a request: what is taken, what is taken and left aside, what is refused |
//! | `asked` | a request as the engine gets it |
//! | `run` | one version for all prompts of a request |
//! | `completions`, `chat`, `models` | the routes |
//! | `answer`, `chunks`, `logprobs` | what is sent back, whole or in pieces |
//! | `names` | `name` and `name@17` |
//! | `envelope` | errors in OpenAI's form, whoever answered them |

mod answer;
mod asked;
mod body;
pub(super) mod chat;
mod chunks;
pub(super) mod completions;
pub(super) mod envelope;
mod logprobs;
pub(super) mod models;
mod names;
mod run;

/// The schemas that no route names by itself.
#[derive(utoipa::OpenApi)]
#[openapi(components(schemas(envelope::OpenAiErrorSchema)))]
pub(super) struct Schemas;
