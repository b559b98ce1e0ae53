//! HTTP: routes as one table, one file per noun, one table of error codes, and the OpenAPI document made from both.
//!
//! | file | holds |
//! |---|---|
//! | `router`, `table` | the table of routes and the layers around it |
//! | `access`, `rates`, `peer`, `hardening` | who is admitted to which route, how often, from where; headers for browsers |
//! | `edits/`, `versions`, `generate`, `score`, `classify`, `health`, `holding`, `info`, `docs` | the nouns |
//! | `openai/` | the routes that OpenAI's clients know, with their errors |
//! | [`error`] | the code table: stable code, status, title |
//! | `refusal` | which code the errors of the other rooms become |
//! | `doors`, `readiness` | the routes before the service is ready, and whether it is |
//! | `relay`, `reach` | at a replica that follows: changes to the writer, waiting for a version |
//! | `extract`, `headers`, `paging`, `idempotency`, `auth` | what a request says, checked |
//! | `serve`, `streams` | how many connections and streams there may be at once |
//! | `tls` | encryption on the service's own port |
//! | `middleware`, `measure`, `trace` | request ids, time limit, metrics to the end of the body, the caller's trace |
//! | `handles/` | the real writer and engine behind the traits of [`state`] |
//!
//! This room asks the others only through the traits in [`state`], so its tests stand doubles in their place.

mod access;
mod auth;
mod classify;
mod docs;
mod doors;
mod edits;
pub mod error;
mod extract;
mod generate;
mod handles;
mod hardening;
mod headers;
mod health;
mod holding;
mod idempotency;
mod info;
mod measure;
mod middleware;
mod openai;
mod openapi;
mod paging;
mod peer;
mod rates;
mod reach;
mod readiness;
mod refusal;
mod relay;
mod router;
mod score;
mod serve;
mod sse;
pub mod state;
mod streams;
mod strict;
mod table;
#[cfg(test)]
mod tests;
mod tls;
mod trace;
mod versions;

pub use access::{Admits, Gate};
pub use doors::{Doors, crowded};
pub use info::{EditorInfo, MatrixInfo, ModelInfo, ServiceInfo, ServiceLimits};
pub use openapi::document;
pub use peer::Proxies;
pub use rates::RateLimits;
pub use readiness::{Phase, Readiness};
pub use relay::Relay;
pub use router::router;
pub use serve::{ConnectionLimits, serve};
pub use state::{AppState, Edits, Generates, HttpLimits, Replica, Streaming, Submitted};
pub use streams::Streams;
pub use tls::{Tls, TlsError};
