#!/usr/bin/env python3
"""Measures generation beside llama.cpp on the same file, on the same cores, through the same route (`/v1/completions`,
streamed) by the same client: decoding of one stream and of several, and reading of a prompt.

llama.cpp comes from PyPI (`xllamacpp`, a prebuilt one) into an environment of its own below `--cache`; everything else is
the standard library. Run it on a machine that does nothing else; `make bench-generation` builds first. `--write` puts the
tables into bench/RESULTS.md."""

import argparse
import concurrent.futures
import datetime
import http.client
import json
import os
import pathlib
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

PEER = "xllamacpp==2026.10.11549"
HERE = pathlib.Path(__file__).resolve().parent
TARGET = os.environ.get("CARGO_TARGET_DIR", "target")
# Texts that a small model goes on with for long.
PROMPTS = ["Once upon a time there was a", "The history of the city of Rome begins", "Here is a long list of animals:",
           "My favourite recipe for bread is as follows.", "The sun rose over the mountains and", "In the year 1850 the",
           "Computers work by", "Dear John, I am writing to you because"]
# Run by the peer's Python: serves the file with as many threads and sequences as it is told.
PEER_SERVER = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.port = sys.argv[1], int(sys.argv[4]), int(sys.argv[3]), 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[2])
params.n_gpu_layers = 0
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def pinned(cores):
    """What a child does before it starts: only these cores."""
    return (lambda: os.sched_setaffinity(0, range(cores))) if hasattr(os, "sched_setaffinity") else None


class Amend:
    name = "Amend"
    extra = {}

    def __init__(self, args, threads, folder):
        command = [args.binary, "serve", "--model", args.model, "--editor", args.editor, "--listen", "127.0.0.1:0",
                   "--database", f"sqlite://{folder}/amend-{threads}.db", "--threads", str(threads), "--log-format", "json",
                   "--max-sequences", str(args.streams)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=pinned(threads))
        for line in self.process.stderr:
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("message") == "serving":
                self.address = event["address"]
                break
        else:
            sys.exit(f"bench: amend ended with status {self.process.wait()}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)


class Peer:
    name = "llama.cpp"
    # It keeps prompts between requests, which is not what is measured here.
    extra = {"cache_prompt": False, "ignore_eos": True}

    def __init__(self, args, threads, python):
        context = str(args.streams * 1024)
        command = [python, "-c", PEER_SERVER, args.model, str(threads), str(args.streams), context]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        text=True, preexec_fn=pinned(threads))
        self.address = self.process.stdout.readline().strip().removeprefix("http://")
        if not self.address:
            sys.exit(f"bench: the peer ended with status {self.process.wait()}")

    def stop(self):
        self.process.stdin.close()
        self.process.terminate()
        self.process.wait(60)


