//! Traces as a collector gets them: what was one request is one trace, below its caller's span, and a collector that is not
//! there harms nothing.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    collector::{Collector, attribute, hex, one},
    server::{Files, Reply, Server},
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

async fn serve(collector: &Collector, options: &[&str]) -> Server {
    let options = [&["--otlp-endpoint", &collector.endpoint], options].concat();
    Server::start_with(&Files::tiny(), &options).await
}

/// Asks as a caller that has a trace.
async fn traced(server: &Server, method: Method, path: &str, traceparent: &str, body: &Value) -> Reply {
    let request = server.client.request(method, path).header("traceparent", traceparent);
    server.client.send(request.header("tracestate", "shop=7").json(body)).await
}

/// The trace and the span that an answer names.
fn named(reply: &Reply) -> (String, String) {
    let parts: Vec<&str> = reply.header("traceparent").unwrap().split('-').collect();
    assert_eq!((parts.len(), parts[0], parts[3]), (4, "00", "01"), "{reply:?}");
    (parts[1].to_owned(), parts[2].to_owned())
}

/// These and no others, one of each, below this span and inside its time.
fn below<'a>(trace: &'a [Span], parent: &Span, names: &[&str]) -> Vec<&'a Span> {
    let found: Vec<&Span> = trace.iter().filter(|span| span.parent_span_id == parent.span_id).collect();
    let found_names: Vec<&str> = found.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(found_names, names, "in the order of their beginnings");
    for span in &found {
        assert!(span.start_time_unix_nano >= parent.start_time_unix_nano, "{}", times(trace));
        assert!(span.end_time_unix_nano <= parent.end_time_unix_nano, "{}", times(trace));
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{}", times(trace));
        assert_eq!(span.kind(), SpanKind::Internal);
    }
    found
}

fn in_turn(spans: &[&Span]) {
    for pair in spans.windows(2) {
        assert!(pair[0].end_time_unix_nano <= pair[1].start_time_unix_nano, "{}", times(pair.iter().copied()));
    }
}

/// For people.
fn times<'a>(spans: impl IntoIterator<Item = &'a Span>) -> String {
    let line = |span: &Span| format!("{} {} to {}\n", span.name, span.start_time_unix_nano, span.end_time_unix_nano);
    spans.into_iter().map(line).collect()
}

#[tokio::test]
async fn an_edit_is_one_trace_of_its_phases_below_its_callers_span() {
    let collector = Collector::start().await;
    let server = serve(&collector, &[]).await;
    let edit = json!({"prompt": "Xylophones are", "target": "Zanzibarian", "guard": null});
    let reply = traced(&server, Method::POST, "/edits", &format!("00-{TRACE}-{CALLER}-01"), &edit).await;
    let (trace, span) = named(&reply);
    assert_eq!(trace, TRACE);
    assert_eq!(reply.header("tracestate"), Some("shop=7"));
    let request_id = reply.header("x-request-id").unwrap().to_owned();
    let edit_id = reply.with_status(201)["id"].as_str().unwrap().to_owned();
    // The end sends what is left.
    server.stop().await;

    let trace = collector.trace(TRACE);
    let http = one(&trace, "POST /edits");
    assert_eq!((hex(&http.span_id), hex(&http.parent_span_id)), (span, CALLER.to_owned()));
    assert_eq!(http.kind(), SpanKind::Server);
    for (key, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/edits"),
        ("http.response.status_code", "201"),
        ("client.address", "127.0.0.1"),
        ("amend.request_id", &request_id),
    ] {
        assert_eq!(attribute(http, key).as_deref(), Some(value), "{key} of {http:?}");
    }
    let phases = below(&trace, http, &["queue", "capture", "editor", "guard", "commit", "publish"]);
    in_turn(&phases);
    assert_eq!(trace.len(), 7, "nothing else");
    assert_eq!(attribute(phases[2], "amend.edit"), Some(edit_id));
    assert_eq!(attribute(phases[3], "amend.rejected").as_deref(), Some("false"));
    assert_eq!(attribute(phases[4], "amend.version").as_deref(), Some("1"));

    let all = format!("{:?}", collector.received());
    for text in ["Xylophones", "Zanzibarian"] {
        assert!(!all.contains(text), "{text} is in {all}");
    }
    let sender = &collector.received()[0].resource.clone().unwrap().attributes;
    let says = |key: &str| format!("{:?}", sender.iter().find(|said| said.key == key).unwrap().value);
    assert!(says("service.name").contains("\"amend\""), "{sender:?}");
    assert!(says("service.version").contains(env!("CARGO_PKG_VERSION")), "{sender:?}");
}

