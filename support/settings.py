"""The settings of a run: what each means, its default and its choices, each written once.

A program makes `Settings(mode="prefix", model="tiny")`; the command line is made from the same
fields; run.json holds them.
"""

import argparse
import dataclasses
import math
import sys
import types
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

from support.bases import NAMES, PUBLISHED, count_weights, read_config
from support.commands import InputError
from support.devices import random_generator

HIDDEN = {"network": 512, "per-layer": 800}  # widths: the paper's code, the re-implementation
LEARNING_RATE = {"network": 8e-5, "per-layer": 8e-5, "direct": 8e-5,  # the paper's prefix
                 "finetune": 5e-5}  # and its fine-tuning
SMALL = 50_000_000  # parameters; a smaller base wants more:
SMALL_LEARNING_RATE = {"network": 3e-3, "per-layer": 1e-3, "direct": 0.1, "finetune": 1e-3}


def setting(default=MISSING, **metadata):
    """A field with a default and argparse's keyword arguments; several: a run for each value."""
    return dataclasses.field(default=default, metadata=metadata)


@dataclass
class Settings:
    """All that decides what a run's result is."""

    mode: str = setting(choices=("prefix", "finetune"), help="what is trained")
    model: str = setting("gpt2-medium", metavar="NAME|DIR", help="the base: tiny, gpt2, "
                         "gpt2-medium, gpt2-large, gpt2-xl (downloaded on first use) or a folder")
    data: str = setting("e2e", metavar="e2e|sample|DIR",
                        help="e2e (downloaded on first use), sample or a folder")
    epochs: int = setting(5, metavar="N", help="how often each example is read")
    lr: float | None = setting(
        None, metavar="RATE", help="AdamW's learning rate, which falls linearly to 0 (default: "
        f"{LEARNING_RATE['network']} prefix, {LEARNING_RATE['finetune']} finetune, as in the paper;"
        f" for a base of fewer than {SMALL // 10**6} million parameters "
        f"{SMALL_LEARNING_RATE['network']} prefix, {SMALL_LEARNING_RATE['per-layer']} with a "
        f"network per layer, {SMALL_LEARNING_RATE['direct']} direct, "
        f"{SMALL_LEARNING_RATE['finetune']} finetune)")
    batch_size: int = setting(10, metavar="N", help="examples a step")
    warmup_steps: int = setting(0, metavar="N", help="steps in which the learning rate rises first")
    max_examples: int | None = setting(None, metavar="N", help="train on at most so many examples, "
                                       "drawn by the seed (default: all)")
    keep: str = setting("last", choices=("last", "best"), help="the state after the last epoch, or "
                        "after that of the lowest validation loss")
    prefix_length: int = setting(5, metavar="P", several=True, help="positions of the prefix; of "
                                 "several a run each, and a figure of score against length")
    prefix_form: str = setting("network", choices=("network", "per-layer", "direct"), help="what "
                               "makes its keys and values: one network, one for each layer, or "
                               "none: they themselves are trained")
    prefix_hidden: int | None = setting(None, metavar="N", help="width of the networks that make "
                                        "the prefix (default: 512, per-layer 800)")
    prefix_words: str | None = setting(
        None, metavar="TEXT", help="the prefix starts from what the model makes of this text, "
        "repeated to the prefix's length; it may hold <|endoftext|> (default: random numbers)")
    clip: float = setting(1.0, metavar="NORM", help="the most that the gradient's norm may be")
    max_steps: int | None = setting(None, metavar="N", help="stop after so many steps; the learning"
                                    " rate falls to 0 by then (default: all epochs' steps)")
    seed: int = setting(0, metavar="N", several=True, help="what is drawn at "
                        "random; of several a run each, and their mean and spread")
    dtype: str = setting("float32", choices=("float32", "bfloat16"),
                         help="bfloat16 (autocast) is for GPUs")
    num_beams: int = setting(5, metavar="K", help="beams of the search")
    length_penalty: float = setting(1.0, metavar="A", help="a beam's score is divided by its length"
                                    " to this power")
    max_new_tokens: int = setting(100, metavar="N", help="the longest sentence, in tokens")

    def check(self):
        """Raises InputError where a value is none that a run can have. Returns self."""
        for field in fields(self):
            value, option = getattr(self, field.name), option_of(field.name)
            allowed = types_of(field)
            if type(value) not in allowed:
                names = " or ".join(kind.__name__ for kind in allowed)
                raise InputError(f"{option} must be {names}, but is {value!r}")
            choices = field.metadata.get("choices")
            if choices and value not in choices:
                raise InputError(f"{option} must be one of {', '.join(choices)}, but is {value!r}")
            if isinstance(value, (int, float)) and field.name not in ("seed", "length_penalty"):
                may_be_0 = field.name == "warmup_steps"
                if not 0 <= value < math.inf or value == 0 and not may_be_0:
                    raise InputError(f"{option} must be {'0 or more' if may_be_0 else 'above 0'} "
                                     f"and finite, but is {value}")
        random_generator(self.seed)
        changed = [option_of(field.name) for field in fields(self)
                   if field.name.startswith("prefix_")
                   and getattr(self, field.name) != field.default]
        if self.mode == "finetune" and changed:
            raise InputError(f"{', '.join(changed)}: fine-tuning has no prefix")
        if self.prefix_form == "direct" and self.prefix_hidden:
            raise InputError("--prefix-hidden: a direct prefix has no network")
        return self


