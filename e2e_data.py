"""The E2E data (Novikova et al. 2017): tables of restaurants, and sentences that people wrote about them.

Reads the files that Li & Liang (2021) trained on (src1_train.txt, src1_valid.txt, src1_test.txt: `table||sentence` a
line) and the official release (trainset.csv, devset.csv, testset_w_refs.csv, or the zip that holds them).

    python e2e_data.py --data sample        what the data look like, as the model sees them
"""

import argparse
import csv
import io
import random
import re
import zipfile
from pathlib import Path

import torch

from common import ROOT, InputError, download, run_command, sha256

SPLITS = ("train", "valid", "test")
CSV_NAMES = {"train": "trainset.csv", "valid": "devset.csv", "test": "testset_w_refs.csv"}
ZIP_NAME = "e2e-dataset.zip"
SRC1_URL = ("https://raw.githubusercontent.com/XiangLi1999/PrefixTuning/6519d30e69b15a180f23e2cd41b766d3f62b8e82"
            "/data/e2e_data")
KNOWN_SHA256 = {
    "src1_train.txt": "eae319082237310913d9f37f6a891d48fb3f821f29d86870d2cb4f92ddd72c5a",
    "src1_valid.txt": "ba963113c8401d3d26216c0dc0a6dae1ea6ea927de3bf830e32c41f65401c80d",
    "src1_test.txt": "81b1bcd40c4f12845ec4eb61a77bf43765d112483cd9b2f91ef10bfc1b3d8f13",
    ZIP_NAME: "1261064c01907af27e8cc39e0a29a81541f6ab69208c1cbfc1be95afbb49dfac",
}
NO_LOSS = -100  # the target of a token that carries no loss (cross_entropy's ignore_index)

# ---------------------------------------------------------------------------------------------------------------------
# Finding and reading
# ---------------------------------------------------------------------------------------------------------------------


def find_data(source):
    """The folder of a data set: "e2e" (downloaded into data/e2e/ on first use), "sample", or a folder."""
    folder = ROOT / "data" / source if source in ("e2e", "sample") else Path(source)
    if source == "e2e" and not (folder / ZIP_NAME).exists() and not (folder / CSV_NAMES["test"]).exists():
        for split in SPLITS:
            name = f"src1_{split}.txt"
            if not (folder / name).exists():
                download(f"{SRC1_URL}/{name}", folder / name, KNOWN_SHA256[name])
    if not folder.is_dir():
        raise InputError(f"there is no data set {source!r}: give e2e, sample or a folder")
    return folder


def data_file(folder, split):
    """The file of `folder` that holds a split: src1_*.txt before *.csv before the zip. Raises InputError."""
    for name in (f"src1_{split}.txt", CSV_NAMES[split], ZIP_NAME):
        if (folder / name).exists():
            return folder / name
    raise InputError(f"{folder} has no {split} data: neither src1_{split}.txt nor {CSV_NAMES[split]} nor {ZIP_NAME}")


def is_known(path):
    """Whether a file is, to the bit, one of the files that published results were measured on."""
    return sha256(path) == KNOWN_SHA256.get(path.name)


def read_split(folder, split):
    """The examples of "train", "valid" or "test" as (table, sentence), in the file's order. Raises InputError."""
    path = data_file(folder, split)
    if path.suffix == ".txt":
        return read_src1(path)
    if path.suffix == ".csv":
        return read_csv(path, path.read_bytes())
    try:
        with zipfile.ZipFile(path) as archive:
            return read_csv(path / CSV_NAMES[split], archive.read(f"e2e-dataset/{CSV_NAMES[split]}"))
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}); fetch it again") from None


def read_src1(path):
    """The examples of a file of lines `table||sentence`."""
    examples = []
    for number, line in enumerate(decode(path, path.read_bytes()).split("\n"), 1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split("||")]
        if len(parts) != 2 or not all(parts):
            raise InputError(f"{path}, line {number}: `table||sentence` was expected, but it is {line[:60]!r}")
        examples.append(tuple(parts))
    if not examples:
        raise InputError(f"{path} is empty")
    return examples


def read_csv(path, content):
    """The examples of one of the official CSV files, tables in the form of the src1 files; sentences are left raw."""
    rows = csv.reader(io.StringIO(decode(path, content), newline=""))
    header = next(rows, [])
    if header != ["mr", "ref"]:
        raise InputError(f"{path}, line 1: the columns mr,ref were expected, but they are {','.join(header)!r}")
    examples = []
    for row in rows:
        if len(row) != 2 or not row[1].strip():
            raise InputError(f"{path}, line {rows.line_num}: a table and a sentence were expected, but it is {row!r}")
        try:
            examples.append((linearize(row[0]), row[1].strip()))
        except InputError as error:
            raise InputError(f"{path}, line {rows.line_num}: {error}") from None
    if not examples:
        raise InputError(f"{path} has no rows")
    return examples


def decode(path, content):
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None


KEYS = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}


