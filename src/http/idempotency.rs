//! Requests sent twice: a key names the request, a digest tells whether it is the same one, and the answer that was
//! recorded with the version it made is given again. Answers that made no version are not recorded.

use axum::{
    Json,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde_json::Value;

use super::{
    error::{Code, Problem},
    headers::{self, IDEMPOTENCY_KEY, IDEMPOTENT_REPLAYED},
};
use crate::{
    digest::Digest,
    edit_log::{EditLog, IdempotencyRow},
    writer::Idempotency,
};

/// Longest key, characters.
const KEY_MAX: usize = 255;

/// The request's key, if it has one, with the digest of method, path and query, and body (whatever the order of the
/// body's fields).
pub(super) fn read(headers: &HeaderMap, method: &str, uri: &Uri, body: &Value) -> Result<Option<Idempotency>, Problem> {
    let key = headers::visible(headers, &IDEMPOTENCY_KEY, KEY_MAX)?;
    Ok(key.map(|key| {
        let body = canonical(body).to_string();
        let query = uri.query().unwrap_or_default();
        let parts = [method, uri.path(), query, &body];
        let request = Digest::of_parts(parts.map(str::as_bytes));
        Idempotency { key, request }
    }))
}

/// The answer recorded under the same key. 422 if the key came with another request.
pub(super) async fn recorded(
    log: &dyn EditLog,
    asked: Option<&Idempotency>,
) -> Result<Option<IdempotencyRow>, Problem> {
    let Some(asked) = asked else { return Ok(None) };
    let Some(row) = log.idempotent(&asked.key).await? else { return Ok(None) };
    if row.request != asked.request {
        let detail = format!("idempotency key {:?} was used for a different request", asked.key);
        return Err(Problem::new(Code::IdempotencyKeyReused, detail));
    }
    Ok(Some(row))
}

/// A recorded answer as a response.
pub(super) fn replay(row: IdempotencyRow) -> Result<Response, Problem> {
    let status = StatusCode::from_u16(row.http_status)
        .map_err(|_| Problem::internal(format!("recorded status {} is not a status", row.http_status)))?;
    let location = if status == StatusCode::CREATED { location(&row.body) } else { None };
    let mut response = (status, Json(row.body)).into_response();
    response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    if let Some(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Where what was made can be found: an edit, or the version of a batch.
pub(super) fn location(report: &Value) -> Option<HeaderValue> {
    let path = match report.get("id").and_then(Value::as_str) {
        Some(id) => format!("/edits/{id}"),
        None => format!("/versions/{}", report.get("version")?.as_u64()?),
    };
    HeaderValue::try_from(path).ok()
}

/// The edit that a report is about, or the first one of a batch.
pub(super) fn first_edit(report: &Value) -> Option<&str> {
    report.get("id").or_else(|| report.pointer("/edits/0/id"))?.as_str()
}

/// The same JSON with every object's keys in order.
fn canonical(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(canonical).collect(),
        Value::Object(members) => {
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_by_key(|(name, _)| name.as_str());
            sorted.into_iter().map(|(name, value)| (name.clone(), canonical(value))).collect()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn digest(path: &'static str, body: &Value) -> Digest {
        let headers = [(IDEMPOTENCY_KEY, HeaderValue::from_static("k"))].into_iter().collect();
        read(&headers, "POST", &Uri::from_static(path), body).unwrap().unwrap().request
    }

    #[test]
    fn the_order_of_fields_does_not_matter_and_anything_else_does() {
        let one = digest("/edits", &json!({"prompt": "p", "guard": {"max_kl": 1, "min_probability": 0}}));
        assert_eq!(one, digest("/edits", &json!({"guard": {"min_probability": 0, "max_kl": 1}, "prompt": "p"})));
        assert_ne!(one, digest("/edits", &json!({"guard": {"min_probability": 0, "max_kl": 2}, "prompt": "p"})));
        assert_ne!(digest("/edits", &json!([1, 2])), digest("/edits", &json!([2, 1])));
        assert_ne!(digest("/edits", &json!({})), digest("/rollback", &json!({})));
    }
}
