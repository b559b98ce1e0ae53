"""What the dashboards show. `$instance` is a template variable of each; see make-dashboards for what the keys mean."""

HERE = 'instance=~"$instance"'


def rate(metric, by, more=""):
    labels = f"{HERE},{more}" if more else HERE
    groups = f" by ({by})" if by else ""
    return f"sum{groups} (rate({metric}{{{labels}}}[$__rate_interval]))"


def quantile(q, metric, more="", by=""):
    groups = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(metric + '_bucket', groups, more)})"


def quantiles(metric, more=""):
    return [(quantile(q, metric, more), name) for q, name in [(0.5, "p50"), (0.9, "p90"), (0.99, "p99")]]


def gauge(metric, function="sum"):
    return f"{function}({metric}{{{HERE}}})"


INSTANCE = {"name": "instance", "label": "Instance", "query": "label_values(amend_build_info, instance)"}
PHASES = ["queue", "capture", "editor", "guard", "commit", "publish", "total"]
PUBLISHED = f"changes(amend_version{{{HERE}}}[$__rate_interval]) > 0"
TOTAL = 'phase="total"'
CACHED, READ_OR_CACHED = 'kind="cached"', 'kind=~"cached|prompt"'
SERVER_ERROR = 'status=~"5.."'
EDIT, HTTP = "amend_edit_duration_seconds", "amend_http_request_duration_seconds"

EDITS = [
    ("Now", [
        {"title": "Version", "kind": "stat", "unit": "none", "queries": [(gauge("amend_version", "max"), "")]},
        {"title": "Active edits", "kind": "stat", "unit": "none", "queries": [(gauge("amend_active_edits", "max"), "")]},
        {"title": "Median edit", "kind": "stat", "unit": "s", "queries": [(quantile(0.5, EDIT, TOTAL), "")]},
        {"title": "99th percentile", "kind": "stat", "unit": "s", "queries": [(quantile(0.99, EDIT, TOTAL), "")]},
        {"title": "Waiting for the writer", "kind": "stat", "unit": "none",
         "queries": [(gauge("amend_edit_queue_depth"), "")]},
        {"title": "Edits that hold", "kind": "stat", "unit": "percentunit",
         "about": "Of the active edits that the last complete check scored. Nothing before the first check.",
         "queries": [(f"{gauge('amend_edits_holding')} / ({gauge('amend_edits_checked')} > 0)", "")]},
    ]),
    ("Latency", [
        {"title": "Time of an edit", "unit": "s", "queries": quantiles(EDIT, TOTAL)},
        {"title": "p50 by phase", "unit": "s", "stacking": "normal", "fill": 20,
         "queries": [(quantile(0.5, EDIT, 'phase!="total"', "phase"), "{{phase}}")]},
        {"title": "p90 by phase", "unit": "s", "queries": [(quantile(0.9, EDIT, 'phase!="total"', "phase"), "{{phase}}")]},
        {"title": "p99 by phase", "unit": "s", "queries": [(quantile(0.99, EDIT, 'phase!="total"', "phase"), "{{phase}}")]},
        {"title": "Distribution: $phase", "kind": "heatmap", "unit": "s",
         "queries": [(f'sum by (le) (increase({EDIT}_bucket{{{HERE},phase="$phase"}}[$__rate_interval]))', "{{le}}")]},
        {"title": "One transaction of the log", "unit": "s", "queries": quantiles("amend_log_append_seconds")},
    ]),
    ("Traffic", [
        {"title": "Edits by outcome", "unit": "ops", "queries": [(rate("amend_edits_total", "outcome"), "{{outcome}}")]},
        {"title": "Queue of the writer", "unit": "none",
         "queries": [(gauge("amend_edit_queue_depth"), "waiting"), (gauge("amend_edit_queue_capacity"), "capacity")]},
        {"title": "Superseded, taken back, rolled back", "unit": "ops",
         "queries": [(rate("amend_reverts_total", "kind"), "{{kind}}")]},
        {"title": "Version and active edits", "unit": "none",
         "queries": [(gauge("amend_version", "max"), "version"), (gauge("amend_active_edits", "max"), "active")]},
    ]),
    ("What edits do", [
        {"title": "Success probability", "unit": "percentunit",
         "about": "Probability per target token after an edit, on its own prompt.",
         "queries": [(quantile(q, "amend_edit_success_probability"), name) for q, name in
                     [(0.05, "lowest 5 %"), (0.25, "lowest quarter"), (0.5, "median")]]},
        {"title": "Locality KL", "unit": "none", "log": True, "about": "Of each locality probe, nats.",
         "queries": quantiles("amend_edit_locality_kl")},
        {"title": "Breaks", "unit": "ops", "about": "Active edits and canaries that edits broke or would have broken.",
         "queries": [(rate("amend_edit_breaks_total", "kind"), "{{kind}}")]},
        {"title": "Conflicts", "unit": "ops", "queries": [(rate("amend_edit_conflicts_total", "reason"), "{{reason}}")]},
    ]),
    ("Holding", [
        {"title": "Last complete check", "unit": "none",
         "queries": [(gauge("amend_edits_checked"), "checked"), (gauge("amend_edits_holding"), "holding"),
                     (gauge("amend_edits_check_version", "max"), "of version")]},
        {"title": "Age of the last check", "unit": "s",
         "queries": [(f"time() - (max(amend_edits_check_timestamp_seconds{{{HERE}}}) > 0)", "age")]},
        {"title": "One batch of a check", "unit": "s", "about": "What an edit that comes meanwhile waits for at most.",
         "queries": quantiles("amend_edit_check_batch_seconds")},
        {"title": "Canaries: KL from version 0", "unit": "none", "log": True,
         "queries": [(f"max by (stat) (amend_canary_kl{{{HERE}}})", "{{stat}}")]},
        {"title": "Canaries: changed", "unit": "none",
         "queries": [(gauge("amend_canaries_changed"), "changed"), (gauge("amend_canaries_checked"), "checked")]},
    ]),
]

