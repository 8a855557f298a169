"""Compares runs: scores with mean and spread over seeds, costs, and figures.

    python compare.py runs/prefix-tiny-e2e runs/finetune-tiny-e2e     scores, costs, losses.png
    python compare.py runs/a runs/b --tables 3    and what each says of three test tables

Where a folder holds several runs, all of them; of several lengths also curve.png (Figure 2).
"""

import argparse
import json
import math
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import metrics
from support.commands import InputError, format_rows, run_command
from support.drawing import draw_curve, draw_losses
from support.files import read_json, wrap_errors
from support.run_folder import check_hash, read_settings

FIGURES = ("losses.png", "curve.png")
COSTS = {  # in scores.json: what the table calls them, and how they are shown
    "trained": ("parameters trained", "{:,.0f}".format),
    "kept": ("kept", "{:,.0f}".format),
    "seconds_per_step": ("seconds a step", "{:.3f}".format),
    "tokens_per_second": ("tokens a second", "{:,.0f}".format),
    "peak_memory": ("GiB at the peak", lambda peak: f"{peak / 2**30:.2f}"),
}


@dataclass
class FinishedRun:
    """A run's settings, scores, costs and log, as read from its folder."""

    settings: dict
    scores: dict
    costs: dict
    log: list


def runs_in(folders):
    """The folders of single runs: a folder that holds several runs is replaced by these."""
    found = []
    for folder in map(Path, folders):
        inside = sorted(path.parent for path in folder.glob("*/scores.json"))
        if not inside or (folder / "scores.json").exists():
            found.append(folder)
            continue
        found += inside
        for path in sorted(folder.glob("*/run.json")):
            if path.parent not in inside:
                print(f"{path.parent} is left out: it holds no scores (yet)", file=sys.stderr)
    return found


def read_run(folder):
    """Reads the finished run in a folder. Raises InputError if there is none."""
    folder = Path(folder)
    if not (folder / "scores.json").exists():
        raise InputError(f"{folder} holds no scores (scores.json is missing): there is no run, or "
                         "it had no test set, or has not ended; train.py --resume continues it, "
                         "and describe.py --data --out scores it as it is")
    scores = read_json(folder / "scores.json")
    with wrap_errors(folder / "scores.json", "is corrupt; describe.py --data writes it again"):
        costs = scores.get("costs") or {}
        if (folder / "run.json").exists():
            check_hash(folder, "log.jsonl", scores)
            settings, log = read_settings(folder), read_log(folder / "log.jsonl")
        else:  # what describe.py --out writes
            signature, log = scores["signature"], []
            settings = dict(signature.get("settings", {}))
            settings |= {name: str(signature[name]) for name in ("mode", "model", "data")}
            settings |= signature["decoder"] | {name: signature[name] for name in
                                                ("seed", "test_sha256")}
        numbers = [scores[name] for name in metrics.METRICS] + [settings.get("prefix_length")]
        numbers += [costs.get(name) for name in COSTS]
        if not all(value is None or is_number(value) for value in numbers):
            raise ValueError("a score, a cost or a length is no number")
    return FinishedRun(settings, scores, costs, log)


