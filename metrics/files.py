"""Reading references and outputs as the E2E challenge's script measure_scores.py reads them.

A file named .csv or .tsv is a table with a header; any other is plain text, one sentence a line. In
plain text a blank line ends a group of references; a file without one gives every output a single
reference, or all of them to the only output. A byte order mark is dropped. Files in other forms,
whose lines would be taken for sentences, are refused.
"""

import csv
import hashlib
import re
import sys
from pathlib import Path
from typing import NamedTuple

from support.commands import InputError
from support.files import wrap_errors

# A table's columns are known by how their headers begin.
SOURCE_COLUMN = re.compile(r"mr|src|source|meaning|da|dial(ogue)?[ _.-]act", re.IGNORECASE)
OUTPUT_COLUMN = re.compile(r"out|ref|sys", re.IGNORECASE)
REFERENCE_COLUMN = re.compile(r"trg|tgt|target|ref|human", re.IGNORECASE)

# Pound signs and accents that lost their encoding on the way into the challenge's tables.
REPAIRS = (("Ł", "£"), ("Â£", "£"), ("Ã©", "é"), ("ã©", "é"))

# The other forms of data that this project knows: of one of them if all of its lines look so.
OTHER_FORMS = {"JSON": r'\{".*\}', "columns with `||` between them": r".* : .*\|\|.+",
               "columns with tabs between them": r".*\t.*"}


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
    rows, _ = _read_rows(path, OUTPUT_COLUMN)
    return [row.text for row in rows]


def read_references(path):
    """Read groups of references: a list of lists of str."""
    groups, by_source, _ = _read_groups(path)
    return groups if by_source else _single(groups)


def read_corpora(references, outputs):
    """Read a file of references, once, and files of outputs: a Corpus for each of these.

    A group of references is paired with each output: by equal sources if both files are tables,
    else one after the other. In a table of references, all rows with the same source are a group,
    which stands where the first of them does.
    """
    all_groups, by_source, sha256 = _read_groups(references)
    corpora = []
    for path in outputs:
        rows, _ = _read_rows(path, OUTPUT_COLUMN)
        groups = all_groups
        if by_source and any(row.source for row in rows):
            groups = [by_source.get(row.source) for row in rows]
            if None in groups:
                row = rows[groups.index(None)]
                raise InputError(f"{path}, line {row.line}: no reference in {references} has the "
                                 f"source {row.source!r}; write it exactly as it stands there")
        elif not by_source and len(rows) > 1:
            groups = _single(groups)
        if len(groups) != len(rows):
            raise InputError(f"{path}: {len(rows):,} outputs for the {len(groups):,} groups of "
                             f"references in {references}; write one for each group, in the same "
                             "order")
        sources, texts = [row.source for row in rows], [row.text for row in rows]
        corpora.append(Corpus(groups, sources, texts, sha256))
    return corpora


def _single(groups):
    """Without a blank line in the file, each of its lines is the only reference of an output."""
    return [[line] for line in groups[0]] if len(groups) == 1 else groups


def _read_groups(path):
    """Groups in the file's order, {source: its references} (empty for plain text), the SHA-256."""
    rows, sha256 = _read_rows(path, REFERENCE_COLUMN)
    by_source, groups = {}, [[]]
    for number, source, text in rows:
        if _is_table(path):
            by_source.setdefault(source, []).append(text)
        elif text:
            groups[-1].append(text)
        elif groups[-1]:
            groups.append([])
        else:
            raise InputError(f"{path}, line {number}: a group without references; leave one blank "
                             "line between groups, and none before the first")
    if not groups[-1]:  # plain text may end in a blank line
        groups.pop()
    return list(by_source.values()) or groups, by_source, sha256


def _is_table(path):
    return str(path).lower().endswith((".csv", ".tsv"))


def _read_rows(path, text_column):
    """The rows of a file, in plain text its lines, and its SHA-256.

    The official script also cuts lines at the rarer of Unicode's line boundaries, such as U+2028.
    So does this, but it says so, as it shifts the lines that follow.
    """
    with wrap_errors(path, "cannot be read as UTF-8 text"):
        data = Path(path).read_bytes()
        text = data.decode("utf-8-sig")
    rare = re.search("[\v\f\x1c-\x1e\x85\u2028\u2029]", text)
    if rare:
        number = text.count("\n", 0, rare.start()) + 1
        print(f"warning: {path}, line {number}: U+{ord(rare[0]):04X} ends a line there, as in the "
              "official script; if it should not, write a blank in its place", file=sys.stderr)
    lines = [line.strip() for line in text.splitlines()]
    sha256 = hashlib.sha256(data).hexdigest()
    if _is_table(path):
        return _table_rows(path, lines, text_column), sha256
    for form, pattern in OTHER_FORMS.items():
        if any(lines) and all(re.fullmatch(pattern, line) for line in lines if line):
            raise InputError(f"{path}: {form}, not sentences; write one sentence a line, a blank "
                             "line between groups of references (describe.py writes such files "
                             "from data), or a table named .csv or .tsv")
    return [Row(number, "", line) for number, line in enumerate(lines, start=1)], sha256


def _table_rows(path, lines, text_column):
    """The rows below a table's header, with the columns of the source and of the text."""
    (number, header), *rows = _split_cells(path, lines)
    sources, texts = ([i for i, cell in enumerate(header) if column.match(cell)]
                      for column in (SOURCE_COLUMN, text_column))
    if len(sources) != 1 or len(texts) != 1:
        raise InputError(f"{path}, line {number}: {len(sources)} columns of sources and "
                         f"{len(texts)} of texts in the header; name one column 'mr', one 'ref'")
    for number, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"{path}, line {number}: {len(cells)} cells below a header of "
                             f'{len(header)}; write every cell, an empty one at the end as ""')
    return [Row(number, cells[sources[0]], cells[texts[0]]) for number, cells in rows]


def _split_cells(path, lines):
    """Cut a table's lines into cells: (line number, cells) a row. A quoted cell may span lines.

    A quote that is not closed would take the rows below it into its cell. So where a row has more
    than one line, its quotes must be in order.
    """
    numbers = [number for number, line in enumerate(lines, start=1) if line]
    lines = [line for line in lines if line] + [""]  # which a quote that is still open takes, too
    for broken, repaired in REPAIRS:
        lines = [line.replace(broken, repaired) for line in lines]
    separator = "\t" if "\t" in lines[0] else ","
    reader = csv.reader(lines, delimiter=separator)
    rows, start = [], 0  # where the row being read starts
    while start < len(numbers):
        with wrap_errors(f"{path}, line {numbers[start]}", 'has a quote (") that is not closed as '
                         "it should be; close it, or double it in a text"):
            cells = next(reader)
            if reader.line_num - start > 1:
                row = lines[start : reader.line_num]
                cells = next(csv.reader(row, delimiter=separator, strict=True))
        rows.append((numbers[start], cells))
        start = reader.line_num
    return rows or [(1, [])]
