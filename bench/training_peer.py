"""The training peer: MEND's training loop in PyTorch, as a prototype of it would be written with care. bench/training.py runs
this with the Python of an environment that has torch and transformers, and gives it the records.

It knows what makes training cheap. The hidden states that enter the first edited block are computed once and kept, in f16; the
model's own final states are kept too, where a text must not change. The edited matrices are never built: a layer gives `W x`
and what each text's own edit adds to it in factors. The last block's MLP and the vocabulary are computed only at the positions
that the loss reads. Beside that it is spared what can be spared: texts lie one after another without padding, except in the attention; no gradient
is taken of the weights, nor below the first edited matrix; the last token of a text, which predicts nothing, is not read.

A step draws its edits, captures the factors of each one's gradient anew, as the reference does, takes them into the running
statistics, makes the edits, and measures each alone: the likelihood of its target behind prompt and paraphrase, and the
divergence on two texts that it should not change."""

import json
import pathlib
import random
import statistics
import sys
import time

# It loads torch with functions that are looked up when they are called.
from editing_peer import AutoModelForCausalLM, AutoTokenizer, torch

import torch.nn.functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

# Texts that go through the whole model at a time, to be kept.
READ_AT_ONCE = 32
# As in Amend.
LOCALITY_PER_EDIT = 2
# Steps that the loss is averaged over.
AVERAGE = 10


class Text:
    """A text's kept states, the rows that its loss reads, and what they should predict, or the model's own states there."""

    def __init__(self, ids, rows):
        self.ids, self.rows, self.labels = ids[:-1], rows, [ids[row + 1] for row in rows]


def read(tokenizer, records):
    """Of each record the prompt, the paraphrase, and the question whose answer must stay."""
    draw, texts = random.Random(0), []
    for record in records:
        for prompt, answer in (("prompt", "target_new"), ("rephrase_prompt", "target_new"),
                               ("locality_prompt", "locality_ground_truth")):
            prompt, answer = tokenizer(record[prompt]).input_ids, tokenizer(" " + record[answer]).input_ids
            rows = list(range(len(prompt) - 1, len(prompt) + len(answer) - 1))
            if len(texts) % 3 == 2 and len(prompt) > 1:
                rows.insert(0, draw.randrange(len(prompt) - 1))
            texts.append(Text(prompt + answer, rows))
    return texts


@torch.no_grad()
def keep_states(model, texts, first_block):
    for start in range(0, len(texts), READ_AT_ONCE):
        batch = texts[start:start + READ_AT_ONCE]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(text.ids) for text in batch], batch_first=True)
        states = model.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
        for text, entering, final in zip(batch, states[first_block], states[-1]):
            text.hidden = entering[:len(text.ids)].half()
            text.top = final[text.rows].clone()


class Tail:
    """The last blocks of a model of Llama's kind, over texts of any lengths one after another."""

    def __init__(self, model, blocks):
        self.layers, self.norm, self.rotary = model.model.layers[-blocks:], model.model.norm, model.model.rotary_emb
        self.matrices = [matrix for layer in self.layers
                         for matrix in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)]

    def __call__(self, texts, linear):
        """The final states of the rows that the texts' losses read. `linear` multiplies by an edited matrix, given its number."""
        hidden = torch.cat([text.hidden for text in texts]).float()
        lengths = [len(text.ids) for text in texts]
        longest, starts = max(lengths), torch.tensor([0, *lengths]).cumsum(0).tolist()
        places = torch.cat([torch.arange(length) + text * longest for text, length in enumerate(lengths)])
        rows = torch.tensor([start + row for start, text in zip(starts, texts) for row in text.rows])
        rotary = self.rotary(hidden, torch.arange(longest).unsqueeze(0))
        for number, layer in enumerate(self.layers):
            hidden = hidden + self.attention(layer, hidden, len(texts), longest, places, rotary)
            if number + 1 == len(self.layers):
                hidden = hidden[rows]
            x, matrix = layer.post_attention_layernorm(hidden), 3 * number
            inner = F.silu(linear(matrix, x)) * linear(matrix + 1, x)
            hidden = hidden + linear(matrix + 2, inner)
        return self.norm(hidden)

    def attention(self, layer, hidden, count, longest, places, rotary):
        own, x = layer.self_attn, layer.input_layernorm(hidden)

        def heads(projection):
            y = projection(x)
            padded = y.new_zeros(count * longest, y.shape[1]).index_copy(0, places, y)
            return padded.view(count, longest, -1, own.head_dim).transpose(1, 2)

        q, k = apply_rotary_pos_emb(heads(own.q_proj), heads(own.k_proj), *rotary)
        mixed = F.scaled_dot_product_attention(q, k, heads(own.v_proj), is_causal=True, enable_gqa=True)
        return own.o_proj(mixed.transpose(1, 2).reshape(count * longest, -1)[places])


