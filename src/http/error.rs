//! The code table: every error that this service answers has a stable code, and the code alone decides its status and
//! title. Answers are RFC 9457 problem documents; numbers stand beside the sentence as extension members.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::{
    ToSchema,
    openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder, example::ExampleBuilder, response},
};

/// Media type of every error.
pub const PROBLEM_JSON: &str = "application/problem+json";

macro_rules! codes {
    ($($variant:ident $code:literal $status:ident $title:literal $example:literal;)*) => {
        /// A stable error code. Clients may match on it; the sentence in `detail` is for people.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code {
            $(#[doc = $title] $variant,)*
        }

        impl Code {
            /// The whole table.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name on the wire, snake_case.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// The status it is answered with.
            pub fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status,)* }
            }

            /// The same for every occurrence.
            pub fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }

            /// A `detail` such as an occurrence carries, for the documentation.
            fn example(self) -> &'static str {
                match self { $(Self::$variant => $example,)* }
            }
        }
    };
}

codes! {
    MalformedJson "malformed_json" BAD_REQUEST "The body is not JSON"
        "expected `,` or `}` at line 1 column 30";
    MalformedBody "malformed_body" BAD_REQUEST "The body could not be read"
        "the connection ended before the body did";
    InvalidParameter "invalid_parameter" BAD_REQUEST "A path or query parameter is not valid"
        "limit must be from 1 to 200. Given: 500";
    InvalidHeader "invalid_header" BAD_REQUEST "A header is not valid"
        "idempotency-key must be 1 to 255 visible ASCII characters. Given: 300";
    Unauthenticated "unauthenticated" UNAUTHORIZED "A key is needed"
        "a key with the scope edit is needed, as the header authorization: Bearer KEY";
    InsufficientScope "insufficient_scope" FORBIDDEN "The key may not do this"
        "the key \"ci\" has the scopes read; edit is needed";
    HostNotAllowed "host_not_allowed" MISDIRECTED_REQUEST "The service does not answer to this name"
        "without keys the service answers to the names of this machine alone (localhost, 127.0.0.1, [::1]). Given: \"example.org\"";
    NotFound "not_found" NOT_FOUND "There is no such route"
        "no route for /edit";
    UnknownEdit "unknown_edit" NOT_FOUND "There is no such edit"
        "there is no edit 01890a5d-ac96-774b-bcce-b302099a8057";
    UnknownModel "unknown_model" NOT_FOUND "There is no such model"
        "there is no model \"gpt-4\"; \"SmolLM2-135M-Instruct\" is served, and \"SmolLM2-135M-Instruct@7\" for version 7 of it";
    UnknownVersion "unknown_version" NOT_FOUND "There is no such version"
        "there is no version 9; the newest is 7";
    MethodNotAllowed "method_not_allowed" METHOD_NOT_ALLOWED "The route does not take this method"
        "PUT is not allowed on /edits";
    RequestTimeout "request_timeout" REQUEST_TIMEOUT "The request took too long"
        "no answer within 120 s; what still waited is dropped, an edit that was being made goes on";
    VersionConflict "version_conflict" CONFLICT "The newest version is not the expected one"
        "expected version 6, but the newest is 7";
    VersionNotReached "version_not_reached" CONFLICT "The version is not here yet"
        "version 18 was not here within 5 s; the newest here is 17";
    EditNotActive "edit_not_active" CONFLICT "The edit is not active"
        "edit 01890a5d-ac96-774b-bcce-b302099a8057 is not active: it is taken_back";
    ModelIsCausal "model_is_causal" CONFLICT "The model continues texts; it has no labels to give"
        "the model is a causal model: it continues texts (POST /generate) and has no labels to give";
    ModelIsEncoderDecoder "model_is_encoder_decoder" CONFLICT "The model answers texts; it has no labels to give"
        "the model is an encoder-decoder: it answers texts (POST /generate) and has no labels to give";
    ModelIsClassifier "model_is_classifier" CONFLICT "The model gives texts a label; it writes none"
        "the model is a classifier: it gives texts a label (POST /classify) and writes none";
    ContributionDropped "contribution_dropped" GONE "What the version contains was dropped from the log"
        "version 7 contains edit 01890a5d-ac96-774b-bcce-b302099a8057, whose change was dropped by a compaction: it can not be made again";
    PayloadTooLarge "payload_too_large" PAYLOAD_TOO_LARGE "The body is too large"
        "the body must be at most 2000000 bytes. Given: 2400000";
    UnsupportedMediaType "unsupported_media_type" UNSUPPORTED_MEDIA_TYPE "The body's media type is not supported"
        "content-type must be application/json. Given: text/plain";
    InvalidRequest "invalid_request" UNPROCESSABLE_ENTITY "The request can not be carried out as written"
        "prompt: must not be empty";
    UnknownLabel "unknown_label" UNPROCESSABLE_ENTITY "The model has no such label"
        "target: \"mauve\" is none of the labels red, green, blue";
    ContextExceeded "context_exceeded" UNPROCESSABLE_ENTITY "The request does not fit the model's context"
        "8000 prompt tokens and 500 new ones exceed the context of 8192 tokens";
    CacheExceeded "cache_exceeded" UNPROCESSABLE_ENTITY "The request does not fit into the engine's memory"
        "8000 prompt tokens and 8 x 4000 more exceed the 32768 tokens that are kept in memory";
    GuardRejected "guard_rejected" UNPROCESSABLE_ENTITY "The guard rejected the edit"
        "the guard rejected the edit: probability after is 0.12, the least allowed is 0.5";
    BreaksEdits "breaks_edits" UNPROCESSABLE_ENTITY "The edit would break active edits or canaries"
        "the guard rejected the edit: it would break 1 of 8 active edits that were scored again, and 0 of 3 canaries: ...";
    ConflictingEdit "conflicting_edit" UNPROCESSABLE_ENTITY "The edit conflicts with an active one"
        "the guard rejected the edit: it conflicts 1 times with active edits, first with edit 01890a5d-ac96-774b-bcce-b302099a8057 ...";
    AccumulatorOverflow "accumulator_overflow" UNPROCESSABLE_ENTITY "The edit would overflow the accumulator"
        "the edit would overflow the accumulator of model.layers.29.mlp.down_proj.weight: |sum| must stay under 8388608";
    IdempotencyKeyReused "idempotency_key_reused" UNPROCESSABLE_ENTITY
        "The idempotency key was used for a different request"
        "idempotency key \"7f1c\" was used for a different request";
    QueueFull "queue_full" TOO_MANY_REQUESTS "The queue is full"
        "the edit queue is full: 64 requests are waiting; try again in 2 s";
    TooManyStreams "too_many_streams" TOO_MANY_REQUESTS "Too many generations are being streamed"
        "256 generations are being streamed, the most at the same time";
    RateLimited "rate_limited" TOO_MANY_REQUESTS "The key was used too often"
        "edit is limited to 60 requests a minute for the key \"ci\"; try again in 1 s";
    Internal "internal" INTERNAL_SERVER_ERROR "Something went wrong in the service"
        "the service failed; its log has the cause under this answer's x-request-id";
    EditFailed "edit_failed" INTERNAL_SERVER_ERROR "Computing the edit failed"
        "edit 01890a5d-ac96-774b-bcce-b302099a8057 failed: the update is not finite";
    LogDamaged "log_damaged" INTERNAL_SERVER_ERROR "The log is damaged"
        "the log is damaged: entries row 17: the hash does not fit";
    WriterLost "writer_lost" BAD_GATEWAY "The writer did not answer"
        "the writer did not answer to the end; whether the last one did what was asked is not known. Send the same request again under the same idempotency key";
    NoWriter "no_writer" SERVICE_UNAVAILABLE "No writer can be reached"
        "no replica writes at the moment; try again";
    ReplicaBehind "replica_behind" SERVICE_UNAVAILABLE "The replica is too far behind"
        "this replica was last known to have every version 42.0 s ago; it is ready up to 30 s";
    ReplicaDiverged "replica_diverged" SERVICE_UNAVAILABLE "The replica does not make what the log says"
        "this replica is out of service: version 17: the log has digest ..., but the stored contributions make ...";
    TooManyConnections "too_many_connections" SERVICE_UNAVAILABLE "Too many connections are open"
        "1024 connections are open, the most that are served at the same time";
    NotReady "not_ready" SERVICE_UNAVAILABLE "The service is not ready"
        "the model is being loaded or the log replayed";
    Draining "draining" SERVICE_UNAVAILABLE "The service is shutting down"
        "the service is shutting down and takes no new work";
    LogUnavailable "log_unavailable" SERVICE_UNAVAILABLE "The log can not be reached"
        "the log's storage failed";
    LogFull "log_full" INSUFFICIENT_STORAGE "The log's disk is full"
        "the log's disk is full";
}

