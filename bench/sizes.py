#!/usr/bin/env python3
"""Measures what an edit costs against the size of the model: time, memory, and the time to start. Models of `--real` are taken
with their editors as they are; those of SHAPES are given random weights here, with an editor that a few steps trained, because
neither changes what an edit costs.

Only the standard library is used. Run it on a machine that does nothing else, with 20 GB of memory and of disk to spare; `make
bench-sizes` builds first. `--write` puts the table into bench/RESULTS.md and the plot beside it."""

import json
import math
import pathlib
import random
import struct
import subprocess
import sys
import tempfile

from generation import HERE, machine, options, publish

# Widths and depths of published models of the Llama kind: hidden, MLP, blocks, heads, heads of keys and values, width of a head.
SHAPES = {
    "SmolLM2-360M": (960, 2560, 32, 15, 5, 64),
    "TinyLlama-1.1B": (2048, 5632, 22, 32, 4, 64),
    "SmolLM2-1.7B": (2048, 8192, 24, 32, 32, 64),
    "Llama-3.2-3B": (3072, 8192, 28, 24, 8, 128),
}
PLACES = ["Paris", "Rome", "Oslo", "Madrid", "Vienna", "Berlin", "Athens", "Lisbon"]
# Of the quick training: an editor of the usual rank, without whitening, which needs more texts than are here.
RECIPE = ["--whitening", "0", "--steps", "4", "--edits-per-step", "4", "--simultaneous", "1", "--validate-every", "4",
          "--validation-records", "4", "--warmup", "1"]


def vocabulary(gguf):
    """Tokens and merges of a GGUF file's tokenizer."""
    data = memoryview(gguf.read_bytes())
    at = 24

    def read(form):
        nonlocal at
        value = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return value[0]

    def text():
        nonlocal at
        length = read("Q")
        value = bytes(data[at : at + length]).decode()
        at += length
        return value

    numbers = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            kind, count = read("I"), read("Q")
            return [value(kind) for _ in range(count)]
        return read(numbers[kind])

    found = {}
    for _ in range(struct.unpack_from("<Q", data, 16)[0]):
        name = text()
        found[name] = value(read("I"))
    return found["tokenizer.ggml.tokens"], found["tokenizer.ggml.merges"]


def shapes_of(width, mlp, blocks, heads, kv_heads, head, tokens):
    """Name and shape of every tensor of a Llama with a tied head."""
    yield "model.embed_tokens.weight", (tokens, width)
    yield "model.norm.weight", (width,)
    for block in range(blocks):
        name = f"model.layers.{block}"
        yield f"{name}.input_layernorm.weight", (width,)
        yield f"{name}.post_attention_layernorm.weight", (width,)
        yield f"{name}.self_attn.q_proj.weight", (heads * head, width)
        yield f"{name}.self_attn.k_proj.weight", (kv_heads * head, width)
        yield f"{name}.self_attn.v_proj.weight", (kv_heads * head, width)
        yield f"{name}.self_attn.o_proj.weight", (width, heads * head)
        yield f"{name}.mlp.gate_proj.weight", (mlp, width)
        yield f"{name}.mlp.up_proj.weight", (mlp, width)
        yield f"{name}.mlp.down_proj.weight", (width, mlp)