def linearize(meaning_representation):
    """The official form of a table -> the form that the model reads (Li & Liang's preprocessing).

    >>> linearize("name[Blue Spice], eatType[coffee shop], priceRange[£20-25]")
    'name : Blue Spice | Type : coffee shop | price : £ 20 - 25'
    """
    slots = re.findall(r"\s*([^\[\],]+)\[([^\[\]]*)\]\s*(?:,|$)", meaning_representation)
    if not slots or ", ".join(f"{key}[{value}]" for key, value in slots) != meaning_representation.strip():
        raise InputError(f"`key[value], key[value], ...` was expected, but it is {meaning_representation!r}")
    return " | ".join(f"{KEYS.get(key, key)} : {tokenise_value(value)}" for key, value in slots)


def tokenise_value(value):
    """Puts blanks around £ and -, as in the src1 files."""
    return " ".join(re.sub(r"([£-])", r" \1 ", value).split())


def tokenise_text(text):
    """Text with blanks between words, punctuation and clitics, as in the src1 files.

    >>> tokenise_text("It's family-friendly, rated 4.5, isn't it?")
    "It 's family - friendly , rated 4.5 , is n't it ?"
    """
    text = re.sub(r"([,;:!?()\[\]\"£$%&/-]|\.(?!\d))", r" \1 ", text)
    text = re.sub(r"(n't|'(?:s|re|ve|ll|d|m))\b", r" \1", text)
    return " ".join(text.split())


def group_by_table(examples):
    """{table: [sentence, ...]} in the order of the tables' first appearance: a test table is described once."""
    groups = {}
    for table, sentence in examples:
        groups.setdefault(table, []).append(sentence)
    return groups


# ---------------------------------------------------------------------------------------------------------------------
# From text to batches
# ---------------------------------------------------------------------------------------------------------------------


def encode_table(tokenizer, table):
    """The prompt: the tokens of " " + table, then <|endoftext|>."""
    return tokenizer.encode_ordinary(" " + table.strip()) + [tokenizer.eot_token]


def encode_example(tokenizer, table, sentence):
    """A training example: (tokens of the prompt, tokens of " " + sentence and <|endoftext|>)."""
    return encode_table(tokenizer, table), tokenizer.encode_ordinary(" " + sentence.strip()) + [tokenizer.eot_token]


def make_batch(encoded, device="cpu"):
    """Examples as two tensors, padded on the right: tokens int [B, T] and targets int [B, T].

    targets[b, t] is the token that follows tokens[b, t] where that carries loss (the sentence and the <|endoftext|>
    that closes it), and NO_LOSS elsewhere (the table, the <|endoftext|> behind it, padding).
    """
    T = max(len(prompt) + len(answer) for prompt, answer in encoded) - 1  # the last token is only ever a target
    tokens = torch.zeros(len(encoded), T, dtype=torch.long)
    targets = torch.full((len(encoded), T), NO_LOSS)
    for row, (prompt, answer) in enumerate(encoded):
        example = torch.tensor(prompt + answer)
        tokens[row, : len(example) - 1] = example[:-1]
        targets[row, len(prompt) - 1 : len(example) - 1] = example[len(prompt) :]
    return tokens.to(device), targets.to(device)


def shuffled_batches(encoded, batch_size, seed, epoch):
    """The examples of an epoch in batches, in an order that depends on the seed and the epoch alone."""
    order = list(range(len(encoded)))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return [[encoded[i] for i in order[at : at + batch_size]] for at in range(0, len(order), batch_size)]


# ---------------------------------------------------------------------------------------------------------------------


def main():
    from gpt2 import load_tokenizer

    parser = argparse.ArgumentParser(description="Shows a data set as the model sees it.")
    parser.add_argument("--data", default="sample", metavar="e2e|sample|DIR",
                        help="sample (default), e2e (downloaded on first use), or a folder")
    parser.add_argument("--model", default="tiny", metavar="NAME|DIR", help="whose tokenizer to use (default: tiny)")
    args = parser.parse_args()
    folder, tokenizer = find_data(args.data), load_tokenizer(args.model)
    print(f"{'split':<6} {'examples':>8} {'tables':>7}   tokens: {'mean':>5} {'longest':>8} {'with loss':>10}   file")
    for split in SPLITS:
        examples = read_split(folder, split)
        encoded = [encode_example(tokenizer, *example) for example in examples]
        lengths = [len(prompt) + len(answer) for prompt, answer in encoded]
        loss = sum(len(answer) for _, answer in encoded) / sum(lengths)
        path = data_file(folder, split)
        known = "the file of published results" if is_known(path) else "not a file of published results"
        print(f"{split:<6} {len(examples):>8,} {len(group_by_table(examples)):>7,}           "
              f"{sum(lengths) / len(lengths):>5.0f} {max(lengths):>8} {loss:>10.0%}   {path.name}: {known}")
    table, sentence = examples[0]
    tokens, targets = make_batch([encode_example(tokenizer, table, sentence)])
    print(f"\nThe first test table\n  {table}\nand one of its sentences\n  {sentence}\nbecome\n")
    print("  position  token                 target (what the loss asks for here)")
    for position, (token, target) in enumerate(zip(tokens[0].tolist(), targets[0].tolist())):
        shown = [repr(tokenizer.decode([t])) if t != NO_LOSS else "-" for t in (token, target)]
        print(f"  {position:>8}  {shown[0]:<20}  {shown[1]}")


if __name__ == "__main__":
    run_command(main)
