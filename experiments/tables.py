"""The tables of README.md and RESULTS.md, as Markdown; parts.py says which part each one shows.

Each function takes what the runs of a part told, and of other parts that it shows:

groups    {label: [what a run told, as results/*.json has it, for each seed]}
"""

from statistics import mean

import metrics

ALONE, PREFIX_TUNING, FINE_TUNING = "the base alone", "prefix-tuning", "fine-tuning"
METRIC_HEADS = [name.replace("_", "-") for name in metrics.METRICS]


def table(head, rows):
    """The head's cells, then those of each row, of which the last may be missing."""
    lines = [head, ["---"] * len(head)]
    lines += [[*row, *[""] * (len(head) - len(row))] for row in rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def grid(head, groups, cell):
    """A table of groups whose labels are (row, column); `cell` makes one of a group's runs."""
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*groups))
    return table([head, *columns],
                 [[row, *(cell(groups[row, column]) if (row, column) in groups else ""
                          for column in columns)] for row in rows])


def spread(values, form="{:.2f}"):
    """The mean, and after it the lowest and highest of several values."""
    middle, low, high = (form.format(f(values)) for f in (mean, min, max))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def bleu(runs):
    """The BLEU of each of some runs, as it is printed."""
    return [100 * told["scores"]["BLEU"] for told in runs]


def bleu_cell(runs):
    return spread(bleu(runs), "{:.1f}")


def kept_loss(runs):
    """The validation loss of what was kept of each of some runs: the last, or the lowest."""
    losses = [[loss for _, loss in told["validation"]] for told in runs]
    return [min(own) if "--keep best" in told["command"] else own[-1]
            for told, own in zip(runs, losses)]


def loss_cell(runs):
    return spread(kept_loss(runs), "{:.3f}")


def score_cells(runs, function=mean, form="{:.4f}"):
    """Of each score what a function makes of the runs' values, a share of 1 in per cent."""
    cells = []
    for name in metrics.METRICS:
        value = function([told["scores"][name] for told in runs])
        cells.append(f"{100 * value:.2f}" if name in metrics.PERCENTAGES else form.format(value))
    return cells


def forms(groups):
    """Validation loss of each form at each learning rate."""
    return grid("learning rate", groups, lambda runs: spread(kept_loss(runs)))


def small(groups):
    """BLEU with few examples."""
    return grid("examples", groups, bleu_cell)


def lengths(groups, longer):
    """BLEU and loss against prefix length, with nothing and fine-tuning at the ends."""
    (alone, of_base), *shorter, (fine_tuning, tuned) = groups.items()
    rows = [[label, bleu_cell(runs), loss_cell(runs), f"{runs[0]['kept'] / tuned[0]['kept']:.2%}"]
            for label, runs in (*shorter, *longer.items(), (fine_tuning, tuned))]
    return table(["prefix length", "BLEU", "validation loss a token", "kept"],
                 [[alone, bleu_cell(of_base), "", "0"], *rows])


def places(groups):
    """Loss and BLEU of as many numbers in other places, each at its best learning rate."""
    rows = [[label, f"{runs[0]['trained']:,}", f"{runs[0]['settings']['lr']:g}", loss_cell(runs),
             bleu_cell(runs)] for label, runs in groups.items()]
    return table(["what is trained", "numbers", "learning rate", "validation loss a token",
                  "BLEU"], rows)


def of_bases(groups, place, e2e):
    """Yields (name, [runs of the base alone, of a prefix, of fine-tuning]) of each base, by size;
    those of `tiny` are parts of their own."""
    for name in dict.fromkeys(name for name, _ in groups):
        yield name, [groups[name, way] for way in (ALONE, PREFIX_TUNING, FINE_TUNING)]
    prefixes, *_, tuned = place.values()
    yield "tiny", [e2e[ALONE], prefixes, tuned]


def bases(groups, place, e2e):
    """A prefix against fine-tuning on each base: BLEU, and the gap between them."""
    rows = []
    for name, ways in of_bases(groups, place, e2e):
        _, prefixes, tuned = ways
        share = mean(bleu(prefixes)) / mean(bleu(tuned))
        gap = mean(kept_loss(prefixes)) - mean(kept_loss(tuned))
        rows.append([name, f"{tuned[0]['trained']:,}", *map(bleu_cell, ways), f"{share:.0%}",
                     loss_cell(prefixes), loss_cell(tuned), f"{gap:.3f}"])
    return table(["base", "parameters", "BLEU: alone", "prefix", "fine-tuning", "share",
                  "loss: prefix", "fine-tuning", "gap"], rows)


def scores(groups, best):
    """The experiment for the README, and the longer prefix of `best`: five scores, the mean over
    seeds, and what is trained."""
    *others, tuned = groups.items()
    rows = [[label, *score_cells(runs, form="{:.2f}"), f"{runs[0]['trained'] or 0:,}"]
            for label, runs in (*others, ("prefix-tuning, longer", best[PREFIX_TUNING]), tuned)]
    return table(["E2E's test set", *METRIC_HEADS, "parameters trained"], rows)


def scores_and_costs(groups):
    """The same with the spread of the seeds, losses and costs."""
    rows = []
    for label, runs in groups.items():
        rows.append([label, *score_cells(runs)])
        if label != ALONE:
            rows[-1] += [f"{mean(kept_loss(runs)):.3f}", f"{runs[0]['trained']:,}",
                         f"{runs[0]['kept']:,}",
                         spread([told["minutes"] for told in runs], "{:.0f}")]
        if len(runs) > 1:
            rows.append(["highest - lowest",
                         *score_cells(runs, lambda values: max(values) - min(values))])
    return table(["", *METRIC_HEADS, "validation loss a token", "parameters trained", "kept",
                  "minutes of training"], rows)


def fault_cells(runs):
    """How many values the sentences of runs leave out or contradict, or say twice, in per cent."""
    return [spread([told["faults"][name] for told in runs], "{:.1f}")
            for name in ("left out", "contradicted", "near twice")]


def faults(groups):
    """The faults of each way but the base alone."""
    return table(["", "left out", "contradicted", "near twice"],
                 [[label, *fault_cells(runs)] for label, runs in groups.items() if label != ALONE])


def decoding(groups, e2e):
    """What the experiment's first prefix writes without a search, and in longer sentences."""
    rows = []
    for label, runs in ({"as above": e2e[PREFIX_TUNING][:1]} | groups).items():
        left_out, _, twice = fault_cells(runs)
        rows.append([label, spread(bleu(runs)), left_out, twice])
    return table(["decoder", "BLEU", "left out", "near twice"], rows)


def times(groups, e2e, best):
    """Prefixes of two lengths after two times: scores, faults and costs."""
    ways = {"50 positions, five epochs": e2e[PREFIX_TUNING], **groups,
            "100 positions, ten epochs": best[PREFIX_TUNING]}
    rows = [[label, spread(bleu(runs)), loss_cell(runs), *fault_cells(runs),
             spread([told["minutes"] for told in runs], "{:.0f}")] for label, runs in ways.items()]
    return table(["prefix", "BLEU", "validation loss a token", "left out", "contradicted",
                  "near twice", "minutes of training"], rows)