#[tokio::test]
async fn a_batch_a_rejection_and_a_take_back_show_what_was_done_and_what_was_not() {
    let collector = Collector::start().await;
    let server = serve(&collector, &[]).await;
    let client = &server.client;
    let edit = |i: usize| json!({"prompt": format!("Number {i} is"), "target": "odd", "guard": null});
    let batch = client.post("/edits", &json!({"edits": [edit(1), edit(2), edit(3)]})).await;
    let refused =
        client.post("/edits", &json!({"prompt": "a", "target": "b", "guard": {"min_probability": 1.0}})).await;
    let id = batch.body["edits"][1]["id"].as_str().unwrap().to_owned();
    let back = client.delete(&format!("/edits/{id}")).await;
    let missing = client.get("/nowhere").await;
    let names = [&batch, &refused, &back, &missing].map(|reply| named(reply).0);
    assert_eq!([batch, refused, back, missing].map(|reply| reply.status), [201, 422, 200, 404]);
    server.stop().await;

    let [batch, refused, back, missing] = names.map(|name| collector.trace(&name));
    let http = one(&batch, "POST /edits");
    assert_eq!(hex(&http.parent_span_id), "", "its caller has none");
    // One pass, and an editor for each edit.
    below(&batch, http, &["queue", "capture", "editor", "editor", "editor", "guard", "commit", "publish"]);
    assert_eq!(attribute(one(&batch, "capture"), "amend.texts").as_deref(), Some("3"));

    let phases = below(&refused, one(&refused, "POST /edits"), &["queue", "capture", "editor", "guard"]);
    assert_eq!(attribute(phases[3], "amend.rejected").as_deref(), Some("true"));
    let http = one(&back, "DELETE /edits/{id}");
    in_turn(&below(&back, http, &["queue", "compose", "commit", "publish"]));
    let unmatched = one(&missing, "GET unmatched");
    assert_ne!(
        unmatched.status.clone().unwrap_or_default().code(),
        StatusCode::Error,
        "the caller's fault is none here"
    );
}

#[tokio::test]
async fn an_edit_that_nobody_waits_for_is_in_its_requests_trace() {
    let collector = Collector::start().await;
    let server = serve(&collector, &[]).await;
    let edit = json!({"prompt": "Ada speaks", "target": "Welsh", "guard": null});
    let request = server.client.request(Method::POST, "/edits").header("prefer", "respond-async").json(&edit);
    let reply = server.client.send(request).await;
    let (trace, span) = named(&reply);
    reply.with_status(202);
    server.stop().await;
    let trace = collector.trace(&trace);
    let http = one(&trace, "POST /edits");
    assert_eq!((hex(&http.span_id), attribute(http, "http.response.status_code")), (span, Some("202".to_owned())));
    for phase in ["queue", "capture", "editor", "guard", "commit", "publish"] {
        assert_eq!(one(&trace, phase).parent_span_id, http.span_id, "{phase}");
    }
}

#[tokio::test]
async fn a_generation_is_one_trace_with_no_span_per_token() {
    let collector = Collector::start().await;
    let server = serve(&collector, &[]).await;
    let prompt = "Once upon a time";
    let whole = json!({"prompt": prompt, "max_tokens": 5});
    let whole = traced(&server, Method::POST, "/generate", &format!("00-{TRACE}-{CALLER}-01"), &whole).await;
    assert_eq!(named(&whole).0, TRACE);
    let usage = whole.with_status(200)["usage"].clone();
    let streamed = server.client.post("/generate", &json!({"prompt": prompt, "max_tokens": 40, "stream": true})).await;
    let scored = server.client.post("/score", &json!({"prompt": prompt, "continuations": [" a", " b"]})).await;
    let (streamed, scored) = (named(&streamed).0, named(&scored).0);
    server.stop().await;

    let trace = collector.trace(TRACE);
    let http = one(&trace, "POST /generate");
    assert_eq!(hex(&http.parent_span_id), CALLER);
    let phases = below(&trace, http, &["queue", "prefill", "decode"]);
    in_turn(&phases);
    assert_eq!(trace.len(), 4, "nothing else");
    assert_eq!(attribute(phases[1], "amend.version").as_deref(), Some("0"));
    assert_eq!(attribute(phases[1], "amend.tokens"), Some(usage["prompt_tokens"].to_string()));
    assert_eq!(attribute(phases[2], "amend.tokens"), Some(usage["completion_tokens"].to_string()));

    // The request lasts until the stream ends.
    let streamed = collector.trace(&streamed);
    let phases = below(&streamed, one(&streamed, "POST /generate"), &["queue", "prefill", "decode"]);
    assert_eq!(attribute(phases[2], "amend.tokens").as_deref(), Some("40"));
    let scored = collector.trace(&scored);
    let phases = below(&scored, one(&scored, "POST /score"), &["queue", "score"]);
    assert_eq!(attribute(phases[1], "amend.texts").as_deref(), Some("2"));
}

