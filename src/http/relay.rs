//! Changes go to the writer. A replica that follows hands such a request on to the one that writes, as it came, and gives
//! back its answer, so that a client may ask any of them.
//!
//! The request is handed on after this replica's own guard; the writer's guard sees the same key. A request is handed on once:
//! a replica that was taken for the writer and is not refuses it.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tracing::Instrument;

use super::{
    error::{Code, Problem},
    extract,
    peer::FORWARDED_FOR,
    state::{HttpLimits, Replica},
    trace,
};
use crate::writer::Role;

/// Marks a request that another replica has handed on.
const RELAYED: HeaderName = HeaderName::from_static("x-amend-relayed");
/// How long the writer may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// How often it is looked whether it still is the writer.
const LOOK: Duration = Duration::from_millis(100);

/// Headers that are about one connection, or that are made anew.
const OWN: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The way to the writer. Cloning shares its connections.
#[derive(Clone)]
pub struct Relay {
    replica: Arc<dyn Replica>,
    http: reqwest::Client,
    body_bytes: usize,
}

impl Relay {
    /// From this replica, within the limits of requests.
    pub fn new(replica: Arc<dyn Replica>, limits: &HttpLimits) -> Self {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .timeout(limits.request_time)
            .redirect(reqwest::redirect::Policy::none())
            // The writer is a neighbour.
            .no_proxy()
            .build()
            .expect("a client without TLS and files of its own can be made");
        Self { replica, http, body_bytes: limits.body_bytes }
    }

    fn follows(&self) -> bool {
        self.replica.status().role == Role::Follower
    }

    async fn hand_on(&self, head: Head, body: Body) -> Result<Response, Problem> {
        if head.headers.contains_key(&RELAYED) {
            return Err(no_writer("this replica was taken for the writer, and is not; try again"));
        }
        let writer = self.replica.status().writer;
        let writer = writer.ok_or_else(|| no_writer("no replica writes at the moment; try again"))?;
        let bytes = extract::read(&head.headers, body, self.body_bytes).await?;
        let span = tracing::debug_span!("relay", writer);
        let mut headers = head.headers;
        trace::hand_on(&span, &mut headers);
        let path = head.uri.path_and_query().map_or("/", axum::http::uri::PathAndQuery::as_str);
        let request = self.http.request(head.method, format!("{writer}{path}")).headers(headers).body(bytes);
        let answer = async {
            let response = request.header(&RELAYED, "1").send().await?;
            let (status, headers) = (response.status(), response.headers().clone());
            Ok::<_, reqwest::Error>((status, headers, response.bytes().await?))
        };
        let answer = tokio::select! {
            answer = answer.instrument(span) => answer,
            () = self.followed(&writer) => return Err(lost("another replica has become the writer", writer)),
        };
        match answer {
            Ok((status, headers, body)) => Ok((status, ended(headers), body).into_response()),
            Err(error) if error.is_connect() => {
                tracing::warn!(%error, writer, "the writer can not be reached");
                Err(no_writer("the writer can not be reached; try again").with("writer", writer))
            }
            Err(error) => {
                tracing::warn!(%error, writer, "the writer did not answer");
                Err(lost("the writer did not answer to the end", writer))
            }
        }
    }

    /// Until this writer is known to be one no more: it may never answer, where it was stopped or cut off.
    async fn followed(&self, writer: &str) {
        loop {
            tokio::time::sleep(LOOK).await;
            let status = self.replica.status();
            if status.role == Role::Writer || status.writer.as_deref() != Some(writer) {
                return;
            }
        }
    }
}

/// What is handed on of a request, beside its body.
struct Head {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl Head {
    fn of(request: &Request) -> Self {
        let mut headers = ended(request.headers().clone());
        if let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<std::net::SocketAddr>>()
            && let Ok(peer) = HeaderValue::try_from(peer.ip().to_canonical().to_string())
        {
            headers.append(FORWARDED_FOR, peer);
        }
        Self { method: request.method().clone(), uri: request.uri().clone(), headers }
    }
}

fn lost(what: &str, writer: String) -> Problem {
    let detail = format!(
        "{what}; whether the last one did what was asked is not known. Send the same request again under the same idempotency key"
    );
    Problem::new(Code::WriterLost, detail).with("writer", writer)
}

fn no_writer(detail: &str) -> Problem {
    Problem::new(Code::NoWriter, detail)
}

/// Without what is about the connection that they came on.
fn ended(mut headers: HeaderMap) -> HeaderMap {
    OWN.iter().for_each(|name| drop(headers.remove(name)));
    headers
}

/// Hands every request its relay.
pub(super) async fn hand_relay(State(relay): State<Relay>, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(relay);
    next.run(request).await
}

/// Around routes that only the writer answers.
pub(super) async fn to_writer(request: Request, next: Next) -> Response {
    match request.extensions().get::<Relay>().filter(|relay| relay.follows()).cloned() {
        Some(relay) => {
            let head = Head::of(&request);
            relay.hand_on(head, request.into_body()).await.into_response()
        }
        None => next.run(request).await,
    }
}

/// Around routes to read something that the writer alone may know: it is asked for what is not found here.
pub(super) async fn or_at_writer(request: Request, next: Next) -> Response {
    let relay = request.extensions().get::<Relay>().filter(|relay| relay.follows()).cloned();
    let head = Head::of(&request);
    let response = next.run(request).await;
    match relay {
        Some(relay) if response.status() == StatusCode::NOT_FOUND => {
            // Where the writer does not answer, what is known here is.
            relay.hand_on(head, Body::empty()).await.unwrap_or(response)
        }
        _ => response,
    }
}
