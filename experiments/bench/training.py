"""A training step, ours and that of transformers (with PEFT in prefix mode), timed in turn.

    python -m experiments.bench.training --data e2e --tokenizer gpt2-medium

Both get the same weights and batches: GPT-2 Medium's shape with random weights (no download), real
E2E batches of 10, float32, on whatever this machine has. Each measurement has a process of its own.
"""

import argparse
import math
import statistics
import time

import torch

from e2e_data import encode_example, make_batch, read_split, shuffled_batches
from experiments.bench.alone import alone
from experiments.bench.twins import hugging_face_twin, peft_twin
from gpt2 import GPT2, GPT2Config, load_config, load_tokenizer
from prefix import Prefix
from support.bases import PUBLISHED
from support.commands import InputError, run_command
from support.devices import peak_memory, pick_device, reset_peak_memory
from support.reading import find_data
from train import make_optimizer, train_step

BATCH_SIZE, PREFIX_LENGTH, LEARNING_RATE = 10, 5, 5e-5


class Ours:
    """A training step of this repository."""

    def __init__(self, model, prefix, n_steps):
        model.requires_grad_(prefix is None)
        self.model, self.prefix = model, prefix
        trained = model if prefix is None else prefix
        self.optimizer, self.schedule = make_optimizer(trained, LEARNING_RATE, n_steps)

    def step(self, batch, device):
        batch = make_batch(batch, device)
        return train_step(self.model, self.prefix, batch, self.optimizer, self.schedule).item()


class Theirs:
    """The same step as one writes it with transformers and PEFT: padding, a mask for it, labels."""

    def __init__(self, model, prefix, n_steps):
        from transformers import get_linear_schedule_with_warmup

        self.model = hugging_face_twin(model)
        if prefix:
            self.model = peft_twin(self.model, prefix)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=LEARNING_RATE, weight_decay=0.0)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, 0, n_steps)

    def step(self, batch, device):
        rows = [torch.tensor(prompt + answer) for prompt, answer in batch]
        starts = torch.tensor([[len(prompt)] for prompt, _ in batch], device=device)  # [B, 1]
        ends = torch.tensor([[len(row)] for row in rows], device=device)
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)  # [B, T]
        positions = torch.arange(tokens.shape[1], device=device)
        mask = positions < ends  # [B, T]
        labels = tokens.masked_fill((positions < starts) | ~mask, -100)
        loss = self.model(input_ids=tokens, attention_mask=mask.long(), labels=labels).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()


WAYS = {"ours": Ours, "theirs": Theirs}


def wait(device):
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def add_arguments(parser):
    """What to measure with, for this benchmark and for experiments/bench/decoding.py."""
    parser.add_argument("--model", default="gpt2-medium", choices=("tiny", *PUBLISHED),
                        help="the shape (default: gpt2-medium)")
    parser.add_argument("--data", default="sample", metavar="e2e|sample|DIR",
                        help="default: sample")
    parser.add_argument("--tokenizer", default="tiny", metavar="NAME|DIR", help="default: tiny")
    parser.add_argument("--device", default="auto", help="default: auto")


def random_model(name, device):
    """A GPT-2 of a published shape, or of tiny's, with random weights; the same ones each time."""
    torch.manual_seed(0)
    config = load_config("tiny") if name == "tiny" else GPT2Config(**PUBLISHED[name])
    with device:
        return GPT2(config).eval()


def print_row(label, cells):
    """A row of a table, as soon as it is known."""
    print(f"{label:<36}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


def make(args, mode):
    """The device, and the weights and the batches that all ways get."""
    device = pick_device(args.device)
    model = random_model(args.model, device)
    with device:
        prefix = Prefix(model.config, PREFIX_LENGTH) if mode == "prefix" else None
    tokenizer = load_tokenizer(args.tokenizer)
    examples = read_split(find_data(args.data), "train")
    batches = []
    for batch in shuffled_batches(examples, BATCH_SIZE, seed=0, epoch=0)[: args.steps + 1]:
        batches.append([encode_example(tokenizer, *example) for example in batch])
    if len(batches) <= args.steps:
        raise InputError(f"{args.data} has only {len(batches)} batches; give fewer --steps")
    return device, model, prefix, batches


def time_steps(args, mode):
    """Seconds of each way: the medians over steps of all in turn, but the first."""
    device, model, prefix, batches = make(args, mode)
    ways = {name: way(model, prefix, len(batches)) for name, way in WAYS.items()}
    seconds = {name: [] for name in WAYS}
    for number, batch in enumerate(batches):
        losses = {}
        for name in ways if number % 2 else reversed(ways):
            wait(device)
            started = time.perf_counter()
            losses[name] = ways[name].step(batch, device)
            seconds[name].append(time.perf_counter() - started)
        if not all(math.isclose(loss, losses["ours"], rel_tol=1e-3) for loss in losses.values()):
            raise SystemExit(f"the losses of step {number + 1} differ: {losses}")
    return [statistics.median(of_one[1:]) for of_one in seconds.values()]


def peak_of_steps(args, mode, name):
    """The peak of memory of two steps, in GiB."""
    device, model, prefix, batches = make(args, mode)
    one = WAYS[name](model, prefix, len(batches))
    del model, prefix
    reset_peak_memory(device)
    for batch in batches[:2]:
        one.step(batch, device)
    return (peak_memory(device) or math.nan) / 2**30  # not every system tells


MEASURED = {  # what is measured -> its function of (args, mode), which gives a number for each way
    "seconds a step": lambda *given: alone(time_steps, *given),
    "GiB at the peak": lambda *given: [alone(peak_of_steps, *given, name) for name in WAYS]}


def main():
    parser = argparse.ArgumentParser(
        description="A training step: ours against transformers and PEFT.")
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=7,
                        help="timed steps, after one that is not (default: 7)")
    args = parser.parse_args()
    if args.steps < 1:
        raise InputError("--steps must be at least 1")
    print(f"{args.model}'s shape, {args.data}, batches of {BATCH_SIZE}, float32, "
          f"{pick_device(args.device)} ({torch.get_num_threads()} threads); medians of "
          f"{args.steps} steps\n")
    print_row("", [*WAYS, "theirs / ours"])
    found = {}
    for mode in ("prefix", "finetune"):
        for what, measure in MEASURED.items():
            ours, *_, theirs = found[mode, what] = measure(args, mode)
            cells = *found[mode, what], theirs / ours
            print_row(f"{mode}: {what}", [f"{cell:.2f}" for cell in cells])
    for what in MEASURED:
        ratios = [b / a for a, b in zip(found["prefix", what], found["finetune", what])]
        print_row(f"finetune / prefix: {what}", [f"{ratio:.2f}" for ratio in ratios])


if __name__ == "__main__":
    run_command(main)
