#!/usr/bin/env python3
"""Measures edits beside PyTorch, which makes them as the reference implementation of MEND does (editing_peer.py): one edit
alone, from its request to its answer, and many that wait together, which the peer makes one after another. Both edit the same
file by the same editor with the same edits, of equally many tokens, on the same cores. Amend's guard looks at the edit's own
prompt alone, and its times have HTTP and the commit in them; the peer is called in its own process and keeps nothing.

The peer comes from PyPI into an environment of its own below `--cache`: torch's wheel has 539 MB, and 1.9 GB lie there.
PyPI's torch for Linux wants NVIDIA's libraries too, of which nothing runs on a CPU: those that are not small are stood in for
by links to an empty library, and pip remarks once that they are missing. Everything else is the standard library. Run it on a
machine that does nothing else; `make bench-editing` builds first. `--write` puts the tables into bench/RESULTS.md."""

import argparse
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

from generation import HERE, beside_a_peer, install, machine, options, pinned, publish, works

PEER = "torch==2.15.0"
LINUX = '; platform_system == "Linux"'
# These name libraries, or torch, as what they need, so pip must not look.
PEER_ALONE = [PEER, "accelerate==1.15.0"]
# What they import, what a link can not stand in for, and what reads the file and runs the model.
PEER_NEEDS = ["filelock", "fsspec", "jinja2", "networkx", "psutil==7.2.2", "sympy", "typing-extensions",
              f"cuda-toolkit[cudart,cupti]==13.2.2{LINUX}", f"nvidia-nvshmem-cu13==3.7.2{LINUX}",
              "gguf==0.19.0", "numpy==2.4.6", "safetensors==0.8.0", "transformers==5.24.0"]
# As editing_peer.py loads torch: with functions that are looked up when they are called.
PEER_LOADS = """
import os, sys
if sys.platform == "linux":
    sys.setdlopenflags(os.RTLD_LAZY)
import torch
import accelerate, gguf, safetensors, transformers
"""
# More libraries than torch has.
MOST_LINKS = 40
# How many nats apart, in the mean, the targets' log-probabilities before their edits may lie: Amend computes with the file's
# own 4 bits.
SAME = 0.5


def module(path):
    """A program beside this one, as a module."""
    spec = importlib.util.spec_from_loader(path.stem, importlib.machinery.SourceFileLoader(path.stem, str(path)))
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


bench = module(HERE.parent / "scripts" / "bench")


def peers_python(cache):
    folder = pathlib.Path(cache).absolute() / re.sub(r"\W+", "-", PEER)
    python = folder / "bin" / "python"
    if not works(python, PEER_LOADS):
        install(folder, ["--no-deps", *PEER_ALONE], PEER_NEEDS)
        link_missing_libraries(folder, python)
    return str(python)


def link_missing_libraries(folder, python):
    """Puts links to an empty library in the place of those that torch's loader does not find."""
    libraries = next(folder.glob("lib*/python*/site-packages/torch/lib"))
    for _ in range(MOST_LINKS):
        tried = subprocess.run([python, "-c", PEER_LOADS], capture_output=True, text=True, check=False)
        missing = re.search(r"(lib\w+\.so[.\d]*): cannot open shared object file", tried.stderr)
        if not missing:
            break
        (libraries / missing[1]).symlink_to("libtorch_global_deps.so")
    if tried.returncode:
        sys.exit(f"bench: the peer can not be loaded: {tried.stderr}")


def amend(args, threads, folder):
    """Amend's figures, and the edits that they are of: to warm up, alone, and together."""
    options = argparse.Namespace(**{**vars(args), "threads": threads, "pin": True})
    server = bench.Server(options, f"sqlite://{folder}/amend-{threads}.db")
    try:
        source = bench.of_length(server, args.tokens)
        counts = {"warmup": args.warmup, "one_by_one": args.edits, "at_once": args.queued}
        batches = {name: bench.take(source, count) for name, count in counts.items()}
        before = [log_probability(server, edit) for edit in batches["one_by_one"]]
        alone = bench.one_by_one(server, args, batches["warmup"] + batches["one_by_one"])
        together = bench.at_once(server, batches["at_once"])
        return {"before": before, "one_by_one": alone, "at_once": together}, batches
    finally:
        server.stop()


