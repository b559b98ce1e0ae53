"""The editing peer: MEND in PyTorch, one edit as the reference implementation makes it. bench/editing.py runs this with the
Python of an environment that has torch and transformers, and gives it the edits.

An edit is the loss of the target through the whole model, its gradients by autograd with hooks that keep each matrix's input
and the gradient at its output, the editor's network on both, the step added to copies of the matrices, and the target's
log-probability with the matrices as they were and as they are. Every edit starts from the model's own weights, as in the
reference's evaluation. Where the reference does more, the peer is spared it: only the edited matrices require a gradient,
nothing is differentiated through the editor, and no statistics of the gradients are taken. The editor's tensors are those of
the folder; what Amend adds to MEND (whitening, joint composition) is left out, so the edits take the time of edits without
being as good."""

import json
import os
import pathlib
import sys
import time

# The wheel's CUDA libraries are stood in for by empty ones (see editing.py): their functions are looked up when they are
# called, and on a CPU they never are.
if sys.platform == "linux":
    sys.setdlopenflags(os.RTLD_LAZY)

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

IGNORED = -100


class Network:
    """The editor's network for all matrices of one shape."""

    def __init__(self, tensors, name):
        get = lambda part: tensors[f"net.{name}.{part}"].float()
        self.mean = torch.cat([get("u_mean"), get("v_mean")])
        self.std = torch.cat([get("u_std"), get("v_std")]) + 1e-7
        self.d_in = len(get("u_mean"))
        parts = ("v", "u", "bias", "mode_scale.weight", "mode_shift.weight")
        self.layers = [[get(f"mlp.layers.{layer}.{part}") for part in parts] for layer in range(2)]

    def __call__(self, u, delta, mode):
        """The factors [tokens, d_in] and [tokens, d_out] that come of these, for the matrix with this index."""
        kept = (u != 0).any(-1) & (delta != 0).any(-1)
        z = (torch.cat([u[kept], delta[kept]], -1) - self.mean) / self.std
        for v, up, bias, scale, shift in self.layers:
            z = z + (((z @ v.T) @ up.T + bias) * scale[mode] + shift[mode]).clamp(min=0)
        return z[:, :self.d_in], z[:, self.d_in:]


class Peer:
    def __init__(self, model, editor):
        path, folder = pathlib.Path(model), pathlib.Path(editor)
        self.tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        self.model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
        self.model.requires_grad_(False)
        tensors = load_file(folder / "editor.safetensors")
        names = json.loads((folder / "editor.json").read_text())["matrices"]
        self.rates = tensors["edit_lrs"]
        self.layers = [self.model.get_submodule(name.removesuffix(".weight")) for name in names]
        self.own = [layer.weight.data for layer in self.layers]
        self.networks, self.modes, seen = [], [], {}
        for layer in self.layers:
            shape = f"{layer.in_features}x{layer.out_features}"
            network, count = seen.get(shape) or (Network(tensors, shape), 0)
            seen[shape] = network, count + 1
            self.networks.append(network)
            self.modes.append(count)
            layer.weight.requires_grad_(True)
            layer.register_forward_hook(keep_input)
            layer.register_full_backward_hook(keep_gradient)

    def encode(self, edit):
        """The tokens of prompt and target, and the labels: the target's tokens alone."""
        prompt, target = (self.tokenizer(edit[part]).input_ids for part in ("prompt", "target"))
        labels = [IGNORED] * len(prompt) + target
        return torch.tensor([prompt + target]), torch.tensor([labels])

    def log_probabilities(self, ids, labels):
        """Of the target's tokens."""
        logits, labels = self.model(input_ids=ids).logits[0, :-1], labels[0, 1:]
        scored = labels != IGNORED
        return logits[scored].log_softmax(-1).gather(-1, labels[scored].unsqueeze(-1)).squeeze(-1)

    def capture(self, ids, labels):
        """The factors of each matrix's gradient, as the layers' hooks kept them."""
        (-self.log_probabilities(ids, labels).mean()).backward()
        self.model.zero_grad()
        return [(layer.kept_input, layer.kept_gradient) for layer in self.layers]

    @torch.no_grad()
    def steps(self, factors):
        """What the editor makes of the factors: a step for each matrix."""
        made = []
        for (u, delta), network, mode, rate in zip(factors, self.networks, self.modes, self.rates):
            u, delta = network(u, delta, mode)
            made.append(rate * torch.einsum("bi,bj->ji", u, delta))
        return made

    @torch.no_grad()
    def log_probability(self, ids, labels):
        return self.log_probabilities(ids, labels).sum().item()

    def use(self, weights):
        for layer, weight in zip(self.layers, weights):
            layer.weight.data = weight

    def edit(self, edit):
        """Makes an edit: its figures, and the milliseconds of each phase."""
        phases, last = {}, time.perf_counter()

        def phase(name):
            nonlocal last
            now = time.perf_counter()
            phases[name], last = (now - last) * 1000, now

        self.use(self.own)
        ids, labels = self.encode(edit)
        factors = self.capture(ids, labels)
        phase("capture")
        steps = self.steps(factors)
        phase("editor")
        before = self.log_probability(ids, labels)
        phase("before")
        self.use([weight + step for weight, step in zip(self.own, steps)])
        phase("publish")
        after = self.log_probability(ids, labels)
        phase("after")
        phases["total"] = sum(phases.values())
        return {"tokens": ids.shape[1], "before": before, "after": after, "phases_ms": phases}


def keep_input(layer, inputs, _output):
    if torch.is_grad_enabled():
        layer.kept_input = inputs[0][0].detach()


def keep_gradient(layer, _input_gradients, output_gradients):
    layer.kept_gradient = output_gradients[0][0].detach()


def main():
    task = json.load(sys.stdin)
    torch.set_num_threads(task["threads"])
    peer = Peer(task["model"], task["editor"])
    for edit in task["warmup"]:
        peer.edit(edit)
    alone = [peer.edit(edit) for edit in task["one_by_one"]]
    began = time.perf_counter()
    for edit in task["at_once"]:
        peer.edit(edit)
    json.dump({"one_by_one": alone, "at_once_seconds": time.perf_counter() - began}, sys.stdout)


if __name__ == "__main__":
    main()
