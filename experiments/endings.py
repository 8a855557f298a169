"""Does a model stop because it has said everything? How it would end the references of E2E.

    python -m experiments.endings runs/prefix-tiny-e2e runs/finetune-tiny-e2e

reads the validation set's references with each run's model, and prints the mean probability of
<|endoftext|> behind every " ." in them, by the number of values that the text has not said by then
(as `experiments/slots.py` judges), beside how often the references themselves end there.
"""

import argparse
import sys
from pathlib import Path

import torch


from support.files import progress_bar, run_command
from describe import load_run
from e2e_data import encode_example, find_data, read_split
from experiments.slots import count

MOST = 4  # values unsaid, and more, are one column


def stops(tokenizer, table, sentence):
    """Where a text could end: at each token i of a sentence that comes after " .".

    Returns (i, number of values unsaid by then, whether the reference ends there) for each.
    """
    _, tokens = encode_example(tokenizer, table, sentence)
    found = []
    for i in range(1, len(tokens)):
        text = tokenizer.decode(tokens[:i])
        if text.endswith(" ."):
            judgements = count([(table, text)])
            unsaid = sum(n for (_, judged), n in judgements.items() if judged == "missing")
            found.append((i, min(unsaid, MOST), i == len(tokens) - 1))
    return found


@torch.no_grad()
def end_probabilities(run, table, sentence):
    """The probability of <|endoftext|> in place of each of the sentence's tokens: float [T]."""
    prompt, tokens = encode_example(run.tokenizer, table, sentence)
    read = torch.tensor([prompt + tokens[:-1]], device=run.model.wte.weight.device)
    logits = run.model(read, run.past)[0]  # [T of the prompt + T - 1, n_vocab]
    probabilities = logits[len(prompt) - 1 :].softmax(-1)  # [T, n_vocab]
    return probabilities[:, run.model.config.eos_token]


def main():
    parser = argparse.ArgumentParser(
        description="How likely a model ends a text that has not said its whole table.")
    parser.add_argument("runs", nargs="+", metavar="RUN",
                        help="folders that train.py wrote, or a bare model: tiny")
    parser.add_argument("--data", default="e2e", metavar="e2e|DIR",
                        help="the data set (default: e2e)")
    args = parser.parse_args()
    examples = read_split(find_data(args.data), "valid")
    rows = {}  # of each run: for each number of values unsaid the probabilities of an end
    for name in args.runs:
        run = load_run(name)
        rows[name] = [[] for _ in range(MOST + 1)]
        ends = [[] for _ in range(MOST + 1)]  # of the references: the same for every run
        for example in progress_bar(iterable=examples, desc=name, unit=" references"):
            probabilities = end_probabilities(run, *example).tolist()
            for i, unsaid, is_end in stops(run.tokenizer, *example):
                rows[name][unsaid].append(probabilities[i])
                ends[unsaid].append(is_end)
    rows["the references"] = ends
    width = max(map(len, rows))
    heads = "".join(f"{head:>11}" for head in (*range(MOST), f"{MOST} or more"))
    print(f"\n{'values unsaid':<{width}}{heads}")
    print(f"{'cases':<{width}}" + "".join(f"{len(cell):>11,}" for cell in ends))
    for name, cells in rows.items():
        shares = [f"{sum(cell) / len(cell):.3f}" if cell else "-" for cell in cells]
        print(f"{name:<{width}}" + "".join(f"{share:>11}" for share in shares))


if __name__ == "__main__":
    run_command(main)
