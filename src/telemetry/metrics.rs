//! One struct that names every metric. Units are in the names; no label ever carries a prompt, a key or an id.

use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder, core::Collector,
};

/// Buckets for the duration of an edit and its phases, seconds.
const EDIT_SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Buckets for request and token times, seconds.
const REQUEST_SECONDS: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Buckets for the time between two tokens, seconds.
const TOKEN_SECONDS: &[f64] = &[0.002, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0];
/// Buckets for probabilities.
const PROBABILITY: &[f64] = &[0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0];
/// Buckets for KL divergences, nats.
const KL: &[f64] = &[0.0001, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];

/// Every metric of the service. Cloning shares them.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    /// Edits by `outcome`: applied, dry_run, rejected, failed, invalid, shed, cancelled.
    pub edits: IntCounterVec,
    /// Seconds of an edit by `phase`: queue, capture, editor, guard, commit, publish, total.
    pub edit_duration: HistogramVec,
    pub edit_queue_depth: IntGauge,
    pub edit_queue_capacity: IntGauge,
    /// Probability per target token after an edit, on its own prompt.
    pub edit_success_probability: Histogram,
    /// KL of each locality probe, nats.
    pub edit_locality_kl: Histogram,
    /// Active edits and canaries that edits broke or would have broken, as the guard saw it, by `kind`: edit, canary.
    pub edit_breaks: IntCounterVec,
    /// Conflicts of edits with active ones by `reason`: paraphrase, contradiction.
    pub edit_conflicts: IntCounterVec,
    /// Active edits that the last complete check scored.
    pub edits_checked: IntGauge,
    /// Those of them that hold.
    pub edits_holding: IntGauge,
    /// The version that the last complete check scored.
    pub edits_check_version: IntGauge,
    /// When it ended, seconds since 1970.
    pub edits_check_timestamp: IntGauge,
    /// Seconds of one batch of a check: what an edit that comes meanwhile waits for at most.
    pub edit_check_batch: Histogram,
    pub canaries: IntGauge,
    /// Canaries whose most probable tokens are not those of version 0.
    pub canaries_changed: IntGauge,
    /// KL divergence of the canaries from version 0, nats, by `stat`: max, mean.
    pub canary_kl: GaugeVec,
    pub active_edits: IntGauge,
    pub version: IntGauge,
    pub versions_resident: IntGauge,
    pub version_leases: IntGauge,
    /// Versions that took edits out, by `kind`: take_back, rollback, supersede.
    pub reverts: IntCounterVec,
    /// Generation requests by `outcome`: ok, invalid, shed, cancelled, error.
    pub generate_requests: IntCounterVec,
    pub time_to_first_token: Histogram,
    pub inter_token: Histogram,
    /// Tokens by `kind`: prompt (read), cached (of prompts, kept from others), generated.
    pub tokens: IntCounterVec,
    /// Sequences by `state`: running, waiting.
    pub sequences: IntGaugeVec,
    pub log_append: Histogram,
    /// 1 while this process changes the set, 0 while it follows.
    pub writer: IntGauge,
    /// How often it became the writer of a shared log.
    pub takeovers: IntCounter,
    /// Seconds since it was last known to have every version; 0 for the writer.
    pub follower_lag: Gauge,
    /// Versions that it knows of and does not have yet.
    pub follower_versions: IntGauge,
    /// Seconds from the commit of a version to its being served by a follower, by their clocks.
    pub follower_apply: Histogram,
    /// 1 if what it makes is not what the log says.
    pub diverged: IntGauge,
    /// Seconds that the last replay took.
    pub replay: Histogram,
    /// HTTP requests by `method`, `route` (the matched pattern) and `status`.
    pub http_requests: IntCounterVec,
    /// Seconds of an HTTP request by `method` and `route`, to the end of its body.
    pub http_request_duration: HistogramVec,
}