def read_log(path):
    """The entries of a log.jsonl. Raises InputError naming the line that is none."""
    entries = []
    with wrap_errors(path, "is corrupt; leave this run out"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            entries.append(json.loads(line))
            if not all(is_number(value) or (name, value) == ("peak_memory", None)
                       for name, value in entries[-1].items()):
                raise ValueError(f"line {number} holds what is no number")
        if not any("loss" in entry for entry in entries):
            raise ValueError("it holds no loss")
        if not all("step" in entry for entry in entries):
            raise ValueError("a line says of no step")
    return entries


def is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


def group_runs(runs):
    """{label: runs that differ only in their seed}.

    A bare base comes first, then prefixes by length, then fine-tuning. A label names the settings
    in which the runs of a mode differ.
    """
    def place(run):
        lengths = {"the base alone": 0, "prefix": run.settings.get("prefix_length", math.inf)}
        return lengths.get(run.settings["mode"], math.inf)

    groups = {}  # all settings but the seed -> their runs
    for run in sorted(runs, key=place):
        key = str(run.settings | {"seed": None})
        while run.settings["seed"] in [other.settings["seed"] for other in groups.get(key, [])]:
            key += " again"  # the same seed twice is no spread over seeds
        groups.setdefault(key, []).append(run)
    labelled = {}
    for of_group in groups.values():
        own = of_group[0].settings
        mode = own["mode"]
        if mode == "prefix" and "prefix_length" in own:
            mode = f"prefix {own['prefix_length']}"
        shown = [mode, Path(own["model"]).name, Path(own["data"]).name]
        shown += ["not finished"] * own.get("unfinished", False)
        same_mode = [run.settings for run in runs if run.settings["mode"] == own["mode"]]
        for name, value in own.items():
            differs = any(other.get(name, value) != value for other in same_mode)
            is_shown = name in ("seed", "model", "data", "prefix_length", "unfinished")
            if differs and value is not None and not is_shown and not name.endswith("_sha256"):
                shown.append(f"{name} {textwrap.shorten(str(value), 40, placeholder=' ...')}")
        label = ", ".join(shown)
        if label in labelled:  # shortened, some agree
            label = f"{label} ({len(labelled) + 1})"
        labelled[label] = of_group
    return labelled


def over_runs(function, values):
    """{name: function(its values)} of {name: a value of each run}; None where a run lacks one."""
    return {name: None if None in found else function(found) for name, found in values.items()}


def score_rows(groups):
    """The rows of `metrics.format_table`: each group's mean, and the spread of several seeds."""
    rows = []
    for label, runs in groups.items():
        scores = {name: [run.scores[name] for run in runs] for name in metrics.METRICS}
        several = f", mean of {len(runs)} seeds" if len(runs) > 1 else ""
        rows.append((label + several, over_runs(fmean, scores)))
        if several:
            rows.append(("  highest - lowest",
                         over_runs(lambda values: max(values) - min(values), scores)))
    return rows


def format_costs(groups):
    """A table of the mean costs of each group."""
    rows = [("", [head for head, _ in COSTS.values()])]
    for label, runs in groups.items():
        costs = over_runs(fmean, {name: [run.costs.get(name) for run in runs] for name in COSTS})
        rows.append((label, ["-" if costs[name] is None else form(costs[name])
                             for name, (_, form) in COSTS.items()]))
    return "\n".join(format_rows(rows))


def read_sentences(folder):
    """{table: sentence} of a run. Raises InputError where its files are not what it wrote."""
    folder, lines = Path(folder), []
    with wrap_errors(folder / "outputs.txt", "is corrupt; describe.py --data writes it again"):
        for name in ("tables.txt", "outputs.txt"):
            check_hash(folder, name, read_json(folder / "scores.json"))
            lines.append((folder / name).read_text("utf-8").removesuffix("\n").split("\n"))
        return dict(zip(*lines, strict=True))


def format_sentences(folders, n):
    """What each run and a person say of `n` of the test tables, spread over them."""
    sentences_of = {str(folder): read_sentences(folder) for folder in folders}
    first = Path(folders[0])
    tables = list(sentences_of[str(first)])
    for name, sentences in sentences_of.items():
        if list(sentences) != tables:
            raise InputError(f"{name} describes other tables than {first}; leave one out")
    with wrap_errors(first / "references.txt", "is corrupt; describe.py --data writes it again"):
        check_hash(first, "references.txt", read_json(first / "scores.json"))
        groups = (first / "references.txt").read_text("utf-8").split("\n\n")
        persons = [group.partition("\n")[0] for group in groups]
        sentences_of["a person"] = dict(zip(tables, persons, strict=True))
    width, blocks, n = max(map(len, ["table", *sentences_of])), [], min(n, len(tables))
    for table in (tables[number * len(tables) // n] for number in range(n)):
        lines = {"table": table}
        lines |= {name: sentences[table] for name, sentences in sentences_of.items()}
        blocks.append("\n".join(f"{name:<{width}}  {text}" for name, text in lines.items()))
    return "\n\n".join(blocks)


# --------------------------------------------------------------------------------------------------


def compare_runs(folders, out, n_tables=0):
    """Prints the tables of finished runs and draws their figures into the folder `out`."""
    runs = [read_run(folder) for folder in folders]
    groups = group_runs(runs)
    if n_tables:
        print("\n" + format_sentences(folders, n_tables))
    print("\n" + metrics.format_table(score_rows(groups)))
    if len({run.settings.get("test_sha256") for run in runs}) > 1:
        print("Not comparable: these runs have described different test sets.")
    print("\n" + format_costs(groups))
    drawn = []
    logs = {label: [run.log for run in runs] for label, runs in groups.items() if runs[0].log}
    if logs:  # a bare model has none
        drawn.append(Path(out) / FIGURES[0])
        draw_losses(logs, drawn[-1])
    prefixes = {label: runs for label, runs in groups.items()
                if runs[0].settings["mode"] == "prefix" and "prefix_length" in runs[0].settings}
    if len({runs[0].settings["prefix_length"] for runs in prefixes.values()}) > 1:
        drawn.append(Path(out) / FIGURES[1])
        draw_curve(prefixes, drawn[-1])
    if drawn:
        print("\nFigures: " + ", ".join(map(str, drawn)))


def main():
    parser = argparse.ArgumentParser(
        description="Compares finished runs: scores, costs, figures.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that train.py or "
                        "describe.py --out wrote, or folders of such folders")
    parser.add_argument("--out", default="runs", metavar="DIR",
                        help="where the figures go (default: runs)")
    parser.add_argument("--tables", type=int, default=0, metavar="N", help="show what each run "
                        "says of so many test tables, and a person (default: %(default)s)")
    args = parser.parse_args()
    if args.tables < 0:
        raise InputError(f"--tables must be 0 or more, but is {args.tables}")
    compare_runs(runs_in(args.runs), args.out, args.tables)


if __name__ == "__main__":
    run_command(main)
