"""Does a model stop because it has said everything? How it would end the references of E2E.

    python bench/endings.py runs/prefix-tiny-e2e runs/finetune-tiny-e2e

reads the validation set's references with each run's model, and prints the mean probability of <|endoftext|> behind
every " ." in them, by the number of values that the text has not said by then (as `bench/slots.py` judges), beside how
often the references themselves end there.
"""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.slots import count  # noqa: E402
from common import run_command  # noqa: E402
from e2e_data import encode_example, find_data, read_split  # noqa: E402
from train import load_run  # noqa: E402

MOST = 4  # values unsaid, and more, are one column


def stops(tokenizer, table, sentence):
    """(i, number of values unsaid, whether the reference ends) for each token i of a sentence that comes after " ."."""
    _, tokens = encode_example(tokenizer, table, sentence)
    found = []
    for i in range(1, len(tokens)):
        text = tokenizer.decode(tokens[:i])
        if text.endswith(" ."):
            unsaid = sum(n for (_, judgement), n in count([(table, text)]).items() if judgement == "missing")
            found.append((i, min(unsaid, MOST), i == len(tokens) - 1))
    return found


@torch.no_grad()
def end_probabilities(run, table, sentence):
    """The probability of <|endoftext|> in place of each of the sentence's tokens, float [number of tokens]."""
    prompt, tokens = encode_example(run.tokenizer, table, sentence)
    read = torch.tensor([prompt + tokens[:-1]], device=run.model.wte.weight.device)
    probabilities = run.model(read, run.past)[0, len(prompt) - 1 :].softmax(-1)  # [number of tokens, n_vocab]
    return probabilities[:, run.model.config.eos_token]


def main():
    parser = argparse.ArgumentParser(description="How likely a model ends a text that has not said its whole table.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that train.py wrote, or a bare model: tiny")
    parser.add_argument("--data", default="e2e", metavar="e2e|DIR", help="the data set (default: e2e)")
    args = parser.parse_args()
    examples = read_split(find_data(args.data), "valid")
    rows = {}  # of each run, and of the references: for each number of values unsaid the probabilities of an end
    for name in args.runs:
        run = load_run(name)
        rows[name], ends = [[] for _ in range(MOST + 1)], [[] for _ in range(MOST + 1)]
        for example in tqdm(examples, desc=name, unit=" references"):
            probabilities = end_probabilities(run, *example).tolist()
            for i, unsaid, is_end in stops(run.tokenizer, *example):
                rows[name][unsaid].append(probabilities[i])
                ends[unsaid].append(is_end)
    rows["the references"] = ends  # the same for every run
    width = max(map(len, rows))
    print(f"\n{'values unsaid':<{width}}" + "".join(f"{head:>11}" for head in (*range(MOST), f"{MOST} or more")))
    print(f"{'cases':<{width}}" + "".join(f"{len(cell):>11,}" for cell in ends))
    for name, cells in rows.items():
        shares = [f"{sum(cell) / len(cell):.3f}" if cell else "-" for cell in cells]
        print(f"{name:<{width}}" + "".join(f"{share:>11}" for share in shares))


if __name__ == "__main__":
    run_command(main)
