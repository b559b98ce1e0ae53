//! Who asks. For now a client names itself in `x-amend-actor` and is believed; keys that prove it come later, and this
//! is the one place that they change.

use axum::{
    extract::FromRequestParts,
    http::{HeaderName, request::Parts},
};

use super::{error::Problem, headers};

const ACTOR: HeaderName = HeaderName::from_static("x-amend-actor");
/// Longest name, characters.
const ACTOR_MAX: usize = 128;

/// The name that a change is recorded under.
pub(super) struct Actor(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Actor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let named = headers::visible(&parts.headers, &ACTOR, ACTOR_MAX)?;
        Ok(Self(named.unwrap_or_else(|| "anonymous".to_owned())))
    }
}
