"""The figures of README.md, TUTORIAL.md and RESULTS.md (figures/idea.svg is drawn by hand).

    python -m experiments.draw              all of them, from results/*.json
    python -m experiments.draw forms small  these alone
"""

import argparse
from statistics import mean

from experiments.make import FEW_EXAMPLES, FROM_EXAMPLES, LENGTHS, RATES, STEPS, check_names
from experiments.tables import (MODES, blaming_results, bleu, form_lines, is_measured, kept_loss,
                                named, of_bases, read)
from support import drawing
from support.commands import run_command
from support.drawing import PUBLISHED_CURVE, draw_points, figure_at
from support.files import ROOT


def draw_forms(path):
    """Validation loss against learning rate, a line for each form: mean, lowest and highest."""
    with figure_at(path) as (_, axes):
        for form, label, losses in form_lines():
            draw_points(axes, losses, label=label, linestyle="-" if label == form else "--",
                        color=f"C{list(RATES).index(form)}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="validation loss a token (nats)",
                 ylim=(0.4, 6.9))
        axes.legend(loc="upper right")


def draw_small(path):
    """BLEU against the number of examples."""
    runs = read("small")
    with figure_at(path) as (_, axes):
        for (mode, label), beside in zip(MODES.items(), (0.99, 1.01)):  # no bar hides another
            points = {n * beside: bleu(named(runs, f"{mode}-{n}-")) for n in FEW_EXAMPLES}
            draw_points(axes, points, label=label)
        axes.set(xscale="log", xlabel="training examples", ylabel="BLEU, mean of three draws",
                 xticks=FEW_EXAMPLES, xticklabels=FEW_EXAMPLES)
        axes.minorticks_off()
        axes.legend()


def draw_length(path):
    """BLEU against prefix length (Figure 2), with fine-tuning and what is known of GPT-2 Medium."""
    runs = read("length")
    with figure_at(path) as (_, axes):
        scores = {P: bleu(named(runs, f"length-{P}-")) for P in LENGTHS}
        draw_points(axes, {0: bleu([runs["base"]])} | scores,
                    label=f"tiny, prefix, {STEPS:,} steps")
        further = {P: bleu(named(read("longer"), f"length-{P}-")) for P in FROM_EXAMPLES}
        draw_points(axes, further, color="C2", label="from examples, at half the rate")
        tuned = bleu(named(runs, "finetune"))
        axes.axhspan(min(tuned), max(tuned), color="C1", alpha=0.3)
        axes.axhline(mean(tuned), color="C1", label=f"tiny, fine-tuning, {STEPS:,} steps")
        axes.plot(*zip(*PUBLISHED_CURVE.items()), "s--", color="gray",
                  label="GPT-2 Medium, a re-implementation's outputs")
        axes.set(xlabel="prefix length (0: the base alone)", ylabel="BLEU")
        axes.legend(loc="lower right")


def draw_size(path):
    """The prefix's share of fine-tuning's BLEU, and the gap in loss, against the base's size."""
    shares, gaps = {}, {}  # parameters -> a value for each seed of the prefix
    for _, _, prefixes, tuned in of_bases():
        size = tuned[0]["trained"]
        shares[size] = [100 * score / mean(bleu(tuned)) for score in bleu(prefixes)]
        gaps[size] = [loss - mean(kept_loss(tuned)) for loss in kept_loss(prefixes)]
    with figure_at(path, 9, 4) as (figure, axes):
        axes.remove()
        left, right = figure.subplots(1, 2)
        left.set_ylabel("the prefix's BLEU, % of fine-tuning's")
        right.set_ylabel("the prefix's loss - fine-tuning's")
        for axes, values in ((left, shares), (right, gaps)):
            draw_points(axes, values)
            axes.set(xscale="log", xlabel="parameters of the base, millions")
            axes.set_xticks(list(values), [f"{size / 10**6:.1f}" for size in values])
            axes.minorticks_off()


def draw_losses(path):
    """Loss against steps of the experiment's runs."""
    logs = {}
    for mode, label in MODES.items():
        logs[label] = [
            [{"step": step, "loss": loss} for step, loss in told["training"]]
            + [{"step": step, "validation_loss": loss} for step, loss in told["validation"]]
            for told in named(read("e2e"), mode)]
    drawing.draw_losses(logs, path)


DRAWN = {  # a figure's name -> (its function, the parts of the experiment that it shows)
    "forms": (draw_forms, "forms"), "small": (draw_small, "small"),
    "length": (draw_length, "length", "longer"), "losses": (draw_losses, "e2e"),
    "size": (draw_size, "size", "place", "e2e")}


def main():
    parser = argparse.ArgumentParser(description="Draws the figures of the three documents.")
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help=f"{', '.join(DRAWN)} (default: all)")
    args = parser.parse_args()
    check_names(args.names, DRAWN, "figures")
    for name in args.names or DRAWN:
        path = ROOT / "experiments/figures" / f"{name}.png"
        draw, *parts = DRAWN[name]
        if not is_measured(*parts):
            print(f"{path.relative_to(ROOT)} is left as it is: `python -m experiments.make "
                  f"{parts[0]}` makes what it shows")
            continue
        with blaming_results(*parts):
            draw(path)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    run_command(main)
