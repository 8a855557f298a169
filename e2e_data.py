"""The E2E data (Novikova et al. 2017): tables of restaurants, and what people wrote about them.

Reads the files that Li & Liang (2021) trained on (src1_train.txt, src1_valid.txt, src1_test.txt:
`table||sentence` a line) and the official release (trainset.csv, devset.csv, testset_w_refs.csv, or
the zip that holds them); or your own as train, valid and test, .jsonl or .csv, with the keys or
columns mr and ref, or table and text. A table with several sentences stands there several times.

    python e2e_data.py --data sample        what the data look like, as the model sees them
"""

import argparse
import csv
import io
import json
import random
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from support.files import ROOT, InputError, run_command, sha256
from support.downloads import download
from gpt2 import load_tokenizer, pad

SPLITS = ("train", "valid", "test")
SRC1_NAMES = {split: f"src1_{split}.txt" for split in SPLITS}
CSV_NAMES = {"train": "trainset.csv", "valid": "devset.csv", "test": "testset_w_refs.csv"}
ZIP_NAME = "e2e-dataset.zip"
FORMS = [SRC1_NAMES, CSV_NAMES, {split: ZIP_NAME for split in SPLITS}]  # the first is read first
FORMS += [{split: split + suffix for split in SPLITS} for suffix in (".jsonl", ".csv")]
COLUMNS = (("mr", "ref"), ("table", "text"))
SRC1_URL = ("https://raw.githubusercontent.com/XiangLi1999/PrefixTuning/"
            "6519d30e69b15a180f23e2cd41b766d3f62b8e82/data/e2e_data")
KNOWN_SHA256 = {
    "src1_train.txt": "eae319082237310913d9f37f6a891d48fb3f821f29d86870d2cb4f92ddd72c5a",
    "src1_valid.txt": "ba963113c8401d3d26216c0dc0a6dae1ea6ea927de3bf830e32c41f65401c80d",
    "src1_test.txt": "81b1bcd40c4f12845ec4eb61a77bf43765d112483cd9b2f91ef10bfc1b3d8f13",
    ZIP_NAME: "1261064c01907af27e8cc39e0a29a81541f6ab69208c1cbfc1be95afbb49dfac",
}

# --------------------------------------------------------------------------------------------------
# Finding and reading
# --------------------------------------------------------------------------------------------------


def find_data(source):
    """The folder of a data set: "e2e" (downloaded on first use), "sample", or a folder."""
    folder = ROOT / "data" / source if source in ("e2e", "sample") else Path(source)
    has_release = (folder / ZIP_NAME).exists() or (folder / CSV_NAMES["test"]).exists()
    if source == "e2e" and not has_release:
        for name in SRC1_NAMES.values():
            if not (folder / name).exists():
                download(f"{SRC1_URL}/{name}", folder / name, KNOWN_SHA256[name])
    if not folder.is_dir():
        raise InputError(f"there is no data set {str(source)!r}: give e2e, sample or a folder")
    return folder


def data_file(folder, split):
    """Where a split's file lies or, if the folder lacks it, would lie. Raises InputError.

    A folder is read in the first of FORMS of which it has a file. Train and test never come in
    different forms.
    """
    for names in FORMS:
        if any((folder / name).exists() for name in names.values()):
            return folder / names[split]
    names = ", ".join(names[split] for names in FORMS)
    raise InputError(f"{folder} has no {split} data; give it one of {names}")


def is_known(path):
    """Whether a file is, to the bit, one of the files that E2E was published in."""
    return sha256(path) == KNOWN_SHA256.get(path.name)


def read_split(folder, split):
    """The examples of "train", "valid" or "test" as (table, sentence), in the file's order."""
    return [example for _, example in read_examples(folder, split)]


def read_examples(folder, split):
    """As `read_split`, each behind its place: ("FILE, line N", example). InputErrors name it."""
    path = data_file(folder, split)
    if not path.exists():
        raise InputError(f"{folder} has no {split} data: {path.name} is missing")
    content = path.read_bytes()
    if path.name == ZIP_NAME:
        content = unzip(path, content, f"e2e-dataset/{CSV_NAMES[split]}")
        path = path / CSV_NAMES[split]
    text = decode(path, content)
    if path.suffix == ".csv":
        rows, parse = csv_rows(path, text), tuple
    else:
        rows = [row for row in enumerate(text.split("\n"), 1) if row[1].strip()]
        parse = parse_src1 if path.suffix == ".txt" else parse_json
    examples = []
    for line, row in rows:
        where = f"{path}, line {line}"
        try:
            table, sentence = parse(row)
            examples.append((where, (read_table(table), one_line(sentence))))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    if not examples:
        raise InputError(f"{path} is empty: it holds no example")
    return examples


def parse_src1(line):
    parts = line.split("||")
    if len(parts) != 2:
        raise InputError(f"`table||sentence` was expected, but it is {line[:60]!r}")
    return parts


