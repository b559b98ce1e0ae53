//! Where traces go: what the options say, or else the variables that OpenTelemetry has for it.

use anyhow::{Context, anyhow};

use crate::{
    config::{TracesArgs, values},
    telemetry::TracesConfig,
};

/// OpenTelemetry's own names for the endpoint, the more particular one first.
const STANDARD: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// None where no traces are sent.
pub(super) fn config(args: &TracesArgs) -> anyhow::Result<Option<TracesConfig>> {
    let endpoint = match &args.otlp_endpoint {
        Some(endpoint) => Some(endpoint.clone()),
        None => standard(|name| std::env::var(name).ok())?,
    };
    let sample = f64::from(args.otlp_sample);
    Ok(endpoint.map(|endpoint| TracesConfig { endpoint, sample }))
}

/// What the environment says. An empty value is as good as none.
fn standard(read: impl Fn(&str) -> Option<String>) -> anyhow::Result<Option<String>> {
    let said = STANDARD.iter().find_map(|name| read(name).filter(|value| !value.is_empty()).map(|value| (name, value)));
    let checked = said.map(|(name, value)| values::collector(&value).map_err(|error| anyhow!(error)).context(*name));
    checked.transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_particular_variable_wins_and_a_bad_one_is_named() {
        let of = |traces: &str, all: &str| {
            let (traces, all) = (traces.to_owned(), all.to_owned());
            standard(move |name| Some(if name.contains("TRACES") { traces.clone() } else { all.clone() }))
        };
        assert_eq!(of("http://a:1", "http://b:2").unwrap().as_deref(), Some("http://a:1"));
        assert_eq!(of("", "http://b:2").unwrap().as_deref(), Some("http://b:2"));
        assert_eq!(of("", "").unwrap(), None);
        let error = format!("{:#}", of("", "https://b:2").unwrap_err());
        assert!(error.starts_with("OTEL_EXPORTER_OTLP_ENDPOINT: https"), "{error}");
    }
}
