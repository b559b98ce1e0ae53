//! Headers that tell browsers to do as little as possible with an answer. There are none that let other origins read it: no
//! CORS.

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue, header},
    middleware::Next,
    response::Response,
};

/// An answer is data: nothing in it is to be run, and it is to be shown in no frame.
const FOR_DATA: &str = "default-src 'none'; frame-ancestors 'none'";
/// Swagger UI runs its own scripts, has styles in its elements, and asks this service.
const FOR_DOCS: &str =
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";

/// What every answer has, unless its handler said otherwise.
const HEADERS: [(HeaderName, &str); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Adds them.
pub(super) async fn harden(request: Request, next: Next) -> Response {
    let policy = if request.uri().path().starts_with("/docs/") { FOR_DOCS } else { FOR_DATA };
    let mut response = next.run(request).await;
    for (name, value) in HEADERS.into_iter().chain([(header::CONTENT_SECURITY_POLICY, policy)]) {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}
