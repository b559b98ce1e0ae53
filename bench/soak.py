#!/usr/bin/env python3
"""Keeps a service at full load for a given time: edits, batches, dry runs, takings back and rollbacks; generations of every kind
of version, streamed and not; streams that are left in the middle; garbage. Every few seconds it samples the process's memory,
descriptors, threads and processor time, and how long requests took since. After a warm-up it asks whether memory, descriptors or
latency drift, draws the curves (docs/soak.svg with --write), and starts the service again on the log that is left, which checks
all of it.

Only the standard library is used. `make bench-soak` builds first."""

import concurrent.futures
import http.client
import json
import os
import pathlib
import random
import socket
import statistics
import sys
import tempfile
import threading
import time

import svg
from generation import HERE, PROMPTS, Amend, machine, options, publish

# Edits that are active at the same time at most; above it the clients take back first.
MOST_ACTIVE = 64
# What clients that are refused or cut off wait before they ask again, seconds.
PAUSE = 0.2
TARGETS = ["French", "a doctor", "London", "bread", "the piano", "blue"]
# Requests that must be refused, and how: method, path, body, statuses.
GARBAGE = [
    ("POST", "/edits", b"{", {400}),
    ("POST", "/edits", b"[]", {422}),
    ("POST", "/edits", b'{"prompt": "", "target": ""}', {422}),
    ("POST", "/edits", b'{"prompt": "a", "target": "b", "colour": 1}', {422}),
    ("POST", "/edits", json.dumps({"prompt": "a " * 5000, "target": "b"}).encode(), {422}),
    ("POST", "/generate", b'{"prompt": "a", "max_tokens": -1}', {422}),
    ("POST", "/generate", b'{"prompt": "a", "version": 4000000000}', {404}),
    ("POST", "/generate", b"\xff\xfe" * 200, {400}),
    ("POST", "/score", b'{"prompt": "a", "continuations": []}', {422}),
    ("POST", "/v1/completions", b'{"model": "nobody", "prompt": "a"}', {404}),
    ("POST", "/rollback", b'{"to_version": 4000000000}', {404}),
    ("DELETE", "/edits/no-id", b"", {400}),
    ("GET", "/versions/4000000000", b"", {404}),
    ("PUT", "/edits", b"", {405}),
    ("GET", "/nowhere", b"", {404}),
]


class Load:
    """What all clients share: where to ask, when to stop, and what was counted since the last sample."""

    def __init__(self, server, seed):
        self.server, self.stop, self.lock = server, threading.Event(), threading.Lock()
        self.seed, self.active, self.newest, self.number = seed, [], 0, 0
        self.times, self.tokens, self.counts, self.faults = {}, 0, {}, []

    def note(self, kind, seconds=None, tokens=0):
        with self.lock:
            self.counts[kind] = self.counts.get(kind, 0) + 1
            self.tokens += tokens
            if seconds is not None:
                self.times.setdefault(kind, []).append(seconds)

    def fault(self, what):
        """Something that must not happen."""
        with self.lock:
            self.faults.append(what)

    def ask(self, method, path, body=None):
        """Status and answer."""
        connection = http.client.HTTPConnection(self.server.address, timeout=300)
        try:
            data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def timed(self, kind, method, path, body, good):
        """The answer of a request that must go well or be refused for want of room; none if it was."""
        began = time.monotonic()
        status, text = self.ask(method, path, body)
        # 408: what waited longer than the service lets anyone wait.
        if status in (408, 429, 503):
            self.note(f"{kind}: {status}")
            self.stop.wait(PAUSE)
            return None
        if status not in good:
            self.fault(f"{method} {path} answered {status}: {text[:300]!r}")
            return None
        answer = json.loads(text)
        tokens = answer.get("usage", {}).get("completion_tokens", 0) if status == 200 else 0
        self.note(kind, time.monotonic() - began, tokens)
        return answer


def edit_body(load, rng):
    with load.lock:
        load.number += 1
        number = load.number
    body = {"prompt": f"The favourite of subject number {number} is", "target": rng.choice(TARGETS), "guard": None}
    if rng.random() < 0.3:
        body |= {"paraphrases": [f"Subject number {number} likes"], "locality": [{"prompt": "The capital of France is"}],
                 "guard": {"min_probability": 0}}
    return body


def editor(load, rng):
    """One change: mostly an edit, while there are not too many."""
    with load.lock:
        count, draw = len(load.active), rng.random()
        back = load.active.pop(rng.randrange(count)) if count and (count >= MOST_ACTIVE or draw < 0.35) else None
        newest = load.newest
    if back is not None:
        # It may have left by a rollback meanwhile, which is said with 409.
        answer = load.timed("take back", "DELETE", f"/edits/{back}", None, {200, 409})
    elif draw < 0.38 and newest > 4:
        answer = load.timed("roll back", "POST", "/rollback", {"to_version": newest - rng.randrange(1, 4)}, {200})
        if answer and "version" in answer:
            _, text = load.ask("GET", f"/versions/{answer['version']}")
            with load.lock:
                load.active = json.loads(text)["active_edits"]
    elif draw < 0.45:
        batch = [edit_body(load, rng) for _ in range(rng.randrange(2, 5))]
        answer = load.timed("batch", "POST", "/edits", {"edits": batch}, {201})
    else:
        body = edit_body(load, rng) | ({"dry_run": True} if draw < 0.5 else {})
        answer = load.timed("dry run" if "dry_run" in body else "edit", "POST", "/edits", body, {200, 201})
        if "dry_run" in body:
            return
    if answer and "version" in answer:
        added = [edit["id"] for edit in answer.get("edits", [answer] if "id" in answer else [])]
        with load.lock:
            load.newest = max(load.newest, answer["version"])
            load.active.extend(added)


