"""The tables of README.md and RESULTS.md, from results/*.json.

    python -m experiments.tables        writes them into both, each between its two comments
"""

import argparse
import re
from statistics import mean

import metrics
from experiments.make import (BASES, CLIPS, DECODERS, FEW_EXAMPLES, FROM_EXAMPLES, LENGTHS, RANKS,
                              RATES, RESULTS, SEEDS, form_name)
from support.commands import run_command
from support.files import ROOT, blaming, read_json, write_text

DOCUMENTS = "README.md", "RESULTS.md"
MODES = {"prefix": "prefix-tuning", "finetune": "fine-tuning"}
PLACE = r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)"


def read(part):
    """{name of a run: what it told} of a part of the experiment."""
    return read_json(RESULTS / f"{part}.json")


def is_measured(*parts):
    return all((RESULTS / f"{part}.json").exists() for part in parts)


def blaming_results(*parts):
    """Makes what goes wrong in a block that shows results an InputError that names their files."""
    files = " or ".join(str(RESULTS / f"{part}.json") for part in parts)
    return blaming(files, f"is damaged; `python -m experiments.make {parts[0]}` writes it anew")


def table(head, rows):
    """Markdown: the head's cells, then those of each row, of which the last may be missing."""
    lines = [head, ["---"] * len(head)]
    lines += [[*row, *[""] * (len(head) - len(row))] for row in rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def spread(values, form="{:.2f}"):
    """The mean, and after it the lowest and highest of several values."""
    middle, low, high = (form.format(f(values)) for f in (mean, min, max))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def named(runs, start):
    """The runs whose names begin so: those of a kind, one for each seed."""
    return [told for name, told in runs.items() if name.startswith(start)]


def bleu(runs):
    """The BLEU of each of some runs, as it is printed."""
    return [100 * told["scores"]["BLEU"] for told in runs]


def kept_loss(runs):
    """The validation loss of what was kept of each of some runs: the last, or the lowest."""
    losses = [[loss for _, loss in told["validation"]] for told in runs]
    return [min(own) if "--keep best" in told["command"] else own[-1]
            for told, own in zip(runs, losses)]


def at_best_rate(runs, name):
    """Of the runs of a name at several learning rates those at the best, which all seeds have."""
    found = named(runs, f"{name}-")
    (best,) = {told["settings"]["lr"] for told in found if told["settings"]["seed"] == SEEDS[-1]}
    return [told for told in found if told["settings"]["lr"] == best]


def forms():
    """Validation loss of each form at each learning rate."""
    rates = sorted({rate for rates in RATES.values() for rate in rates})
    rows = [[label, *(spread(losses[lr]) if lr in losses else "" for lr in rates)]
            for _, label, losses in form_lines()]
    return table(["learning rate", *(f"{rate:g}" for rate in rates)], rows)


def form_lines():
    """(form, label, {learning rate: losses}) of each line of the forms' table and figure."""
    runs = read("forms")
    for form, rates in RATES.items():
        for clip in CLIPS.get(form, (1,)):
            losses = {lr: kept_loss(named(runs, f"{form_name(form, clip, lr)}-")) for lr in rates}
            yield form, form + ", not clipped" * (clip > 1), losses


def small():
    """BLEU with few examples: the mean of the draws, lowest and highest."""
    runs = read("small")
    rows = [[n, *(spread(bleu(named(runs, f"{mode}-{n}-")), "{:.1f}") for mode in MODES)]
            for n in FEW_EXAMPLES]
    return table(["examples", *MODES.values()], rows)


def length():
    """BLEU and loss against prefix length, with nothing and fine-tuning at the ends."""
    runs = read("length")
    whole = named(runs, "finetune")

    def row(label, found):
        return [label, spread(bleu(found), "{:.1f}"), spread(kept_loss(found), "{:.3f}"),
                f"{found[0]['kept'] / whole[0]['kept']:.2%}"]

    rows = [["0: the base alone", spread(bleu([runs["base"]]), "{:.1f}"), "", "0"]]
    rows += [row(P, named(runs, f"length-{P}-")) for P in LENGTHS]
    rows += [row(f"{P}, from {n} example{'s' * (n > 1)}", named(read("longer"), f"length-{P}-"))
             for P, n in FROM_EXAMPLES.items()]
    rows.append(row("fine-tuning", whole))
    return table(["prefix length", "BLEU", "validation loss a token", "kept"], rows)


def place():
    """Loss and BLEU of as many numbers in other places, each at its best learning rate."""
    runs, rows = read("place"), []
    labels = {"prefix": "keys and values before the tokens' (a prefix)"}
    labels |= {layer: f"LoRA of rank {rank} beside `{layer}`" for layer, rank in RANKS.items()}
    labels["finetune"] = "all weights (fine-tuning)"
    for name, label in labels.items():
        found = at_best_rate(runs, name)
        rows.append([label, f"{found[0]['trained']:,}", f"{found[0]['settings']['lr']:g}",
                     spread(kept_loss(found), "{:.3f}"), spread(bleu(found), "{:.1f}")])
    return table(["what is trained", "numbers", "learning rate", "validation loss a token",
                  "BLEU"], rows)


def of_bases():
    """(name, the base alone, runs of a prefix, runs of fine-tuning) of each base, by size."""
    runs = read("size")
    for name in BASES:
        yield (name, runs[f"{name}/base"], at_best_rate(runs, f"{name}/prefix"),
               at_best_rate(runs, f"{name}/finetune"))
    runs = read("place")
    yield "tiny", read("e2e")["base"], at_best_rate(runs, "prefix"), at_best_rate(runs, "finetune")


def size():
    """A prefix against fine-tuning on each base: BLEU, and the gap between them."""
    rows = []
    for name, base, prefixes, tuned in of_bases():
        share = mean(bleu(prefixes)) / mean(bleu(tuned))
        gap = mean(kept_loss(prefixes)) - mean(kept_loss(tuned))
        scores = [spread(bleu(found), "{:.1f}") for found in ([base], prefixes, tuned)]
        losses = [spread(kept_loss(found), "{:.3f}") for found in (prefixes, tuned)]
        rows.append([name, f"{tuned[0]['trained']:,}", *scores, f"{share:.0%}", *losses,
                     f"{gap:.3f}"])
    return table(["base", "parameters", "BLEU: alone", "prefix", "fine-tuning", "share",
                  "loss: prefix", "fine-tuning", "gap"], rows)


def scores():
    """The experiment for the README, and the longer prefix of `best`: five scores, the mean over
    seeds, and what is trained."""
    groups = groups_of("e2e")
    tuned = groups.pop("fine-tuning")
    groups |= {"prefix-tuning, longer": named(read("best"), "prefix"), "fine-tuning": tuned}
    rows = [[label, *score_cells(found, form="{:.2f}"), f"{found[0]['trained'] or 0:,}"]
            for label, found in groups.items()]
    return table(["E2E's test set", *HEADS, "parameters trained"], rows)


def e2e(part="e2e"):
    """The same with the spread of the seeds, losses and costs."""
    rows = []
    for label, found in groups_of(part).items():
        rows.append([label, *score_cells(found)])
        if "settings" in found[0]:
            rows[-1] += [f"{mean(kept_loss(found)):.3f}", f"{found[0]['trained']:,}",
                         f"{found[0]['kept']:,}",
                         spread([told["minutes"] for told in found], "{:.0f}")]
        if len(found) > 1:
            rows.append(["highest - lowest",
                         *score_cells(found, lambda values: max(values) - min(values))])
    return table(["", *HEADS, "validation loss a token", "parameters trained", "kept",
                  "minutes of training"], rows)


def groups_of(part):
    """{label: its runs} of each way to steer the base."""
    runs = read(part)
    groups = {"the base alone": [runs["base"]]} if "base" in runs else {}
    return groups | {label: named(runs, mode) for mode, label in MODES.items()}


def score_cells(runs, function=mean, form="{:.4f}"):
    """Of each score what a function makes of the runs' values, a share of 1 in per cent."""
    cells = []
    for name in metrics.METRICS:
        value = function([told["scores"][name] for told in runs])
        cells.append(f"{100 * value:.2f}" if name in metrics.PERCENTAGES else form.format(value))
    return cells


def faults(part="e2e"):
    """How many values the sentences of the experiment's runs leave out or contradict, in %."""
    runs, rows = read(part), []
    for mode, label in MODES.items():
        told = [one["faults"] for one in named(runs, mode)]
        rows.append([label, *(spread([one[name] for one in told], "{:.1f}") for name in told[0])])
    return table(["", *told[0]], rows)


def decoding():
    """What the experiment's first prefix writes without a search, and in longer sentences."""
    found = {"as above": named(read("e2e"), "prefix")[0]}
    found |= dict(zip(DECODERS, read("decoding").values()))
    rows = [[label, f"{100 * told['scores']['BLEU']:.2f}",
             *(f"{told['faults'][name]:.1f}" for name in ("left out", "near twice"))]
            for label, told in found.items()]
    return table(["decoder", "BLEU", "left out", "near twice"], rows)


HEADS = [name.replace("_", "-") for name in metrics.METRICS]
TABLES = {  # the name of a table's place in a document -> (its function, the parts it shows)
    "forms": (forms, "forms"), "small": (small, "small"), "length": (length, "length", "longer"),
    "scores": (scores, "e2e", "best"), "e2e": (e2e, "e2e"), "faults": (faults, "e2e"),
    "decoding": (decoding, "decoding", "e2e"), "place": (place, "place"),
    "size": (size, "size", "place", "e2e"), "best": (lambda: e2e("best"), "best"),
    "best_faults": (lambda: faults("best"), "best")}


def filled(text):
    """A document with its tables as the results have them; without results one stays as it is.

    Raises InputError where results are damaged.
    """
    def fill(found):
        make_table, *parts = TABLES[found[2]]
        if not is_measured(*parts):
            return found[0]
        with blaming_results(*parts):
            made = make_table()
            if re.search(r"\b(nan|inf)\b", made):
                raise ValueError("a number is none")
        return found[1] + made + found[3]

    return re.sub(PLACE, fill, text, flags=re.DOTALL)


def main():
    argparse.ArgumentParser(description="Writes the tables of README.md and RESULTS.md from "
                            "results/*.json.").parse_args()
    for name in DOCUMENTS:
        text = filled((ROOT / name).read_text(encoding="utf-8"))
        write_text(ROOT / name, text)
        print(f"{name}: {', '.join(found[2] for found in re.finditer(PLACE, text, re.DOTALL))}")


if __name__ == "__main__":
    run_command(main)
