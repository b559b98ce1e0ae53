//! Events for people and machines: on standard error, as text or as one JSON object per line. Beside them, spans go to a
//! collector where there is one.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use thiserror::Error;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

use super::traces::{Traces, TracesConfig, TracesError};

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One line of text per event, coloured on a terminal.
    Pretty,
    /// One JSON object per line, with the spans' fields.
    Json,
}

/// Why tracing could not be started.
#[derive(Debug, Error)]
pub enum TracingError {
    /// The filter is not in the form that `tracing` directives have.
    #[error(
        "log level {filter:?}: {message}; use error, warn, info, debug, trace or directives such as info,amend=debug"
    )]
    Filter { filter: String, message: String },
    /// The process has a subscriber already.
    #[error(transparent)]
    Twice(#[from] TryInitError),
    /// Traces can not be sent.
    #[error(transparent)]
    Traces(#[from] TracesError),
}

/// Writes the events that `filter` lets through to standard error from now on, and sends spans to a collector if there is one.
/// Standard output stays for results.
pub fn init(filter: &str, format: LogFormat, traces: Option<&TracesConfig>) -> Result<Option<Traces>, TracingError> {
    let mut layers = vec![layer(filter, format, io::stderr().is_terminal(), io::stderr)?];
    let traces = traces.map(Traces::start).transpose()?;
    layers.extend(traces.as_ref().map(Traces::layer));
    tracing_subscriber::registry().with(layers).try_init()?;
    Ok(traces)
}

fn layer<W>(
    filter: &str,
    format: LogFormat,
    colour: bool,
    writer: W,
) -> Result<Box<dyn Layer<Registry> + Send + Sync>, TracingError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let directives = EnvFilter::builder()
        .parse(filter)
        .map_err(|error| TracingError::Filter { filter: filter.to_owned(), message: error.to_string() })?;
    let layer = fmt::layer().with_writer(writer).with_ansi(colour);
    Ok(match format {
        LogFormat::Pretty => layer.with_filter(directives).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_filter(directives).boxed(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(filter: &str, format: LogFormat) -> String {
        let memory = Memory::default();
        let writer = memory.clone();
        let layer = layer(filter, format, false, move || writer.clone()).unwrap();
        ::tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            ::tracing::info!(edits = 3, "replayed the log");
            ::tracing::debug!("not of interest");
        });
        let bytes = memory.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_is_one_object_per_event() {
        let text = written("info", LogFormat::Json);
        let event: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(event["message"], "replayed the log");
        assert_eq!(event["edits"], 3);
        assert_eq!(event["level"], "INFO");
    }

    #[test]
    fn the_filter_decides_what_is_written() {
        let text = written("info", LogFormat::Pretty);
        assert!(text.contains("replayed the log edits=3"), "{text}");
        assert!(!text.contains("not of interest"), "{text}");
        assert!(written("debug", LogFormat::Pretty).contains("not of interest"));
        assert_eq!(written("error", LogFormat::Pretty), "");
    }

    #[test]
    fn a_filter_that_is_none_is_refused() {
        let error = layer("amend=loud", LogFormat::Pretty, false, io::stderr).err().unwrap();
        assert!(error.to_string().contains("amend=loud"), "{error}");
    }
}
