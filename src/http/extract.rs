//! Extractors that refuse in problem JSON: a body that is not JSON is 400, JSON of the wrong shape is 422, and both say
//! where.

use axum::{
    body::Body,
    extract::{
        FromRequest, FromRequestParts, Request,
        rejection::{PathRejection, QueryRejection},
    },
    http::{HeaderMap, header},
};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    error::{Code, Problem},
    state::AppState,
    strict::Strict,
};

/// How much of a body is read beyond the limit, bytes.
const THROWN_AWAY: usize = 16 << 20;

/// A path parameter.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Problem))]
pub(super) struct Path<T>(pub T);

/// The query's parameters.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Problem))]
pub(super) struct Query<T>(pub T);

/// A body of a known shape.
pub(super) struct Json<T>(pub T);

/// A body that is JSON of any shape.
pub(super) struct JsonValue(pub Value);

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::new(Code::InvalidParameter, rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(Code::InvalidParameter, rejection.body_text())
    }
}

impl<T: DeserializeOwned> FromRequest<AppState> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Problem> {
        let JsonValue(value) = JsonValue::from_request(request, state).await?;
        shape(value).map(Self)
    }
}

impl FromRequest<AppState> for JsonValue {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Problem> {
        check_media_type(request.headers())?;
        let (parts, body) = request.into_parts();
        let bytes = read(&parts.headers, body, state.limits.body_bytes).await?;
        if state.log_bodies {
            tracing::info!(body = %String::from_utf8_lossy(&bytes), "asked");
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|error| Problem::new(Code::MalformedJson, error.to_string()))
    }
}

/// The body, if it has at most `limit` bytes. Of a larger one, some more is read and thrown away: a client that sends all
/// before it reads would otherwise find the connection reset instead of the answer.
pub(super) async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Vec<u8>, Problem> {
    let announced = content_length(headers);
    let fits = announced.is_none_or(|given| given <= limit as u64);
    if !fits && headers.contains_key(header::EXPECT) {
        // This client waits for leave to send.
        return Err(too_large(limit, announced));
    }
    let (mut bytes, mut given) = (Vec::new(), 0usize);
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| Problem::new(Code::MalformedBody, error.to_string()))?;
        given = given.saturating_add(chunk.len());
        if given > limit.saturating_add(THROWN_AWAY) {
            break;
        }
        if fits && given <= limit {
            bytes.extend_from_slice(&chunk);
        }
    }
    if fits && given <= limit { Ok(bytes) } else { Err(too_large(limit, announced)) }
}

/// `value` as a `T`, or 422 that names the field.
pub(super) fn shape<T: DeserializeOwned>(value: Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(Strict(value)).map_err(|error| {
        let field = error.path().to_string();
        match field.as_str() {
            "." => Problem::new(Code::InvalidRequest, error.inner().to_string()),
            _ => Problem::new(Code::InvalidRequest, format!("{field}: {}", error.inner())).with("field", field),
        }
    })
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large(limit: usize, given: Option<u64>) -> Problem {
    match given {
        Some(given) if given > limit as u64 => {
            Problem::new(Code::PayloadTooLarge, format!("the body must be at most {limit} bytes. Given: {given}"))
                .with("limit", limit)
                .with("given", given)
        }
        _ => {
            Problem::new(Code::PayloadTooLarge, format!("the body must be at most {limit} bytes")).with("limit", limit)
        }
    }
}

fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("nothing");
    let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    Err(Problem::new(Code::UnsupportedMediaType, format!("content-type must be application/json. Given: {given}")))
}
