"""A training step, ours and that of transformers (with PEFT in prefix mode), timed in turn.

Both get the same weights and batches: GPT-2 Medium's shape with random weights (no download), real
E2E batches of 10, float32, on whatever this machine has.

    python -m experiments.bench.training --data e2e --tokenizer gpt2-medium
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time

import torch

from e2e_data import encode_example, make_batch, read_split, shuffled_batches
from experiments.bench.twins import hugging_face_twin, peft_twin
from gpt2 import GPT2, GPT2Config, load_config, load_tokenizer
from prefix import Prefix, count_parameters
from support.bases import PUBLISHED
from support.devices import peak_memory, pick_device, reset_peak_memory
from support.files import InputError, format_rows, run_command
from support.reading import find_data
from train import make_optimizer, train_step

BATCH_SIZE, PREFIX_LENGTH, LEARNING_RATE = 10, 5, 5e-5


class Ours:
    """A training step of this repository."""

    def __init__(self, model, prefix, n_steps):
        model.requires_grad_(prefix is None)
        self.model, self.prefix = model, prefix
        self.optimizer, self.schedule = make_optimizer(prefix or model, LEARNING_RATE, n_steps)

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
        places = torch.arange(tokens.shape[1], device=device)
        mask = places < ends  # [B, T]
        labels = tokens.masked_fill((places < starts) | ~mask, -100)
        loss = self.model(input_ids=tokens, attention_mask=mask.long(), labels=labels).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()


BOTH = {"ours": Ours, "theirs": Theirs}


def useful_flops(config, batch, prefix):
    """The floating-point operations of a step, without those on padding.

    A multiplication and an addition are two. Forward, with n = n_embd: 2 for each weight of a layer
    and token, 12 n^2 weights; 4 n for each pair of a token and one it looks at, in each layer; 2 n
    for each token of the vocabulary where there is loss. Backward: as many again for the gradients
    of what is computed, and once more for those of the weights where these are trained.
    """
    n, forward_weights, forward_pairs = config.n_embd, 0, 0
    P = PREFIX_LENGTH if prefix else 0
    for prompt, answer in batch:
        T = len(prompt) + len(answer) - 1
        forward_weights += 2 * T * 12 * n**2 * config.n_layer + 2 * len(answer) * n * config.n_vocab
        forward_pairs += 4 * n * (T * P + T * (T + 1) / 2) * config.n_layer
    if not prefix:
        return 3 * (forward_weights + forward_pairs)
    network = 2 * P * count_parameters(prefix.networks)
    return 2 * forward_weights + 3 * forward_pairs + 3 * network


def peak_flops(device):
    """Floating-point operations a second in large matrix products.

    Of three shapes the best, each the median of twelve.
    """
    best = 0.0
    for rows, inner, columns in ((4096, 4096, 4096), (2048, 1024, 4096), (1024, 4096, 1024)):
        a = torch.randn(rows, inner, device=device)
        b = torch.randn(inner, columns, device=device)
        seconds = []
        for _ in range(12):
            wait(device)
            started = time.perf_counter()
            a @ b
            wait(device)
            seconds.append(time.perf_counter() - started)
        best = max(best, 2 * rows * inner * columns / statistics.median(seconds))
    return best


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


def make(args, mode):
    """The device, and the weights and the batches that both get."""
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


def measure_memory(args):
    """Prints the peak of memory of two steps, in a process of its own."""
    device, model, prefix, batches = make(args, args.mode)
    one = BOTH[args.only](model, prefix, len(batches))
    del model, prefix
    reset_peak_memory(device)
    for batch in batches[:2]:
        one.step(batch, device)
    print(json.dumps(peak_memory(device) or math.nan))  # not every system tells


def time_steps(args, mode):
    """Steps of both in turn: (seconds of ours, seconds of theirs, our and the machine's FLOP/s).

    Ours and theirs are medians over all steps but the first; the machine's is the mean of what it
    did before and after them.
    """
    device, model, prefix, batches = make(args, mode)
    both = {name: one(model, prefix, len(batches)) for name, one in BOTH.items()}
    seconds, speeds, peaks = {"ours": [], "theirs": []}, [], [peak_flops(device)]
    for number, batch in enumerate(batches):
        losses = {}
        for name in both if number % 2 else reversed(both):
            wait(device)
            started = time.perf_counter()
            losses[name] = both[name].step(batch, device)
            seconds[name].append(time.perf_counter() - started)
        if abs(losses["ours"] / losses["theirs"] - 1) > 1e-3:
            raise SystemExit(f"the losses of step {number + 1} differ: {losses}")
        speeds.append(useful_flops(model.config, batch, prefix) / seconds["ours"][-1])
    peaks.append(peak_flops(device))
    ours, theirs = (statistics.median(seconds[name][1:]) for name in seconds)
    return ours, theirs, statistics.median(speeds[1:]), statistics.mean(peaks)


def main():
    parser = argparse.ArgumentParser(
        description="A training step: ours against transformers and PEFT.")
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=7,
                        help="timed steps, after one that is not (default: 7)")
    parser.add_argument("--mode", choices=("prefix", "finetune"), help="this mode alone")
    parser.add_argument("--only", choices=BOTH,
                        help="with --mode: print the peak of memory of these")
    args = parser.parse_args()
    if args.steps < 1:
        raise InputError("--steps must be at least 1")
    if args.only and not args.mode:
        raise InputError("--only goes with --mode")
    if args.only:
        return measure_memory(args)
    modes = [args.mode] if args.mode else ["prefix", "finetune"]
    memory = {}  # GiB
    for mode in modes:
        for name in BOTH:
            command = [sys.executable, "-m", "experiments.bench.training", *sys.argv[1:],
                       "--mode", mode, "--only", name]
            done = subprocess.run(command, stdout=subprocess.PIPE)
            if done.returncode:  # it has said why
                sys.exit(done.returncode)
            memory[mode, name] = float(done.stdout) / 2**30
    print(f"{args.model}'s shape, {args.data}, batches of {BATCH_SIZE}, float32, "
          f"{pick_device(args.device)} ({torch.get_num_threads()} threads); medians of "
          f"{args.steps} steps\n")
    rows = [("", ["seconds a step: ours", "theirs", "theirs/ours", "GiB at the peak: ours",
                  "theirs", "theirs/ours", "useful GFLOP/s: ours", "machine", "ours/machine"])]
    seconds = {}
    for mode in modes:
        ours, theirs, speed, peak = time_steps(args, mode)
        seconds[mode] = ours
        cells = [f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.2f}"]
        ours, theirs = memory[mode, "ours"], memory[mode, "theirs"]
        cells += [f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.2f}"]
        cells += [f"{speed / 1e9:,.0f}", f"{peak / 1e9:,.0f}", f"{speed / peak:.2f}"]
        rows.append((mode, cells))
    print("\n".join(format_rows(rows)))
    if len(modes) > 1:
        time_ratio = seconds["finetune"] / seconds["prefix"]
        memory_ratio = memory["finetune", "ours"] / memory["prefix", "ours"]
        print(f"\nfine-tuning / prefix-tuning, ours: {time_ratio:.2f} of the time, "
              f"{memory_ratio:.2f} of the memory")


if __name__ == "__main__":
    run_command(main)
