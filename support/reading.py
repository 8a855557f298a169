"""The files that data come in, read as (where, table, sentence), and no further.

Li & Liang (2021) trained on src1_train.txt, src1_valid.txt and src1_test.txt (`table||sentence` a
line); the official release is trainset.csv, devset.csv, testset_w_refs.csv, or the zip that holds
them; your own are train, valid and test, .jsonl or .csv, with the keys or columns table and text,
or mr and ref. A table is repeated for each of its sentences.
"""

import csv
import io
import json
import re
import zipfile
from pathlib import Path

from support.commands import InputError
from support.downloads import download
from support.files import ROOT, refuse_file, sha256

SPLITS = ("train", "valid", "test")
SRC1_NAMES = {split: f"src1_{split}.txt" for split in SPLITS}
CSV_NAMES = {"train": "trainset.csv", "valid": "devset.csv", "test": "testset_w_refs.csv"}
ZIP_NAME = "e2e-dataset.zip"
# The first is read first.
DATA_FILES = [SRC1_NAMES, CSV_NAMES, {split: ZIP_NAME for split in SPLITS}]
DATA_FILES += [{split: split + suffix for split in SPLITS} for suffix in (".jsonl", ".csv")]
COLUMNS = (("table", "text"), ("mr", "ref"))
SRC1_URL = ("https://raw.githubusercontent.com/XiangLi1999/PrefixTuning/"
            "6519d30e69b15a180f23e2cd41b766d3f62b8e82/data/e2e_data")
KNOWN_SHA256 = {
    "src1_train.txt": "eae319082237310913d9f37f6a891d48fb3f821f29d86870d2cb4f92ddd72c5a",
    "src1_valid.txt": "ba963113c8401d3d26216c0dc0a6dae1ea6ea927de3bf830e32c41f65401c80d",
    "src1_test.txt": "81b1bcd40c4f12845ec4eb61a77bf43765d112483cd9b2f91ef10bfc1b3d8f13",
    ZIP_NAME: "1261064c01907af27e8cc39e0a29a81541f6ab69208c1cbfc1be95afbb49dfac",
}

def find_data(source):
    """The folder of a data set: "e2e" (downloaded on first use), "sample", or a folder."""
    folder = ROOT / "data" / source if source in ("e2e", "sample") else Path(source)
    has_release = (folder / ZIP_NAME).exists() or (folder / CSV_NAMES["test"]).exists()
    if source == "e2e" and not has_release:
        for name in SRC1_NAMES.values():
            if not (folder / name).exists():
                download(f"{SRC1_URL}/{name}", folder / name, KNOWN_SHA256[name])
    if not refuse_file(folder).is_dir():
        raise InputError(f"there is no data set {str(source)!r}: give e2e, sample or a folder")
    return folder


def split_path(folder, split):
    """The path of a split's file, which may be missing. Raises InputError.

    A folder is read in the first of DATA_FILES of which it has a file. Train and test never come in
    different forms.
    """
    for names in DATA_FILES:
        if any((folder / name).exists() for name in names.values()):
            return folder / names[split]
    names = ", ".join(names[split] for names in DATA_FILES)
    raise InputError(f"{folder} has no {split} data; give it one of {names}")


def unread_files(folder):
    """The names of a folder's files that may be a split by another name, such as dev.jsonl."""
    read = [split_path(folder, split) for split in SPLITS]
    suffixes = {".jsonl", ".csv", read[0].suffix}
    return sorted(path.name for path in folder.iterdir()
                  if path.suffix in suffixes and path not in read)


def is_published(path):
    """Whether a file is, to the bit, one of the files that E2E was published in."""
    return sha256(path) == KNOWN_SHA256.get(path.name)


def read_raw(folder, split):
    """[("FILE, line N", table, sentence)] of "train", "valid" or "test", in the file's order.

    A table is as in the file: a text, or the pairs of an object or a list. Raises InputError
    that names file and line.
    """
    path = split_path(folder, split)
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
        parse = parse_src1 if path.suffix == ".txt" else parse_json_row
    examples = []
    for line, row in rows:
        location = f"{path}, line {line}"
        try:
            examples.append((location, *parse(row)))
        except InputError as error:
            raise InputError(f"{location}: {error}") from None
    if not examples:
        raise InputError(f"{path} is empty: it holds no example")
    return examples


def parse_src1(line):
    parts = line.split("||")
    if len(parts) != 2:
        raise InputError(f"`table||sentence` was expected, but it is {line[:60]!r}")
    return parts


def parse_json(text):
    """What JSON holds: objects as pairs, so that none is dropped, numbers as they stand there."""
    try:
        return json.loads(text, object_pairs_hook=tuple, parse_int=str, parse_float=str)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({getattr(error, 'msg', error)})") from None


def parse_table(text):
    """The table in a text: what JSON says of an object or a list, else the text, `[m] : 12` too."""
    return parse_json(text) if re.match(r'\s*(\{|\[\s*["{[])', text) else text


def parse_json_row(line):
    row = parse_json(line)
    keys = [key for key, _ in row] if isinstance(row, tuple) else []
    (name, table), (key, sentence) = (row[i] for i in find_columns("an object's keys", keys))
    is_slots = isinstance(table, (list, tuple))
    return table if is_slots else one_line(table, name), one_line(sentence, key)


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
        raise InputError(f"{what} table,text were expected (or mr,ref), but they are "
                         f"{','.join(names)[:200]!r}")
    return [names.index(name) for name in found[0]]


def unzip(path, content, name):
    """A file of E2E's zip. Raises InputError where it is corrupt, or inflates beyond reason."""
    most = 100 * len(content)  # E2E's files inflate to a tenth of this
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        member = archive.getinfo(name)
        if member.compress_type not in (0, 8) or member.file_size > most:  # stored, deflated
            raise ValueError(f"{name} is packed as in no release of E2E")
        return archive.open(member).read(most)
    except Exception as error:  # zipfile raises a dozen kinds for this one mistake
        raise InputError(f"{path} is corrupt ({error}); download it again") from None


def decode(path, content):
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None


def single_blanks(text):
    """Text with each stretch of white space, line ends and byte-order marks too, as one blank."""
    return " ".join(text.replace("\ufeff", " ").split())


def one_line(text, what="text"):
    """Text with single blanks, as one line. Raises InputError for what is no text, and for control
    characters: wrong encodings make them."""
    if not isinstance(text, str):
        more = "; write a line for each sentence" * isinstance(text, list)
        raise InputError(f"{what} is {json_type(text)}, but must be a text{more}")
    line = single_blanks(text)
    if not line:
        raise InputError(f"a {what} was expected, but there is none")
    if found := re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", line):
        raise InputError(f"{found[0]!a} is no character of a text; remove it, or save the file as "
                         f"UTF-8: {line[:60]!r}")
    return line


def json_type(value):
    """The type of a value in JSON's words; a number as it is written."""
    names = {type(None): "null", bool: "true or false", list: "a list", tuple: "an object",
             dict: "an object"}
    return names.get(type(value), repr(value)[:60])