class Observed:
    """Running mean and standard deviation per dimension."""

    def __init__(self, width):
        self.count, self.total, self.squares = 0, torch.zeros(width, dtype=torch.double), torch.zeros(width, dtype=torch.double)

    def observe(self, rows):
        self.count += len(rows)
        self.total += rows.sum(0)
        self.squares += rows.square().sum(0, dtype=torch.double)

    def normalise(self, rows):
        mean = self.total / self.count
        variance = (self.squares - self.count * mean.square()).clamp(min=0) / max(self.count - 1, 1)
        return (rows - mean.float()) / (variance.sqrt().float() + 1e-7)


class Network(torch.nn.Module):
    """The editor's network for all matrices of one shape: the identity at the start."""

    def __init__(self, width, rank, modes):
        super().__init__()
        parameter = torch.nn.Parameter
        self.v = torch.nn.ParameterList(torch.nn.init.xavier_uniform_(torch.empty(rank, width)) for _ in range(2))
        self.u = torch.nn.ParameterList(torch.zeros(width, rank) for _ in range(2))
        self.bias, self.scale = parameter(torch.zeros(2, width)), parameter(torch.ones(2, modes, width))
        self.shift = parameter(torch.zeros(2, modes, width))

    def forward(self, z, mode):
        for layer in range(2):
            pre = (z @ self.v[layer].T) @ self.u[layer].T + self.bias[layer]
            pre = pre * self.scale[layer, mode] + self.shift[layer, mode]
            # Gradient 1 at 0, where every value is at the start; clamp and relu have 0 there.
            z = z + torch.where(pre >= 0, pre, 0)
        return z


class Editor(torch.nn.Module):
    def __init__(self, matrices, rank, step_size):
        super().__init__()
        self.step_size, self.d_in = step_size, [matrix.in_features for matrix in matrices]
        shapes = [(matrix.in_features, matrix.out_features) for matrix in matrices]
        self.slots = [(str(shape), shapes[:index].count(shape)) for index, shape in enumerate(shapes)]
        self.networks = torch.nn.ModuleDict({str(s): Network(sum(s), rank, shapes.count(s)) for s in set(shapes)})
        self.statistics = {str(shape): Observed(sum(shape)) for shape in set(shapes)}
        self.scales = torch.nn.Parameter(torch.ones(len(matrices)))

    def forward(self, factors):
        """The edits' factors `[rows, d_in]` and `[rows, d_out]` of each matrix, its step size applied."""
        rows = [torch.cat(pair, -1) for pair in factors]
        for (shape, _), observed in zip(self.slots, rows):
            self.statistics[shape].observe(observed)
        made = []
        for (shape, mode), z, d_in, scale in zip(self.slots, rows, self.d_in, self.scales):
            z = self.networks[shape](self.statistics[shape].normalise(z), mode)
            made.append((z[:, :d_in], z[:, d_in:] * (scale * self.step_size)))
        return made


