//! Extractors that refuse in problem JSON: a body that is not JSON is 400, JSON of the wrong shape is 422, and both say
//! where.

use axum::{
    body::Bytes,
    extract::{
        FromRequest, FromRequestParts, Request,
        rejection::{BytesRejection, FailedToBufferBody, PathRejection, QueryRejection},
    },
    http::{HeaderMap, header},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    error::{Code, Problem},
    state::AppState,
    strict::Strict,
};

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
        let limit = state.limits.body_bytes;
        let announced = content_length(request.headers());
        check_media_type(request.headers())?;
        if announced.is_some_and(|given| given > limit as u64) {
            return Err(too_large(limit, announced));
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => too_large(limit, announced),
            other => Problem::new(Code::MalformedBody, other.body_text()),
        })?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| Problem::new(Code::MalformedJson, error.to_string()))
    }
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
