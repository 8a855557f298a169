"""Reading references and outputs as the E2E challenge's script `measure_scores.py REFERENCES
OUTPUTS` reads them.

A file named .csv or .tsv is a table with a header; any other is plain text, one sentence a line. In
plain text a blank line ends a group of references; a file without one gives every output a single
reference.
"""

import csv
import re
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from common import InputError

# A table's columns are known by how their headers begin.
SOURCE_COLUMN = re.compile(r"mr|src|source|meaning|da|dial(ogue)?[ _.-]act", re.IGNORECASE)
OUTPUT_COLUMN = re.compile(r"out|ref|sys", re.IGNORECASE)
REFERENCE_COLUMN = re.compile(r"trg|tgt|target|ref|human", re.IGNORECASE)

# Pound signs and accents that lost their encoding on the way into the challenge's tables.
REPAIRS = (("Ł", "£"), ("Â£", "£"), ("Ã©", "é"), ("ã©", "é"))


class Row(NamedTuple):
    line: int  # where it starts in its file
    source: str  # the table that the text describes; "" in plain text
    text: str


class Corpus(NamedTuple):
    references: list  # for each segment a list of str
    sources: list
    outputs: list


def read_outputs(path):
    """Read the outputs of a system: a list of str. In plain text a blank line is an empty output."""
    return [row.text for row in _output_rows(path)]


def read_references(path, outputs=None):
    """Read groups of references: a list of lists of str.

    With `outputs`, a file of outputs, there is a group for each output: see `read_corpora`.
    """
    return _references_in_order(path)[0] if outputs is None else read_corpora(path, [outputs])[0].references


def read_corpora(references, outputs):
    """Read a file of references, once, and files of outputs: a Corpus for each of these.

    A group of references is paired with each output: by equal sources if both files are tables,
    else one after the other. In a table of references, rows with the same source are a group.
    """
    groups, rows = _references_in_order(references)
    by_source = {}
    for row in rows:
        by_source.setdefault(row.source, []).append(row.text)
    return [_pair(references, groups, by_source, path, _output_rows(path)) for path in outputs]


def _references_in_order(path):
    """The groups of references in a file, and its rows if it is a table."""
    if not _is_table(path):
        return _read_groups(path), []
    rows = _read_table(path, REFERENCE_COLUMN)
    return [[row.text for row in group] for _, group in groupby(rows, key=lambda row: row.source)], rows


def _pair(path, groups, by_source, outputs, output_rows):
    if by_source and any(row.source for row in output_rows):
        for row in output_rows:
            if row.source not in by_source:
                raise InputError(
                    f"{outputs}, line {row.line}: no reference in {path} has the source {row.source!r}; "
                    "write it exactly as it stands there"
                )
        groups = [by_source[row.source] for row in output_rows]
    if len(groups) != len(output_rows):
        raise InputError(
            f"{outputs}: {len(output_rows):,} outputs for the {len(groups):,} groups of references in {path}; "
            "write one output for each group, in the same order"
        )
    return Corpus(groups, [row.source for row in output_rows], [row.text for row in output_rows])


def _is_table(path):
    return str(path).lower().endswith((".csv", ".tsv"))


def _output_rows(path):
    if _is_table(path):
        return _read_table(path, OUTPUT_COLUMN)
    return [Row(number, "", line) for number, line in enumerate(_read_lines(path), start=1)]


def _read_lines(path):
    """The stripped lines of a UTF-8 file, cut at all of Unicode's line boundaries."""
    data = Path(path).read_bytes()
    try:
        lines = [line.strip() for line in data.decode("utf-8").splitlines()]
    except UnicodeDecodeError as error:
        line = len((data[: error.start].decode("utf-8") + "?").splitlines())
        raise InputError(
            f"{path}, line {line}: the byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None
    if not lines:
        raise InputError(f"{path}: the file is empty; write one sentence a line")
    return lines


def _read_groups(path):
    groups = [[]]
    for number, line in enumerate(_read_lines(path), start=1):
        if line:
            groups[-1].append(line)
        elif groups[-1]:
            groups.append([])
        else:
            raise InputError(
                f"{path}, line {number}: a group without references; leave one blank line between groups, "
                "and none before the first"
            )
    if not groups[-1]:  # the file ends in a blank line
        groups.pop()
    return groups if len(groups) > 1 else [[line] for line in groups[0]]


def _read_table(path, text_column):
    """The rows below a table's header, with the columns of the source and of the text."""
    lines = _read_lines(path)
    lines[0] = lines[0].replace("\ufeff", "")  # a byte order mark
    for broken, repaired in REPAIRS:
        lines = [line.replace(broken, repaired) for line in lines]
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line]
    rows = _split_cells(path, numbered)
    if len(rows) < 2:
        raise InputError(f"{path}: no rows; a table has a header and at least one row below it")

    line, header = rows[0]
    sources = [i for i, cell in enumerate(header) if SOURCE_COLUMN.match(cell)]
    texts = [i for i, cell in enumerate(header) if text_column.match(cell)]
    if len(sources) != 1 or len(texts) != 1:
        raise InputError(
            f"{path}, line {line}: {len(sources)} columns of sources and {len(texts)} of texts in the header; "
            "name one column 'mr' and one 'ref'"
        )
    for line, cells in rows[1:]:
        if len(cells) != len(header):
            raise InputError(
                f"{path}, line {line}: {len(cells)} cells below a header of {len(header)}; "
                'write every cell, an empty one at the end of the line as ""'
            )
    return [Row(line, cells[sources[0]], cells[texts[0]]) for line, cells in rows[1:]]


def _split_cells(path, numbered):
    """Cut the numbered lines of a table into cells: (line number, cells) for each row. A quoted cell may span lines."""
    separator = "\t" if numbered and "\t" in numbered[0][1] else ","
    # Below the last line comes an empty one: it becomes a row without cells unless a quote is still
    # open.
    reader = csv.reader([line for _, line in numbered] + [""], delimiter=separator)
    rows = []
    start = 0  # where the row being read starts in `numbered`
    try:
        for cells in reader:
            if cells:
                rows.append((numbered[start][0], cells))
            start = reader.line_num
    except csv.Error as error:
        raise InputError(f"{path}, line {numbered[start][0]}: {error}; look at the quotes of this row") from None
    if cells:
        raise InputError(f'{path}, line {rows[-1][0]}: a quote (") is opened and not closed; close or double it')
    return rows