def stream(server, body):
    """Times of the chunks that carry text, since the request was sent, and the token counts."""
    connection = http.client.HTTPConnection(server.address, timeout=600)
    try:
        body = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}, **body, **server.extra}
        payload = json.dumps({"model": server.model, **body})
        began = time.monotonic()
        connection.request("POST", "/v1/completions", payload, {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            sys.exit(f"bench: {server.name} answered {response.status}: {response.read().decode()}")
        times, usage = [], None
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            usage = chunk.get("usage") or usage
            if any(choice["text"] for choice in chunk["choices"]):
                times.append(time.monotonic() - began)
        return times, usage
    finally:
        connection.close()


def decode(server, streams, tokens):
    """Tokens per second of all streams together, from the moment when each has its first token."""
    with concurrent.futures.ThreadPoolExecutor(streams) as pool:
        bodies = [{"prompt": PROMPTS[number % len(PROMPTS)], "max_tokens": tokens} for number in range(streams)]
        began = time.monotonic()
        results = list(pool.map(lambda body: (time.monotonic() - began, *stream(server, body)), bodies))
    firsts = [sent + times[0] for sent, times, _ in results]
    lasts = [sent + times[-1] for sent, times, _ in results]
    # Chunks after every stream has begun and before the first one ends, at one token each.
    start, end = max(firsts), min(lasts)
    counted = sum(sum(start < sent + at <= end for at in times) for sent, times, _ in results)
    return counted / (end - start)


def prefill(server, tokens, seed):
    """Prompt tokens per second until the first token comes; the ids are drawn, so that no prompt begins like another."""
    ids = random.Random(seed).choices(range(1000, 30_000), k=tokens)
    times, usage = stream(server, {"prompt": ids, "max_tokens": 8})
    assert usage["prompt_tokens"] in (tokens, tokens + 1), usage
    return tokens / times[0]


def measure(server, args):
    listing = http.client.HTTPConnection(server.address, timeout=60)
    listing.request("GET", "/v1/models")
    server.model = json.loads(listing.getresponse().read())["data"][0]["id"]
    decode(server, 1, 16)
    figures = {"decode, 1 stream": [], f"decode, {args.streams} streams": [], f"prefill, {args.prompt} tokens": []}
    for run in range(args.runs):
        for (name, values), value in zip(figures.items(), (
                lambda: decode(server, 1, args.tokens),
                lambda: decode(server, args.streams, args.tokens),
                lambda: prefill(server, args.prompt, run))):
            values.append(value())
    return figures


def works(python, check):
    """Whether there is this Python and it can run the check."""
    return python.exists() and subprocess.run([python, "-c", check], capture_output=True, check=False).returncode == 0


def install(folder, *batches):
    """A new environment with these packages, each batch by a run of pip of its own."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    for packages in batches:
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *packages], check=True)


def peers_python(cache):
    folder = pathlib.Path(cache) / re.sub(r"\W+", "-", PEER)
    python = folder / "bin" / "python"
    if not works(python, "import xllamacpp"):
        install(folder, [PEER])
    return str(python)


def machine():
    info = pathlib.Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def table(results, goals):
    lines = ["| tokens/s (median of the runs) | threads | Amend | llama.cpp | ratio | goal |", "|---|---|---|---|---|---|"]
    for threads, by_server in results.items():
        for name, ours in by_server["Amend"].items():
            ours, theirs = statistics.median(ours), statistics.median(by_server["llama.cpp"][name])
            goal = next(goal for start, goal in goals if name.startswith(start))
            lines.append(f"| {name} | {threads} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} | >= {goal} |")
    return "\n".join(lines)


def write(name, text):
    """Replaces one harness's part of RESULTS.md, with the day and the command."""
    path, mark = HERE / "RESULTS.md", f"<!-- {name} -->"
    head, found, tail = path.read_text().partition(mark)
    assert found, f"{path} has no {mark}"
    rest = tail.partition("<!-- end -->")[2]
    command = " ".join([f"bench/{name}.py", *(argument for argument in sys.argv[1:] if argument != "--write")])
    path.write_text(f"{head}{mark}\n{datetime.date.today()}, `{command}`: {text}\n<!-- end -->{rest}")


def publish(name, args, text, results):
    print(text)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=2) + "\n")
    if args.write:
        write(name, text)


def options(description):
    """A parser with what every harness takes: the program, what it serves, and where the figures go."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--editor", default="editors/smollm2-135m-instruct", help="the editor's folder")
    parser.add_argument("--binary", default=f"{TARGET}/release/amend", help="the program")
    parser.add_argument("--json", metavar="FILE", help="also write all figures here")
    parser.add_argument("--write", action="store_true", help="write the table to bench/RESULTS.md")
    return parser


def beside_a_peer(parser):
    """What those take that measure a peer too."""
    parser.add_argument("--cache", default=f"{TARGET}/bench", help="where the peer is installed")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads, and cores to pin to")


def main():
    parser = options(__doc__)
    beside_a_peer(parser)
    parser.add_argument("--streams", type=int, default=8, help="streams that decode together")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each stream")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt that is read")
    parser.add_argument("--runs", type=int, default=5, help="runs of each figure")
    args = parser.parse_args()

    python = peers_python(args.cache)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for threads in args.threads:
            results[threads] = {}
            for start in (lambda: Amend(args, threads, folder), lambda: Peer(args, threads, python)):
                server = start()
                try:
                    results[threads][server.name] = measure(server, args)
                finally:
                    server.stop()
    figures = table(results, [("decode, 1 ", 1.0), ("decode, ", 1.2), ("prefill", 1.0)])
    publish("generation", args, f"{machine()}, peer {PEER}\n\n{figures}", results)


if __name__ == "__main__":
    main()
