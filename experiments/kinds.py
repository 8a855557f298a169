"""Where the loss is, by kind of token; and which values are left out, by what the base had met.

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
from statistics import mean

import torch
import torch.nn.functional as F

from compare import read_sentences
from describe import load_run
from e2e_data import encode_example, make_batch, read_split, tokenise_text
from experiments.slots import judged, values_of
from support.files import InputError, blaming, format_rows, progress_bar, run_command
from support.reading import find_data
from support.speed import wanted_logits

MET = {0: "never met", 1: "met 1 to 99 times", 100: "met 100 to 9,999 times",
       10_000: "met 10,000 times or more"}


def count_words(folder):
    """How often each word, in lower case, stands in what `tiny` was made of. Raises InputError."""
    met = Counter()
    for path in (folder / "sgd.jsonl.gz", folder / "rnnlg.jsonl.gz"):
        with (blaming(path, "cannot be read; --pretrain must name the folder that holds it"),
              gzip.open(path, "rt", encoding="utf-8") as lines):
            for line in lines:
                met.update(tokenise_text(json.loads(line)["text"]).lower().split())
    return met


def how_often(words, met):
    """The name in MET of the rarest of some words."""
    rarest = min((met[word] for word in words), default=0)
    return MET[max(least for least in MET if least <= rarest)]


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
        word = words.get(place, " ").lower()
        kinds.append("a value" if place in of_values else how_often([word], met))
    return [*kinds, "the end"]


@torch.no_grad()
def losses_of(run, encoded):
    """The loss of each token of all answers, in their order: float [M]."""
    losses = []
    for at in progress_bar(iterable=range(0, len(encoded), 32), desc="reading", unit=" batches"):
        batch = make_batch(encoded[at : at + 32], run.model.device)
        logits = wanted_logits(run.model, batch.tokens, batch.places, batch.wanted, run.past)
        losses.append(F.cross_entropy(logits.float(), batch.targets, reduction="none"))
    return torch.cat(losses)


def print_losses(runs, examples, met):
    """The table of losses; `runs`: names. Raises InputError where vocabularies differ."""
    losses, kinds = {}, None
    for name in runs:
        run = load_run(name)
        encoded = [encode_example(run.tokenizer, *example) for example in examples]
        losses[name] = losses_of(run, encoded)
        of_run = [kind for (table, _), (_, answer) in zip(examples, encoded)
                  for kind in kinds_of(run.tokenizer, table, answer, met)]
        if kinds not in (None, of_run):
            raise InputError(f"leave out {name}: its base has another vocabulary")
        kinds = of_run
    rows = [("loss a token", ["tokens", *(Path(name).name for name in runs)])]
    for kind in ("a value", *MET.values(), "the end", None):
        here = torch.tensor([kind in (None, of_token) for of_token in kinds])
        means = [f"{of_run[here].mean():.3f}" if here.any() else "-" for of_run in losses.values()]
        rows.append((kind or "all", [f"{here.sum():,}", *means]))
    print("\n".join(format_rows(rows)))


def print_left_out(runs, met):
    """The table of values that are left out, of the runs that have described the test tables."""
    said = {name: read_sentences(name) for name in runs
            if (Path(name) / "outputs.txt").exists()}
    if not said:
        return
    missing = {kind: {name: [] for name in said} for kind in MET.values()}
    for name, says in said.items():
        for table, sentence in says.items():
            for _, value, judgement in judged(table, sentence):
                kind = how_often(value.lower().split(), met)
                missing[kind][name].append(judgement == "missing")
    rows = [("values left out, %", ["values", *(Path(name).name for name in said)])]
    for kind, of_runs in missing.items():
        shares = [f"{100 * mean(values):.1f}" if values else "-" for values in of_runs.values()]
        n_values = len(next(iter(of_runs.values())))
        rows.append((kind, [f"{n_values:,}", *shares]))
    print("\n" + "\n".join(format_rows(rows)))


def main():
    parser = argparse.ArgumentParser(
        description="Loss by kind of token, values left out by what the base had met.")
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="folders that train.py wrote, or a bare model: tiny")
    add("--pretrain", required=True, type=Path, metavar="DIR", help="what the base was trained on")
    add("--data", default="e2e", metavar="e2e|DIR", help="the data set (default: %(default)s)")
    args = parser.parse_args()
    met, folder = count_words(args.pretrain), find_data(args.data)
    print_losses(args.runs, read_split(folder, "valid"), met)
    print_left_out(args.runs, met)


if __name__ == "__main__":
    run_command(main)