def log_probability(server, edit):
    """Of the target, by the version of now; nats."""
    scored = server.post("/score", {"prompt": edit["prompt"], "continuations": [edit["target"]]})
    return scored["scores"][0]["logprob"]


def peer(args, threads, python, batches):
    """PyTorch's figures of the same edits."""
    made = ask_peer("editing_peer.py", args, threads, python, {"editor": args.editor, **batches})
    phases = {phase: statistics.median(edit["phases_ms"][phase] for edit in made["one_by_one"])
              for phase in made["one_by_one"][0]["phases_ms"]}
    assert all(edit["tokens"] == args.tokens for edit in made["one_by_one"]), "the peer reads other tokens"
    spared = statistics.median(edit["phases_ms"]["total"] - edit["phases_ms"]["before"] for edit in made["one_by_one"])
    return {"before": [edit["before"] for edit in made["one_by_one"]],
            "one_by_one": {"median_ms": phases["total"], "without_before_median_ms": spared, "phases_median_ms": phases},
            "at_once": {"seconds": made["at_once_seconds"],
                        "edits_per_second": len(batches["at_once"]) / made["at_once_seconds"]}}


def ask_peer(program, args, threads, python, task):
    """What one of the peer's programs answers to a task on the model."""
    task = {"model": str(pathlib.Path(args.model).absolute()), "threads": threads, **task}
    # The first edited layer's input has no gradient, as it must be; torch remarks on it.
    command = [python, "-W", "ignore:Full backward hook:UserWarning", HERE / program]
    run = subprocess.run(command, input=json.dumps(task), stdout=subprocess.PIPE, text=True, preexec_fn=pinned(threads),
                         env={**os.environ, "TQDM_DISABLE": "1"}, check=False)
    if run.returncode:
        sys.exit(f"bench: the peer ended with status {run.returncode}")
    return json.loads(run.stdout)


def table(results, args):
    lines = ["| | threads | Amend | PyTorch | ratio | goal |", "|---|---|---|---|---|---|"]
    for threads, (ours, theirs) in results.items():
        alone, peers = ours["one_by_one"]["median_ms"], theirs["one_by_one"]
        rate, peers_rate = ours["at_once"]["edits_per_second"], theirs["at_once"]["edits_per_second"]
        rows = [(f"one edit, {args.tokens} tokens, ms", alone, peers["median_ms"], "<= 0.33"),
                ("the same, the peer's pass before the edit left out", alone, peers["without_before_median_ms"], ""),
                (f"{args.queued} edits queued together, edits/s", rate, peers_rate, ">= 6")]
        lines += [f"| {name} | {threads} | {a:.1f} | {b:.1f} | {a / b:.2f} | {goal} |" for name, a, b, goal in rows]
    lines += ["", "| phases of one edit, ms | threads | |", "|---|---|---|"]
    for threads, figures in results.items():
        for name, figure in zip(("Amend", "PyTorch"), figures):
            phases = figure["one_by_one"]["phases_median_ms"].items()
            lines.append(f"| {name} | {threads} | {', '.join(f'{phase} {ms:.1f}' for phase, ms in phases)} |")
    return "\n".join(lines)


def main():
    parser = options(__doc__)
    beside_a_peer(parser)
    parser.add_argument("--edits", type=int, default=50, help="edits timed one by one")
    parser.add_argument("--warmup", type=int, default=5, help="edits before them that are not timed")
    parser.add_argument("--tokens", type=int, default=12, help="tokens of an edit, prompt and target together")
    parser.add_argument("--queued", type=int, default=64, help="edits sent at once")
    args = parser.parse_args()

    python = peers_python(args.cache)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for threads in args.threads:
            ours, batches = amend(args, threads, folder)
            theirs = peer(args, threads, python, batches)
            apart = statistics.mean(abs(a - b) for a, b in zip(ours["before"], theirs["before"]))
            assert apart <= SAME, f"before the edits the targets lie {apart} nats from the peer's"
            results[threads] = ours, theirs
    publish("editing", args, f"{machine()}, peer {PEER}\n\n{table(results, args)}", results)


if __name__ == "__main__":
    main()