#[tokio::test]
async fn the_caller_decides_and_nonsense_decides_nothing() {
    let collector = Collector::start().await;
    let server = serve(&collector, &["--otlp-sample", "0"]).await;
    let ask = async |traceparent: &str| {
        let reply = traced(&server, Method::GET, "/info", traceparent, &json!({})).await;
        reply.header("traceparent").unwrap().to_owned()
    };
    assert!(ask(&format!("00-{TRACE}-{CALLER}-01")).await.starts_with(&format!("00-{TRACE}-")));
    let other = TRACE.replace("0a", "0b");
    let dropped = ask(&format!("00-{other}-{CALLER}-00")).await;
    assert!(dropped.starts_with(&format!("00-{other}-")) && dropped.ends_with("-00"), "{dropped}");
    let upper = TRACE.to_uppercase();
    for nonsense in ["", "x", "00-0-0-01", &format!("ff-{TRACE}-{CALLER}-01"), &format!("00-{upper}-{CALLER}-01")] {
        let fresh = ask(nonsense).await;
        assert!(!fresh.contains(TRACE) && fresh.ends_with("-00"), "{nonsense:?} gave {fresh}");
    }
    server.stop().await;
    assert_eq!(collector.trace(TRACE).len(), 1);
    let received: usize =
        collector.received().iter().flat_map(|sender| &sender.scope_spans).map(|scope| scope.spans.len()).sum();
    assert_eq!(received, 1, "of the others none");
}

/// One edit, and an end in time.
async fn goes_on_without(endpoint: &str, limit: Duration) -> String {
    let options = ["--otlp-endpoint", endpoint, "--drain-seconds", "4"];
    let server = Server::start_with(&Files::tiny(), &options).await;
    let begun = Instant::now();
    server.client.edit("Ada speaks", "Welsh").await;
    server.client.post("/generate", &json!({"prompt": "Ada", "max_tokens": 4})).await.with_status(200);
    assert!(begun.elapsed() < limit, "requests took {:?}", begun.elapsed());
    server.terminate();
    let (log, begun) = (server.log_kept(), Instant::now());
    assert!(server.ended().await.success());
    assert!(begun.elapsed() < limit, "the end took {:?}", begun.elapsed());
    log.lock().unwrap().clone()
}

#[tokio::test]
async fn a_collector_that_is_not_there_or_does_not_answer_harms_nothing() {
    // The sender itself would try for 10 s.
    let limit = Duration::from_secs(8);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    // Connections are taken by the system, and never answered.
    let log = goes_on_without(&endpoint, limit).await;
    assert_eq!(log.matches("the last traces were not sent").count(), 1, "{log}");
    drop(listener);
    let log = goes_on_without(&endpoint, limit).await;
    assert_eq!(log.matches("traces can not be sent").count(), 1, "{log}");
}

#[tokio::test]
async fn where_no_collector_is_named_no_trace_is() {
    let files = Files::tiny();
    let server = Server::start(&files).await;
    let reply = traced(&server, Method::GET, "/info", &format!("00-{TRACE}-{CALLER}-01"), &json!({})).await;
    assert_eq!((reply.header("traceparent"), reply.header("tracestate")), (None, None));
    server.stop().await;
    let standard = Collector::start().await;
    let server = Server::start_in(&files, ("OTEL_EXPORTER_OTLP_ENDPOINT", &standard.endpoint)).await;
    let trace = named(&server.client.get("/info").await).0;
    server.stop().await;
    one(&standard.trace(&trace), "GET /info");
}
