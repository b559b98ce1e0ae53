//! Whom the log names for a change: where keys are needed, the key's name; elsewhere a client names itself in
//! `x-amend-actor` and is believed.

use axum::{
    extract::FromRequestParts,
    http::{HeaderName, request::Parts},
};

use super::{access::Caller, error::Problem, headers};

const ACTOR: HeaderName = HeaderName::from_static("x-amend-actor");
/// Longest name, characters.
const ACTOR_MAX: usize = 128;

/// The name that a change is recorded under.
pub(super) struct Actor(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Actor {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let named = headers::visible(&parts.headers, &ACTOR, ACTOR_MAX)?;
        // Who has a key is who the key says, whatever the request says.
        let proved = parts.extensions.get::<Caller>().map(|caller| caller.0.clone());
        Ok(Self(proved.or(named).unwrap_or_else(|| "anonymous".to_owned())))
    }
}
