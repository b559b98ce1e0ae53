//! Errors in OpenAI's form on every path below `/v1`, whoever answered them: a handler, a layer, or the router.

use std::collections::BTreeMap;

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::Response,
};
use serde_json::{Map, Value, json};
use utoipa::{
    ToSchema,
    openapi::{RefOr, response},
};

use crate::http::error::{Code, Form, Problem, documented};

/// Rewrites problem documents of the OpenAI routes.
pub(in crate::http) async fn rewrite(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let ours = path == "/v1" || path.starts_with("/v1/");
    let mut response = next.run(request).await;
    if !ours {
        return response;
    }
    let Some(problem) = response.extensions_mut().remove::<Problem>() else { return response };
    let (mut parts, _) = response.into_parts();
    parts.status = status(problem.code());
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Response::from_parts(parts, Body::from(body(&problem).to_string()))
}

/// The envelope. The figures that belong to the error stand beside OpenAI's four members.
pub(super) fn body(problem: &Problem) -> Value {
    let code = problem.code();
    let mut error = Map::new();
    error.insert("message".into(), problem.detail().into());
    error.insert("type".into(), kind(status(code)).into());
    error.insert("param".into(), Value::Null);
    error.insert("code".into(), name(code).into());
    for (member, value) in problem.members() {
        let member = if *member == "field" { "param" } else { member };
        error.insert(member.to_owned(), value.clone());
    }
    json!({"error": error})
}

/// OpenAI's clients know no 422.
fn status(code: Code) -> StatusCode {
    match code.status() {
        StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
        status => status,
    }
}

/// Where OpenAI has a name of its own that clients look for, that; else ours.
fn name(code: Code) -> &'static str {
    match code {
        Code::UnknownModel | Code::UnknownVersion => "model_not_found",
        Code::ContextExceeded => "context_length_exceeded",
        _ => code.as_str(),
    }
}

fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

/// An error of the OpenAI routes.
#[derive(ToSchema)]
#[schema(as = OpenAiError)]
#[expect(dead_code, reason = "describes what `body` writes; the schema is all that is used")]
pub(super) struct OpenAiErrorSchema {
    error: OpenAiErrorDetail,
}

/// What happened. Figures that belong to the error stand beside these as further members.
#[derive(ToSchema)]
#[expect(dead_code, reason = "as above")]
struct OpenAiErrorDetail {
    /// For people, with the numbers.
    message: String,
    #[schema(rename = "type", example = "invalid_request_error")]
    kind: String,
    /// Which parameter it is about.
    param: Option<String>,
    /// Stable; match on this.
    #[schema(example = "model_not_found")]
    code: String,
}

/// The documentation of a route's errors.
pub(in crate::http) fn responses(codes: &[Code]) -> BTreeMap<String, RefOr<response::Response>> {
    documented(codes, &Form { content_type: "application/json", schema: "OpenAiError", status, body, name })
}
