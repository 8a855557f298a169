"""Where the loss is, by kind of token.

    python -m experiments.kinds tiny runs/prefix-tiny-e2e runs/finetune-tiny-e2e --pretrain DIR

reads E2E's validation set with each run's model; `tiny` is the base alone. A token of a reference
is a part of a value that the table holds, the end, or wording; the wording is told apart by how
often its word stands in sgd.jsonl.gz and rnnlg.jsonl.gz in DIR, of which `tiny` was made.
"""

import argparse
import gzip
import json
import re
from collections import Counter
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F

from describe import load_run
from e2e_data import encode_example, make_batch, read_split, tokenise_text
from experiments.slots import values_of
from support.commands import InputError, format_rows, progress_bar, run_command
from support.files import wrap_errors
from support.reading import find_data
from support.speed import packed_logits

MET = {0: "never met", 1: "met 1 to 99 times", 100: "met 100 to 9,999 times",
       10_000: "met 10,000 times or more"}


def count_words(folder):
    """How often each word, in lower case, stands in what `tiny` was made of. Raises InputError."""
    met = Counter()
    for path in (folder / "sgd.jsonl.gz", folder / "rnnlg.jsonl.gz"):
        with (wrap_errors(path, "cannot be read; --pretrain must name the folder that holds it"),
              gzip.open(path, "rt", encoding="utf-8") as lines):
            for line in lines:
                met.update(tokenise_text(json.loads(line)["text"]).lower().split())
    return met


def kinds_of(tokenizer, table, answer, met):
    """The kind of each token of an answer, which ends with <|endoftext|>."""
    text, places = tokenizer.decode_with_offsets(answer[:-1])
    of_values = set()
    for value in values_of(table).values():
        for found in re.finditer(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE):
            of_values.update(range(*found.span()))
    words = {place: word[0] for word in re.finditer(r"\S+", text) for place in range(*word.span())}
    kinds = []
    for place in places:
        place += text[place] == " "  # before its word
        n_met = met[words.get(place, " ").lower()]
        how_often = MET[max(least for least in MET if least <= n_met)]
        kinds.append("a value" if place in of_values else how_often)
    return [*kinds, "the end"]


@torch.no_grad()
def losses_of(run, encoded):
    """The loss of each token of all answers, in their order: float [M]."""
    losses = []
    for at in progress_bar(iterable=range(0, len(encoded), 32), desc="reading", unit=" batches"):
        batch = make_batch(encoded[at : at + 32], run.model.device)
        logits = packed_logits(run.model, batch.tokens, batch.token_indices, batch.loss_indices,
                               run.past)
        losses.append(F.cross_entropy(logits.float(), batch.targets, reduction="none"))
    return torch.cat(losses)


def losses_by_kind(runs, examples, met):
    """{kind: for each run the losses}. Raises InputError where vocabularies differ."""
    found = {kind: [[] for _ in runs] for kind in ("a value", *MET.values(), "the end", "all")}
    kinds = None
    for number, name in enumerate(runs):
        run = load_run(name)
        encoded = [encode_example(run.tokenizer, *example) for example in examples]
        of_run = [kind for (table, _), (_, answer) in zip(examples, encoded)
                  for kind in kinds_of(run.tokenizer, table, answer, met)]
        if kinds not in (None, of_run):
            raise InputError(f"leave out {name}: its base has another vocabulary")
        kinds = of_run
        for kind, loss in zip(kinds, losses_of(run, encoded).tolist()):
            found[kind][number].append(loss)
            found["all"][number].append(loss)
    return found


def main():
    parser = argparse.ArgumentParser(description="The loss by kind of token.")
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folders that train.py wrote, or a bare model: tiny")
    add("--pretrain", required=True, type=Path, metavar="DIR", help="what the base was trained on")
    add("--data", default="e2e", metavar="e2e|DIR", help="the data set (default: %(default)s)")
    args = parser.parse_args()
    examples = read_split(find_data(args.data), "valid")
    found = losses_by_kind(args.runs, examples, count_words(args.pretrain))
    rows = [("loss a token", ["number", *(Path(name).name for name in args.runs)])]
    for kind, of_runs in found.items():
        rows.append((kind, [f"{len(of_runs[0]):,}", *(f"{fmean(losses):.3f}" if losses else "-"
                                                      for losses in of_runs)]))
    print("\n".join(format_rows(rows)))


if __name__ == "__main__":
    run_command(main)
