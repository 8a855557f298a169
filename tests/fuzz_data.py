"""Fuzzers of all that reads data: whole examples or an InputError, whatever the bytes.

Each takes a random.Random, makes a valid file, mostly damages it, and reads it.
"""

import csv
import io
import json
import re
import tempfile
import zipfile
from pathlib import Path

from e2e_data import linearize, read_examples, read_split, read_table
from support.commands import InputError
from support.reading import CSV_NAMES, SRC1_NAMES, ZIP_NAME

KEYS = {"name": "name", "eatType": "Type", "priceRange": "price",
        "familyFriendly": "family friendly"}
WORDS = ["name", "eatType", "Cocum", "pub", "The Vaults", "£20-25", "é", "5", "x" * 50, "中", "🍕"]
NASTY = ["\ufeff", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x00", "\x1b[2J", "\xa0",
         "\r", "\n", "\r\n", "\n\n", "\t", '"', '""', ",", "||", "|", " | ", " : ", "[", "]", "], ",
         "{", "}", "\\", "\\ud800", "\\u0000", "NaN", "null", "1e999", "[[[[", "<|endoftext|>", "'",
         " " * 99, "\u202e"]
JUNK = [b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\x00", b"\xc3", b"\xed\xa0\x80", b"PK\x03\x04",
        b"\n", b'"']


def random_text(rng):
    """A text that is not empty, and is one line."""
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))


def random_examples(rng):
    """(slots, sentence) of each; keys and values may stand in every form of a table."""
    return [([(rng.choice([*KEYS]), random_text(rng)) for _ in range(rng.randint(1, 4))],
             random_text(rng)) for _ in range(rng.randint(1, 8))]


def official(slots):
    return ", ".join(f"{key}[{value}]" for key, value in slots)


def as_it_stands(slots):
    return " | ".join(f"{key} : {value}" for key, value in slots)


def as_model_reads(slots):
    """What becomes of the official form, written down once more than in e2e_data."""
    values = [value.replace("£", " £ ").replace("-", " - ") for _, value in slots]
    return as_it_stands((KEYS[key], " ".join(value.split()))
                        for (key, _), value in zip(slots, values))


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


def damage(rng, text):
    """The bytes of a text, damaged as a text and as bytes, or neither."""
    content = damage_text(rng, text).encode("utf-8", "surrogatepass")
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
            assert re.search(r", line [1-9]|is empty|is corrupt", str(error)), error
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


def read_damaged(rng, name, good, expected):
    """Reads a file, mostly damaged; as many examples as lines that are not blank are there."""
    content = damage(rng, good)
    found = read(name, content, expected if content == good.encode() else None)
    if found and name.endswith(".csv"):
        text = content.decode("utf-8-sig")
        if '"' not in text:
            assert len(found) == len([line for line in re.split("[\r\n]+", text) if line]) - 1
    elif found:
        lines = content.decode("utf-8-sig").split("\n")
        assert len(found) == sum(bool(line.strip()) for line in lines)


def fuzz_src1(rng):
    examples = random_examples(rng)
    end = rng.choice(["\n", "\r\n", " \n", "\n\n"])
    good = "".join(f"{rng.choice([as_model_reads, official])(slots)}||{sentence}{end}"
                   for slots, sentence in examples)
    expected = [(as_model_reads(slots), sentence) for slots, sentence in examples]
    read_damaged(rng, SRC1_NAMES["test"], good, expected)


def write_csv(rng, examples, names, columns):
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
                        lineterminator=rng.choice(["\n", "\r\n", "\r", "\r\r\n"]))
    writer.writerow(columns)
    for slots, sentence in examples:
        cells = dict(zip(names, (official(slots), sentence)))
        writer.writerow([cells.get(column, "other") for column in columns])
    return file.getvalue()


def fuzz_csv(rng):
    examples, names = random_examples(rng), rng.choice([("mr", "ref"), ("table", "text")])
    columns = [*names, *rng.choice([[], ["fixed"], ["orig_mr", "fixed"]])]
    rng.shuffle(columns)
    good = write_csv(rng, examples, names, columns)
    expected = [(as_model_reads(slots), sentence) for slots, sentence in examples]
    read_damaged(rng, rng.choice([CSV_NAMES["test"], "test.csv"]), good, expected)


def fuzz_jsonl(rng):
    lines, expected = [], []
    names = rng.choice([("mr", "ref"), ("table", "text")])
    for slots, sentence in random_examples(rng):
        table, is_read_as = rng.choice([(official(slots), as_model_reads(slots)),
                                        (as_it_stands(slots), as_it_stands(slots)),
                                        (slots, as_it_stands(slots))])
        if table is slots and len(dict(slots)) == len(slots):
            table = rng.choice([slots, dict(slots)])
        row = {"id": rng.choice([None, 1, [1.5]]), names[0]: table, names[1]: sentence}
        lines.append(json.dumps(row, ensure_ascii=rng.random() < 0.5))
        expected.append((is_read_as, sentence))
    good = "".join(f"{line}{rng.choice(chr(10) * 2 + chr(13))}\n" for line in lines)
    read_damaged(rng, "test.jsonl", good, expected)


def fuzz_zip(rng):
    examples = random_examples(rng)
    text = write_csv(rng, examples, ("mr", "ref"), ("mr", "ref"))
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
    assert found is None or found == [(as_model_reads(slots), sentence)  # its checksum tells all
                                      for slots, sentence in examples]


def fuzz_tables(rng):
    ((slots, _), *_) = random_examples(rng)
    good = rng.choice([official, as_model_reads])(slots)
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
            assert " ".join(table.split()) == as_model_reads(slots)


FUZZERS = (fuzz_src1, fuzz_csv, fuzz_jsonl, fuzz_zip, fuzz_tables)
