"""Reading references and outputs as the E2E challenge's script measure_scores.py reads them.

A file named .csv or .tsv is a table with a header; any other is plain text, one sentence a line. In
plain text a blank line ends a group of references; a file without one gives every output a single
reference, or all of them to the only output. A byte order mark is dropped. Files in other forms,
whose lines would be taken for sentences, are refused.
"""

import csv
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

from support.commands import InputError

# A table's columns are known by how their headers begin.
SOURCE_COLUMN = re.compile(r"mr|src|source|meaning|da|dial(ogue)?[ _.-]act", re.IGNORECASE)
OUTPUT_COLUMN = re.compile(r"out|ref|sys", re.IGNORECASE)
REFERENCE_COLUMN = re.compile(r"trg|tgt|target|ref|human", re.IGNORECASE)

# Pound signs and accents that lost their encoding on the way into the challenge's tables.
REPAIRS = (("Ł", "£"), ("Â£", "£"), ("Ã©", "é"), ("ã©", "é"))

# What is no list of sentences is known by what all of it is. Tabs may stand in a text, now and
# then: in a fifth of the lines they are columns.
XML = re.compile(r"<(\?xml|!doctype|mteval|(ref|src|tst)set)\b", re.IGNORECASE)
SRC1 = re.compile(r".* : .*\|\|.+")


class Row(NamedTuple):
    line: int  # where it starts in its file
    source: str  # the table that the text describes; "" in plain text
    text: str


class Corpus(NamedTuple):
    references: list  # for each segment a list of str
    sources: list
    outputs: list
    sha256: str  # of the file of references


def read_outputs(path):
    """Read the outputs of a system: a list of str. In plain text, a blank line is an empty one.

    Like all that reads here, it raises InputError for a file that is not as it should be.
    """
    return [row.text for row in _output_rows(path)]


def read_references(path):
    """Read groups of references: a list of lists of str."""
    groups, by_source, _ = _read_references(path)
    return groups if by_source else _single(groups)


def read_corpora(references, outputs):
    """Read a file of references, once, and files of outputs: a Corpus for each of these.

    A group of references is paired with each output: by equal sources if both files are tables,
    else one after the other. In a table of references, all rows with the same source are a group,
    which stands where the first of them does.
    """
    read = _read_references(references)
    return [_pair(references, read, path, _output_rows(path)) for path in outputs]


def _read_references(path):
    """Groups in the file's order, {source: its references} (empty for plain text), the SHA-256."""
    lines, sha256 = _read_lines(path)
    if not _is_table(path):
        return _groups(path, lines), {}, sha256
    by_source = {}
    for line, source, text in _rows(path, lines, REFERENCE_COLUMN):
        if not text.strip():
            raise InputError(f"{path}, line {line}: an empty reference; write one, or leave the "
                             "row out")
        by_source.setdefault(source, []).append(text)
    return list(by_source.values()), by_source, sha256


def _single(groups):
    """Without a blank line in the file, each of its lines is the only reference of an output."""
    return [[line] for line in groups[0]] if len(groups) == 1 else groups


def _pair(path, references, outputs, rows):
    groups, by_source, sha256 = references
    if by_source and any(row.source for row in rows):
        for line, source, _ in rows:
            if source not in by_source:
                raise InputError(f"{outputs}, line {line}: no reference in {path} has the source "
                                 f"{source!r}; write it exactly as it stands there")
        groups = [by_source[row.source] for row in rows]
    elif not by_source and len(rows) > 1:
        groups = _single(groups)
    if len(groups) != len(rows):
        raise InputError(f"{outputs}: {len(rows):,} outputs for the {len(groups):,} groups of "
                         f"references in {path}; write one for each group, in the same order")
    return Corpus(groups, [row.source for row in rows], [row.text for row in rows], sha256)


def _is_table(path):
    return str(path).lower().endswith((".csv", ".tsv"))


def _output_rows(path):
    lines, _ = _read_lines(path)
    if _is_table(path):
        return _rows(path, lines, OUTPUT_COLUMN)
    return [Row(number, "", line) for number, line in lines]


