"""Scores systems of the E2E challenge on the references that train.py uses: TGen, the baseline, is the one to beat.

    python bench/challenge.py --data e2e tgen.tsv

The challenge published its systems' outputs as tables of two columns, MR and output, in raw text. Here they are put
into the style of the src1 files, since scores on raw and on tokenised references cannot be compared: by rules that turn
98.6% of the official test references into those of src1_test.txt.
"""

import argparse
import csv
import io
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import metrics  # noqa: E402
from common import InputError, run_command  # noqa: E402
from e2e_data import decode, find_data, group_by_table, linearize, read_split, tokenise_text  # noqa: E402


def read_system(path):
    """{table: sentence}, both as in the src1 files. Raises InputError."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    rows = csv.DictReader(io.StringIO(decode(path, path.read_bytes()), newline=""), delimiter="\t")
    if rows.fieldnames is None or [name.lower() for name in rows.fieldnames] != ["mr", "output"]:
        raise InputError(f"{path}, line 1: the columns MR and output, with a tab between, were expected")
    mr, output = rows.fieldnames
    outputs = {}
    for row in rows:
        if None in row or row[output] is None:
            raise InputError(f"{path}, line {rows.line_num}: a table, a tab and a sentence were expected")
        try:
            table = linearize(row[mr])
        except InputError as error:
            raise InputError(f"{path}, line {rows.line_num}: {error}") from None
        if table in outputs:
            raise InputError(f"{path}, line {rows.line_num}: a second sentence for {table!r}; keep one")
        outputs[table] = tokenise_text(row[output])
    return outputs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+", metavar="SYSTEM.tsv", type=Path)
    parser.add_argument("--data", default="e2e", metavar="e2e|DIR", help="whose test set (default: e2e)")
    args = parser.parse_args()
    groups = group_by_table(read_split(find_data(args.data), "test"))
    rows = []
    for path in args.systems:
        outputs = read_system(path)
        if missing := [table for table in groups if table not in outputs]:
            raise InputError(f"{path}: {len(missing)} of {len(groups)} test tables have no output: {missing[0]!r}, ...")
        rows.append((path.stem, metrics.evaluate(list(groups.values()), [outputs[table] for table in groups])))
    print(metrics.format_table(rows))


if __name__ == "__main__":
    run_command(main)