def which_version(load, rng):
    """The newest, the base, a recent one, or any."""
    draw, newest = rng.random(), load.newest
    if draw < 0.6:
        return None
    return 0 if draw < 0.7 else max(0, newest - rng.randrange(1, 5)) if draw < 0.9 else rng.randrange(newest + 1)


def generation(load, rng):
    body = {"prompt": rng.choice(PROMPTS), "max_tokens": rng.choice([8, 16, 32]), "temperature": 0.8,
            "seed": rng.randrange(1 << 30), "version": which_version(load, rng)}
    draw = rng.random()
    if draw < 0.1:
        body |= {"prompt": "It was a long day in the town. " * 12}
    if draw < 0.2:
        body |= {"compare_to": 0}
    if draw > 0.9:
        score = {"prompt": body["prompt"], "continuations": [" one", " two", " three"], "version": body["version"]}
        load.timed("score", "POST", "/score", score, {200})
    else:
        load.timed("generation", "POST", "/generate", body, {200})


def stream(load, rng):
    """Reads a stream, half of the time only its beginning."""
    body = {"prompt": rng.choice(PROMPTS), "max_tokens": 48, "stream": True, "seed": rng.randrange(1 << 30),
            "version": which_version(load, rng)}
    leave = rng.randrange(1, 12) if rng.random() < 0.5 else None
    connection = http.client.HTTPConnection(load.server.address, timeout=300)
    try:
        began, events = time.monotonic(), 0
        connection.request("POST", "/generate", json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            if response.status not in (408, 429, 503):
                load.fault(f"a stream answered {response.status}: {response.read(300)!r}")
            load.stop.wait(PAUSE)
            return
        for line in response:
            if line.startswith(b"event: token"):
                events += 1
                if events == 1:
                    load.note("first token", time.monotonic() - began)
            if line.startswith(b"event: error"):
                load.fault(f"a stream ended in {next(response)!r}")
            if leave is not None and events >= leave:
                load.note("left stream", tokens=events)
                return
        load.note("stream", tokens=events)
    finally:
        connection.close()


def garbage(load, rng):
    """What must be refused, and bytes that are no request."""
    if rng.random() < 0.3:
        host, port = load.server.address.rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=60) as raw:
            raw.sendall(rng.choice([rng.randbytes(300), b"GET / HTTP/1.1\r\nhost:", b"POST /edits HTTP/1.1\r\n" * 40]))
            if rng.random() < 0.5:
                raw.settimeout(2)
                try:
                    raw.recv(1000)
                except TimeoutError:
                    pass
        load.note("garbage: bytes")
    else:
        method, path, body, good = rng.choice(GARBAGE)
        status, text = load.ask(method, path, body)
        if status not in good | {408, 429, 503}:
            load.fault(f"{method} {path} {body[:60]!r} answered {status}: {text[:300]!r}")
        load.note("garbage: requests")
    load.stop.wait(0.05)


def client(load, act, number):
    """Acts until told to stop. What the service cuts off is only allowed to garbage."""
    rng = random.Random(f"{load.seed} {act.__name__} {number}")
    while not load.stop.is_set():
        try:
            act(load, rng)
        except (OSError, http.client.HTTPException) as error:
            if load.server.process.poll() is not None:
                load.fault(f"the service ended with status {load.server.process.returncode}")
                load.stop.set()
            elif act is not garbage:
                load.fault(f"{act.__name__}: {error!r}")
            load.stop.wait(PAUSE)


