#!/usr/bin/env python3
"""Measures what a long log costs: to take one of its edits back, beside what an edit needs to be composed and committed there,
and to start with it, beside a start with none. Every edit is a version of its own. Only the standard library is used. Run it on a
machine that does nothing else; `make bench-log` builds first. `--write` puts the table into bench/RESULTS.md.

Composing is timed by the service together with the guard, which measures the edit's own prompt and nothing else here. Beside no
active edits that measuring is nearly all of it, so it is told apart by what it takes there."""

import argparse
import random
import statistics
import tempfile

from editing import bench
from generation import machine, options, publish


def restarts(args, database, server):
    """Seconds from the start to readiness, several times, and the last server."""
    seconds = []
    for _ in range(args.starts):
        server.stop()
        server = bench.Server(args, database)
        seconds.append(server.start_seconds)
    return statistics.median(seconds), server


def measure(args, folder, count):
    """Starts with so many edits, and times beside them."""
    database = f"sqlite://{folder}/{count}.db"
    server = bench.Server(args, database)
    try:
        made = bench.fill(server, count, 0)
        start, server = restarts(args, database, server)
        random.Random(0).shuffle(made)
        return {"start_seconds": start, **bench.times(server, args, bench.edits(20_000), bench.GUARD, made)}
    finally:
        server.stop()


def table(none, many, count):
    back, whole = many["take_back_median_ms"], many["of_which_compose_and_guard_ms"] + many["of_which_commit_ms"]
    own = whole - none["of_which_compose_and_guard_ms"]
    begun, empty = many["start_seconds"], none["start_seconds"]
    return "\n".join([
        "| | | beside it | | | goal |", "|---|---|---|---|---|---|",
        f"| take back one of {count} active edits, ms | {back:.0f} | an edit's compose and commit there | {own:.0f} | "
        f"ratio {back / own:.2f} | <= 1 |",
        f"| the same | {back:.0f} | with the measuring of its prompt | {whole:.0f} | ratio {back / whole:.2f} | |",
        f"| start with {count} edits in the log, s | {begun:.2f} | start with none | {empty:.2f} | "
        f"{begun - empty:.2f} more | <= 2 |"])


def main():
    parser = options(__doc__)
    parser.add_argument("--threads", type=int, default=2, help="threads, and cores to pin to")
    parser.add_argument("--edits", type=int, default=1000, help="active edits in the log, a version each")
    parser.add_argument("--timed", type=int, default=9, help="edits and takings back that are timed")
    parser.add_argument("--starts", type=int, default=3, help="starts that are timed")
    args = argparse.Namespace(**vars(parser.parse_args()), pin=True)
    with tempfile.TemporaryDirectory() as folder:
        none, many = measure(args, folder, 0), measure(args, folder, args.edits)
    publish("log", args, f"{machine()}, {args.threads} threads\n\n{table(none, many, args.edits)}", {"none": none, "many": many})


if __name__ == "__main__":
    main()
