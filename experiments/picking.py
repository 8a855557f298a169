"""How often the model picks the right prefix itself, where the tables of several tasks come mixed.

    python -m experiments.picking --runs runs/a runs/b --data sample e2e

The first run was trained for the first data set, the second for the second, and so on. Each test
table is described behind every prefix, in one batch, and the one that is picked is the one behind
which the model is surest of its sentence: the highest mean log-probability a token.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent

from support.files import InputError, run_command
from describe import DECODER, describe_with_each, load_runs
from e2e_data import find_data, group_by_table, read_split


def main():
    parser = argparse.ArgumentParser(
        description="How often the model picks the prefix that was trained for a table.")
    add = parser.add_argument
    add("--runs", nargs="+", required=True, metavar="RUN", help="prefixes of one base")
    add("--data", nargs="+", required=True, metavar="e2e|sample|DIR",
        help="what each was trained for, in the same order")
    add("--tables", type=int, default=100, metavar="N",
        help="of each data set, spread over its test tables (default: %(default)s)")
    add("--num-beams", type=int, default=DECODER["num_beams"], metavar="K",
        help="beams of the search (default: %(default)s)")
    add("--max-new-tokens", type=int, default=DECODER["max_new_tokens"], metavar="N",
        help="the longest sentence, in tokens (default: %(default)s)")
    add("--device", default="auto", help="auto (default), cpu, cuda, ...")
    args = parser.parse_args()
    if not len(args.runs) == len(args.data) == len(set(args.runs)) > 1:
        raise InputError("give several runs, each once, and a data set for each")
    if args.tables < 1:
        raise InputError("--tables must be at least 1")
    run, pasts = load_runs(args.runs, args.device)
    decoder = DECODER | {"num_beams": args.num_beams, "max_new_tokens": args.max_new_tokens}
    width = max(map(len, [*args.data, "tables of"]))
    print(f"{'tables of':<{width}}  {'number':>6}  {'right':>6}   picked")
    n_tables = n_right = 0
    for source, data in zip(args.runs, args.data):
        tables = list(group_by_table(read_split(find_data(data), "test")))
        n = min(args.tables, len(tables))
        tables = [tables[i * len(tables) // n] for i in range(n)]
        picked = Counter()
        for found in describe_with_each(run, pasts, tables, decoder):
            picked[max(found, key=lambda name: found[name][1])] += 1
        n_tables, n_right = n_tables + n, n_right + picked[source]
        counts = ", ".join(f"{name} {picked[name]}" for name in args.runs)
        print(f"{data:<{width}}  {n:>6}  {picked[source] / n:>6.1%}   {counts}", flush=True)
    print(f"{'all':<{width}}  {n_tables:>6}  {n_right / n_tables:>6.1%}")


if __name__ == "__main__":
    run_command(main)
