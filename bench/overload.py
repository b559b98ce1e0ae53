#!/usr/bin/env python3
"""Measures what a crowd gets: first how many generations a second the service completes for as many clients as it has places,
then, with ten times as many arriving, how long those who are admitted wait, how fast the rest get their 429, and how long
/livez and /metrics take meanwhile. Only the standard library is used. Run it on a machine that does nothing else; `--write`
puts the table into bench/RESULTS.md."""

import concurrent.futures
import http.client
import itertools
import json
import os
import statistics
import tempfile
import threading
import time

from generation import PROMPTS, Amend, machine, options, publish

# More would be measuring Python.
MOST_AT_ONCE = 512


def ask(server, number, tokens):
    """Status and seconds of one generation."""
    connection = http.client.HTTPConnection(server.address, timeout=600)
    try:
        body = {"prompt": PROMPTS[number % len(PROMPTS)], "max_tokens": tokens, "temperature": 0.8, "seed": number}
        began = time.monotonic()
        connection.request("POST", "/generate", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status, time.monotonic() - began
    finally:
        connection.close()


def capacity(server, clients, tokens, seconds):
    """Generations a second of so many clients, each of which asks again when it is answered."""
    end, numbers = time.monotonic() + seconds, itertools.count()

    def client(_):
        done = 0
        while time.monotonic() < end:
            done += ask(server, next(numbers), tokens)[0] == 200
        return done

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(client, range(clients))) / seconds


def probe(server, path, stop, times):
    while not stop.wait(0.1):
        connection = http.client.HTTPConnection(server.address, timeout=60)
        began = time.monotonic()
        connection.request("GET", path)
        assert connection.getresponse().status == 200
        times.append(time.monotonic() - began)
        connection.close()


def crowd(server, rate, tokens, seconds):
    """Statuses and seconds of requests that arrive at this rate, and of probes beside them."""
    stop, probes = threading.Event(), {"/livez": [], "/metrics": []}
    watchers = [threading.Thread(target=probe, args=(server, path, stop, times)) for path, times in probes.items()]
    for watcher in watchers:
        watcher.start()
    with concurrent.futures.ThreadPoolExecutor(MOST_AT_ONCE) as pool:
        began, sent = time.monotonic(), []
        for number in range(int(rate * seconds)):
            time.sleep(max(0, began + number / rate - time.monotonic()))
            sent.append(pool.submit(ask, server, number, tokens))
        results = [request.result() for request in sent]
    stop.set()
    for watcher in watchers:
        watcher.join()
    return results, probes


def spread(values):
    """Median, 99th percentile and most, ms."""
    if len(values) < 2:
        return "too few | |"
    return " | ".join(f"{1000 * value:.0f}" for value in
                      (statistics.median(values), statistics.quantiles(values, n=100)[98], max(values)))


def main():
    parser = options(__doc__)
    parser.add_argument("--threads", type=int, default=2, help="threads, and cores to pin to")
    parser.add_argument("--streams", type=int, default=16, help="places, and clients while the capacity is measured")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each generation")
    parser.add_argument("--seconds", type=float, default=30, help="how long each measurement lasts")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Amend(args, args.threads, folder)
        try:
            ask(server, 0, 8)
            completed = capacity(server, args.streams, args.tokens, args.seconds)
            results, probes = crowd(server, 10 * completed, args.tokens, args.seconds)
        finally:
            server.stop()
    admitted = [seconds for status, seconds in results if status == 200]
    refused = [seconds for status, seconds in results if status == 429]
    # What waited longer than the service lets anyone wait.
    let_go = [seconds for status, seconds in results if status == 408]
    assert len(admitted) + len(refused) + len(let_go) == len(results), {status for status, _ in results}
    head = (f"{machine()}, {args.threads} threads, load average {os.getloadavg()[0]:.1f}; capacity {completed:.1f} generations of "
            f"{args.tokens} tokens a second, offered {10 * completed:.0f}")
    lines = [head, "", "| | how many | ms, p50 | p99 | most |", "|---|---|---|---|---|",
             f"| admitted | {len(admitted)} | {spread(admitted)} |", f"| refused with 429 | {len(refused)} | {spread(refused)} |"]
    lines += [f"| let go with 408 | {len(let_go)} | {spread(let_go)} |"] if let_go else []
    lines += [f"| `{path}` meanwhile | {len(times)} | {spread(times)} |" for path, times in probes.items()]
    publish("overload", args, "\n".join(lines), {"capacity": completed, "results": results, "probes": probes})


if __name__ == "__main__":
    main()
