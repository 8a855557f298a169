"""Puts runs side by side: their scores with mean and spread over seeds, what they cost, and the figures.

    python compare.py runs/prefix-tiny-e2e runs/finetune-tiny-e2e     the rows of Table 1, costs, losses.png
    python compare.py runs/prefix-tiny-e2e/l*     runs of several lengths: also curve.png (the paper's Figure 2)
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import metrics
from common import InputError, run_command, write_aside
from gpt2 import read_json

# BLEU on E2E against prefix length, GPT-2 Medium: scored from a re-implementation's own outputs.
PUBLISHED_CURVE = {1: 59.4, 3: 65.6, 10: 68.9, 20: 69.3, 30: 68.5, 50: 68.4}


@dataclass
class FinishedRun:
    """What a run's folder tells: its settings, scores and costs, and the lines of its log."""

    folder: Path
    settings: dict
    scores: dict
    log: list

    @property
    def label(self):
        """What tells it from other runs, but for its seed."""
        settings = self.settings
        if settings["mode"] == "finetune":
            return f"finetune, {settings['model']}, {settings['data']}"
        form = "" if settings["prefix_form"] == "network" else f" {settings['prefix_form']}"
        return f"prefix {settings['prefix_length']}{form}, {settings['model']}, {settings['data']}"


def read_run(folder):
    """The finished run that a folder holds; raises InputError where there is none."""
    folder = Path(folder)
    if not (folder / "scores.json").exists():
        raise InputError(f"{folder} holds no finished run (scores.json is missing); train.py --resume goes on with one")
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return FinishedRun(folder, read_json(folder / "run.json"), read_json(folder / "scores.json"), log)


def group_by_label(runs):
    """{label: the runs that differ in their seed alone}"""
    groups = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return groups


def mean_and_spread(runs, name):
    """The mean of a score over runs and the difference of the highest and the lowest; None where one lacks it."""
    values = [run.scores[name] for run in runs]
    return (None, None) if None in values else (sum(values) / len(values), max(values) - min(values))


def score_rows(groups):
    """The rows of `metrics.format_table`: each group's mean, and below it the spread where there are several seeds."""
    rows = []
    for label, runs in groups.items():
        means, spreads = zip(*(mean_and_spread(runs, name) for name in metrics.METRICS))
        several = f", mean of {len(runs)} seeds" if len(runs) > 1 else ""
        rows.append((label + several, dict(zip(metrics.METRICS, means))))
        if several:
            rows.append(("  highest - lowest", dict(zip(metrics.METRICS, spreads))))
    return rows


COSTS = {  # what scores.json calls a cost -> what it is called here, how it is shown
    "trained": ("numbers trained", "{:,.0f}"), "kept": ("numbers kept", "{:,.0f}"),
    "seconds_per_step": ("seconds a step", "{:.3f}"), "tokens_per_second": ("tokens a second", "{:,.0f}"),
    "peak_memory": ("GiB of memory at the peak", "{:.2f}"),
}


def format_costs(groups):
    """The costs of each group, a column for each; with two groups also the second's over the first's."""
    columns = []
    for runs in groups.values():
        costs = {name: sum(run.scores["costs"][name] for run in runs) / len(runs) for name in COSTS}
        columns.append(costs | {"peak_memory": costs["peak_memory"] / 2**30})
    lines = []
    for name, (title, form) in COSTS.items():
        cells = [form.format(column[name]) for column in columns]
        if len(columns) == 2:
            cells.append(f"{columns[1][name] / columns[0][name]:.2f}")
        lines.append(f"{title:<27}" + "".join(f"{cell:>16}" for cell in cells))
    width = 16
    heads = [" ".join(label.split(",")[0].split()[:2]) for label in groups] + ["second / first"] * (len(columns) == 2)
    return "\n".join([" " * 27 + "".join(f"{head[:width]:>{width}}" for head in heads), *lines])


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------


def draw_losses(logs, path):
    """Training and validation loss against steps. logs: {label: the lines of a log}."""
    figure, axes = new_figure()
    for number, (label, log) in enumerate(logs.items()):
        points = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
        axes.plot(*zip(*points), color=f"C{number}", alpha=0.35, linewidth=1)
        points = [(entry["step"], entry["validation_loss"]) for entry in log if "validation_loss" in entry]
        axes.plot(*zip(*points), "o-", color=f"C{number}", label=label)
    axes.set(xlabel="step", ylabel="loss a token (nats)")
    axes.legend(title="validation (dots) and training")
    save(figure, path)


def draw_curve(groups, path):
    """BLEU against prefix length, the mean of each group with a bar from its lowest to its highest (Figure 2)."""
    lines = {}  # what the runs of a line have in common -> (length, mean, lowest, highest) of each group
    for runs in groups.values():
        settings = runs[0].settings
        name = f"{settings['model']} on {settings['data']}, {settings['prefix_form']}"
        lines.setdefault(name, []).append((settings["prefix_length"], *mean_and_extremes(runs)))
    figure, axes = new_figure()
    for name, points in lines.items():
        lengths, means, lowest, highest = zip(*sorted(points))
        bars = [[mean - low for mean, low in zip(means, lowest)], [high - mean for mean, high in zip(means, highest)]]
        axes.errorbar(lengths, means, bars, fmt="o-", capsize=3, label=name)
    axes.plot(*zip(*PUBLISHED_CURVE.items()), "s--", color="gray",
              label="GPT-2 Medium on E2E, a re-implementation's outputs")
    axes.set(xlabel="prefix length", ylabel="BLEU", title="BLEU against prefix length")
    axes.legend()
    save(figure, path)


def mean_and_extremes(runs):
    values = [100 * run.scores["BLEU"] for run in runs]
    return sum(values) / len(values), min(values), max(values)


def new_figure():
    import matplotlib

    matplotlib.use("Agg")  # draws to files, needs no screen
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.grid(alpha=0.3)
    return figure, axes


def save(figure, path):
    from matplotlib import pyplot

    with write_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=150)
    pyplot.close(figure)


# ---------------------------------------------------------------------------------------------------------------------


def compare(folders, out):
    """Prints the tables of finished runs and draws their figures into the folder `out`."""
    groups = group_by_label([read_run(folder) for folder in folders])
    print("\n" + metrics.format_table(score_rows(groups)))
    print("\n" + format_costs(groups))
    out = Path(out)
    draw_losses({label: runs[0].log for label, runs in groups.items()}, out / "losses.png")
    drawn = [out / "losses.png"]
    prefixes = {label: runs for label, runs in groups.items() if runs[0].settings["mode"] == "prefix"}
    if len(prefixes) > 1:
        draw_curve(prefixes, out / "curve.png")
        drawn.append(out / "curve.png")
    print("\nFigures: " + ", ".join(map(str, drawn)))


def main():
    parser = argparse.ArgumentParser(description="Puts finished runs side by side: scores, costs, figures.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that train.py wrote")
    parser.add_argument("--out", default="runs", metavar="DIR", help="where the figures go (default: runs)")
    args = parser.parse_args()
    compare(args.runs, args.out)


if __name__ == "__main__":
    run_command(main)
