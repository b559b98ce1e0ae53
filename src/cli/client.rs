//! The HTTP client of the commands that ask a running server.

use std::time::Duration;

use reqwest::{
    Response, StatusCode,
    header::{AUTHORIZATION, HeaderMap, HeaderValue},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;
use uuid::Uuid;

use crate::{
    generation::{GenerateRequest, GenerateResponse},
    writer::VersionReport,
};

/// The header in which a client names itself.
const ACTOR: &str = "x-amend-actor";
/// How long to wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long to wait for the answer of a health check.
const HEALTH: Duration = Duration::from_secs(5);

/// Why a server did not do what it was asked.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No connection, or it broke.
    #[error("no answer from {server}: {}", innermost(source))]
    Unreachable { server: String, source: reqwest::Error },
    /// It answered with an error.
    #[error("{server} answered {}: {message}", status.as_u16())]
    Refused { server: String, status: StatusCode, message: String },
    /// The key can not stand in a header.
    #[error("the key is not made of visible ASCII characters")]
    Key,
    /// It answered with something else than what the interface promises.
    #[error("{server} is not an Amend server, or another version of it: {message}")]
    Unexpected { server: String, message: String },
}

/// A running server.
pub struct Client {
    http: reqwest::Client,
    /// `http://ADDRESS:PORT`, without a slash at the end.
    server: String,
}

impl Client {
    /// A client of the server at this address, with the key that it asks for, if it does; connects only when asked for
    /// something.
    pub fn new(server: &str, key: Option<&str>) -> Result<Self, ClientError> {
        let mut headers = HeaderMap::new();
        if let Some(key) = key {
            let mut value = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| ClientError::Key)?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .connect_timeout(CONNECT)
            .user_agent(concat!("amend/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|source| ClientError::Unreachable { server: server.to_owned(), source })?;
        Ok(Self { http, server: server.to_owned() })
    }

    /// `DELETE /edits/{id}`: takes an edit back. The log records `actor`, a name of visible ASCII characters.
    pub async fn revert(&self, id: Uuid, actor: &str) -> Result<VersionReport, ClientError> {
        self.ask(self.http.delete(format!("{}/edits/{id}", self.server)).header(ACTOR, actor)).await
    }

    /// `POST /generate`, not as a stream.
    pub async fn generate(&self, request: &GenerateRequest) -> Result<GenerateResponse, ClientError> {
        self.ask(self.http.post(format!("{}/generate", self.server)).json(request)).await
    }

    /// `GET /readyz`: no error if the server is ready.
    pub async fn ready(&self) -> Result<(), ClientError> {
        let response = self.send(self.http.get(format!("{}/readyz", self.server)).timeout(HEALTH)).await?;
        self.accept(response).await.map(drop)
    }

    async fn ask<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, ClientError> {
        let response = self.send(request).await?;
        let body = self.accept(response).await?;
        serde_json::from_str(&body)
            .map_err(|error| ClientError::Unexpected { server: self.server.clone(), message: error.to_string() })
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, ClientError> {
        request.send().await.map_err(|source| self.unreachable(source))
    }

    /// The body of a good answer, or what the problem says.
    async fn accept(&self, response: Response) -> Result<String, ClientError> {
        let status = response.status();
        let body = response.text().await.map_err(|source| self.unreachable(source))?;
        if status.is_success() {
            return Ok(body);
        }
        Err(ClientError::Refused { server: self.server.clone(), status, message: problem(status, &body) })
    }

    fn unreachable(&self, source: reqwest::Error) -> ClientError {
        ClientError::Unreachable { server: self.server.clone(), source }
    }
}

/// What an error's body says to people: the problem's detail or title with its code, or the status's own words.
fn problem(status: StatusCode, body: &str) -> String {
    let reason = status.canonical_reason().unwrap_or("an error without a name");
    let Ok(body) = serde_json::from_str::<Value>(body) else { return reason.to_owned() };
    let text = |field: &str| body.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    let message = text("detail").or_else(|| text("title")).unwrap_or(reason);
    match text("code") {
        Some(code) => format!("{message} ({code})"),
        None => message.to_owned(),
    }
}

/// reqwest says what it was doing; the reason it failed is at the end of the chain.
fn innermost(error: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests {
    use axum::{Json, Router, extract::Path, http, routing};
    use serde_json::json;

    use super::*;

    /// A server that answers like Amend, on a free port.
    async fn server() -> String {
        let version = json!({"version": 3, "digest": "00".repeat(32)});
        let problem = json!({"title": "Conflict", "status": 409, "detail": "edit is not active", "code": "not_active"});
        let echo = |Json(request): Json<Value>| async move {
            Json(json!({"text": request["prompt"], "version": request["version"], "finish_reason": "length",
                "usage": {"prompt_tokens": 1, "completion_tokens": 2}, "compared": null}))
        };
        let routes = Router::new()
            .route(
                "/edits/{id}",
                routing::delete(move |Path(id): Path<Uuid>, headers: HeaderMap| async move {
                    assert_eq!(
                        (&headers[ACTOR], &headers[AUTHORIZATION]),
                        (&"ops".parse().unwrap(), &"Bearer k".parse().unwrap())
                    );
                    if id.is_nil() { Err((http::StatusCode::CONFLICT, Json(problem))) } else { Ok(Json(version)) }
                }),
            )
            .route("/generate", routing::post(echo))
            .route("/readyz", routing::get(|| async { (http::StatusCode::SERVICE_UNAVAILABLE, "replaying") }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        format!("http://{address}")
    }

    #[tokio::test]
    async fn a_good_answer_is_read() {
        let client = Client::new(&server().await, Some("k")).unwrap();
        assert_eq!(client.revert(Uuid::max(), "ops").await.unwrap().version, 3);
        let request: GenerateRequest = serde_json::from_value(json!({"prompt": "a", "version": 2})).unwrap();
        let response = client.generate(&request).await.unwrap();
        assert_eq!((response.text.as_str(), response.version), ("a", 2));
    }

    #[tokio::test]
    async fn an_error_says_what_the_server_said() {
        let client = Client::new(&server().await, Some("k")).unwrap();
        let error = client.revert(Uuid::nil(), "ops").await.unwrap_err().to_string();
        assert!(error.ends_with("answered 409: edit is not active (not_active)"), "{error}");
        let error = client.ready().await.unwrap_err().to_string();
        assert!(error.ends_with("answered 503: Service Unavailable"), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = Client::new(&format!("http://{free}"), None).unwrap().ready().await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("no answer from http://{free}: ")), "{error}");
        assert!(error.contains("refused"), "{error}");
    }
}
