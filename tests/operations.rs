//! What operators are given agrees with the code: dashboards and rules ask only for metrics that exist, none is forgotten,
//! and the documents name every metric and every error code.

#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use amend::{http::error::Code, telemetry::Metrics};
use serde_json::Value;

/// Metrics as Prometheus sees them once each has been touched.
fn exported() -> String {
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
    metrics.render()
}

/// Names of series, those that a histogram is made of too.
fn series() -> BTreeSet<String> {
    let name = |line: &str| line.split([' ', '{']).next().unwrap_or_default().to_owned();
    exported().lines().filter(|line| !line.starts_with('#')).map(name).collect()
}

/// Each metric's type: counter, gauge, histogram.
fn types() -> BTreeMap<String, String> {
    let text = exported();
    let declared = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    declared.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

fn path(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(below)
}

fn text(file: impl AsRef<Path>) -> String {
    fs::read_to_string(file.as_ref()).unwrap_or_else(|error| panic!("{}: {error}", file.as_ref().display()))
}

/// The texts of all files in a folder that end so, by name.
fn texts(folder: &str, end: &str) -> BTreeMap<String, String> {
    let files = fs::read_dir(path(folder)).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|file| file.to_str().unwrap().ends_with(end));
    let found: BTreeMap<_, _> = files.map(|file| (file.display().to_string(), text(&file))).collect();
    assert!(!found.is_empty(), "no {end} in {folder}");
    found
}

/// Every text that is, or contains, a query.
fn expressions<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(["expr", "query"].iter().filter_map(|key| fields.get(*key)?.as_str()));
            fields.values().for_each(|value| expressions(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

/// Words that name a metric or the result of a recording rule, whose name has colons.
fn asked_for(query: &str) -> impl Iterator<Item = &str> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    words.filter(|word| word.starts_with("amend_") || word.contains(":amend_"))
}

fn recorded(rules: &BTreeMap<String, String>) -> BTreeSet<String> {
    let lines = rules.values().flat_map(|text| text.lines());
    lines.filter_map(|line| line.trim().strip_prefix("- record: ")).map(str::to_owned).collect()
}

#[test]
fn dashboards_and_rules_ask_only_for_what_exists() {
    let rules = texts("deploy/prometheus/rules", ".yml");
    let known: BTreeSet<String> = series().into_iter().chain(recorded(&rules)).collect();
    let mut asked = BTreeSet::new();
    for (file, text) in texts("deploy/grafana/dashboards", ".json") {
        let dashboard: Value = serde_json::from_str(&text).unwrap();
        let mut found = Vec::new();
        expressions(&dashboard, &mut found);
        assert!(found.len() > 10, "{file} has only {} queries", found.len());
        asked.extend(found.iter().flat_map(|query| asked_for(query)).map(str::to_owned));
    }
    asked.extend(rules.values().flat_map(|text| asked_for(text)).map(str::to_owned));
    let unknown: Vec<_> = asked.difference(&known).collect();
    assert!(unknown.is_empty(), "asked for, but not there: {unknown:?}");
    assert!(asked.contains("amend_edit_duration_seconds_bucket"), "edit latency is not on a dashboard: {asked:?}");
    assert!(asked.contains("instance:amend_edit_queue:ratio"), "no recording rule is asked for: {asked:?}");
}

#[test]
fn every_metric_is_on_a_dashboard() {
    let dashboards = texts("deploy/grafana/dashboards", ".json");
    let shown = |name: &String| dashboards.values().any(|text| text.contains(name.as_str()));
    let missing: Vec<_> = types().into_keys().filter(|name| !shown(name)).collect();
    assert!(missing.is_empty(), "on no dashboard: {missing:?}");
}

#[test]
fn every_alert_is_in_the_manual_and_has_a_test() {
    let (manual, tests) = (text(path("docs/operations.md")), texts("deploy/prometheus/tests", ".yml"));
    let rules = texts("deploy/prometheus/rules", ".yml");
    let lines = rules.values().flat_map(|text| text.lines());
    let alerts: Vec<_> = lines.filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 5, "{alerts:?}");
    for alert in alerts {
        assert!(manual.contains(&format!("`{alert}`")), "docs/operations.md does not say what to do at {alert}");
        assert!(tests.values().any(|text| text.contains(&format!("alertname: {alert}\n"))), "{alert} has no test");
    }
}

/// The rows of a document's tables whose first cell is one snake_case name in backticks: the name and the second cell.
fn rows(document: &str) -> BTreeMap<String, String> {
    let cells = |line: &str| -> Option<(String, String)> {
        let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
        let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
        let is_name = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        is_name.then_some((name.to_owned(), cells.next()?.to_owned()))
    };
    text(path(document)).lines().filter_map(cells).collect()
}

#[test]
fn the_document_of_metrics_has_each_with_its_type() {
    assert_eq!(rows("docs/metrics.md"), types());
}

#[test]
fn the_document_of_the_interface_has_each_error_code_with_its_status() {
    let codes = Code::ALL.iter().map(|code| (code.as_str().to_owned(), code.status().as_u16().to_string()));
    assert_eq!(rows("docs/api.md"), codes.collect::<BTreeMap<_, _>>());
}
