"""A training step, ours and that of transformers (with PEFT in prefix mode): in turn, on the same weights and batches.

GPT-2 Medium's shape with random weights (no download), real E2E batches of 10, float32, on whatever this machine has:

    python bench/training.py --data e2e --tokenizer gpt2-medium
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bench.twins import hugging_face_twin, peft_twin  # noqa: E402
from common import run_command  # noqa: E402
from e2e_data import encode_example, find_data, make_batch, read_split, shuffled_batches  # noqa: E402
from gpt2 import GPT2, SIZES, load_tokenizer, pick_device  # noqa: E402
from prefix import Prefix  # noqa: E402
from train import example_loss, make_optimizer, peak_memory  # noqa: E402

BATCH_SIZE, PREFIX_LENGTH = 10, 5


class Ours:
    """A training step of this repository."""

    def __init__(self, model, prefix):
        model.requires_grad_(prefix is None)
        self.model, self.prefix = model, prefix
        self.optimizer = make_optimizer(prefix or model, lr=5e-5)

    def step(self, batch, device):
        loss = example_loss(self.model, self.prefix and self.prefix(), *make_batch(batch, device))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_((self.prefix or self.model).parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


class Theirs:
    """The same step as one writes it with transformers and PEFT: a padded batch, its attention mask, its labels."""

    def __init__(self, model, prefix):
        self.model = hugging_face_twin(model)
        if prefix:
            self.model = peft_twin(self.model, prefix)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=5e-5, weight_decay=0.0)

    def step(self, batch, device):
        rows = [torch.tensor(prompt + sentence) for prompt, sentence in batch]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        ends = torch.tensor([[len(prompt), len(prompt) + len(sentence)] for prompt, sentence in batch], device=device)
        places = torch.arange(tokens.shape[1], device=device)
        mask = places < ends[:, 1:]
        labels = tokens.masked_fill(~mask | (places < ends[:, :1]), -100)
        loss = self.model(input_ids=tokens, attention_mask=mask.long(), labels=labels).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        return loss.item()


def useful_flops(config, batch, prefix):
    """The floating-point operations that a step cannot do without (a multiplication and an addition are two).

    Forward, with n = n_embd: 2 for each weight of a layer and token, 12 n^2 weights; 4 n for each pair of a token and
    one it looks at, in each layer; 2 n for each token of the vocabulary where there is loss. Backward: as many again
    for the gradients of what is computed, and once more for those of the weights where these are trained.
    """
    n, forward_weights, forward_pairs = config.n_embd, 0, 0
    P = PREFIX_LENGTH if prefix else 0
    for prompt, sentence in batch:
        T = len(prompt) + len(sentence) - 1
        forward_weights += 2 * T * 12 * n**2 * config.n_layer + 2 * len(sentence) * n * config.n_vocab
        forward_pairs += 4 * n * (T * P + T * (T + 1) / 2) * config.n_layer
    if not prefix:
        return 3 * (forward_weights + forward_pairs)
    network = sum(parameter.numel() for parameter in prefix.mlp.parameters())
    return 2 * forward_weights + 3 * forward_pairs + 3 * 2 * P * network


def peak_flops(device):
    """Floating-point operations a second in large matrix products: medians of twelve, the best of three shapes."""
    best = 0.0
    for rows, inner, columns in ((4096, 4096, 4096), (2048, 1024, 4096), (1024, 4096, 1024)):
        a, b = torch.randn(rows, inner, device=device), torch.randn(inner, columns, device=device)
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
    """What to measure with, for this benchmark and for bench/decoding.py."""
    parser.add_argument("--model", default="gpt2-medium", choices=SIZES, help="the shape (default: gpt2-medium)")
    parser.add_argument("--data", default="sample", metavar="e2e|sample|DIR", help="default: sample")
    parser.add_argument("--tokenizer", default="tiny", metavar="NAME|DIR", help="default: tiny")
    parser.add_argument("--device", default="auto", help="default: auto")


def make(args, mode):
    """The weights and the batches that both get."""
    torch.manual_seed(0)
    device = pick_device(args.device)
    with device:
        model = GPT2(SIZES[args.model])
        prefix = Prefix(model.config, PREFIX_LENGTH) if mode == "prefix" else None
    tokenizer = load_tokenizer(args.tokenizer)
    batches = shuffled_batches(read_split(find_data(args.data), "train"), BATCH_SIZE, seed=0, epoch=0)
    encoded = [[encode_example(tokenizer, *example) for example in batch] for batch in batches[: args.steps + 1]]
    return device, model, prefix, encoded


def measure_memory(args):
    """The peak of memory of two steps, in a process of its own."""
    device, model, prefix, batches = make(args, args.mode)
    one = {"ours": Ours, "theirs": Theirs}[args.only](model, prefix)
    del model, prefix
    for batch in batches[:2]:
        one.step(batch, device)
    print(json.dumps(peak_memory(device)))


def main():
    parser = argparse.ArgumentParser(description="A training step: ours against transformers and PEFT.")
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=7, help="timed steps, after one that is not (default: 7)")
    parser.add_argument("--mode", choices=("prefix", "finetune"), help="this mode alone")
    parser.add_argument("--only", choices=("ours", "theirs"), help="with --mode: print the peak of memory of these")
    args = parser.parse_args()
    if args.only:
        return measure_memory(args)
    modes = [args.mode] if args.mode else ["prefix", "finetune"]
    memory = {}  # measured first: on Linux a child's peak begins at what its parent holds when it starts
    for mode in modes:
        for name in ("ours", "theirs"):
            command = [sys.executable, __file__, *sys.argv[1:], "--mode", mode, "--only", name]
            memory[mode, name] = int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout) / 2**30
    device = pick_device(args.device)
    print(f"{args.model}'s shape, {args.data}, batches of {BATCH_SIZE}, float32, {device} ({torch.get_num_threads()} "
          f"threads); medians of {args.steps} steps\n")
    print(f"{'':<10}{'seconds a step':>28}{'GiB at the peak':>39}{'useful GFLOP/s':>40}")
    print(f"{'':<10}" + "".join(f"{head:>13}" for head in [*["ours", "theirs", "theirs/ours"] * 2, "ours", "machine",
                                                           "ours/machine"]))
    medians = {}
    for mode in modes:
        device, model, prefix, batches = make(args, mode)
        both = {"ours": Ours(model, prefix), "theirs": Theirs(model, prefix)}
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
        cells = []
        for ours, theirs in ((statistics.median(seconds[name][1:]) for name in seconds),
                             (memory[mode, name] for name in seconds)):
            cells += [f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.2f}"]
        speed, peak = statistics.median(speeds[1:]), statistics.mean(peaks)
        cells += [f"{speed / 1e9:,.0f}", f"{peak / 1e9:,.0f}", f"{speed / peak:.2f}"]
        print(f"{mode:<10}" + "".join(f"{cell:>13}" for cell in cells), flush=True)
        medians[mode] = statistics.median(seconds["ours"][1:])
        del both, model, prefix
    if len(modes) > 1:
        ratios = medians["finetune"] / medians["prefix"], memory["finetune", "ours"] / memory["prefix", "ours"]
        print(f"\nfine-tuning / prefix-tuning, ours: {ratios[0]:.2f} of the time, {ratios[1]:.2f} of the memory")


if __name__ == "__main__":
    run_command(main)