DECODER = {field.name: field.default for field in fields(Settings)  # as Li & Liang decode E2E
           if field.name in ("num_beams", "length_penalty", "max_new_tokens")}


def option_of(name):
    return "--" + name.replace("_", "-")


def types_of(field):
    """The types that a field's value may have; a whole number will do for any number."""
    kinds = field.type.__args__ if isinstance(field.type, types.UnionType) else (field.type,)
    return (*kinds, int) if float in kinds else kinds


def add_arguments(parser, defaults=None):
    """Adds an argument for each field of Settings, or for those of `defaults`, {name: default}. One
    of which a run may be asked for each of several values is a list."""
    defaults = defaults or {field.name: field.default for field in fields(Settings)}
    for field in fields(Settings):
        if field.name not in defaults:
            continue
        metadata, default = dict(field.metadata), defaults[field.name]
        takes_several = metadata.pop("several", False)
        if default is MISSING:
            metadata["required"], default = True, None
        elif default is not None:
            metadata["help"] += f" (default: {default})"
        if "choices" not in metadata:
            metadata.setdefault("type", types_of(field)[0])
        if takes_several:
            metadata, default = metadata | {"nargs": "+"}, [default]
        parser.add_argument(option_of(field.name), default=default, **metadata)


def settle(settings):
    """A copy of the settings, checked, with what follows from others: absolute paths, so that the
    run finds its base and data from everywhere, the width of networks, the learning rate."""
    model, data = str(settings.model), str(settings.data)
    model = model if model in NAMES else str(Path(model).resolve())
    data = data if data in ("e2e", "sample") else str(Path(data).resolve())
    settings = replace(settings, model=model, data=data).check()
    if settings.mode == "prefix" and settings.prefix_hidden is None:
        settings.prefix_hidden = HIDDEN.get(settings.prefix_form)
    if settings.lr is None:
        settings.lr = default_learning_rate(settings)
    return settings


def default_learning_rate(settings):
    """The learning rate for what is trained, by the size of the base."""
    sizes = PUBLISHED.get(settings.model) or read_config(settings.model)
    is_small = count_weights(sizes) < SMALL
    rates = SMALL_LEARNING_RATE if is_small else LEARNING_RATE
    return rates[settings.prefix_form if settings.mode == "prefix" else "finetune"]


def add_device_arguments(parser):
    """How many tables are described at once, and where."""
    parser.add_argument("--decode-batch-size", type=int, default=64, metavar="N", help="tables"
                        " described at once; fewer need less memory (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto (default: a GPU where there is one),"
                        " cpu, cuda, mps, ...")


# --------------------------------------------------------------------------------------------------
# The command line of train.py
# --------------------------------------------------------------------------------------------------

DEMO = {  # mode -> its arguments
    "prefix": "--epochs 5 --prefix-length 50 --prefix-form direct --out runs/demo/prefix",
    "finetune": "--epochs 2 --out runs/demo/finetune"}


def read_arguments():
    """(arguments, the folder of all, {folder: Settings} of each run that is asked for)."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Trains a prefix or all of GPT-2 to describe tables, then describes the test "
        "tables and scores them. Without other arguments it is the run of Li & Liang (2021): GPT-2 "
        "Medium on E2E.",
        epilog="A run writes its folder: run.json (settings), log.jsonl, the weights (a PEFT "
        "adapter or a Hugging Face folder), training.pt (the checkpoint), outputs.txt, "
        "references.txt, tables.txt, scores.json, loss.png.")
    demo = ", ".join(f"{mode} {arguments}" for mode, arguments in DEMO.items())
    parser.add_argument("--demo", action="store_true",
                        help=f"other defaults: --model tiny --data sample, {demo}")
    parser.add_argument("--out", metavar="DIR",
                        help="the run's folder (default: runs/MODE-MODEL-DATA)")
    parser.add_argument("--resume", action="store_true", help="continue where the same command "
                        "was stopped; of several runs, those not finished")
    add_arguments(parser)
    add_device_arguments(parser)
    args = parser.parse_args()
    if args.demo:
        defaults = ["--model", "tiny", "--data", "sample", *DEMO[args.mode].split()]
        args = parser.parse_args(defaults + sys.argv[1:])  # the last one wins
    name = f"{args.mode}-{Path(args.model).name}-{Path(args.data).name}"
    out = Path(args.out or Path("runs") / name)
    return args, out, single_runs(args, out)


def single_runs(args, out):
    """{folder: Settings}: a run for each prefix length and seed; a single one is in `out` itself.

    The longest comes first: what is too long for the model shows at once.
    """
    values = {field.name: getattr(args, field.name) for field in fields(Settings)}
    lengths, seeds, runs = values["prefix_length"], values["seed"], {}
    for name in ("prefix_length", "seed"):
        if len(set(values[name])) < len(values[name]):
            raise InputError(f"{option_of(name)} {' '.join(map(str, values[name]))}: give each "
                             "number once")
    for length in sorted(lengths, reverse=True):
        for seed in seeds:
            name = f"length-{length}-seed-{seed}" if args.mode == "prefix" else f"seed-{seed}"
            folder = out if len(lengths) == len(seeds) == 1 else out / name
            runs[folder] = Settings(**values | {"prefix_length": length, "seed": seed})
    return runs
