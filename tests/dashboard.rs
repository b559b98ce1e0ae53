//! The Grafana dashboard and the metrics agree: none is asked for that does not exist, none is forgotten.

use std::{collections::BTreeSet, fs, path::Path};

use amend::telemetry::Metrics;
use serde_json::Value;

/// Metrics as Prometheus sees them once each has been touched.
fn exported() -> BTreeSet<String> {
    let metrics = Metrics::new();
    metrics.edits.with_label_values(&["applied"]).inc();
    metrics.edit_duration.with_label_values(&["total"]).observe(0.1);
    metrics.reverts.with_label_values(&["rollback"]).inc();
    metrics.edit_breaks.with_label_values(&["edit"]).inc();
    metrics.edit_conflicts.with_label_values(&["paraphrase"]).inc();
    metrics.canary_kl.with_label_values(&["max"]).set(0.1);
    metrics.generate_requests.with_label_values(&["ok"]).inc();
    metrics.tokens.with_label_values(&["prompt"]).inc();
    metrics.sequences.with_label_values(&["running"]).inc();
    metrics.http_requests.with_label_values(&["GET", "/livez", "200"]).inc();
    metrics.http_request_duration.with_label_values(&["GET", "/livez"]).observe(0.1);
    let name = |line: &str| line.split([' ', '{']).next().unwrap_or_default().to_owned();
    metrics.render().lines().filter(|line| !line.starts_with('#')).map(name).collect()
}

/// Every value under the key `expr`.
fn expressions<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("expr").and_then(Value::as_str));
            fields.values().for_each(|value| expressions(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

fn metrics_in(expression: &str) -> impl Iterator<Item = &str> {
    expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("amend_"))
}

#[test]
fn the_dashboard_asks_only_for_metrics_that_exist() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/grafana/dashboards/edits.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut expressions_found = Vec::new();
    expressions(&dashboard, &mut expressions_found);
    let asked: BTreeSet<&str> = expressions_found.iter().flat_map(|expression| metrics_in(expression)).collect();
    let exported = exported();
    let unknown: Vec<_> = asked.iter().filter(|name| !exported.contains(**name)).collect();
    assert!(unknown.is_empty(), "the dashboard asks for {unknown:?}; there are {exported:?}");
    assert!(asked.contains("amend_edit_duration_seconds_bucket"), "edit latency is not on it: {asked:?}");
}

#[test]
fn every_metric_is_on_the_dashboard() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/grafana/dashboards/edits.json");
    let dashboard = fs::read_to_string(path).unwrap();
    let base = |name: &String| {
        let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        histogram.unwrap_or(name).to_owned()
    };
    let missing: BTreeSet<String> = exported().iter().map(base).filter(|name| !dashboard.contains(name)).collect();
    assert!(missing.is_empty(), "not on the dashboard: {missing:?}");
}