def _read_lines(path):
    """The lines of a UTF-8 file, stripped, as (number, line); and the file's SHA-256.

    The official script also cuts lines at the rarer of Unicode's line boundaries, such as U+2028.
    So does this, but it says so, as it shifts the lines that follow. They are not numbered anew.
    """
    try:
        data = Path(path).read_bytes()
        text = data.decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give a file that can be read") from None
    except UnicodeDecodeError as error:
        number = len(re.split("\r\n|\r|\n", data[: error.start].decode("utf-8")))
        raise InputError(f"{path}, line {number}: the byte 0x{data[error.start]:02x} is not UTF-8; "
                         "save the file as UTF-8") from None
    lines, number, cuts = [], 1, []
    for line in text.splitlines(keepends=True):
        lines.append((number, line.strip()))
        if line.endswith(("\n", "\r")):
            number += 1
        elif line.splitlines() != [line]:
            cuts.append(f"line {number}: U+{ord(line[-1]):04X}")
    if not lines:
        raise InputError(f"{path}: the file is empty; write one sentence a line")
    if not _is_table(path):
        _check_form(path, list(filter(None, (line for _, line in lines))))
    if cuts:
        print(f"warning: {path}, {cuts[0]} ends a line there, as in the official script; if it "
              f"should not, write a blank in its place ({len(cuts):,} in all)", file=sys.stderr)
    return lines, hashlib.sha256(data).hexdigest()


def _check_form(path, lines):
    """Raises InputError where lines hold more than sentences, all of which would be scored."""
    text, what = "\n".join(lines), None
    if XML.match(text) or _is_json(text) or all(map(_is_json, lines)):
        what = "JSON or XML"
    elif all(map(SRC1.fullmatch, lines)):
        what = "columns with `||` between them"
    elif 5 * sum("\t" in line for line in lines) >= len(lines):
        what = "columns with tabs between them"
    if lines and what:
        raise InputError(f"{path}: {what}, not sentences; write one sentence a line, a blank line "
                         "between groups of references (describe.py writes such files from data), "
                         "or a table named .csv or .tsv")


def _is_json(text):
    """Whether a text is an object of JSON, or a list of several lines."""
    try:
        value = text[:1] in ("{", "[") and json.loads(text)
    except (ValueError, RecursionError):
        return False
    return bool(value) and (isinstance(value, dict) or "\n" in text)


def _groups(path, lines):
    groups = [[]]
    for number, line in lines:
        if line:
            groups[-1].append(line)
        elif groups[-1]:
            groups.append([])
        else:
            raise InputError(f"{path}, line {number}: a group without references; leave one blank "
                             "line between groups, and none before the first")
    if not groups[-1]:  # the file ends in a blank line
        groups.pop()
    return groups


def _rows(path, lines, text_column):
    """The rows below a table's header, with the columns of the source and of the text."""
    numbered = []
    for number, line in lines:
        for broken, repaired in REPAIRS:
            line = line.replace(broken, repaired)
        if line:
            numbered.append((number, line))
    rows = _split_cells(path, numbered)
    if len(rows) < 2:
        raise InputError(f"{path}: no rows; a table has a header and at least one row below it")

    number, header = rows[0]
    sources = [i for i, cell in enumerate(header) if SOURCE_COLUMN.match(cell)]
    texts = [i for i, cell in enumerate(header) if text_column.match(cell)]
    if len(sources) != 1 or len(texts) != 1:
        raise InputError(f"{path}, line {number}: {len(sources)} columns of sources and "
                         f"{len(texts)} of texts in the header; name one column 'mr', one 'ref'")
    for number, cells in rows[1:]:
        if len(cells) != len(header):
            raise InputError(f"{path}, line {number}: {len(cells)} cells below a header of "
                             f'{len(header)}; write every cell, an empty one at the end as ""')
    return [Row(number, cells[sources[0]], cells[texts[0]]) for number, cells in rows[1:]]


def _split_cells(path, numbered):
    """Cut a table's lines into cells: (line number, cells) a row. A quoted cell may span lines.

    A quote that is not closed would take the rows below it into its cell. So where a row has more
    than one line, its quotes must be in order.
    """
    separator = "\t" if numbered and "\t" in numbered[0][1] else ","
    lines = [line for _, line in numbered] + [""]  # a quote that is still open takes this one, too
    reader = csv.reader(lines, delimiter=separator)
    rows, start = [], 0  # where the row being read starts
    try:
        for cells in reader:
            if reader.line_num - start > 1:
                row = lines[start : reader.line_num]
                cells = next(csv.reader(row, delimiter=separator, strict=True))
            if cells:
                rows.append((numbered[start][0], cells))
            start = reader.line_num
    except csv.Error as error:
        raise InputError(f'{path}, line {numbered[start][0]}: a quote (") in this row is not closed'
                         f" as it should be ({error}); close it, or double it in a text") from None
    return rows