/// How long a client should wait when nothing better is known.
const DEFAULT_RETRY: Duration = Duration::from_secs(2);

/// One occurrence of an error.
#[derive(Debug, Clone)]
pub struct Problem {
    code: Code,
    detail: String,
    /// Extension members, in order.
    members: Vec<(&'static str, Value)>,
    retry_after: Option<Duration>,
}

impl Problem {
    /// An error of this code; `detail` says what happened, with the numbers.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let retry = matches!(code.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        Self { code, detail: detail.into(), members: Vec::new(), retry_after: retry.then_some(DEFAULT_RETRY) }
    }

    /// A defect. The cause goes to the operator's log, not to the client.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(%cause, "internal error");
        Self::new(Code::Internal, Code::Internal.example())
    }

    /// Adds an extension member.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Serialize) -> Self {
        debug_assert!(!["type", "title", "status", "code", "detail"].contains(&name), "{name} is a standard member");
        // Only a map with keys that are not strings fails, and no extension is one.
        self.members.push((name, serde_json::to_value(value).unwrap_or(Value::Null)));
        self
    }

    /// Says when to try again (`Retry-After`, whole seconds, at least 1).
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// What happened, for people.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// The numbers and names that belong to it.
    pub(super) fn members(&self) -> &[(&'static str, Value)] {
        &self.members
    }

    /// The problem document.
    pub fn body(&self) -> Value {
        let mut body = standard_members(self.code, &self.detail);
        body.extend(self.members.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        Value::Object(body)
    }
}

fn standard_members(code: Code, detail: &str) -> Map<String, Value> {
    let mut body = Map::new();
    body.insert("type".into(), format!("urn:amend:problem:{}", code.as_str()).into());
    body.insert("title".into(), code.title().into());
    body.insert("status".into(), code.status().as_u16().into());
    body.insert("code".into(), code.as_str().into());
    body.insert("detail".into(), detail.into());
    body
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let content_type = [(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON))];
        let mut response = (self.code.status(), content_type, self.body().to_string()).into_response();
        if let Some(after) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, after.as_secs().max(1).into());
        }
        if self.code.status() == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"amend\""));
        }
        // For routes whose errors have another form.
        response.extensions_mut().insert(self);
        response
    }
}