GENERATION = [
    ("Latency", [
        {"title": "Time to the first token", "unit": "s", "queries": quantiles("amend_time_to_first_token_seconds")},
        {"title": "Between two tokens", "unit": "s", "queries": quantiles("amend_inter_token_seconds")},
        {"title": "Distribution: first token", "kind": "heatmap", "unit": "s",
         "queries": [(f"sum by (le) (increase(amend_time_to_first_token_seconds_bucket{{{HERE}}}[$__rate_interval]))",
                      "{{le}}")]},
        {"title": "Distribution: between tokens", "kind": "heatmap", "unit": "s",
         "queries": [(f"sum by (le) (increase(amend_inter_token_seconds_bucket{{{HERE}}}[$__rate_interval]))", "{{le}}")]},
    ]),
    ("Throughput", [
        {"title": "Tokens", "unit": "ops", "about": "Of prompts read, of prompts kept from others, and generated.",
         "queries": [(rate("amend_tokens_total", "kind"), "{{kind}}")]},
        {"title": "Prompt tokens that were not read again", "unit": "percentunit",
         "queries": [(f"{rate('amend_tokens_total', '', CACHED)} / "
                      f"({rate('amend_tokens_total', '', READ_OR_CACHED)} > 0)", "share")]},
        {"title": "Sequences", "unit": "none", "about": "Running together (the batch), and waiting for room.",
         "queries": [(f"sum by (state) (amend_sequences{{{HERE}}})", "{{state}}")]},
        {"title": "Requests by outcome", "unit": "reqps",
         "queries": [(rate("amend_generate_requests_total", "outcome"), "{{outcome}}")]},
    ]),
    ("Versions", [
        {"title": "In memory", "unit": "none", "queries": [(gauge("amend_versions_resident"), "resident")]},
        {"title": "Leases", "unit": "none", "about": "Requests that run on a version, which stays until they end.",
         "queries": [(gauge("amend_version_leases"), "leases")]},
    ]),
]

