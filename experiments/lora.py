"""LoRA, to compare with: products of two thin matrices beside layers of the frozen base.

    python -m experiments.lora --place c_attn --rank 25 --lr 0.01 --out runs/lora

Everything else is as train.py does it: data, batches, optimiser, log, going on, scores. It is no
mode of train.py, which is about prefixes.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from describe import Run, score_test_set
from e2e_data import encode_splits
from gpt2 import load_both
from prefix import count_parameters
from support.commands import run_command
from support.devices import pick_device
from support.record import Record, costs_of_training
from support.run_folder import check_new, claim, fingerprints
from support.settings import DECODER, Settings, settle
from train import train

PLACES = {"c_attn": "attn", "c_fc": "mlp"}  # a layer's name -> the part of a block that has it


class LoRA(nn.Module):
    """x @ down @ up, which is added to what a layer makes of x (Hu et al. 2021)."""

    def __init__(self, n_in, n_out, rank):
        super().__init__()
        self.down = nn.Parameter(torch.randn(n_in, rank) / n_in**0.5)
        self.up = nn.Parameter(torch.zeros(rank, n_out))  # 0 at first: nothing changes

    def forward(self, x):
        return x @ self.down @ self.up  # [..., n_in] -> [..., n_out]


class Beside(nn.Module):
    """A LoRA beside one layer of each block. To train.py it is a prefix that gives no past."""

    def __init__(self, model, place, rank):
        super().__init__()
        layers = [getattr(getattr(block, PLACES[place]), place) for block in model.h]
        self.added = nn.ModuleList(LoRA(*layer.weight.shape, rank) for layer in layers)
        for layer, lora in zip(layers, self.added):
            layer.register_forward_hook(lambda _, args, y, lora=lora: y + lora(*args))

    def forward(self):
        return None


def main():
    parser = argparse.ArgumentParser(description="Trains LoRA beside tiny's layers, and scores it.")
    add = parser.add_argument
    add("--place", choices=PLACES, required=True, help="beside which layers")
    add("--rank", type=int, required=True, metavar="N", help="width of the thin matrices")
    add("--lr", type=float, required=True, metavar="RATE", help="learning rate, which falls to 0")
    add("--data", default="e2e", metavar="e2e|sample|DIR", help="(default: %(default)s)")
    add("--max-steps", type=int, default=1000, metavar="N", help="(default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="(default: %(default)s)")
    add("--out", type=Path, required=True, metavar="DIR", help="the run's folder")
    add("--resume", action="store_true", help="go on where the same command was stopped")
    args = parser.parse_args()
    settings = settle(Settings(mode="finetune", model="tiny", data=args.data, lr=args.lr,
                               max_steps=args.max_steps, seed=args.seed))
    if not args.resume:
        check_new(args.out, "a run")
    device = pick_device("auto")
    model, tokenizer = load_both(settings.model, device)
    encoded, made_from = encode_splits(settings, model, tokenizer)
    run = asdict(settings) | {"mode": "lora", "place": args.place, "rank": args.rank}
    with claim(args.out):
        torch.manual_seed(settings.seed)
        added = Beside(model, args.place, args.rank).to(device)
        record = Record(args.out, run | made_from | fingerprints(model, tokenizer))
        log = train(settings, model, added, encoded["train"], encoded["valid"], record)
        size = count_parameters(added)
        score_test_set(Run(run, tokenizer, model, None), settings.data, DECODER, 64, args.out,
                       {"trained": size, "kept": size} | costs_of_training(log))
        (args.out / "training.pt").unlink(missing_ok=True)


if __name__ == "__main__":
    run_command(main, goes_on=True)