/// An RFC 9457 problem document. Numbers that belong to the error stand beside these as further members.
#[derive(ToSchema)]
#[schema(as = Problem)]
#[expect(dead_code, reason = "describes what `Problem::body` writes; the schema is all that is used")]
pub(super) struct ProblemSchema {
    /// A name for the kind of problem.
    #[schema(rename = "type", example = "urn:amend:problem:unknown_edit")]
    kind: String,
    #[schema(example = "There is no such edit")]
    title: String,
    #[schema(example = 404)]
    status: u16,
    /// Stable; match on this.
    #[schema(example = "unknown_edit")]
    code: String,
    /// What happened, for people, with the numbers.
    detail: String,
}

/// How errors are written on some routes.
pub(super) struct Form {
    pub content_type: &'static str,
    /// The schema of the body.
    pub schema: &'static str,
    pub status: fn(Code) -> StatusCode,
    pub body: fn(&Problem) -> Value,
    /// What the code is called in the body.
    pub name: fn(Code) -> &'static str,
}

/// The documentation of a route's errors: one response per status, one example per code.
pub(super) fn responses(codes: &[Code]) -> BTreeMap<String, RefOr<response::Response>> {
    let (status, body, name) = (Code::status, Problem::body, Code::as_str);
    documented(codes, &Form { content_type: PROBLEM_JSON, schema: "Problem", status, body, name })
}

/// The same in any form.
pub(super) fn documented(codes: &[Code], form: &Form) -> BTreeMap<String, RefOr<response::Response>> {
    let mut by_status: BTreeMap<String, Vec<Code>> = BTreeMap::new();
    for code in codes {
        by_status.entry((form.status)(*code).as_str().to_owned()).or_default().push(*code);
    }
    by_status.into_iter().map(|(status, codes)| (status, RefOr::T(response_of(&codes, form)))).collect()
}

fn response_of(codes: &[Code], form: &Form) -> response::Response {
    let titles: Vec<_> = codes.iter().map(|code| format!("`{}`: {}.", (form.name)(*code), code.title())).collect();
    let examples = codes.iter().map(|code| {
        let value = (form.body)(&Problem::new(*code, code.example()));
        (code.as_str(), ExampleBuilder::new().summary(code.title()).value(Some(value)).build())
    });
    let content =
        ContentBuilder::new().schema(Some(Ref::from_schema_name(form.schema))).examples_from_iter(examples).build();
    ResponseBuilder::new().description(titles.join(" ")).content(form.content_type, content).build()
}

/// Declares which errors a route may answer, for its documentation; `openai` ones have OpenAI's envelope.
macro_rules! problems {
    (openai $name:ident: $($code:ident),+ $(,)?) => {
        problems!(@ $crate::http::openai::envelope::responses, $name, $($code),+);
    };
    ($name:ident: $($code:ident),+ $(,)?) => {
        problems!(@ $crate::http::error::responses, $name, $($code),+);
    };
    (@ $responses:path, $name:ident, $($code:ident),+) => {
        /// The errors of the route below, for its documentation.
        pub(in crate::http) enum $name {}

        impl utoipa::IntoResponses for $name {
            fn responses()
            -> std::collections::BTreeMap<String, utoipa::openapi::RefOr<utoipa::openapi::response::Response>> {
                use $crate::http::error::Code;
                $responses(&[$(Code::$code,)+ Code::Internal])
            }
        }
    };
}
pub(super) use problems;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::json;

    use super::*;

    #[test]
    fn codes_are_distinct_snake_case_and_errors() {
        let mut seen = HashSet::new();
        for code in Code::ALL {
            let name = code.as_str();
            assert!(seen.insert(name), "{name} twice");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(code.status().is_client_error() || code.status().is_server_error(), "{name}");
        }
    }

    #[test]
    fn numbers_stand_beside_the_sentence() {
        let problem = Problem::new(Code::PayloadTooLarge, "too large").with("limit", 10).with("given", 11);
        let body = problem.body();
        assert_eq!(body["code"], "payload_too_large");
        assert_eq!(body["status"], 413);
        assert_eq!((&body["limit"], &body["given"]), (&json!(10), &json!(11)));
    }
}
