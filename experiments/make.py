"""The whole experiment: the runs behind README.md and RESULTS.md, as results/*.json tell them.

    python -m experiments.make                all of it; --list says what, and what is done
    python -m experiments.make forms small    these parts alone
    python -m experiments.make size --pretrain DIR    other bases, which are made first: hours

Each run is one command of train.py, describe.py or lora.py, in a folder of its own under
runs/results/. One that is finished is left as it is, and one that was stopped goes on: stop and
start as you like. As soon as all runs of a part are finished, its JSON file is written anew.
"""

import argparse
import itertools
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import metrics
from compare import read_log, read_run, read_sentences
from e2e_data import read_split
from experiments.slots import faults
from gpt2 import GPT2Config
from models.tiny.make import make_base
from support.commands import InputError, progress_bar, run_command
from support.files import ROOT, write_json, write_text
from support.reading import SPLITS, find_data
from support.run_folder import is_finished, read_settings
from support.tokenizer import END

RUNS = Path("runs/results")  # in the repository's root
RESULTS = ROOT / "experiments/results"
SEEDS = 0, 1, 2
E2E_SEEDS = 0, 1  # five epochs take up to two hours
E2E_EXAMPLES = (  # made up, in the form of the training set
    f" name : Cocum | Type : pub | food : Indian | price : cheap | family friendly : no{END}"
    f" Cocum is a cheap pub serving Indian food . It is not family friendly .{END}",
    f" name : The Rice Boat | Type : restaurant | food : Italian | customer rating : 5 out of 5"
    f" | area : riverside | near : Café Rouge{END} The Rice Boat is a restaurant near Café Rouge by"
    f" the riverside . It serves Italian food and is rated 5 out of 5 .{END}",
    f" name : Zizzi | Type : coffee shop | price : less than £ 20 | area : city centre | family"
    f" friendly : yes{END} Zizzi is a family friendly coffee shop in the city centre . Its prices"
    f" are less than £ 20 .{END}",
    f" name : Green Man | food : Chinese | price : moderate | customer rating : low | near : All"
    f" Bar One{END} Near All Bar One you can find Green Man , which has Chinese food in the"
    f" moderate price range and a low customer rating .{END}")
SAMPLE_EXAMPLE = shlex.quote(
    f"{END} name : The Copper Kettle | Type : brasserie | food : vegetarian | area : seafront"
    f" | family friendly : yes{END} The Copper Kettle is a vegetarian brasserie on the seafront ."
    f" It welcomes families .{END}")
