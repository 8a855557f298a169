"""Figures, and a search as a tree of text."""

import os
from contextlib import contextmanager

from support.files import wrap_errors, write_aside

# BLEU on E2E against prefix length, GPT-2 Medium: scored from a re-implementation's own outputs.
PUBLISHED_CURVE = {1: 59.4, 3: 65.6, 10: 68.9, 20: 69.3, 30: 68.5, 50: 68.4}

# --------------------------------------------------------------------------------------------------
# Figures
# --------------------------------------------------------------------------------------------------


def load_matplotlib():
    """matplotlib itself. Called before any work, so that its troubles show then.

    Without MPLBACKEND, which Jupyter sets for every command. No pyplot: it would need a screen, and
    leave figures open.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        with wrap_errors("matplotlib", "cannot be loaded; is there a damaged matplotlibrc?"):
            import matplotlib.figure
        return matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


@contextmanager
def figure_at(path, width=7, height=4):
    """Gives (figure, axes) to draw on; after the block the figure is saved, as PNG. Nothing is
    taken from the surroundings: nobody's matplotlibrc."""
    matplotlib = load_matplotlib()
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items()
                if not name.startswith("backend")}
    with matplotlib.rc_context(defaults):
        figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.grid(alpha=0.3)
        yield figure, axes
        with write_aside(path) as aside:
            figure.savefig(aside, dpi=150)


def plain(text):
    """Text for a figure, in which a $ is a $ and begins no formula."""
    return text.replace("$", r"\$")


def draw_losses(logs, path):
    """Training and validation loss against steps.

    logs       {label: for each run of this label the entries of its log}
    """
    with figure_at(path) as (_, axes):
        for number, (label, of_runs) in enumerate(logs.items()):
            color = f"C{number}"
            for log in of_runs:
                points = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
                (line,) = axes.plot(*zip(*points), color=color, alpha=0.35, linewidth=1)
                points = [(entry["step"], entry["validation_loss"]) for entry in log
                          if "validation_loss" in entry]
                if points:
                    (line,) = axes.plot(*zip(*points), "o-", color=color)
            line.set_label(plain(label))
        axes.set(xlabel="step", ylabel="loss a token (nats)")
        axes.legend(title="validation (dots) and training")


def draw_curve(groups, path):
    """BLEU against prefix length (Figure 2): each group's mean, a bar from lowest to highest."""
    lines = {}  # what the runs of a line have in common -> {length: their scores}
    for label, runs in groups.items():
        _, _, name = label.partition(", ")  # after the length
        scores = [100 * run.scores["BLEU"] for run in runs]
        lines.setdefault(name, {})[runs[0].settings["prefix_length"]] = scores
    with figure_at(path) as (_, axes):
        for name, points in lines.items():
            draw_points(axes, points, label=plain(name))
        axes.plot(*zip(*PUBLISHED_CURVE.items()), "s--", color="gray",
                  label="GPT-2 Medium on E2E, a re-implementation's outputs")
        axes.set(xlabel="prefix length", ylabel="BLEU", title="BLEU against prefix length")
        axes.legend()


def draw_points(axes, points, **style):
    """A line through the means of {x: values}, with a bar from the lowest to the highest."""
    means = [sum(values) / len(values) for values in points.values()]
    below = [mean - min(values) for mean, values in zip(means, points.values())]
    above = [max(values) - mean for mean, values in zip(means, points.values())]
    axes.errorbar(list(points), means, [below, above],
                  **{"marker": "o", "linestyle": "-", "capsize": 3} | style)


# --------------------------------------------------------------------------------------------------
# A tree of beams
# --------------------------------------------------------------------------------------------------


def draw_tree(search, tokenizer):
    """The lines of a tree of all beams of a WatchedSearch; the finished ones show their scores.

    A line is a run of tokens from one fork to the next, and the sum of log-probabilities at its
    end. The run with the likeliest next token comes first. One that leads nowhere ended, was
    pushed out by better beams, or was still going on when the search was over.
    """
    finished = {tuple(hypothesis.tokens): hypothesis.score for hypothesis in search.finished}
    best, children, lines = max(finished, key=finished.get), {(): []}, []
    for beam in sorted(search.seen):  # a beam comes before those that continue it
        children[beam] = []
        children[beam[:-1]].append(beam)

    def ending(beam):
        score = f"   ends, score {finished[beam]:.3f}" if beam in finished else ""
        return score + "   <- the best" * (beam == best)

    def draw(fork, indent):
        for end in sorted(children[fork], key=lambda child: -search.seen[child]):
            while len(children[end]) == 1 and end not in finished:
                (end,) = children[end]
            text = tokenizer.decode(list(end[len(fork) :]))
            lines.append(f"{search.seen[end]:8.2f}  {indent}{text}{ending(end)}")
            draw(end, indent + "    ")

    if () in finished:  # <|endoftext|> came first
        lines.append(f"{'':8}  (nothing){ending(())}")
    draw((), "")
    return lines