class Trainer:
    def __init__(self, task):
        path, self.task = pathlib.Path(task["model"]), task
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
        model.requires_grad_(False)
        self.texts, self.head, self.tail = read(tokenizer, task["records"]), model.lm_head, Tail(model, task["blocks"])
        keep_states(model, self.texts, len(model.model.layers) - task["blocks"])
        self.editor = Editor(self.tail.matrices, task["rank"], task["initial_step_size"])
        networks = {"params": self.editor.networks.parameters(), "lr": task["learning_rate"]}
        self.adam = torch.optim.Adam([networks, {"params": [self.editor.scales], "lr": task["lr_scale_rate"]}], fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, lambda step: min((step + 1) / task["warmup"], 1))
        mix = task["locality_mix"]
        self.own_question = mix["neighbour"] / (mix["neighbour"] + mix["other"])
        self.draw, self.order = random.Random(0), []

    def batch(self):
        """Records to edit, and two others' or their own questions for each."""
        count, size = len(self.task["records"]), self.task["edits_per_step"]
        while len(self.order) < size:
            self.order += self.draw.sample(range(count), count)
        edited, self.order = self.order[:size], self.order[size:]
        asked = [[record if self.draw.random() < self.own_question else self.draw.randrange(count)
                  for _ in range(LOCALITY_PER_EDIT)] for record in edited]
        return edited, asked

    def capture(self, texts):
        """The factors of each text's own gradient at each matrix, all texts in one pass."""
        inputs, leaves = {}, {}

        def linear(matrix, x):
            y = self.tail.matrices[matrix](x)
            inputs[matrix], leaves[matrix] = x.detach(), torch.zeros_like(y, requires_grad=True)
            return y + leaves[matrix]

        losses = nll(self.head(self.tail(texts, linear)), texts)
        return [(inputs[matrix], delta) for matrix, delta in enumerate(torch.autograd.grad(losses.sum(), list(leaves.values())))]

    def measure(self, groups, made, own_rows):
        """The loss of groups of texts, each group under its own edit: prompt, paraphrase, and what must not change."""
        texts, last = [text for group in groups for text in group], 3 * len(self.tail.layers) - 3
        # How many rows each edit has, and each group: in the last block those that the losses read, before it all.
        edits = {False: [len(text.ids) for text in own_rows], True: [len(text.rows) for text in own_rows]}
        read = {False: [sum(len(text.ids) for text in group) for group in groups],
                True: [sum(len(text.rows) for text in group) for group in groups]}

        def linear(matrix, x):
            (u, delta), late = made[matrix], matrix >= last
            parts = zip(x.split(read[late]), u.split(edits[late]), delta.split(edits[late]))
            return self.tail.matrices[matrix](x) + torch.cat([(x @ u.T) @ delta for x, u, delta in parts])

        top = self.tail(texts, linear)
        by_text = top.split([len(text.rows) for text in texts])
        told = [index for index in range(len(texts)) if index % (2 + LOCALITY_PER_EDIT) < 2]
        kept = [index for index in range(len(texts)) if index % (2 + LOCALITY_PER_EDIT) >= 2]
        loss = nll(self.head(torch.cat([by_text[i] for i in told])), [texts[i] for i in told]).mean()
        after = self.head(torch.cat([by_text[i] for i in kept])).log_softmax(-1)
        with torch.no_grad():
            before = self.head(torch.cat([texts[i].top for i in kept])).log_softmax(-1)
        apart = F.kl_div(after, before, reduction="none", log_target=True).sum(-1)
        return loss, (apart * shares([texts[i] for i in kept])).sum() / len(kept)

    def step(self):
        edited, asked = self.batch()
        own = [self.texts[3 * record] for record in edited]
        made = self.editor(self.capture(own))
        groups = [[self.texts[3 * record], self.texts[3 * record + 1], *(self.texts[3 * other + 2] for other in others)]
                  for record, others in zip(edited, asked)]
        likelihood, divergence = self.measure(groups, made, own)
        loss = self.task["edit_weight"] * likelihood + self.task["locality_weight"] * divergence
        self.adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.editor.parameters(), self.task["clip"])
        self.adam.step()
        self.schedule.step()
        return loss.item()


def shares(texts):
    """1 / the rows of its text, for every row."""
    return torch.tensor([1 / len(text.rows) for text in texts for _ in text.rows])


def nll(logits, texts):
    """Each text's mean over its rows."""
    rows = F.cross_entropy(logits, torch.tensor([label for text in texts for label in text.labels]), reduction="none")
    return torch.stack([own.mean() for own in rows.split([len(text.rows) for text in texts])])


def main():
    task = json.load(sys.stdin)
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    trainer = Trainer(task)
    for _ in range(task["steps_before"]):
        trainer.step()
    began = time.perf_counter()
    losses = [trainer.step() for _ in range(task["steps"])]
    seconds = time.perf_counter() - began
    json.dump({"seconds": seconds, "edits_per_second": task["steps"] * task["edits_per_step"] / seconds,
               "loss": statistics.mean(losses[-AVERAGE:])}, sys.stdout)


if __name__ == "__main__":
    main()
