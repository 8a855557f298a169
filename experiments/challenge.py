"""Scores the E2E challenge's systems as our runs are: TGen, the baseline, is the one to beat.

    python -m experiments.challenge --data e2e tgen.tsv

The challenge published its systems' outputs as tables of two columns, MR and output, in raw text.
Here they are put into the style of the src1 files, since scores on raw and on tokenised references
cannot be compared: by rules that turn 98.6% of the official test references into those of
src1_test.txt.
"""

import argparse
import csv
import io
from pathlib import Path

import metrics
from e2e_data import group_by_table, linearize, read_split, tokenise_text
from support.files import InputError, run_command
from support.reading import decode, find_data


def read_system(path):
    """{table: sentence}, both as in the src1 files. Raises InputError."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    text = io.StringIO(decode(path, path.read_bytes()), newline="")
    rows = csv.DictReader(text, delimiter="\t")
    try:
        return read_rows(path, rows)
    except csv.Error as error:  # such as a quote without an end
        raise InputError(f"{path}, line {rows.reader.line_num}: {error}") from None


def read_rows(path, rows):
    """{table: sentence} of a csv.DictReader's rows. Raises InputError."""
    if [name.lower() for name in rows.fieldnames or []] != ["mr", "output"]:
        raise InputError(
            f"{path}, line 1: the columns MR and output, with a tab between, were expected")
    mr, output = rows.fieldnames
    outputs = {}
    for row in rows:
        if None in row or row[output] is None:
            raise InputError(
                f"{path}, line {rows.line_num}: a table, a tab and a sentence were expected")
        try:
            table = linearize(row[mr])
        except InputError as error:
            raise InputError(f"{path}, line {rows.line_num}: {error}") from None
        if table in outputs:
            raise InputError(
                f"{path}, line {rows.line_num}: a second sentence for {table!r}; keep one")
        outputs[table] = tokenise_text(row[output])
    return outputs


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+", metavar="SYSTEM.tsv", type=Path)
    parser.add_argument("--data", default="e2e", metavar="e2e|DIR",
                        help="whose test set (default: e2e)")
    args = parser.parse_args()
    groups = group_by_table(read_split(find_data(args.data), "test"))
    rows = []
    for path in args.systems:
        outputs = read_system(path)
        if missing := [table for table in groups if table not in outputs]:
            raise InputError(f"{path}: {len(missing)} of {len(groups)} test tables have no output: "
                             f"{missing[0]!r}, ...")
        in_order = [outputs[table] for table in groups]
        rows.append((path.stem, metrics.evaluate(list(groups.values()), in_order)))
    print(metrics.format_table(rows))


if __name__ == "__main__":
    run_command(main)
