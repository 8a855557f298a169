"""Runs the experiment that README.md and RESULTS.md show, and gathers it in results/*.json.

    python -m experiments.make                all of it; --list says what, and what is done
    python -m experiments.make forms small    these parts alone
    python -m experiments.make size --pretrain DIR    other bases, which are made first: hours

Each run is one command of train.py, describe.py or lora.py, in a folder of its own under
runs/results/. One that is finished is left as it is, and one that was stopped goes on: stop and
start as you like. As soon as all runs of a part (parts.py) are finished, its JSON file is written.
"""

import argparse
import itertools
import os
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
from experiments.parts import PARTS, RESULTS, RUNS, check_parts
from experiments.slots import faults
from support.commands import InputError, progress_bar, run_command
from support.files import ROOT, write_json, write_text
from support.run_folder import is_finished, read_settings

LADDER = 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0  # learning rates to choose from
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
        return f"python {self.arguments} --out {RUNS}/{self.part}/{self.name}"


# --------------------------------------------------------------------------------------------------
# What is run
# --------------------------------------------------------------------------------------------------


def runs_of(part):
    """Yields the runs of a part, as far as they are known: how some end decides what comes next."""
    for group in PARTS[part].groups:
        if not group.seeds:
            yield Run(part, group.name, group.command)
        elif group.middle:
            yield from tuned(part, group)
        else:
            yield from seeded(part, group.name, group.command, group.seeds)


def seeded(part, name, command, seeds):
    """A run for each seed."""
    return [Run(part, f"{name}-{seed}", f"{command.format(seed=seed)} --seed {seed}")
            for seed in seeds]


def tuned(part, group):
    """Runs with the first seed at three learning rates around the middle, and at one beyond where
    the best (of the lowest validation loss) is at the edge; then with the other seeds at the best.
    """
    def at(lr):
        return seeded(part, f"{group.name}-{lr:g}-seed", f"{group.command} --lr {lr:g}",
                      group.seeds)

    i = LADDER.index(group.middle)
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


def validation_loss(run):
    """The last validation loss of a run, None before its end."""
    if not is_done(run):
        return None
    return [entry["validation_loss"] for entry in read_log(run.folder / "log.jsonl")
            if "validation_loss" in entry][-1]


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


# --------------------------------------------------------------------------------------------------
# What is kept
# --------------------------------------------------------------------------------------------------


def gather(run):
    """What a finished run tells, as results/*.json has it. Raises InputError for a damaged one."""
    told, folder = {"command": run.command}, run.folder
    finished = read_run(folder) if (folder / "scores.json").exists() else None
    log = read_log(folder / "log.jsonl") if (folder / "log.jsonl").exists() else []
    if log:
        settings = finished.settings if finished else read_settings(folder)
        told["settings"] = {name: settings[name] for name in SETTINGS if name in settings}
        told["minutes"] = round(minutes(log), 1)
        told["validation"] = [[entry["step"], round(entry["validation_loss"], 4)]
                              for entry in log if "validation_loss" in entry]
    if finished:
        told["scores"] = {name: finished.scores[name] for name in metrics.METRICS}
        told |= {name: finished.costs.get(name) for name in ("trained", "kept")}
    if PARTS[run.part].keeps_sentences:
        said = read_sentences(folder)
        told["faults"] = faults(said.items())
        told["says"] = said.get(SHOWN)  # README.md shows it
        if log:
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
    check_parts(args.parts)
    if args.jobs < 1:
        raise InputError(f"--jobs must be at least 1, but is {args.jobs}")
    for part in args.parts or [part for part in PARTS if part != "size" or args.pretrain]:
        if args.list:
            for run in runs_of(part):
                print(f"{'done' if is_done(run) else '':<6}{run.command}")
            continue
        if prepare := PARTS[part].prepare:
            prepare(args.pretrain)
        while left := [run for run in runs_of(part) if not is_done(run)]:
            with ThreadPoolExecutor(args.jobs) as workers, progress_bar(
                    total=len(left), desc=part, unit=" runs") as bar:
                for _ in workers.map(execute, left):
                    bar.update()
        write_json(RESULTS / f"{part}.json", {run.name: gather(run) for run in runs_of(part)})


if __name__ == "__main__":
    run_command(main)