def parse_json(line):
    try:  # objects as pairs, so that none is dropped; numbers as the text that stands there
        row = json.loads(line, object_pairs_hook=tuple, parse_int=str, parse_float=str)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({getattr(error, 'msg', error)})") from None
    keys = [key for key, _ in row] if isinstance(row, tuple) else []
    return [row[i][1] for i in find_columns("an object's keys", keys)]


def csv_rows(path, text):
    """Yields (line, [table, sentence]) for each row of a CSV file; a cell may hold line ends."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)  # strict: every quote is closed
    header, line = None, 1
    try:
        for row in rows:
            if row and header is None:
                header, columns = row, find_columns(f"{path}, line {line}: the columns", row)
            elif row:  # a blank line has no cells
                if len(row) != len(header):
                    raise InputError(f"{path}, line {line}: a table and a sentence were expected, "
                                     f"in {len(header)} columns, but it is {str(row)[:200]}")
                yield line, [row[i] for i in columns]
            line = rows.line_num + 1
    except csv.Error as error:
        raise InputError(f'{path}, line {line}: {error}; is a quote (") not closed?') from None


def find_columns(what, names):
    """Where in `names` those of a table and its sentence stand. Raises InputError."""
    found = [pair for pair in COLUMNS if all(names.count(name) == 1 for name in pair)]
    if len(found) != 1:
        raise InputError(f"{what} mr,ref were expected (or table,text), but they are "
                         f"{','.join(names)[:200]!r}")
    return [names.index(name) for name in found[0]]


def unzip(path, content, name):
    """A file of E2E's zip. Raises InputError where it is damaged, or inflates beyond reason."""
    most = 100 * len(content)  # E2E's files inflate to a tenth of this
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        member = archive.getinfo(name)
        if member.compress_type not in (0, 8) or member.file_size > most:  # stored, deflated
            raise ValueError(f"{name} is packed as in no release of E2E")
        return archive.open(member).read(most)
    except Exception as error:  # zipfile raises a dozen kinds for this one mistake
        raise InputError(f"{path} is damaged ({error}); fetch it again") from None


def decode(path, content):
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None


def one_line(text):
    """Text with each stretch of white space, line ends and byte-order marks too, as one blank.

    Raises InputError for what is no text, and for control characters: wrong encodings make them.
    """
    line = " ".join(text.replace("\ufeff", " ").split()) if isinstance(text, str) else ""
    if not line:
        raise InputError("a text was expected, but there is none")
    if found := re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", line):
        raise InputError(f"{found[0]!a} is no character of a text; remove it, or save the file as "
                         f"UTF-8: {line[:60]!r}")
    return line


def read_table(table):
    """A table in any form -> the form that the model reads. Raises InputError.

    The same are `name[Cocum], eatType[pub]`, the pairs [["name", "Cocum"], ["eatType", "pub"]], and
    `name : Cocum | Type : pub`, which stays as it is, but for white space.
    """
    if isinstance(table, (list, tuple)):
        for slot in table:
            if not isinstance(slot, (list, tuple)) or [type(part) for part in slot] != [str, str]:
                raise InputError("each slot of a table must be a pair of texts, [key, value]")
        table = join_slots(table)
    table = one_line(table)
    if "[" in table.partition(":")[0]:
        table = one_line(linearize(table))
    if not all(" : " in f"{slot} " for slot in table.split(" | ")):
        raise InputError("`key[value], key[value], ...` or `key : value | key : value | ...` was "
                         f"expected, but it is {table[:200]!r}")
    return table


KEYS = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}


def linearize(meaning_representation):
    """The official form of a table -> the form that the model reads (Li & Liang's preprocessing).

    >>> linearize("name[Blue Spice], eatType[coffee shop], priceRange[£20-25]")
    'name : Blue Spice | Type : coffee shop | price : £ 20 - 25'
    """
    text = meaning_representation.strip()
    slots = [slot.partition("[")[::2] for slot in text.removesuffix("]").split("], ")]
    is_plain = all(key.strip() == key != "" and not set("[],") & set(key) for key, _ in slots)
    has_brackets = any(set("[]") & set(value) for _, value in slots)
    if not is_plain or has_brackets or ", ".join(f"{k}[{value}]" for k, value in slots) != text:
        raise InputError(f"`key[value], key[value], ...` was expected, but it is {text[:200]!r}")
    return join_slots(slots)


def join_slots(slots):
    """Pairs of a key and a value -> the form that the model reads. Raises InputError."""
    for slot in slots:
        if any("|" in part.split() for part in slot):
            raise InputError(f"a | that stands alone divides slots, and cannot be in one: {slot!r}")
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
    """{table: [sentence, ...]}, in the order of first appearance: a table is described once."""
    groups = {}
    for table, sentence in examples:
        groups.setdefault(table, []).append(sentence)
    return groups