impl Metrics {
    /// Registers every metric in a registry of its own.
    pub fn new() -> Self {
        let r = Registry::new();
        let metrics = Self {
            edits: counters(&r, "amend_edits_total", "Edits by outcome.", &["outcome"]),
            edit_duration: histograms(
                &r,
                "amend_edit_duration_seconds",
                "Duration of an edit by phase.",
                EDIT_SECONDS,
                &["phase"],
            ),
            edit_queue_depth: gauge(&r, "amend_edit_queue_depth", "Requests waiting for the writer."),
            edit_queue_capacity: gauge(&r, "amend_edit_queue_capacity", "Requests that may wait for the writer."),
            edit_success_probability: histogram(
                &r,
                "amend_edit_success_probability",
                "Probability per target token after an edit, on its own prompt.",
                PROBABILITY,
            ),
            edit_locality_kl: histogram(
                &r,
                "amend_edit_locality_kl",
                "KL divergence of each locality probe, nats.",
                KL,
            ),
            edit_breaks: counters(
                &r,
                "amend_edit_breaks_total",
                "Active edits and canaries that edits broke or would have broken, by kind.",
                &["kind"],
            ),
            edit_conflicts: counters(
                &r,
                "amend_edit_conflicts_total",
                "Conflicts of edits with active ones, by reason.",
                &["reason"],
            ),
            edits_checked: gauge(&r, "amend_edits_checked", "Active edits that the last complete check scored."),
            edits_holding: gauge(&r, "amend_edits_holding", "Active edits that held at the last complete check."),
            edits_check_version: gauge(&r, "amend_edits_check_version", "The version that was checked last."),
            edits_check_timestamp: gauge(
                &r,
                "amend_edits_check_timestamp_seconds",
                "When the last complete check ended, seconds since 1970; 0 before the first.",
            ),
            edit_check_batch: histogram(
                &r,
                "amend_edit_check_batch_seconds",
                "One batch of a check of the active edits.",
                EDIT_SECONDS,
            ),
            canaries: gauge(&r, "amend_canaries_checked", "Canaries that the last complete check scored."),
            canaries_changed: gauge(
                &r,
                "amend_canaries_changed",
                "Canaries whose most probable tokens are not those of version 0.",
            ),
            canary_kl: register(
                &r,
                GaugeVec::new(
                    Opts::new("amend_canary_kl", "KL divergence of the canaries from version 0, nats."),
                    &["stat"],
                ),
            ),
            active_edits: gauge(&r, "amend_active_edits", "Edits active in the newest version."),
            version: gauge(&r, "amend_version", "Number of the newest version."),
            versions_resident: gauge(&r, "amend_versions_resident", "Versions whose weights are in memory."),
            version_leases: gauge(&r, "amend_version_leases", "Requests running on a version."),
            reverts: counters(&r, "amend_reverts_total", "Edits taken out of the set, by kind.", &["kind"]),
            generate_requests: counters(
                &r,
                "amend_generate_requests_total",
                "Generation and scoring requests by outcome.",
                &["outcome"],
            ),
            time_to_first_token: histogram(
                &r,
                "amend_time_to_first_token_seconds",
                "From admission to the first token.",
                REQUEST_SECONDS,
            ),
            inter_token: histogram(&r, "amend_inter_token_seconds", "Between two tokens of a sequence.", TOKEN_SECONDS),
            tokens: counters(
                &r,
                "amend_tokens_total",
                "Tokens by kind: of prompts read and cached, and generated.",
                &["kind"],
            ),
            sequences: gauges(&r, "amend_sequences", "Sequences by state.", &["state"]),
            log_append: histogram(&r, "amend_log_append_seconds", "One transaction of the log.", EDIT_SECONDS),
            writer: gauge(&r, "amend_writer", "Whether this process changes the set: 1, or 0 for a follower."),
            takeovers: register(
                &r,
                IntCounter::new("amend_takeovers_total", "How often this process became the writer of a shared log."),
            ),
            follower_lag: register(
                &r,
                Gauge::new(
                    "amend_follower_lag_seconds",
                    "Since this process was last known to have every version; 0 for the writer.",
                ),
            ),
            follower_versions: gauge(
                &r,
                "amend_follower_lag_versions",
                "Versions that this process knows of and does not have yet.",
            ),
            follower_apply: histogram(
                &r,
                "amend_follower_apply_seconds",
                "From the commit of a version to its being served by a follower.",
                EDIT_SECONDS,
            ),
            diverged: gauge(
                &r,
                "amend_replica_diverged",
                "Whether what this process makes is not what the log says; it is out of service then.",
            ),
            replay: histogram(&r, "amend_replay_seconds", "Replaying the log at start.", REQUEST_SECONDS),
            http_requests: counters(
                &r,
                "amend_http_requests_total",
                "HTTP requests by method, matched route and status.",
                &["method", "route", "status"],
            ),
            http_request_duration: histograms(
                &r,
                "amend_http_request_duration_seconds",
                "Duration of an HTTP request to the end of its body.",
                REQUEST_SECONDS,
                &["method", "route"],
            ),
            registry: r,
        };
        gauges(&metrics.registry, "amend_build_info", "The running build; always 1.", &["version"])
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        metrics
    }

    /// All metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut out);
        debug_assert!(encoded.is_ok(), "writing to memory does not fail");
        String::from_utf8_lossy(&out).into_owned()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: prometheus::Result<C>) -> C {
    let collector = collector.expect("metric names and labels in this file are valid");
    registry.register(Box::new(collector.clone())).expect("metric names in this file are distinct");
    collector
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::new(name, help))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    register(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
}

fn histograms(registry: &Registry, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
    register(registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_what_was_counted() {
        let metrics = Metrics::new();
        metrics.edits.with_label_values(&["applied"]).inc();
        let text = metrics.render();
        assert!(text.contains("amend_edits_total{outcome=\"applied\"} 1"), "{text}");
        assert!(text.contains("amend_build_info"));
    }
}
