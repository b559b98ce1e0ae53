#!/usr/bin/env python3
"""Measures how long clients wait for a first token and between two tokens: alone, beside other streams, and beside them
while edits are made and taken back as fast as the service takes them. Only the standard library is used. Run it on a
machine that does nothing else; `make bench-latency` builds first. `--write` puts the table into bench/RESULTS.md."""

import concurrent.futures
import http.client
import itertools
import json
import random
import statistics
import tempfile
import threading
import time

from generation import PROMPTS, Amend, machine, options, publish

# Prompts of mixed lengths: a sentence, or a page that ends with one.
FILLER = "It was a long day, and nobody in the town had slept well since the fair had left. "


def prompt(number):
    return FILLER * random.Random(number).choice([0, 0, 1, 4, 16]) + PROMPTS[number % len(PROMPTS)]


def stream(server, number, tokens):
    """Seconds to the first token, and between each two."""
    connection = http.client.HTTPConnection(server.address, timeout=600)
    try:
        body = {"prompt": prompt(number), "max_tokens": tokens, "temperature": 0.8, "seed": number, "stream": True}
        began = last = time.monotonic()
        connection.request("POST", "/generate", json.dumps(body), {"content-type": "application/json"})
        first, between = None, []
        for line in connection.getresponse():
            if line.startswith(b"event: token"):
                now = time.monotonic()
                if first is None:
                    first = now - began
                else:
                    between.append(now - last)
                last = now
        return first, between
    finally:
        connection.close()


def edits(server, stop, made):
    """Edits and takes back until told to stop."""
    connection = http.client.HTTPConnection(server.address, timeout=600)
    headers = {"content-type": "application/json"}
    for number in itertools.count():
        if stop.is_set():
            break
        body = {"prompt": f"The mother tongue of subject number {number} is", "target": "French", "guard": None}
        connection.request("POST", "/edits", json.dumps(body), headers)
        answer = json.loads(connection.getresponse().read())
        connection.request("DELETE", f"/edits/{answer['id']}")
        connection.getresponse().read()
        made.append(2)
    connection.close()


def measure(server, streams, requests, tokens, editors):
    stop, made = threading.Event(), []
    threads = [threading.Thread(target=edits, args=(server, stop, made)) for _ in range(editors)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(streams) as pool:
        results = list(pool.map(lambda number: stream(server, number, tokens), range(requests)))
    seconds = time.monotonic() - began
    stop.set()
    for thread in threads:
        thread.join()
    firsts = [first for first, _ in results if first is not None]
    between = [gap for _, gaps in results for gap in gaps]
    tail = lambda values: statistics.quantiles(values, n=100)[98]
    return {"first_p50": statistics.median(firsts), "first_p99": tail(firsts), "between_p50": statistics.median(between),
            "between_p99": tail(between), "tokens_per_second": (len(between) + len(firsts)) / seconds,
            "changes_per_second": sum(made) / seconds}


def table(results):
    lines = ["| | first token, ms, p50 | p99 | between tokens, ms, p50 | p99 | tokens/s | edits and takings back/s |",
             "|---|---|---|---|---|---|---|"]
    for name, row in results.items():
        times = " | ".join(f"{row[key] * 1000:.0f}" for key in ("first_p50", "first_p99", "between_p50", "between_p99"))
        lines.append(f"| {name} | {times} | {row['tokens_per_second']:.0f} | {row['changes_per_second']:.1f} |")
    return "\n".join(lines)


def main():
    parser = options(__doc__)
    parser.add_argument("--threads", type=int, default=2, help="threads, and cores to pin to")
    parser.add_argument("--streams", type=int, default=16, help="streams at the same time")
    parser.add_argument("--requests", type=int, default=64, help="requests of each measurement beside others")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each stream")
    parser.add_argument("--editors", type=int, default=2, help="clients that edit at the same time")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Amend(args, args.threads, folder)
        try:
            stream(server, 0, 8)
            results = {
                "one stream": measure(server, 1, 16, args.tokens, 0),
                f"one stream, edits by {args.editors}": measure(server, 1, 16, args.tokens, args.editors),
                f"{args.streams} streams": measure(server, args.streams, args.requests, args.tokens, 0),
                f"{args.streams} streams, edits by {args.editors}":
                    measure(server, args.streams, args.requests, args.tokens, args.editors),
            }
        finally:
            server.stop()
    publish("latency", args, f"{machine()}, {args.threads} threads\n\n{table(results)}", results)


if __name__ == "__main__":
    main()
