#!/usr/bin/env python3
"""Measures training beside PyTorch (training_peer.py), edits per second at rank 128, on the same records, by the same recipe, on
the same cores. Both train MEND for one edit at a time with the hidden states kept, the edits in factored form and the
vocabulary where the loss reads; both capture every edit anew, and measure it on its prompt, its paraphrase and two texts that
it should not change. A second row is Amend's default recipe, which the peer does not have: up to 256 edits that are
active together, by the joint solve, with whitening; there Amend keeps the factors of a record once they are captured.

Steps alone are timed. Amend says how many seconds its runs trained for, without the hidden states; a longer run less a shorter
one with the same beginning leaves steps, for both have one validation at the end. The peer's environment is that of
bench/editing.py. Run it on a machine that does nothing else; `make bench-training` builds first. `--write` puts the tables into
bench/RESULTS.md."""

import json
import pathlib
import subprocess
import sys
import tempfile
import tomllib

from editing import PEER, ask_peer, peers_python
from generation import beside_a_peer, machine, options, pinned, publish

# One edit at a time as in the paper, which both can do.
ALONE = ["--rank", "128", "--compose", "sum", "--simultaneous", "1", "--whitening", "0", "--edits-per-step", "10"]
# Amend validates at the end of a run, whether it is wanted or not.
VALIDATION = 8


def run(args, threads, folder, name, recipe, steps):
    """Trains: what the state of the run says of its recipe, of where it began, and of itself."""
    out = folder / f"{name}-{threads}-{steps}"
    command = [args.binary, "train", "--model", args.model, "--data", folder / "train.json", "--validation",
               folder / "validation.json", "--out", out, "--cache", folder / "cache", "--threads", str(threads),
               "--steps", str(steps), "--warmup", str(args.before + args.steps), "--validate-every", str(steps),
               "--validation-records", str(VALIDATION), "--log-level", "warn", *recipe]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, preexec_fn=pinned(threads))
    with (out / "state.safetensors").open("rb") as state:
        metadata = json.loads(state.read(int.from_bytes(state.read(8), "little")))["__metadata__"]
    return json.loads(metadata["recipe"]), json.loads(metadata["origin"]), tomllib.loads(metadata["run"])


def amend(args, threads, folder, name, recipe):
    """Amend's figures, and what the peer must do to do the same."""
    _, _, before = run(args, threads, folder, name, recipe, args.before)
    recipe, origin, whole = run(args, threads, folder, name, recipe, args.before + args.steps)
    seconds = whole["seconds"] - before["seconds"]
    figures = {"seconds": seconds, "edits_per_second": args.steps * recipe["edits_per_step"] / seconds,
               "loss": whole["history"]["steps"][-1]["loss"]}
    return figures, {**recipe, "blocks": origin["tail_blocks"], "steps_before": args.before, "steps": args.steps}


def table(results, args):
    lines = ["| | threads | Amend | PyTorch | ratio | goal |", "|---|---|---|---|---|---|"]
    for threads, by_name in results.items():
        ours, theirs = by_name["alone"]["edits_per_second"], by_name["peer"]["edits_per_second"]
        lines.append(f"| one edit at a time, edits/s | {threads} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} | >= 3 |")
        ours, theirs = by_name["alone"]["loss"], by_name["peer"]["loss"]
        lines.append(f"| its loss, steps {args.before + args.steps - 9} to {args.before + args.steps} | {threads} | {ours:.2f} | "
                     f"{theirs:.2f} | | |")
        lines.append(f"| the default recipe, edits/s | {threads} | {by_name['default']['edits_per_second']:.1f} | | | |")
    return "\n".join(lines)


def main():
    parser = options(__doc__)
    beside_a_peer(parser)
    parser.add_argument("--data", required=True, help="records in CounterFact's schema, of which the first ones are taken")
    parser.add_argument("--records", type=int, default=400, help="records to train on")
    parser.add_argument("--before", type=int, default=10, help="steps that are not timed")
    parser.add_argument("--steps", type=int, default=50, help="steps after them that are")
    args = parser.parse_args()
    if args.before % 10 or args.steps % 10:
        sys.exit("bench: Amend says its loss every ten steps, so --before and --steps must be multiples of 10")

    python = peers_python(args.cache)
    records = json.loads(pathlib.Path(args.data).read_text())[:args.records + VALIDATION]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "train.json").write_text(json.dumps(records[:-VALIDATION]))
        (folder / "validation.json").write_text(json.dumps(records[-VALIDATION:]))
        for threads in args.threads:
            alone, task = amend(args, threads, folder, "alone", ALONE)
            peer = ask_peer("training_peer.py", args, threads, python, {**task, "records": records[:-VALIDATION]})
            default, _ = amend(args, threads, folder, "default", [])
            results[threads] = {"alone": alone, "peer": peer, "default": default}
    publish("training", args, f"{machine()}, peer {PEER}, {len(records) - VALIDATION} records\n\n{table(results, args)}", results)


if __name__ == "__main__":
    main()
