//! Who is admitted to which route. Every route has an [`Access`], and a guard that enforces it; the guard asks the [`Gate`],
//! which knows the keys and how often each was used.
//!
//! Nothing is admitted by default: the table of routes takes no route without an access, and a request that reaches a guard
//! without a gate is refused.

use std::net::IpAddr;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    error::{Code, Problem},
    rates::RateLimits,
};
use crate::keys::{Key, KeyRing, Scope};

/// What a route asks of its callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing: it says no more than that the service is there, or what anyone can read in its source.
    Open,
    /// A key with this scope.
    Needs(Scope),
}

/// Whom the service admits.
#[derive(Debug, Clone)]
pub enum Admits {
    /// Holders of a key, each to what its scopes say.
    Keys(KeyRing),
    /// Anyone who asks this machine by its own name. A page that a browser on this machine shows could have its own name
    /// lead here, and would then be let in by the browser; the name in the request gives it away.
    Local,
    /// Anyone who reaches the port.
    Anyone,
}

/// Admits requests, or refuses them before anything else is done for them. Cloning shares its counts.
#[derive(Debug, Clone)]
pub struct Gate {
    admits: Admits,
    rates: RateLimits,
}

/// Whose key it was; in the extensions of an admitted request where keys are needed.
#[derive(Debug, Clone)]
pub(super) struct Caller(pub String);

impl Gate {
    /// Admits these, as often as `rates` says.
    pub fn new(admits: Admits, rates: RateLimits) -> Self {
        Self { admits, rates }
    }

    fn admit(&self, access: Access, request: &Request) -> Result<Option<Caller>, Problem> {
        let key = match &self.admits {
            Admits::Keys(ring) => match access {
                Access::Open => return Ok(None),
                Access::Needs(scope) => Some(holder(ring, request.headers(), scope)?),
            },
            Admits::Local => {
                check_host(request)?;
                None
            }
            Admits::Anyone => None,
        };
        if let Access::Needs(scope) = access {
            self.rates.take(key.as_ref().map(Key::name), scope)?;
        }
        Ok(key.map(|key| Caller(key.name().to_owned())))
    }
}

/// The guard of a route.
pub(super) async fn guard(access: Access, mut request: Request, next: Next) -> Response {
    let Some(gate) = request.extensions().get::<Gate>().cloned() else {
        return Problem::internal("a request reached a route without passing the gate").into_response();
    };
    match gate.admit(access, &request) {
        Ok(caller) => {
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

/// Hands every request its gate.
pub(super) async fn hand_gate(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(gate);
    next.run(request).await
}

/// The key that the request shows, if it may do this.
fn holder(ring: &KeyRing, headers: &HeaderMap, scope: Scope) -> Result<Key, Problem> {
    let refused = |detail: &str| Problem::new(Code::Unauthenticated, detail).with("scope", scope.name());
    let secret = bearer(headers).ok_or_else(|| {
        refused(&format!("a key with the scope {scope} is needed, as the header authorization: Bearer KEY"))
    })?;
    let key = ring.find(secret).ok_or_else(|| refused("the key is not known"))?;
    if key.may(scope) {
        return Ok(key);
    }
    let scopes: Vec<_> = key.scopes().iter().map(|scope| scope.name()).collect();
    let detail = format!("the key {:?} has the scopes {}; {scope} is needed", key.name(), scopes.join(", "));
    Err(Problem::new(Code::InsufficientScope, detail).with("scope", scope.name()).with("scopes", scopes))
}

/// The secret in `Authorization: Bearer SECRET`; none where the header is missing, of another kind, or there twice.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, secret) = value.as_bytes().split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| secret.trim_ascii())
}

/// Refuses a request that calls this machine by a name that is not its own. One that gives none comes from no browser.
fn check_host(request: &Request) -> Result<(), Problem> {
    let named = request.headers().get(header::HOST).map(HeaderValue::as_bytes);
    let authority = match (request.uri().authority(), named) {
        (Some(authority), _) => Some(authority.clone()),
        (None, Some(name)) => Authority::try_from(name).ok(),
        (None, None) => return Ok(()),
    };
    if authority.as_ref().is_some_and(|authority| is_local(authority.host())) {
        return Ok(());
    }
    let given = authority.map_or_else(String::new, |authority| authority.host().to_owned());
    let detail = format!(
        "without keys the service answers to the names of this machine alone (localhost, 127.0.0.1, [::1]). Given: {given:?}"
    );
    Err(Problem::new(Code::HostNotAllowed, detail).with("host", given))
}

fn is_local(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_read_from_one_bearer_header() {
        let headers = |values: &[&'static str]| -> HeaderMap {
            values.iter().map(|value| (header::AUTHORIZATION, HeaderValue::from_static(value))).collect()
        };
        for good in ["Bearer k", "bearer k", "BEARER   k "] {
            assert_eq!(bearer(&headers(&[good])), Some(b"k".as_slice()), "{good}");
        }
        for bad in [&[][..], &["Basic k"], &["Bearer"], &["k"], &[""], &["Bearer k", "Bearer k"]] {
            assert_eq!(bearer(&headers(bad)), None, "{bad:?}");
        }
    }

    #[test]
    fn only_names_of_this_machine_are_local() {
        for local in ["localhost", "LOCALHOST", "a.localhost", "localhost.", "127.0.0.1", "127.1.2.3", "[::1]"] {
            assert!(is_local(local), "{local}");
        }
        assert!(is_local("[::ffff:127.0.0.1]"));
        for other in ["", "evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "[::]", "0.0.0.0"] {
            assert!(!is_local(other), "{other}");
        }
    }
}