# --------------------------------------------------------------------------------------------------
# From text to batches
# --------------------------------------------------------------------------------------------------


def encode_table(tokenizer, table):
    """The prompt: the tokens of " " + table, in any form of `read_table`, then <|endoftext|>.

    The blank in front is GPT-2's own habit: its tokens for words within a text begin with a blank,
    so "name" behind it is the same token wherever it stands. <|endoftext|> says that the table has
    ended and the sentence begins; the model has met it between texts only, so it cannot be taken
    for a part of either.
    """
    return tokenizer.encode_ordinary(" " + read_table(table)) + [tokenizer.eot_token]


def encode_example(tokenizer, table, sentence):
    """A training example: (tokens of the prompt, tokens of " " + sentence and <|endoftext|>)."""
    answer = tokenizer.encode_ordinary(" " + sentence.strip()) + [tokenizer.eot_token]
    return encode_table(tokenizer, table), answer


def check_length(where, P, prompt, new_tokens, n_ctx, model):
    """Raises InputError where a prefix of P, a prompt and new tokens are too long for a model."""
    if P + len(prompt) + new_tokens - 1 > n_ctx:  # the last token is never read
        raise InputError(f"{where}: a prefix of {P}, a table of {len(prompt):,} and a sentence of "
                         f"{new_tokens:,} tokens are more than the {n_ctx} that {model} has")


@dataclass
class Batch:
    """Examples as a model is trained on them.

    The loss asks for the sentence and the <|endoftext|> that ends it, and not for the table: that
    is given, so a model that could guess it would be no better at describing it.
    """

    tokens: torch.Tensor  # int [B, T], padded on the right
    places: torch.Tensor  # int [N]: where in B * T the real tokens stand
    wanted: torch.Tensor  # int [M]: behind which of the N a token with loss follows
    targets: torch.Tensor  # int [M]: those tokens


def make_batch(encoded, device="cpu"):
    """The Batch of examples as `encode_example` gives them."""
    rows = [prompt + answer[:-1] for prompt, answer in encoded]  # the last is only ever a target
    tokens, places = pad(rows, device)
    wanted, targets, end = [], [], 0
    for row, (_, answer) in zip(rows, encoded):
        end += len(row)
        wanted += range(end - len(answer), end)  # the prompt's last token asks for the first
        targets += answer
    return Batch(tokens, places, torch.tensor(wanted).to(device), torch.tensor(targets).to(device))


def shuffled_batches(encoded, batch_size, seed, epoch):
    """The examples of an epoch in batches; seed and epoch alone decide their order."""
    order = list(range(len(encoded)))
    random.Random(f"{seed} {epoch}").shuffle(order)
    starts = range(0, len(order), batch_size)
    return [[encoded[i] for i in order[at : at + batch_size]] for at in starts]


# --------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description="Shows a data set as the model sees it.")
    parser.add_argument("--data", default="sample", metavar="e2e|sample|DIR",
                        help="sample (default), e2e (downloaded on first use), or a folder")
    parser.add_argument("--model", default="tiny", metavar="NAME|DIR",
                        help="whose tokenizer to use (default: tiny)")
    args = parser.parse_args()
    folder, tokenizer = find_data(args.data), load_tokenizer(args.model)
    print(f"{'split':<6} {'examples':>8} {'tables':>7}   tokens: {'mean':>5} {'longest':>8} "
          f"{'with loss':>10}   file")
    for split in [split for split in SPLITS if data_file(folder, split).exists()]:
        examples = read_split(folder, split)
        encoded = [encode_example(tokenizer, *example) for example in examples]
        lengths = [len(prompt) + len(answer) for prompt, answer in encoded]
        mean, loss = sum(lengths) / len(lengths), sum(len(answer) for _, answer in encoded)
        path = data_file(folder, split)
        known = "as published" if is_known(path) else "not one of the published files"
        print(f"{split:<6} {len(examples):>8,} {len(group_by_table(examples)):>7,}           "
              f"{mean:>5.0f} {max(lengths):>8} {loss / sum(lengths):>10.0%}   {path.name}: {known}")
    table, sentence = examples[0]
    prompt, answer = encode_example(tokenizer, table, sentence)
    batch = make_batch([(prompt, answer)])
    targets = dict(zip(batch.wanted.tolist(), batch.targets.tolist()))
    print(f"\nThe first {split} table\n  {table}\nand one of its sentences\n  {sentence}\nbecome\n")
    print("  position  token                 target (what the loss asks for here)")
    for position, token in enumerate(batch.tokens[0].tolist()):
        target = repr(tokenizer.decode([targets[position]])) if position in targets else "-"
        print(f"  {position:>8}  {tokenizer.decode([token])!r:<20}  {target}")


if __name__ == "__main__":
    run_command(main)
