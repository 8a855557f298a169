"""Shows what was measured: the tables of README.md and RESULTS.md, the figures of all documents.

    python -m experiments.show                all of them, from results/*.json
    python -m experiments.show forms small    those of these parts alone

A table is written between its two comments. What shows a part without results stays as it is.
"""

import argparse
import re

from experiments.parts import PARTS, RESULTS, SEEDS, check_parts
from support.commands import run_command
from support.files import ROOT, read_json, wrap_errors, write_text

DOCUMENTS = "README.md", "RESULTS.md"
FIGURES = ROOT / "experiments/figures"


def read(part):
    """{label: what the runs of a group told} of a part."""
    told = read_json(RESULTS / f"{part}.json")
    return {group.label: runs_of(group, told) for group in PARTS[part].groups}


def runs_of(group, told):
    """What the runs of a group told; of several learning rates those at the best, which alone has
    all seeds."""
    if not group.seeds:
        return [told[group.name]]
    runs = [one for name, one in told.items() if name.startswith(f"{group.name}-")]
    if group.middle:
        (best,) = [one["settings"]["lr"] for one in runs if one["settings"]["seed"] == SEEDS[-1]]
        runs = [one for one in runs if one["settings"]["lr"] == best]
    return runs


def show(name, make, parts, tables):
    """Draws a figure, or adds a table to {name: Markdown}. Raises InputError for damaged results.

    make, parts    the function that makes it, and the parts that it shows
    """
    if missing := [part for part in parts if not (RESULTS / f"{part}.json").exists()]:
        print(f"{name} is left as it is: `python -m experiments.make {' '.join(missing)}` makes "
              "what it shows")
        return
    files = " or ".join(str(RESULTS / f"{part}.json") for part in parts)
    with wrap_errors(files, f"is corrupt; `python -m experiments.make {parts[0]}` writes it again"):
        groups = [read(part) for part in parts]
        if name.endswith(".png"):
            make(FIGURES / name, *groups)
            print(name)
        else:
            tables[name] = make(*groups)
            if re.search(r"\b(nan|inf)\b", tables[name]):
                raise ValueError("a number is none")


def filled(text, tables):
    """A document with {name: table} in the places that have these names."""
    for name, table in tables.items():
        text = re.sub(rf"(<!-- results: {name} -->\n).*?(<!-- end -->)",
                      lambda place: place[1] + table + place[2], text, flags=re.DOTALL)
    return text


def main():
    parser = argparse.ArgumentParser(
        description="Writes the tables and draws the figures of what was measured.")
    parser.add_argument("parts", nargs="*", metavar="PART",
                        help=f"{', '.join(PARTS)} (default: all)")
    args = parser.parse_args()
    check_parts(args.parts)
    tables = {}
    for part in args.parts or PARTS:
        for name, (make, *others) in PARTS[part].shows.items():
            show(name, make, [part, *others], tables)
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        write_text(ROOT / name, filled(text, tables))
    print(f"{' and '.join(DOCUMENTS)}: {', '.join(tables)}")


if __name__ == "__main__":
    run_command(main)