ROUTE = 'route=~"$route"'
SERVICE = [
    ("Now", [
        {"title": "Answers", "kind": "stat", "unit": "none", "about": "Instances that answer the scrape: ready ones.",
         "queries": [('sum(up{job="amend"})', "")]},
        {"title": "Build", "kind": "stat", "unit": "none", "text": "name",
         "queries": [(f"amend_build_info{{{HERE}}}", "{{version}}")]},
        {"title": "Replay at start", "kind": "stat", "unit": "s", "queries": [(gauge("amend_replay_seconds_sum", "max"), "")]},
        {"title": "Restarts in an hour", "kind": "stat", "unit": "none",
         "about": "Seen as the count of scrapes falling back. A process that never became ready is not seen here.",
         "queries": [(f'sum(resets({HTTP}_count{{{HERE},route="/metrics"}}[1h]))', "")]},
        {"title": "Requests", "kind": "stat", "unit": "reqps", "queries": [(rate("amend_http_requests_total", ""), "")]},
        {"title": "Answered 5xx", "kind": "stat", "unit": "percentunit",
         "queries": [(f"({rate('amend_http_requests_total', '', SERVER_ERROR)} or vector(0)) / "
                      f"{rate('amend_http_requests_total', '')}", "")]},
    ]),
    ("HTTP", [
        {"title": "By route", "unit": "reqps",
         "queries": [(rate("amend_http_requests_total", "method, route", ROUTE), "{{method}} {{route}}")]},
        {"title": "By status", "unit": "reqps", "queries": [(rate("amend_http_requests_total", "status", ROUTE), "{{status}}")]},
        {"title": "Errors by route", "unit": "reqps", "about": "4xx and 5xx; 499 is a client that left.",
         "queries": [(rate("amend_http_requests_total", "route, status", ROUTE + ',status=~"[45].."'), "{{status}} {{route}}")]},
        {"title": "p50 by route", "unit": "s", "queries": [(quantile(0.5, HTTP, ROUTE, "method, route"), "{{method}} {{route}}")]},
        {"title": "p99 by route", "unit": "s", "about": "To the end of the body, so a stream counts as long as it flows.",
         "queries": [(quantile(0.99, HTTP, ROUTE, "method, route"), "{{method}} {{route}}")]},
        {"title": "Distribution", "kind": "heatmap", "unit": "s",
         "queries": [(f"sum by (le) (increase({HTTP}_bucket{{{HERE},{ROUTE}}}[$__rate_interval]))", "{{le}}")]},
    ]),
    ("Replicas", [
        {"title": "Writers", "unit": "none", "about": "Of services that share one log, one writes.",
         "queries": [(f"amend_writer{{{HERE}}}", "{{instance}}")]},
        {"title": "Lag of followers", "unit": "s", "about": "Since each was last known to have every version; 0 for the writer.",
         "queries": [(f"amend_follower_lag_seconds{{{HERE}}}", "{{instance}}")]},
        {"title": "Versions that followers lack", "unit": "none",
         "queries": [(f"amend_follower_lag_versions{{{HERE}}}", "{{instance}}")]},
        {"title": "From commit to followers", "unit": "s", "about": "By the clocks of both; 0 where nothing was taken up.",
         "queries": [(f"({query} >= 0) or vector(0)", name) for query, name in quantiles("amend_follower_apply_seconds")]},
        {"title": "Takeovers", "unit": "none", "about": "How often each became the writer.",
         "queries": [(f"increase(amend_takeovers_total{{{HERE}}}[$__rate_interval])", "{{instance}}")]},
        {"title": "Diverged", "unit": "none", "about": "Out of service, because what it makes is not what the log says.",
         "queries": [(f"amend_replica_diverged{{{HERE}}}", "{{instance}}")]},
    ]),
    ("Saturation", [
        {"title": "Queue of the writer, share in use", "unit": "percentunit",
         "queries": [("max(instance:amend_edit_queue:ratio)", "in use")]},
        {"title": "Refused for want of room", "unit": "ops",
         "queries": [(rate("amend_edits_total", "", 'outcome="shed"'), "edits"),
                     (rate("amend_generate_requests_total", "", 'outcome="shed"'), "generation")]},
        {"title": "Sequences that wait", "unit": "none",
         "queries": [(f'sum(amend_sequences{{{HERE},state="waiting"}})', "waiting")]},
        {"title": "Time of a scrape", "unit": "s", "queries": [('max(scrape_duration_seconds{job="amend"})', "scrape")]},
    ]),
]

DASHBOARDS = {
    "edits": {"uid": "amend-edits", "title": "Amend: edits", "about": "How long edits take, what they do, whether they hold.",
              "published": PUBLISHED, "rows": EDITS,
              "variables": [INSTANCE, {"name": "phase", "label": "Phase", "values": PHASES, "current": "total"}]},
    "generation": {"uid": "amend-generation", "title": "Amend: generation", "about": "Latency and throughput of texts.",
                   "published": PUBLISHED, "rows": GENERATION, "variables": [INSTANCE]},
    "service": {"uid": "amend-service", "title": "Amend: service", "about": "HTTP, errors, saturation, restarts.",
                "published": PUBLISHED, "rows": SERVICE,
                "variables": [INSTANCE, {"name": "route", "label": "Route",
                                         "query": "label_values(amend_http_requests_total, route)"}]},
}