PREFIX = "train.py --mode prefix --model tiny"
FINETUNE = "train.py --mode finetune --model tiny"
LADDER = 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0  # learning rates to choose from
RATES = {  # forms of a prefix -> learning rates tried
    "network": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "per-layer": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "direct": (1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    "direct, from words": (1e-2, 3e-2, 1e-1, 3e-1, 1.0),
}
CLIPS = {"network": (1, 1000), "direct": (1, 1000)}  # the gradient's largest norm; 1000 clips none
FEW_EXAMPLES = 50, 100, 200, 500  # the paper's section 6.3
FEW_STEPS = 400
FEW_RATES = {"prefix": {n: 0.02 for n in FEW_EXAMPLES},
             "finetune": {50: 1e-4, 100: 1e-4, 200: 3e-4, 500: 3e-4}}
LENGTHS = 1, 5, 20, 50
FROM_EXAMPLES = {50: 1, 100: 2, 200: 4}  # length -> the examples that fill it
STEPS = 1000
THOUSAND = f"--data e2e --max-steps {STEPS}"
RANKS = {"c_attn": 25, "c_fc": 20}  # of as many numbers as a prefix of 50 positions
BASES = {"64": GPT2Config(n_vocab=4096, n_ctx=512, n_embd=64, n_head=4, n_layer=2),
         "128": GPT2Config(n_vocab=4096, n_ctx=512, n_embd=128, n_head=4, n_layer=4)}
DECODERS = "--num-beams 1", "--length-penalty 1.5", "--length-penalty 2.5"
SHOWN = ("name : The Vaults | Type : pub | food : Japanese | price : high | customer rating : "
         "3 out of 5 | area : city centre | family friendly : no | near : Raja Indian Cuisine")
SETTINGS = "mode", "prefix_form", "prefix_length", "prefix_words", "lr", "clip", "seed", "place"


@dataclass(frozen=True)
class Run:
    """One command in the repository's root, but for --out: its own folder."""

    part: str
    name: str
    arguments: str

    @property
    def folder(self):
        return ROOT / RUNS / self.part / self.name

    @property
    def log(self):
        return self.folder.with_name(self.folder.name + ".log")

    @property
    def command(self):
        return f"python {self.arguments} --out {(RUNS / self.part / self.name).as_posix()}"


# --------------------------------------------------------------------------------------------------
# What is run
# --------------------------------------------------------------------------------------------------


def seeded(part, name, command, seeds=SEEDS):
    """A run for each seed."""
    for seed in seeds:
        yield Run(part, f"{name}-{seed}", f"{command} --seed {seed}")


def forms():
    """Which form of a prefix, at which learning rate: a hundred steps, as in TUTORIAL.md."""
    data = (RUNS / "forms/data").as_posix()
    for form, rates in RATES.items():
        own = f"--prefix-form {form.partition(',')[0]}"
        if "words" in form:
            own += f" --prefix-words {SAMPLE_EXAMPLE}"
        for clip in CLIPS.get(form, (1,)):
            for lr in rates:
                yield from seeded("forms", form_name(form, clip, lr),
                                  f"{PREFIX} --data {data} --max-steps 100 {own} "
                                  f"--prefix-length 20 --lr {lr:g} --clip {clip}")


def form_name(form, clip, lr):
    """What the runs of a form are called, but for their seed."""
    return f"{form.replace(', ', '-').replace(' ', '-')}-{lr:g}-clip-{clip}"


def words(length):
    """The examples that a prefix of such a length starts from, as an argument."""
    return shlex.quote(END + "".join(E2E_EXAMPLES[: FROM_EXAMPLES[length]]))


def from_examples(length, model="tiny"):
    """The command for a direct prefix that starts from what the base makes of examples."""
    return (f"train.py --mode prefix --model {model} --prefix-form direct --prefix-length {length} "
            f"--prefix-words {words(length)}")


def small():
    """Few examples (the paper's section 6.3): several draws, the best epoch by validation."""
    prefix = from_examples(50)
    for n in FEW_EXAMPLES:
        for draw in SEEDS:
            data = (RUNS / f"small/data-{n}-{draw}").as_posix()
            common = f"--data {data} --epochs {FEW_STEPS * 10 // n} --keep best --num-beams 3"
            for mode, command in (("prefix", prefix), ("finetune", FINETUNE)):
                yield Run("small", f"{mode}-{n}-{draw}",
                          f"{command} {common} --lr {FEW_RATES[mode][n]:g} --seed {draw}")


def length():
    """Score against prefix length (Figure 2), from 0, with fine-tuning beside it."""
    for seed in SEEDS:
        for P in LENGTHS:
            yield Run("length", f"length-{P}-seed-{seed}", f"{PREFIX} --prefix-form direct "
                      f"{THOUSAND} --prefix-length {P} --seed {seed}")
        yield Run("length", f"finetune-seed-{seed}", f"{FINETUNE} {THOUSAND} --seed {seed}")
    yield Run("length", "base", "describe.py tiny --data e2e")


def longer():
    """The same, further: longer prefixes, which start from examples."""
    for P in FROM_EXAMPLES:
        yield from seeded("longer", f"length-{P}-seed",
                          f"{from_examples(P)} {THOUSAND} --lr 0.05")


def e2e():
    """The experiment itself: five epochs of E2E, a prefix against fine-tuning."""
    yield from seeded("e2e", "prefix/length-50-seed",
                      f"{PREFIX} --data e2e --prefix-form direct --prefix-length 50 "
                      f"--prefix-words {words(50)} --lr 0.05", E2E_SEEDS)
    yield from seeded("e2e", "finetune/seed", f"{FINETUNE} --data e2e", E2E_SEEDS)
    yield Run("e2e", "base", "describe.py tiny --data e2e")


def decoding():
    """The first prefix of e2e without a search, and made to write longer sentences."""
    prefix = (RUNS / "e2e" / next(e2e()).name).as_posix()
    for option in DECODERS:
        yield Run("decoding", option.strip("-").replace(" ", "-"),
                  f"describe.py {prefix} --data e2e {option}")


def best():
    """Each mode to its own best, one seed: a longer prefix, ten epochs, and fine-tuning, five."""
    yield from seeded("best", "prefix-seed", f"{from_examples(100)} --data e2e --epochs 10 --keep "
                      "best --lr 0.05", SEEDS[:1])
    yield from seeded("best", "finetune-seed", f"{FINETUNE} --data e2e --keep best", SEEDS[:1])


def place():
    """As many numbers as a prefix has in other places, each at its best learning rate."""
    yield from tuned("place", "prefix", f"{from_examples(50)} {THOUSAND}", 0.1)
    yield from tuned("place", "finetune", f"{FINETUNE} {THOUSAND}", 1e-3)
    for layer, rank in RANKS.items():
        command = f"-m experiments.lora --place {layer} --rank {rank} {THOUSAND}"
        yield from tuned("place", layer, command, 1e-2)


def size():
    """A prefix against fine-tuning on smaller bases, each at its best learning rate."""
    for name in BASES:
        base = base_folder(name).as_posix()
        yield Run("size", f"{name}/base", f"describe.py {base} --data e2e")
        yield from tuned("size", f"{name}/prefix", f"{from_examples(50, base)} {THOUSAND}", 0.1)
        yield from tuned("size", f"{name}/finetune",
                         f"train.py --mode finetune --model {base} {THOUSAND}", 1e-3)


def base_folder(name):
    return RUNS / "bases" / name


def tuned(part, name, command, middle):
    """Runs with the first seed at three learning rates around `middle`, and at one beyond where the
    best (of the lowest validation loss) is at the edge; then with the other seeds at the best.

    What is best decides what comes next: only the runs that are known so far are given.
    """
    def at(lr):
        return list(seeded(part, f"{name}-{lr:g}-seed", f"{command} --lr {lr:g}"))

    i = LADDER.index(middle)
    runs = {lr: at(lr) for lr in LADDER[i - 1 : i + 2]}
    beyond = {LADDER[i - 1]: LADDER[i - 2], LADDER[i + 1]: LADDER[i + 2]}.get(best_rate(runs))
    if beyond:
        runs[beyond] = at(beyond)
    yield from (first for first, *_ in runs.values())
    if best := best_rate(runs):
        yield from runs[best][1:]


def best_rate(runs):
    """Of {learning rate: runs} the rate whose first run has the lowest validation loss; None before
    all of these ended."""
    losses = {lr: validation_loss(first) for lr, (first, *_) in runs.items()}
    return None if None in losses.values() else min(losses, key=losses.get)


PARTS = {"forms": forms, "small": small, "length": length, "longer": longer, "e2e": e2e,
         "decoding": decoding, "best": best, "place": place, "size": size}


def make_data(part, pretrain=None):
    """Makes what a part wants: the sample without a test set, draws of E2E, or bases."""
    if part == "forms":
        folder = find_data("sample")
        write_data(ROOT / RUNS / "forms" / "data", train=read_split(folder, "train"),
                   valid=read_split(folder, "valid")[::4])
    if part == "small":
        train, valid, test = (read_split(find_data("e2e"), split) for split in SPLITS)
        for n in FEW_EXAMPLES:
            for draw in SEEDS:
                write_data(ROOT / RUNS / "small" / f"data-{n}-{draw}", train=pick(train, n, draw),
                           valid=pick(valid, 3 * n // 10, draw), test=test)  # 30%, as the paper's
    for name in BASES if part == "size" else ():
        folder = ROOT / base_folder(name)
        if not (folder / "model.safetensors").exists():
            if pretrain is None:
                raise InputError(f"{folder} is missing: --pretrain DIR makes it, in hours, of the "
                                 "data that models/tiny/README.md tells of")
            make_base(pretrain, folder, BASES[name], vocabulary=ROOT / "models/tiny")


def pick(examples, n, draw):
    """`n` of the examples, for each draw others."""
    return random.Random(f"{draw}").sample(examples, n)


def write_data(folder, **splits):
    """A data set as train.jsonl and so on, from lists of (table, sentence)."""
    for split, examples in splits.items():
        rows = [json.dumps({"table": table, "text": text}, ensure_ascii=False) + "\n"
                for table, text in examples]
        write_text(folder / f"{split}.jsonl", "".join(rows))


# --------------------------------------------------------------------------------------------------
# Running it, and gathering what it tells
# --------------------------------------------------------------------------------------------------


def is_done(run):
    """Whether a run is finished. Raises InputError where its folder is another command's."""
    told = run.log.read_bytes() if run.log.exists() else b""
    if run.folder.exists() and not told.startswith(f"$ {run.command}\n".encode()):
        raise InputError(f"{run.folder} was not made by `{run.command}`; remove it")
    return is_finished(run.folder)


def execute(run):
    """Runs a command to its end; what it prints goes into a log beside its folder."""
    begun = (run.folder / "log.jsonl").exists()
    if not begun:
        shutil.rmtree(run.folder, ignore_errors=True)  # what a stopped describe.py leaves
        write_text(run.log, f"$ {run.command}\n")
    command = [sys.executable, *shlex.split(run.command)[1:], *["--resume"] * begun]
    with open(run.log, "ab") as file:
        done = subprocess.run(command, stdout=file, stderr=file, cwd=ROOT,
                              env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise InputError(f"`{run.command}` stopped; {run.log} says why")


def validation_loss(run):
    """The last validation loss of a run, None before its end."""
    if not is_done(run):
        return None
    return [entry["validation_loss"] for entry in read_log(run.folder / "log.jsonl")
            if "validation_loss" in entry][-1]


def gather(run):
    """What a finished run tells, as results/*.json has it. Raises InputError for a damaged one."""
    told, folder = {"command": run.command}, run.folder
    finished = read_run(folder) if (folder / "scores.json").exists() else None
    if (folder / "log.jsonl").exists():
        settings = finished.settings if finished else read_settings(folder)
        log = read_log(folder / "log.jsonl")
        told["settings"] = {name: settings[name] for name in SETTINGS if name in settings}
        told["minutes"] = round(minutes(log), 1)
        told["validation"] = [[entry["step"], round(entry["validation_loss"], 4)]
                              for entry in log if "validation_loss" in entry]
    if finished:
        told["scores"] = {name: finished.scores[name] for name in metrics.METRICS}
        told |= {name: finished.costs.get(name) for name in ("trained", "kept")}
    if run.part in ("e2e", "decoding", "best"):
        said = read_sentences(folder)
        told["faults"] = faults(said.items())
        told["says"] = said.get(SHOWN)  # README.md shows it
        if "settings" in told:
            told["training"] = mean_losses(log)
    return told


def minutes(log):
    """What training took, by its median step: so a machine that slept meanwhile does not count."""
    steps = [entry for entry in log if "loss" in entry]
    return median(entry["seconds"] / entry["steps"] for entry in steps) * steps[-1]["step"] / 60


def mean_losses(log):
    """[step, mean loss of the 100 steps up to it] of a log, for the figure."""
    losses = [(entry["step"], entry["loss"], entry["steps"]) for entry in log if "loss" in entry]
    means = []
    for _, entries in itertools.groupby(losses, key=lambda entry: (entry[0] - 1) // 100):
        steps, values, numbers = zip(*entries)
        mean = sum(value * n for value, n in zip(values, numbers)) / sum(numbers)
        means.append([steps[-1], round(mean, 4)])
    return means


def check_names(names, known, what):
    """Raises InputError where one of the names on a command line is unknown."""
    if unknown := set(names) - set(known):
        raise InputError(f"{', '.join(sorted(unknown))}: the {what} are {', '.join(known)}")


def main():
    parser = argparse.ArgumentParser(
        description="Runs the whole experiment, or parts of it, and gathers what the runs tell.")
    parser.add_argument("parts", nargs="*", metavar="PART",
                        help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--pretrain", type=Path, metavar="DIR",
                        help="what bases are made of that are missing; without it they, and the "
                        "part size, are no part of all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="runs at "
                        "once, with one thread each (default: one for each core, %(default)s)")
    parser.add_argument("--list", action="store_true", help="only show the commands")
    args = parser.parse_args()
    check_names(args.parts, PARTS, "parts")
    if args.jobs < 1:
        raise InputError(f"--jobs must be at least 1, but is {args.jobs}")
    parts = args.parts or [part for part in PARTS if part != "size" or args.pretrain]
    if args.list:
        for run in (run for part in parts for run in PARTS[part]()):
            mark = "done" if is_done(run) else ""
            print(f"{mark:<6}{run.command}")
        return
    for part in parts:
        make_data(part, args.pretrain)
        while left := [run for run in PARTS[part]() if not is_done(run)]:
            with ThreadPoolExecutor(args.jobs) as workers, progress_bar(
                    total=len(left), desc=part, unit=" runs") as bar:
                for _ in workers.map(execute, left):
                    bar.update()
        told = {run.name: gather(run) for run in PARTS[part]()}
        write_json(RESULTS / f"{part}.json", told)


if __name__ == "__main__":
    run_command(main)
