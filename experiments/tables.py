"""The tables of README.md and RESULTS.md, from results/*.json.

    python -m experiments.tables        writes them into both, each between its two comments
"""

import argparse
import re
from statistics import mean

import metrics
from experiments.make import (BASES, DECODERS, FEW_EXAMPLES, FROM_EXAMPLES, LENGTHS, RANKS, RATES,
                              RESULTS, SEEDS)
from support.files import ROOT, blaming, read_json, run_command, write_text

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


def with_settings(runs, **settings):
    """Those of the runs that have such settings."""
    return [told for told in runs.values()
            if all(told.get("settings", {}).get(name) == value
                   for name, value in settings.items())]


def few(runs, mode, n):
    """The runs of a mode on `n` examples, one for each draw."""
    return [told for name, told in runs.items() if name.startswith(f"{mode}-{n}-")]


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
    found = [told for run, told in runs.items() if run.startswith(f"{name}-")]
    (best,) = {told["settings"]["lr"] for told in found if told["settings"]["seed"] == SEEDS[-1]}
    return [told for told in found if told["settings"]["lr"] == best]


def forms():
    """Validation loss of each form at each learning rate."""
    runs, rows = read("forms"), []
    rates = sorted({rate for rates in RATES.values() for rate in rates})
    for form, clip in form_lines(runs):
        cells = []
        for lr in rates:
            found = form_runs(runs, form, clip, lr)
            cells.append(spread(kept_loss(found)) if found else "")
        rows.append([label_of(form, clip), *cells])
    return table(["learning rate", *(f"{rate:g}" for rate in rates)], rows)


def label_of(form, clip):
    """What a line of the forms' table and figure is called."""
    return form + ", not clipped" * (clip > 1)


def form_lines(runs):
    """(form, clip) of each line of the forms' table and figure, in their order."""
    clips = sorted({told["settings"]["clip"] for told in runs.values()})
    return [(form, clip) for form, rates in RATES.items() for clip in clips
            if any(form_runs(runs, form, clip, lr) for lr in rates)]


def form_runs(runs, form, clip, lr):
    """The runs of a form at a learning rate, one for each seed."""
    found = with_settings(runs, prefix_form=form.partition(",")[0], clip=clip, lr=lr)
    return [told for told in found
            if ("words" in form) == (told["settings"]["prefix_words"] is not None)]


def small():
    """BLEU with few examples: the mean of the draws, lowest and highest."""
    runs, rows = read("small"), []
    for n in FEW_EXAMPLES:
        rows.append([n, *(spread(bleu(few(runs, mode, n)), "{:.1f}")
                          for mode in MODES)])
    return table(["examples", *MODES.values()], rows)


def length():
    """BLEU and loss against prefix length, with nothing and fine-tuning at the ends."""
    runs = read("length")
    whole = with_settings(runs, mode="finetune")

    def row(label, found):
        return [label, spread(bleu(found), "{:.1f}"), spread(kept_loss(found), "{:.3f}"),
                f"{found[0]['kept'] / whole[0]['kept']:.2%}"]

    rows = [["0: the base alone", spread(bleu([runs["base"]]), "{:.1f}"), "", "0"]]
    rows += [row(P, of_length(runs, P)) for P in LENGTHS]
    if is_measured("longer"):
        rows += [row(f"{P}, from {n} example{'s' * (n > 1)}", of_length(read("longer"), P))
                 for P, n in FROM_EXAMPLES.items()]
    rows.append(row("fine-tuning", whole))
    return table(["prefix length", "BLEU", "validation loss a token", "kept"], rows)


def of_length(runs, P):
    """The runs of a prefix length, one for each seed."""
    return with_settings(runs, mode="prefix", prefix_length=P)


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
    """The experiment for the README: five scores, the mean over seeds, and what is trained."""
    rows = [[label, *(show(name, mean(values), "{:.2f}") for name, values in scores.items()),
             f"{found[0].get('trained') or 0:,}"] for label, found, scores in groups_of("e2e")]
    return table(["E2E's test set", *HEADS, "parameters trained"], rows)


def e2e(part="e2e"):
    """The same with the spread of the seeds, losses and costs."""
    rows = []
    for label, found, scores in groups_of(part):
        cells = [show(name, mean(values), "{:.4f}") for name, values in scores.items()]
        if "settings" in found[0]:
            cells += [f"{mean(kept_loss(found)):.3f}", f"{found[0]['trained']:,}",
                      f"{found[0]['kept']:,}", spread([told["minutes"] for told in found],
                                                      "{:.0f}")]
        rows.append([label, *cells])
        if len(found) > 1:
            rows.append(["highest - lowest", *(show(name, max(values) - min(values), "{:.4f}")
                                               for name, values in scores.items())])
    return table(["", *HEADS, "validation loss a token", "parameters trained", "kept",
                  "minutes of training"], rows)


def groups_of(part):
    """(label, runs, {score: its values}) of each way to steer the base."""
    runs = read(part)
    groups = {"the base alone": [runs["base"]]} if "base" in runs else {}
    groups |= {label: with_settings(runs, mode=mode) for mode, label in MODES.items()}
    for label, found in groups.items():
        yield label, found, {name: [told["scores"][name] for told in found]
                             for name in metrics.METRICS}


def show(name, value, form):
    """A score as it is printed: a share of 1 in per cent."""
    return f"{100 * value:.2f}" if name in metrics.PERCENTAGES else form.format(value)


def faults(part="e2e"):
    """How many values the sentences of the experiment's runs leave out or contradict, in %."""
    runs, rows = read(part), []
    for mode, label in MODES.items():
        told = [one["faults"] for one in with_settings(runs, mode=mode)]
        rows.append([label, *(spread([one[name] for one in told], "{:.1f}") for name in told[0])])
    return table(["", *told[0]], rows)


def decoding():
    """What the experiment's first prefix writes without a search, and in longer sentences."""
    found = {"as above": with_settings(read("e2e"), mode="prefix")[0]}
    found |= dict(zip(DECODERS, read("decoding").values()))
    rows = [[label, f"{100 * told['scores']['BLEU']:.2f}",
             *(f"{told['faults'][name]:.1f}" for name in ("left out", "near twice"))]
            for label, told in found.items()]
    return table(["decoder", "BLEU", "left out", "near twice"], rows)


HEADS = [name.replace("_", "-") for name in metrics.METRICS]
TABLES = {  # the name of a table's place in a document -> (its function, the parts it shows)
    "forms": (forms, "forms"), "small": (small, "small"), "length": (length, "length"),
    "scores": (scores, "e2e"), "e2e": (e2e, "e2e"), "faults": (faults, "e2e"),
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
