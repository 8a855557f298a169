"""What a training step costs in both modes, and a decoded batch: time, memory, numbers trained and kept, side by side.

GPT-2 Medium's shape with random weights (no download), real E2E batches of 10, on whatever this machine has:

    python bench/modes.py --data e2e --model gpt2-medium
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

from beam import DECODER, beam_search  # noqa: E402
from common import run_command  # noqa: E402
from e2e_data import encode_example, find_data, make_batch, read_split, shuffled_batches  # noqa: E402
from gpt2 import GPT2, SIZES, load_tokenizer, pick_device  # noqa: E402
from prefix import Prefix, count  # noqa: E402
from train import example_loss, peak_memory  # noqa: E402


def measure(args):
    """One mode, in a process of its own so that its peak of memory is its own."""
    torch.manual_seed(0)
    device = pick_device(args.device)
    with device:
        model = GPT2(SIZES[args.model])
        prefix = Prefix(model.config, length=5) if args.mode == "prefix" else None
    model.requires_grad_(prefix is None)
    trained = prefix or model
    optimizer = torch.optim.AdamW(trained.parameters(), lr=5e-5, weight_decay=0.0)
    tokenizer = load_tokenizer(args.tokenizer)
    encoded = [encode_example(tokenizer, *example) for example in read_split(find_data(args.data), "train")]
    batches = shuffled_batches(encoded, 10, seed=0, epoch=0)[: args.steps + 1]
    seconds = []
    for batch in batches:
        wait(device)
        started = time.perf_counter()
        loss = example_loss(model, prefix and prefix(), *make_batch(batch, device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        wait(device)
        seconds.append(time.perf_counter() - started)
    peak = peak_memory(device)
    optimizer.zero_grad()
    started = time.perf_counter()
    with torch.no_grad():
        past = prefix and prefix()
    beam_search(model, [prompt for prompt, _ in batches[0]], past, DECODER["num_beams"], max_new_tokens=30,
                banned=[model.config.eos_token])  # so that both modes write all 30
    wait(device)
    print(json.dumps({
        "numbers trained": count(trained), "numbers kept": prefix.numbers().numel() if prefix else count(model),
        "seconds a training step": statistics.median(seconds[1:]), "GiB of memory at the peak": peak / 2**30,
        "seconds for 10 tables, beam 5, 30 tokens": time.perf_counter() - started,
    }))


def wait(device):
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main():
    parser = argparse.ArgumentParser(description="Costs of prefix-tuning and of fine-tuning, side by side.")
    parser.add_argument("--model", default="gpt2-medium", choices=SIZES, help="the shape (default: gpt2-medium)")
    parser.add_argument("--data", default="sample", metavar="e2e|sample|DIR", help="default: sample")
    parser.add_argument("--tokenizer", default="tiny", metavar="NAME|DIR", help="default: tiny")
    parser.add_argument("--steps", type=int, default=7, help="timed steps, after one that is not (default: 7)")
    parser.add_argument("--device", default="auto", help="default: auto")
    parser.add_argument("--mode", choices=("prefix", "finetune"), help="measure this one and print JSON")
    args = parser.parse_args()
    if args.mode:
        return measure(args)
    results = {}
    for mode in ("prefix", "finetune"):
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--mode", mode], stdout=subprocess.PIPE)
        if done.returncode:
            sys.exit(done.returncode)
        results[mode] = json.loads(done.stdout)
    print(f"{args.model}'s shape, {args.data}, batches of 10, float32, {pick_device(args.device)} "
          f"({torch.get_num_threads()} threads)\n\n{'':<42}{'prefix':>14}{'finetune':>14}{'finetune / prefix':>20}")
    for name, value in results["prefix"].items():
        other = results["finetune"][name]
        shown = [f"{number:,}" if isinstance(number, int) else f"{number:.2f}" for number in (value, other)]
        print(f"{name:<42}{shown[0]:>14}{shown[1]:>14}{other / value:>20.2f}")


if __name__ == "__main__":
    run_command(main)
