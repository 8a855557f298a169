"""Fuzzers of all that reads data: whole examples or an InputError, whatever the bytes.

    python tests/fuzz_data.py --executions 10000 --seed 0

Each takes a random.Random, makes a valid file, mostly damages it, and reads it.
"""

import argparse
import csv
import io
import json
import random
import re
import sys
import tempfile
import time
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from e2e_data import linearize, read_examples, read_split, read_table  # noqa: E402
from support.files import InputError  # noqa: E402
from support.reading import CSV_NAMES, SRC1_NAMES, ZIP_NAME  # noqa: E402

WORDS = [
    "name", "eatType", "Cocum", "pub", "The Vaults", "£20-25", "é", "5", "", "x" * 50, "中", "🍕"
]
NASTY = [
    "\ufeff", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x00", "\x1b[2J", "\xa0", "\r",
    "\n", "\r\n", "\n\n", "\t", '"', '""', ",", "||", "|", " | ", " : ", "[", "]", "], ", "{", "}",
    "\\", "\\ud800", "\\u0000", "NaN", "null", "1e999", "[[[[", "<|endoftext|>", "'", " " * 99,
    "\u202e"
]
JUNK = [
    b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\x00", b"\xc3", b"\xed\xa0\x80", b"PK\x03\x04", b"\n",
    b'"'
]


def random_text(rng):
    """A text that is not empty, and is one line."""
    text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 6)))
    return " ".join(text.split()) or "x"


def random_slots(rng):
    """The slots of a table, whose keys and values may stand in both of its forms."""
    return [(rng.choice(["name", "eatType", "priceRange", "near"]), random_text(rng))
            for _ in range(rng.randint(1, 4))]


def official(slots):
    return ", ".join(f"{key}[{value}]" for key, value in slots)


def random_examples(rng):
    return [(random_slots(rng), random_text(rng)) for _ in range(rng.randint(1, 8))]


def damage_text(rng, text):
    """Text with pieces put in, cut out, doubled or exchanged, a few times or never."""
    for _ in range(rng.choice([0, 1, 1, 2, 5])):
        at, end = sorted(rng.randint(0, len(text)) for _ in range(2))
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:at] + rng.choice(NASTY) * rng.choice([1, 1, 1, 2, 2000]) + text[at:]
        elif kind == 1:
            text = text[:at] + text[min(end, at + rng.choice([1, 5, 10**6])) :]
        elif kind == 2:
            text = text[:end] + text[at:]
        else:
            text = text[:at] + rng.choice(NASTY) + text[at + 1 :]
    return text


def damage_bytes(rng, content):
    for _ in range(rng.choice([0, 0, 1, 3])):
        at = rng.randint(0, len(content))
        if rng.random() < 0.5:
            content = content[:at] + rng.choice(JUNK) + content[at:]
        elif at < len(content):
            content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
    return content[: rng.randint(0, len(content))] if rng.random() < 0.05 else content


def read(name, content, expected=None):
    """Reads a file's bytes as a test set: the examples, or None for an InputError.

    Any other error goes on to the caller. What is read must be whole; `expected` is what an
    undamaged file holds.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        try:
            places = read_examples(Path(folder), "test")
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000, error
            assert re.search(r", line [1-9]|is empty|damaged", str(error)), error
            assert expected is None, f"refused a good file: {error}"
            return None
        examples = read_split(Path(folder), "test")
    assert examples == [example for _, example in places] and examples
    for table, sentence in examples:
        assert read_table(table) == table
        for text in (table, sentence):
            assert text and text == " ".join(text.split())
            assert not re.search(r"[\x00-\x1f\x7f-\x9f\ufeff]", text)
            text.encode()  # no surrogates
    assert expected is None or examples == expected, (examples, expected)
    return examples


def wanted(examples):
    return [(linearize_slots(slots), sentence) for slots, sentence in examples]


def linearize_slots(slots):
    """The model's form of a table, written down once more than in e2e_data."""
    keys = {"eatType": "Type", "priceRange": "price"}
    values = [value.replace("£", " £ ").replace("-", " - ") for _, value in slots]
    return " | ".join(f"{keys.get(key, key)} : {' '.join(value.split())}"
                      for (key, _), value in zip(slots, values))


def fuzz_src1(rng):
    examples = random_examples(rng)
    end = rng.choice(["\n", "\r\n", " \n", "\n\n"])
    good = "".join(f"{rng.choice([linearize_slots, official])(slots)}||{sentence}{end}"
                   for slots, sentence in examples)
    text = damage_text(rng, good)
    content = damage_bytes(rng, text.encode("utf-8", "surrogatepass"))
    is_good = content == good.encode()
    found = read(SRC1_NAMES["test"], content, wanted(examples) if is_good else None)
    if found:  # no line is lost
        lines = content.decode("utf-8-sig").split("\n")
        assert len(found) == sum(bool(line.strip()) for line in lines)


