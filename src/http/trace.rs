//! W3C trace context (`traceparent`, `tracestate`): in with a request, out with its answer, and on to the writer.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::TraceContextExt,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A request's span that goes to a collector. It ends with the last clone of this: the writer may work on below it when the
/// answer is long gone.
#[derive(Debug, Clone)]
pub(super) struct Traced(Arc<Open>);

#[derive(Debug)]
struct Open {
    context: Context,
    /// Held, because a span without holders ends, at the time when it was last worked on.
    _span: Span,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.context.span().end();
    }
}

impl Traced {
    /// Puts a new span below its caller's, if the headers name one; else it begins a trace. None where traces go nowhere.
    pub fn take_up(span: &Span, headers: &HeaderMap) -> Option<Self> {
        if headers.contains_key(TRACEPARENT) {
            let caller = TraceContextPropagator::new().extract(&Incoming(headers));
            // Fails where nothing is sent; the next line tells.
            let _ = span.set_parent(caller);
        }
        context(span).map(|context| Self(Arc::new(Open { context, _span: span.clone() })))
    }

    /// For the log: the trace's id, 32 hexadecimal digits.
    pub fn id(&self) -> String {
        self.0.context.span().span_context().trace_id().to_string()
    }

    /// Names the span to the caller.
    pub fn answer(&self, headers: &mut HeaderMap) {
        name(&self.0.context, headers);
    }
}

/// Names a span to whom a request is handed on. Where traces go nowhere, what the caller named stays.
pub(super) fn hand_on(span: &Span, headers: &mut HeaderMap) {
    if let Some(context) = context(span) {
        name(&context, headers);
    }
}

fn context(span: &Span) -> Option<Context> {
    Some(span.context()).filter(|context| context.span().span_context().is_valid())
}

fn name(context: &Context, headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(context, &mut Outgoing(headers));
}

struct Incoming<'a>(&'a HeaderMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct Outgoing<'a>(&'a mut HeaderMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        let Ok(name) = HeaderName::try_from(key) else { return };
        match HeaderValue::try_from(value) {
            Ok(value) if !value.is_empty() => drop(self.0.insert(name, value)),
            // A state that is empty is not sent.
            _ => drop(self.0.remove(name)),
        }
    }
}
