"""The figures of the documents; parts.py says which part each one shows. figures/idea.svg is drawn
by hand. Each function takes a path, and groups of runs as those of tables.py do."""

from statistics import mean

from experiments.tables import ALONE, bleu, kept_loss, of_bases
from support import drawing
from support.drawing import PUBLISHED_CURVE, draw_points, figure_at


def forms(path, groups):
    """Validation loss against learning rate, a line for each form: mean, lowest and highest."""
    colors, lines = {}, {}
    for (label, lr), runs in groups.items():
        lines.setdefault(label, {})[lr] = kept_loss(runs)
    with figure_at(path) as (_, axes):
        for label, losses in lines.items():
            form = label.removesuffix(", not clipped")
            draw_points(axes, losses, label=label, linestyle="-" if label == form else "--",
                        color=colors.setdefault(form, f"C{len(colors)}"))
        axes.set(xscale="log", xlabel="learning rate", ylabel="validation loss a token (nats)",
                 ylim=(0.4, 6.9))
        axes.legend(loc="upper right")


def small(path, groups):
    """BLEU against the number of examples."""
    numbers, modes = (list(dict.fromkeys(names)) for names in zip(*groups))
    with figure_at(path) as (_, axes):
        for mode, beside in zip(modes, (0.99, 1.01)):  # no bar hides another
            draw_points(axes, {n * beside: bleu(groups[n, mode]) for n in numbers}, label=mode)
        axes.set(xscale="log", xlabel="training examples", ylabel="BLEU, mean of three draws",
                 xticks=numbers, xticklabels=numbers)
        axes.minorticks_off()
        axes.legend()


def lengths(path, groups, longer):
    """BLEU against prefix length (Figure 2), with fine-tuning and what is known of GPT-2 Medium."""
    of_base, *shorter, tuned = map(list, groups.values())
    first, further = ({runs[0]["settings"]["prefix_length"]: bleu(runs) for runs in prefixes}
                      for prefixes in (shorter, longer.values()))
    with figure_at(path) as (_, axes):
        draw_points(axes, {0: bleu(of_base)} | first, label="tiny, prefix, 1,000 steps")
        draw_points(axes, further, color="C2", label="from examples, at half the rate")
        axes.axhspan(min(bleu(tuned)), max(bleu(tuned)), color="C1", alpha=0.3)
        axes.axhline(mean(bleu(tuned)), color="C1", label="tiny, fine-tuning, 1,000 steps")
        axes.plot(*zip(*PUBLISHED_CURVE.items()), "s--", color="gray",
                  label="GPT-2 Medium, a re-implementation's outputs")
        axes.set(xlabel="prefix length (0: the base alone)", ylabel="BLEU")
        axes.legend(loc="lower right")


def bases(path, groups, place, e2e):
    """The prefix's share of fine-tuning's BLEU, and the gap in loss, against the base's size."""
    shares, gaps = {}, {}  # parameters -> a value for each seed of the prefix
    for _, (_, prefixes, tuned) in of_bases(groups, place, e2e):
        size = tuned[0]["trained"]
        shares[size] = [100 * score / mean(bleu(tuned)) for score in bleu(prefixes)]
        gaps[size] = [loss - mean(kept_loss(tuned)) for loss in kept_loss(prefixes)]
    with figure_at(path, 9, 4) as (figure, axes):
        axes.remove()
        left, right = figure.subplots(1, 2)
        left.axhline(100, color="C1", label="fine-tuning")
        left.set_ylabel("the prefix's BLEU, % of fine-tuning's")
        right.set_ylabel("the prefix's loss - fine-tuning's")
        for axes, values in ((left, shares), (right, gaps)):
            draw_points(axes, values)
            axes.set(xscale="log", xlabel="parameters of the base, millions")
            axes.set_xticks(list(values), [f"{size / 10**6:.1f}" for size in values])
            axes.minorticks_off()
        left.legend()


def losses(path, groups):
    """Loss against steps of each way but the base alone."""
    logs = {label: [[{"step": step, "loss": loss} for step, loss in told["training"]]
                    + [{"step": step, "validation_loss": loss}
                       for step, loss in told["validation"]] for told in runs]
            for label, runs in groups.items() if label != ALONE}
    drawing.draw_losses(logs, path)