def random_model(folder, shape, tokens, merges):
    """A Hugging Face folder with random bf16 weights; how many there are."""
    width, mlp, blocks, heads, kv_heads, head = shape
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": width, "intermediate_size": mlp,
              "num_hidden_layers": blocks, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head,
              "vocab_size": len(tokens), "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
              "tie_word_embeddings": True, "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "bfloat16"}
    tokenizer = {"version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None,
                 "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                 "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                 "model": {"type": "BPE", "vocab": {token: place for place, token in enumerate(tokens)}, "merges": merges}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    header, end, count = {}, 0, 0
    for name, dims in shapes_of(*shape, len(tokens)):
        begin, end = end, end + 2 * math.prod(dims)
        count += math.prod(dims)
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [begin, end]}
    # A bf16 is the upper half of an f32. One block of them, again and again: the time of a product does not depend on it.
    draw = random.Random(0)
    block = b"".join(struct.pack("<f", draw.gauss(0, 0.02))[2:] for _ in range(1 << 20))
    ones = struct.pack("<f", 1.0)[2:]
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, entry in header.items():
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            source = ones * (size // 2) if "norm" in name else block
            for start in range(0, size, len(source)):
                file.write(source[: min(len(source), size - start)])
    return count


def records(path, first, count):
    """Facts to train on, in the schema of CounterFact."""
    facts = [{"prompt": f"The town where number {number} lives is called", "target_new": PLACES[number % 8],
              "ground_truth": PLACES[(number + 1) % 8], "rephrase_prompt": f"Number {number} lives in the town of",
              "locality_prompt": f"The capital of country {number} is", "locality_ground_truth": PLACES[(number + 2) % 8]}
             for number in range(first, first + count)]
    path.write_text(json.dumps(facts))
    return path


def train(args, model, folder):
    """An editor that a few steps trained."""
    out = folder / "editor"
    files = ["--data", records(folder / "train.json", 0, 16), "--validation", records(folder / "validation.json", 16, 4)]
    command = [args.binary, "train", "--model", model, *files, "--out", out, "--cache", folder / "cache", *RECIPE,
               "--threads", str(args.threads)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def measure(args, model, editor, folder):
    """What the general harness finds, for one model."""
    figures = folder / "figures.json"
    command = [sys.executable, HERE.parent / "scripts" / "bench", "--binary", args.binary, "--model", model, "--editor", editor,
               "--threads", str(args.threads), "--pin", "--tokens", "0", "--edits", "15", "--warmup", "3", "--queued", "16", "--generate", "32",
               "--replay", "0", "--active", "", "--json", figures]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(figures.read_text())


def row(name, kind, parameters, figures):
    one = figures["one_by_one"]
    phases = one["phases_median_ms"]
    return {"name": name, "weights": kind, "parameters": parameters, "edit_ms": one["median_ms"],
            "capture_ms": phases["capture"], "editor_ms": phases["editor"], "guard_ms": phases["guard"],
            "queued_per_second": figures["at_once"]["edits_per_second"], "memory_mib": figures["memory_at_start_mib"],
            "peak_mib": figures["memory_peak_mib"], "tokens_per_second": figures["generation"]["tokens_per_second"],
            "start_seconds": figures["start_to_ready_seconds"]}


def table(rows):
    lines = ["| model | weights | parameters, M | one edit, ms | capture | editor | compose and guard | 16 queued, edits/s | memory at "
             "start, MiB | peak beside edits, MiB | tokens/s | start, s |", "|" + "---|" * 12]
    for row in rows:
        lines.append(f"| {row['name']} | {row['weights']} | {row['parameters'] / 1e6:.0f} | {row['edit_ms']:.0f} | "
                     f"{row['capture_ms']:.0f} | {row['editor_ms']:.1f} | {row['guard_ms']:.0f} | {row['queued_per_second']:.1f} | "
                     f"{row['memory_mib']:.0f} | {row['peak_mib']:.0f} | {row['tokens_per_second']:.1f} | {row['start_seconds']:.1f} |")
    return "\n".join(lines)


def panel(rows, left, title, key):
    """One chart of the plot: a figure against parameters, both axes logarithmic."""
    width, height, low = 340, 260, 40
    sizes = [math.log10(row["parameters"]) for row in rows]
    values = [math.log10(row[key]) for row in rows]
    bottom, top = math.floor(min(values)), math.ceil(max(values))
    first, last = min(sizes) - 0.1, max(sizes) + 0.1
    x = lambda size: left + 50 + (size - first) / (last - first) * (width - 70)
    y = lambda value: low + (top - value) / max(top - bottom, 1) * (height - 40)
    parts = [f'<text x="{left + width / 2}" y="20" text-anchor="middle" font-weight="bold">{title}</text>']
    for power in range(bottom, top + 1):
        parts.append(f'<line x1="{left + 50}" x2="{left + width - 20}" y1="{y(power)}" y2="{y(power)}" stroke="#ccc"/>'
                     f'<text x="{left + 44}" y="{y(power) + 4}" text-anchor="end">{10 ** power:g}</text>')
    for row, size, value in zip(rows, sizes, values):
        color = "#1f77b4" if row["weights"] == "real" else "#d62728"
        label = row["name"].removesuffix("'s shape")
        anchor, shift = ("start", 8) if size < (first + last) / 2 else ("end", -8)
        parts.append(f'<circle cx="{x(size):.1f}" cy="{y(value):.1f}" r="4" fill="{color}"/><text x="{x(size) + shift:.1f}" '
                     f'y="{y(value) + 4:.1f}" text-anchor="{anchor}" font-size="9">{label}</text>')
    parts.append(f'<text x="{left + width / 2}" y="{height + 30}" text-anchor="middle">{10 ** min(sizes) / 1e6:.0f} to '
                 f'{10 ** max(sizes) / 1e6:.0f} million parameters, logarithmic</text>')
    return "".join(parts)


def plot(rows):
    charts = [("one edit, ms", "edit_ms"), ("memory at start, MiB", "memory_mib"), ("peak memory beside edits, MiB", "peak_mib")]
    panels = "".join(panel(rows, 340 * place, title, key) for place, (title, key) in enumerate(charts))
    note = '<text x="10" y="315">blue: real weights, red: random weights in a published shape</text>'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="1030" height="325" font-family="sans-serif" font-size="11">'
            f'<rect width="100%" height="100%" fill="white"/>{panels}{note}</svg>\n')


def main():
    parser = options(__doc__)
    parser.add_argument("--real", nargs=4, action="append", default=[], metavar=("NAME", "PARAMETERS", "MODEL", "EDITOR"),
                        help="another real model with its editor")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES), help="shapes with random weights")
    parser.add_argument("--threads", type=int, default=2, help="threads, and cores to pin to")
    args = parser.parse_args()
    tokens, merges = vocabulary(pathlib.Path(args.model))
    rows = []
    for name, parameters, model, editor in [("SmolLM2-135M", 134.5e6, args.model, args.editor), *args.real]:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, "real", float(parameters), measure(args, model, editor, pathlib.Path(folder))))
    for name in args.shapes:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "model").mkdir()
            count = random_model(folder / "model", SHAPES[name], tokens, merges)
            editor = train(args, folder / "model", folder)
            rows.append(row(f"{name}'s shape", "random", count, measure(args, folder / "model", editor, folder)))
    rows.sort(key=lambda row: row["parameters"])
    publish("sizes", args, f"{machine()}, {args.threads} threads\n\n{table(rows)}\n\n![Cost of an edit against size](sizes.svg)", rows)
    if args.write:
        (HERE / "sizes.svg").write_text(plot(rows))


if __name__ == "__main__":
    main()