def write_csv(rng, examples, columns):
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
                        lineterminator=rng.choice(["\n", "\r\n", "\r", "\r\r\n"]))
    writer.writerow(columns)
    for slots, sentence in examples:
        cells = {columns[0]: official(slots), columns[1]: sentence}
        writer.writerow([cells.get(column, "other") for column in columns])
    return file.getvalue()


def fuzz_csv(rng):
    examples = random_examples(rng)
    columns = rng.choice([("mr", "ref"), ("table", "text", "fixed"),
                          ("mr", "ref", "orig_mr", "fixed")])
    good = write_csv(rng, examples, columns)
    content = damage_bytes(rng, damage_text(rng, good).encode("utf-8", "surrogatepass"))
    is_official = columns == ("mr", "ref") and rng.random() < 0.5
    name = CSV_NAMES["test"] if is_official else "test.csv"
    found = read(name, content, wanted(examples) if content == good.encode() else None)
    if found and (text := content.decode("utf-8-sig")).count('"') == 0:  # no line is lost
        assert len(found) == len([line for line in re.split("[\r\n]+", text) if line]) - 1


def fuzz_jsonl(rng):
    examples, lines, expected = random_examples(rng), [], []
    names = rng.choice([("mr", "ref"), ("table", "text")])
    for slots, sentence in examples:
        as_it_stands = " | ".join(f"{key} : {value}" for key, value in slots)
        table, is_read_as = rng.choice([(official(slots), linearize_slots(slots)),
                                        (as_it_stands, as_it_stands), (slots, as_it_stands)])
        if table is slots and len(dict(slots)) == len(slots):
            table = rng.choice([slots, dict(slots)])
        row = {"id": rng.choice([None, 1, [1.5]]), names[0]: table, names[1]: sentence}
        lines.append(json.dumps(row, ensure_ascii=rng.random() < 0.5))
        expected.append((is_read_as, sentence))
    good = "".join(f"{line}{rng.choice(chr(10) * 2 + chr(13))}\n" for line in lines)
    content = damage_bytes(rng, damage_text(rng, good).encode("utf-8", "surrogatepass"))
    found = read("test.jsonl", content, expected if content == good.encode() else None)
    if found:
        lines = content.decode("utf-8-sig").split("\n")
        assert len(found) == sum(bool(line.strip()) for line in lines)


def fuzz_zip(rng):
    examples = random_examples(rng)
    text = write_csv(rng, examples, ("mr", "ref"))
    file = io.BytesIO()
    how = rng.choice([zipfile.ZIP_STORED] + 3 * [zipfile.ZIP_DEFLATED] +
                     [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(file, "w", how) as archive:
        archive.writestr(f"e2e-dataset/{rng.choice(3 * [CSV_NAMES['test']] + ['other'])}",
                         text + "\n" * rng.choice([0, 0, 0, 10**5]))
    content = file.getvalue()
    for _ in range(rng.choice([0, 1, 1, 3])):  # the lists of names and sizes lie at its end
        at = len(content) - rng.randint(1, min(len(content), rng.choice([150, 10**6])))
        byte = bytes([rng.choice([0, 1, 255, rng.randrange(256)])])
        content = content[:at] + byte + content[at + 1 :]
    content = content[: rng.randint(0, len(content))] if rng.random() < 0.05 else content
    found = read(ZIP_NAME, content)
    assert found is None or found == wanted(examples)  # its checksum tells all damage


def fuzz_tables(rng):
    slots = random_slots(rng)
    good = rng.choice([official, linearize_slots])(slots)
    text = damage_text(rng, good)
    for parse in (linearize, read_table):
        try:
            table = parse(text)
        except InputError as error:
            assert len(str(error)) < 2000
            assert text != good or "[" not in good.partition(":")[0] and parse is linearize
            continue
        if parse is read_table:
            assert read_table(table) == table == " ".join(table.split())
        if text == good:
            assert " ".join(table.split()) == linearize_slots(slots)


FUZZERS = (fuzz_src1, fuzz_csv, fuzz_jsonl, fuzz_zip, fuzz_tables)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=1000, metavar="N", help="of each fuzzer")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    args = parser.parse_args()
    for fuzz in FUZZERS:
        slowest = (0.0, None)
        for number in range(args.executions):
            seed, started = f"{args.seed} {number}", time.monotonic()
            try:
                fuzz(random.Random(seed))
            except BaseException:
                print(f"{fuzz.__name__}(random.Random({seed!r})) fails:", file=sys.stderr)
                raise
            slowest = max(slowest, (time.monotonic() - started, seed))
        print(f"{fuzz.__name__}: {args.executions:,} executions, the slowest {slowest[0]:.3f} s "
              f"({slowest[1]!r})")


if __name__ == "__main__":
    main()
