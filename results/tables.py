"""The tables of README.md and RESULTS.md, from results/*.json.

    python results/tables.py            writes them into both, each between its two comments
    python results/tables.py --print    only shows them
"""

import argparse
import re
import sys
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import metrics  # noqa: E402
from common import read_json, run_command, write_text  # noqa: E402
from results.make import FEW_EXAMPLES, LENGTHS, RATES  # noqa: E402

DOCUMENTS = "README.md", "RESULTS.md"
PLACE = r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)"


def read(part):
    """{name of a run: what it told} of a part of the experiment."""
    return read_json(ROOT / "results" / f"{part}.json")


def table(head, rows):
    """Markdown: the head's cells, then those of each row; the first column is text."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def spread(values, form="{:.2f}"):
    """The mean, and behind it the lowest and highest of several values."""
    middle, low, high = (form.format(f(values)) for f in (mean, min, max))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def with_settings(runs, **settings):
    """Those of the runs that have such settings."""
    return [told for told in runs.values()
            if all(told.get("settings", {}).get(name) == value
                   for name, value in settings.items())]


def bleu(runs):
    return [100 * told["scores"]["BLEU"] for told in runs]


def last_loss(runs):
    return [told["validation"][-1][1] for told in runs]


def forms():
    """Validation loss of each form at each learning rate."""
    runs, rows = read("forms"), []
    rates = sorted({rate for rates in RATES.values() for rate in rates})
    for form, clip in form_lines(runs):
        cells = []
        for lr in rates:
            found = form_runs(runs, form, clip, lr)
            cells.append(spread(last_loss(found)) if found else "")
        rows.append([form + ", not clipped" * (clip > 1), *cells])
    return table(["learning rate", *(f"{rate:g}" for rate in rates)], rows)


def form_lines(runs):
    """(form, clip) of each line of the forms' table and figure, in their order."""
    clips = sorted({told["settings"]["clip"] for told in runs.values()})
    return [(form, clip) for form, rates in RATES.items() for clip in clips
            if any(form_runs(runs, form, clip, lr) for lr in rates)]


def form_runs(runs, form, clip, lr):
    found = with_settings(runs, prefix_form=form.partition(",")[0], clip=clip, lr=lr)
    return [told for told in found
            if ("words" in form) == (told["settings"]["prefix_words"] is not None)]


def small():
    """BLEU with few examples: the mean of the draws, lowest and highest."""
    runs, rows = read("small"), []
    for n in FEW_EXAMPLES:
        cells = [spread(bleu([told for name, told in runs.items()
                              if name.startswith(f"{mode}-{n}-")]), "{:.1f}")
                 for mode in ("prefix", "finetune")]
        rows.append([n, *cells])
    return table(["examples", "prefix-tuning", "fine-tuning"], rows)


def length():
    """BLEU and loss against prefix length, with nothing and fine-tuning at the ends."""
    runs, rows = read("length"), []
    whole = with_settings(runs, mode="finetune")
    rows.append(["0: the base alone", spread(bleu([runs["base"]]), "{:.1f}"), "", "0"])
    for P in LENGTHS:
        found = with_settings(runs, mode="prefix", prefix_length=P)
        rows.append([P, spread(bleu(found), "{:.1f}"), spread(last_loss(found), "{:.3f}"),
                     f"{found[0]['kept'] / whole[0]['kept']:.2%}"])
    rows.append(["fine-tuning", spread(bleu(whole), "{:.1f}"), spread(last_loss(whole), "{:.3f}"),
                 "100%"])
    return table(["prefix length", "BLEU", "validation loss a token", "kept"], rows)


def e2e():
    """The experiment: five scores, each the mean over seeds and below it highest - lowest."""
    runs = read("e2e")
    groups = {"the base alone": [runs["base"]], "prefix-tuning": with_settings(runs, mode="prefix"),
              "fine-tuning": with_settings(runs, mode="finetune")}
    rows = []
    for label, found in groups.items():
        scores = {name: [told["scores"][name] for told in found] for name in metrics.METRICS}
        is_base = "settings" not in found[0]
        rows.append([label, *(show(name, mean(values)) for name, values in scores.items()),
                     "" if is_base else f"{mean(last_loss(found)):.3f}",
                     0 if is_base else f"{found[0]['trained']:,}"])
        if len(found) > 1:
            rows.append(["highest - lowest", *(show(name, max(values) - min(values))
                                               for name, values in scores.items()), "", ""])
    heads = [name.replace("_", "-") for name in metrics.METRICS]
    return table(["", *heads, "validation loss a token", "parameters trained"], rows)


def show(name, value):
    return f"{100 * value:.2f}" if name in metrics.PERCENTAGES else f"{value:.3f}"


def sentences():
    """What the sentences of the experiment's runs leave out or contradict."""
    runs, rows = read("e2e"), []
    for label, mode in (("prefix-tuning", "prefix"), ("fine-tuning", "finetune")):
        told = [one["sentences"] for one in with_settings(runs, mode=mode)]
        rows.append([label, *(spread([one[name] for one in told], "{:.1f}") for name in told[0])])
    return table(["", *told[0]], rows)


TABLES = {function.__name__: function for function in (forms, small, length, e2e, sentences)}


def filled(text):
    """A document with each of its tables as the results have it."""
    return re.sub(PLACE, lambda found: found[1] + TABLES[found[2]]() + found[3], text,
                  flags=re.DOTALL)


def main():
    parser = argparse.ArgumentParser(
        description="Writes the tables of README.md and RESULTS.md from results/*.json.")
    parser.add_argument("--print", action="store_true", dest="only_show", help="only show them")
    args = parser.parse_args()
    for name in DOCUMENTS:
        text = filled((ROOT / name).read_text(encoding="utf-8"))
        if args.only_show:
            for _, part, _ in re.findall(PLACE, text, re.DOTALL):
                print(f"{name}, {part}:\n\n{TABLES[part]()}")
        else:
            write_text(ROOT / name, text)


if __name__ == "__main__":
    run_command(main)
