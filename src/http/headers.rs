//! Request headers that steer a change, each checked here: `Idempotency-Key`, `If-Match`, `Prefer`.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use super::error::{Code, Problem};

/// A client's name for a request that it may send again.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// `true` on an answer that was recorded earlier.
pub(super) const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// RFC 7240.
pub(super) const PREFER: HeaderName = HeaderName::from_static("prefer");
/// RFC 7240.
pub(super) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// The version that a stream's tokens come from.
pub(super) const AMEND_VERSION: HeaderName = HeaderName::from_static("x-amend-version");

/// A header that must be `1..=max` visible ASCII characters and come at most once.
pub(super) fn visible(headers: &HeaderMap, name: &HeaderName, max: usize) -> Result<Option<String>, Problem> {
    let Some(value) = once(headers, name)? else { return Ok(None) };
    let bytes = value.as_bytes();
    if (1..=max).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic) {
        return Ok(Some(String::from_utf8_lossy(bytes).into_owned()));
    }
    let given = bytes.len();
    Err(Problem::new(
        Code::InvalidHeader,
        format!("{name} must be 1 to {max} visible ASCII characters. Given: {given}"),
    )
    .with("header", name.as_str())
    .with("limit", max)
    .with("given", given))
}

/// The version that `If-Match` expects to be the newest: `"7"`; `*` expects nothing in particular.
pub(super) fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = once(headers, &header::IF_MATCH)? else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let number = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).and_then(|n| n.parse().ok());
    number.map(Some).ok_or_else(|| {
        Problem::new(Code::InvalidHeader, "if-match must be one version number in double quotes, such as \"7\"")
            .with("header", header::IF_MATCH.as_str())
    })
}

/// The expected version, from the body or from `If-Match`; they must not disagree.
pub(super) fn expected_version(headers: &HeaderMap, in_body: Option<u64>) -> Result<Option<u64>, Problem> {
    match (in_body, if_match(headers)?) {
        (Some(body), Some(header)) if body != header => {
            Err(Problem::new(Code::InvalidRequest, format!("expected_version is {body}, but if-match is {header}"))
                .with("field", "expected_version"))
        }
        (body, header) => Ok(body.or(header)),
    }
}

/// Whether the client prefers an answer at once (`Prefer: respond-async`).
pub(super) fn prefers_async(headers: &HeaderMap) -> bool {
    let values = headers.get_all(PREFER);
    values
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|preference| preference.split(';').next())
        .any(|name| name.trim().eq_ignore_ascii_case("respond-async"))
}

fn once<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Problem> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    match values.next() {
        None => Ok(first),
        Some(_) => {
            Err(Problem::new(Code::InvalidHeader, format!("{name} must come only once")).with("header", name.as_str()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &HeaderName, values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn if_match_takes_one_quoted_number() {
        let read = |value| if_match(&headers(&header::IF_MATCH, &[value]));
        assert_eq!(read("\"7\"").unwrap(), Some(7));
        assert_eq!(read("*").unwrap(), None);
        for bad in ["7", "\"seven\"", "W/\"7\"", "\"7\", \"8\"", "", "\"-1\"", "\""] {
            assert_eq!(read(bad).unwrap_err().code(), Code::InvalidHeader, "{bad}");
        }
    }

    #[test]
    fn prefer_is_found_among_others() {
        assert!(prefers_async(&headers(&PREFER, &["wait=10, Respond-Async;x=1"])));
        assert!(prefers_async(&headers(&PREFER, &["return=minimal", "respond-async"])));
        assert!(!prefers_async(&headers(&PREFER, &["respond-asynchronously"])));
    }

    #[test]
    fn a_header_that_comes_twice_is_refused() {
        let twice = headers(&IDEMPOTENCY_KEY, &["a", "b"]);
        assert_eq!(visible(&twice, &IDEMPOTENCY_KEY, 255).unwrap_err().code(), Code::InvalidHeader);
    }
}