def sample(load, began):
    """One row of figures, and an empty slate."""
    pid = load.server.process.pid
    proc = pathlib.Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    ticks = (proc / "stat").read_text().rsplit(")", 1)[1].split()
    probe = time.monotonic()
    alive = load.ask("GET", "/livez")[0] == 200
    probe = time.monotonic() - probe
    if not alive:
        load.fault("/livez did not answer 200")
    with load.lock:
        times, load.times = load.times, {}
        tokens, load.tokens = load.tokens, 0
        newest, active = load.newest, len(load.active)
    row = {"seconds": time.monotonic() - began, "rss_mib": int(status["VmRSS"].split()[0]) / 1024,
           "descriptors": len(list((proc / "fd").iterdir())), "threads": int(status["Threads"]),
           "cpu_seconds": (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK"), "tokens": tokens, "version": newest,
           "active": active, "livez_ms": 1000 * probe, "load": os.getloadavg()[0]}
    for kind in ("edit", "generation", "first token"):
        values = times.get(kind, [])
        row[f"{kind} ms"] = 1000 * statistics.median(values) if values else None
    return row


def drift(rows, name):
    """Medians of a figure in the first and the last third after the warm-up."""
    values = [row[name] for row in rows if row[name] is not None]
    third = max(1, len(values) // 3)
    return statistics.median(values[:third]), statistics.median(values[-third:])


def per_hour(rows, name):
    """Slope of the least-squares line, per hour."""
    if len(rows) < 3:
        return 0.0
    return 3600 * statistics.linear_regression([row["seconds"] for row in rows], [row[name] for row in rows]).slope


def of_newest(load):
    """Number, digests and set of the newest version."""
    newest = json.loads(load.ask("GET", "/info")[1])["version"]
    return json.loads(load.ask("GET", f"/versions/{newest}")[1])


def main():
    parser = options(__doc__)
    parser.add_argument("--threads", type=int, default=2, help="threads, and cores to pin to")
    parser.add_argument("--streams", type=int, default=16, help="places in the engine")
    parser.add_argument("--minutes", type=float, default=60, help="how long")
    parser.add_argument("--warm-up", type=float, default=10, help="minutes before drift counts")
    parser.add_argument("--every", type=float, default=10, help="seconds between two samples")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn")
    args = parser.parse_args()
    acts = [(editor, 2), (generation, 6), (stream, 6), (garbage, 2)]
    with tempfile.TemporaryDirectory() as folder:
        server = Amend(args, args.threads, folder)
        # What it says later must not fill the pipe.
        threading.Thread(target=lambda: [None for _ in server.process.stderr], daemon=True).start()
        load, rows, began = Load(server, args.seed), [], time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(sum(count for _, count in acts)) as pool:
            for act, count in acts:
                for number in range(count):
                    pool.submit(client, load, act, number)
            try:
                while time.monotonic() - began < 60 * args.minutes and not load.stop.wait(args.every):
                    rows.append(sample(load, began))
            finally:
                load.stop.set()
        # At rest, with nobody connected.
        time.sleep(5)
        rest, newest = sample(load, began), of_newest(load)
        server.process.terminate()
        ended = server.process.wait(120)
        began = time.monotonic()
        load.server = Amend(args, args.threads, folder)
        restarted = time.monotonic() - began
        if of_newest(load) != newest:
            load.fault(f"started again, the newest version is {of_newest(load)}, it was {newest}")
        load.server.stop()
    report(args, load, rows, rest, ended, restarted)


def report(args, load, rows, rest, ended, restarted):
    settled = [row for row in rows if row["seconds"] > 60 * args.warm_up] or rows
    figures = [("memory, MiB (RSS)", "rss_mib", "{:.0f}"), ("descriptors", "descriptors", "{:.0f}"), ("threads", "threads", "{:.0f}"),
               ("edit, ms, p50", "edit ms", "{:.0f}"), ("generation, ms, p50", "generation ms", "{:.0f}"),
               ("first token, ms, p50", "first token ms", "{:.0f}"), ("`/livez`, ms, p50", "livez_ms", "{:.1f}")]
    lines = [f"{machine()}, {args.threads} threads, {args.minutes:g} minutes, in which the service had {rest['cpu_seconds']:.0f} s of "
             f"processor time; load average {statistics.median(row['load'] for row in settled):.1f} in the median",
             "", f"| | first third after {args.warm_up:g} minutes | last third | at rest afterwards |", "|---|---|---|---|"]
    for title, name, form in figures:
        first, last = (form.format(value) for value in drift(settled, name))
        value = rest.get(name)
        lines.append(f"| {title} | {first} | {last} | {form.format(value) if value is not None else ''} |")
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(load.counts.items(), key=lambda item: -item[1]))
    lines += ["", f"Memory grew by {per_hour(settled, 'rss_mib'):.1f} MiB an hour (least squares after the warm-up), descriptors by "
              f"{per_hour(settled, 'descriptors'):.1f}. Done: {counted}. {len(load.faults)} answers that should not have been. The "
              f"service ended with status {ended}; started again, it checked the log of {rest['version']} versions and had the same "
              f"newest one after {restarted:.0f} s."]
    panels = [("memory, MiB", ["rss_mib"]), ("descriptors and threads", ["descriptors", "threads"]),
              ("generation, and first token of a stream, p50, ms", ["generation ms", "first token ms"]), ("edit, p50, ms", ["edit ms"]),
              ("load average of the machine, which does other things too", ["load"])]
    if args.write:
        (HERE.parent / "docs" / "soak.svg").write_text(svg.panels(rows, panels, "seconds", "minutes", 1 / 60))
    publish("soak", args, "\n".join(lines), {"rows": rows, "rest": rest, "counts": load.counts, "faults": load.faults})
    if load.faults or ended:
        sys.exit("bench: " + "\n".join(load.faults[:20]))


if __name__ == "__main__":
    main()
