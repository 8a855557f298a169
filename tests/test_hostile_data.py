"""Data as other people's programs leave them: whole examples, or one sentence with file and line.

A run's own files say exactly what it scored.
"""

import io
import json
import random
import re
import struct
import tempfile
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace

import fuzz_data
import pytest
import torch
from conftest import run_here
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import beam
import describe
import metrics
import e2e_data
import train
from beam import Hypothesis
from e2e_data import check_lengths, group_by_table, linearize, make_batch, read_split, read_table
from gpt2 import load_both, load_tokenizer
from support.commands import InputError
from support.reading import CSV_NAMES, SPLITS, SRC1_NAMES, ZIP_NAME


def read_test(name, content):
    """What a folder with this file alone holds as its test set."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_split(path.parent, "test")


def csv_of(examples):
    """As csv.writer quotes everything; that of Python 3.10 refuses NUL."""
    rows = [[cell.replace('"', '""') for cell in row] for row in (("mr", "ref"), *examples)]
    return "".join('"' + '","'.join(row) + '"\r\n' for row in rows)


def jsonl_of(examples):
    return "".join(json.dumps({"table": table, "text": text}) + "\n" for table, text in examples)


# Fuzzing


@pytest.mark.parametrize("fuzz", fuzz_data.FUZZERS, ids=lambda fuzz: fuzz.__name__)
@pytest.mark.parametrize("count", [80, pytest.param(5000, marks=pytest.mark.long)])
def test_whatever_the_bytes_they_are_read_whole_or_refused(fuzz, count):
    for seed in range(count):
        fuzz(random.Random(seed))


# Quotes and blank lines in CSV files

ROWS = ["mr,ref", *(f"name[Place {number}],Place {number} is a pub." for number in range(1, 201))]


@pytest.mark.parametrize("name", [CSV_NAMES["test"], "test.csv"])
@pytest.mark.parametrize("row, broken", [
    (100, 'name[Cocum],"Cocum is a pub.'),  # swallows all rows to the end of the file
    (200, 'name[Cocum],"Cocum is a pub.'),
    (3, '"name[Cocum], eatType[pub],Cocum is a pub.'),
    (7, 'name[Cocum],"Cocum is a "pub".'),
    (7, 'name[Cocum],"Cocum" is a pub.'),
    (5, 'name[Cocum],"Cocum is a pub.\nname[A],A.\n"name[A], food[B]","A serves B."'),
])
def test_a_quote_that_is_not_closed_is_refused_where_it_was_opened(name, row, broken):
    lines = ROWS[:row] + [broken] + ROWS[row + 1 :]
    with pytest.raises(InputError, match=f"{name}, line {row + 1}: .*quote"):
        read_test(name, "\n".join(lines))


def test_errors_below_a_cell_of_several_lines_name_the_line_in_the_file():
    content = 'mr,ref\nname[A],"one\n\ntwo"\n\nname[B],\n'
    with pytest.raises(InputError, match="line 6: a text was expected"):
        read_test("test.csv", content)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n", "\n\n", "\r\n\r\n"])
def test_blank_lines_and_all_line_ends_of_csv_files_are_read(end):
    rows = ["mr,ref", '"name[A], eatType[pub]",A is a pub.', 'name[B],"B, too."']
    examples = [("name : A | Type : pub", "A is a pub."), ("name : B", "B, too.")]
    for around in ("", "\n\n"):
        assert read_test("test.csv", around + end.join(rows) + end + around) == examples


@pytest.mark.parametrize("line",
                         [",", '"",""', " , ", "name[A]", "name[A],a,b", " ", ",A is a pub."])
def test_nothing_but_a_blank_line_is_skipped_in_a_csv_file(line):
    with pytest.raises(InputError, match="line 3"):
        read_test("test.csv", f"mr,ref\nname[A],A.\n{line}\nname[B],B.\n")


# White space, byte-order marks, control characters

WHITE = [chr(code) for code in range(0x110000) if chr(code).isspace()]
WHITE += ["\ufeff", "\r\n", "\n\n", "\u2028\n"]
texts = st.lists(st.tuples(st.sampled_from(WHITE + [" "]), st.text("aé.,'£🍕", min_size=1)),
                 min_size=1)
texts = texts.map(lambda parts: "".join(white + word for white, word in parts))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(texts, texts, st.sampled_from(WHITE)), min_size=1, max_size=4))
def test_every_stretch_of_white_space_within_a_text_is_one_blank(parts):
    examples = [(f"name[{value}]{white}", f"{white}{text}{white}") for value, text, white in parts]
    one_line = lambda text: " ".join(text.replace("\ufeff", " ").split())
    expected = [("name : " + one_line(value.replace("£", " £ ")), one_line(text))
                for value, text, _ in parts]
    assert read_test("test.csv", csv_of(examples)) == expected
    assert read_test("test.jsonl", jsonl_of(examples)) == expected
    lines = "\n".join(f"{table}||{text}".replace("\n", " ") for table, text in examples)
    assert read_test(SRC1_NAMES["test"], lines) == expected


@pytest.mark.parametrize("name, content", [
    (SRC1_NAMES["test"], "name : A||A is a pub.\n"),
    ("test.csv", '"mr","ref"\nname[A],A is a pub.\n'),
    (CSV_NAMES["test"], "mr,ref\nname[A],A is a pub.\n"),
    ("test.jsonl", jsonl_of([("name : A", "A is a pub.")])),
])
def test_a_byte_order_mark_costs_nothing(name, content):
    plain = read_test(name, content)
    assert read_test(name, "\ufeff" + content) == plain == [("name : A", "A is a pub.")]


@pytest.mark.parametrize("character", ["\x00", "\x01", "\x1b", "\x7f", "\x80", "\x9b"])
def test_control_characters_are_refused_by_file_and_line(character):
    for bad in ((f"name : A{character}", "A."), ("name : A", f"A{character}.")):
        examples = [("name : B", "B."), bad]
        src1 = "\n".join(f"{table}||{text}" for table, text in examples)
        for name, content in ((SRC1_NAMES["test"], src1), ("test.jsonl", jsonl_of(examples))):
            with pytest.raises(InputError, match=f"{name}, line 2: .*no character of a text"):
                read_test(name, content)
        with pytest.raises(InputError, match="test.csv, line 3: "):
            read_test("test.csv", csv_of(examples))


@pytest.mark.parametrize("text", ["", " ", "\n", "\u2028", "\ufeff", "\x85 \t"])
def test_a_text_that_is_nothing_but_white_space_is_refused_by_file_and_line(text):
    for example in ((text, "A."), ("name : A", text)):
        contents = {"test.csv": csv_of([("name[B]", "B."), example]),
                    "test.jsonl": jsonl_of([("name[A]", "B."), ("name[B]", "B."), example])}
        for name, content in contents.items():
            with pytest.raises(InputError, match=f"{name}, line 3: a (text|table) was expected"):
                read_test(name, content)
    with pytest.raises(InputError, match="line 2: a (text|table) was expected"):
        read_test(SRC1_NAMES["test"], f"name : A||A.\nname : A||{text}".replace("\n\n", "\n"))


NO_EXAMPLES = {  # what stands in a line of JSON -> the message
    '{"table": "name : A", "text": "\\ud800"}': "no character of a text",
    '{"table": "name : A", "text": null}': "text is null, but must be a text",
    '{"mr": "name[A]", "ref": ["A.", "B."]}': "ref is a list, .* write a line for each sentence",
    '{"mr": null, "ref": "A."}': "mr is null",
    '{"table": {}, "text": "A."}': "a table was expected",
    '{"table": {"name": "A", "phone": null}, "text": "A."}': "phone of the table is null",
    '{"table": {"name": {"a": "b"}}, "text": "A."}': "name of the table is an object",
    '{"table": {"name": true}, "text": "A."}': "name of the table is true or false",
    '{"table": {"name": NaN}, "text": "A."}': "name of the table is nan",
    '{"table": {"name": ["A"]}, "text": "A."}': "name .* a list, .* or leave the slot out",
    '{"table": ["ab"], "text": "A."}': "a slot of the table is ab, but must be a pair",
    '{"table": [["A", "near", "B"]], "text": "A."}': "near.* as `subject : relation : object",
    '{"table": [["", "A"]], "text": "A."}': "a key of the table is ''",
    '{"table": "name : A", "text": "A."': "not JSON",
    '{"table": "name : A"} {"text": "A."}': "not JSON",
    "[" * 100_000: "not JSON",
    '["name : A", "A."]': "keys table,text were expected",
    '[["table", "name : A"], ["text", "A."]]': "keys table,text were expected",
    '{"table": "name : A", "Text": "A."}': "keys table,text were expected",
    '{"table": "name : A", "text": "A.", "text": "B."}': "keys table,text were expected",
    '{"table": "name : A", "text": "A.", "mr": "x[B]", "ref": "B."}': "keys table,text were expected",
}


@pytest.mark.parametrize("line", NO_EXAMPLES, ids=lambda line: line[:60])
def test_a_line_of_json_that_is_no_example_is_refused_by_its_line_and_says_what_stands_there(line):
    with pytest.raises(InputError, match=f"test.jsonl, line 3: .*{NO_EXAMPLES[line]}"):
        read_test("test.jsonl", jsonl_of([("name[A]", "A.")]) + "\n" + line)


# Sizes


@pytest.mark.parametrize("text", [
    "name : " + " " * 10**6 + "x | Type : pub", "name[" + " " * 10**6 + "x], eatType[pub]",
    "name[x]," + "\n" * 10**6 + "eatType[pub]"
])
def test_a_million_blanks_in_a_table_cost_nothing(text):
    assert read_table(text) == "name : x | Type : pub"


@pytest.mark.parametrize("text", [
    "a" * 10**6, "[" * 10**6, "], " * 300_000, "name[x]," + " " * 10**6 + "x", "a[" * 300_000,
    "|" * 10**6, " | " * 300_000
])
def test_a_long_text_that_is_no_table_is_refused_at_once(text):
    for parse in (linearize, read_table):
        with pytest.raises(InputError) as refused:
            parse(text)
        assert len(str(refused.value)) < 1000


def zip_of(content, how=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        archive.writestr(f"e2e-dataset/{CSV_NAMES['test']}", content)
    return file.getvalue()


def with_claimed_size(content, size):
    """A zip with another unpacked size, in both places where it is written."""
    local, central = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")
    for at in (local + 22, central + 24):
        content = content[:at] + struct.pack("<I", size) + content[at + 4 :]
    return content


BOMB = zip_of(b"mr,ref\n" + b"\n" * 40_000_000)
BOMBS = {
    "honest": BOMB,
    "claims to be small": with_claimed_size(BOMB, 1000),
    "claims the most that is allowed": with_claimed_size(BOMB, 100 * len(BOMB)),
    "bzip2 that claims to be small": with_claimed_size(
        zip_of(b"\n" * 40_000_000, zipfile.ZIP_BZIP2), 1000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_zip_that_inflates_beyond_reason_is_refused_in_little_memory(kind):
    assert len(BOMBS[kind]) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=f"{ZIP_NAME} is corrupt"):
            read_test(ZIP_NAME, BOMBS[kind])
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


# What is too long for the model


def write_splits(folder, split, example):
    """Data of three lines a split, of which one split's last is `example`."""
    folder.mkdir()
    good = ("name : A | Type : pub", "A is a pub.")
    for name in SPLITS:
        text = jsonl_of([good, good, example if name == split else good])
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


LONG = "A b " * 600


@pytest.mark.parametrize("split, long, message", [
    ("train", (f"name : {LONG}", "A."), "a prefix of 5, a table of [0-9,]+ and a sentence of 3 t"),
    ("valid", ("name : A", LONG), "more than the 512 that the model has"),
    ("test", (f"name : {LONG}", "A."), "a sentence of 100 tokens"),
    ("test", ("name : A", LONG), None),  # a reference is never read by the model
])
def test_what_is_too_long_for_the_model_is_named_by_file_and_line(tmp_path, split, long, message):
    data = write_splits(tmp_path / "data", split, long)
    of = train.Settings(mode="prefix", model="tiny", data=data)
    if message is None:
        assert len(e2e_data.encode_splits(of, *load_both("tiny"))[0]["test"]) == 3
        return
    with pytest.raises(InputError, match=f"{split}.jsonl, line 3: .*{message}"):
        e2e_data.encode_splits(of, *load_both("tiny"))


@given(st.integers(0, 5), st.integers(1, 9), st.integers(1, 9))
def test_too_long_is_what_the_model_would_have_to_read_beyond_its_last_position(
        P, length, new_tokens):
    batch = make_batch([([1] * length, [2] * new_tokens)])
    needed = P + batch.tokens.shape[1]
    examples = [(f"line {n}", P, [1] * length, new_tokens) for n in range(9)]
    check_lengths(examples, needed)
    with pytest.raises(InputError, match=f"line 0: a prefix of {P}, .* more than the {needed - 1} "
                       "that the model has.* 9 in all"):
        check_lengths(examples, needed - 1)


def described(*arguments, stdin=""):
    return run_here(describe.main, "tiny", *arguments, "--device", "cpu", "--num-beams", 1,
                    "--max-new-tokens", 3, stdin=stdin)


def test_a_long_table_is_named_by_its_number_and_in_a_data_set_by_its_line(tmp_path):
    assert "prompt 2: a prefix of 0" in described("name : A", f"name : {LONG}").error
    data = write_splits(tmp_path / "data", "test", (f"name : {LONG}", "A."))
    error = described("--data", data).error
    assert re.search("test.jsonl, line 3: .*more than the 512 that the model has", error)


def test_a_table_that_is_an_object_or_pairs_is_given_as_json_and_brackets_alone_make_none():
    text = "[m] height : 12 | name : Tower"
    tables = '{"[m] height": "12", "name": "Tower"}', ' [["[m] height", 12], ["name", "Tower"]]'
    sentences = described(text, *tables).stdout.splitlines()
    assert sentences == 3 * sentences[:1]
    for table in (text, *tables):
        done = run_here(beam.main, table, "--max-new-tokens", 1)
        assert done.stdout.splitlines()[0] == text, done.error


def test_tables_on_stdin_may_begin_with_a_byte_order_mark_and_must_be_utf_8():
    expected = described("name : Café | Type : pub", "name[B]").stdout
    stdin = "\ufeffname : Café |\u2028Type : pub \r\n\r\n \nname[B]"
    assert described(stdin=stdin).stdout == expected and expected.count("\n") == 2
    assert "stdin, line 2: not UTF-8" in described(stdin=b"name : A\nname : Caf\xe9\n").error


@pytest.mark.parametrize("table", [
    "", " ", "Cocum", "name(Cocum)", "name[Cocum", "name: Cocum", "name : A | pub", "name : A\x00",
    "name : \udcff", "name[A],eatType[pub]"])
def test_what_is_no_table_is_refused_and_never_described(table):
    done = described("name : A", table)
    assert done.error.startswith("error: ") and done.stdout == ""


# A run's own files

pieces = st.sampled_from(WHITE + list("aB.,\"'<>|[]é\u202e") + ["<|endoftext|>", "&lt;"])
hostile = st.lists(pieces, min_size=1).map("".join)
sentences = hostile.filter(lambda text: text.replace("\ufeff", "").strip())
written = st.text(st.characters(exclude_categories=["Cs"]))  # what a model writes may be anything


TOKENIZER = load_tokenizer("tiny")
MODEL = SimpleNamespace(config=SimpleNamespace(n_ctx=512, n_vocab=4096), device=torch.device("cpu"))


def score(monkeypatch, folder, groups, outputs):
    """The run's own (references, outputs) where a model of that many tables writes `outputs`."""
    (folder / "data").mkdir()
    (folder / "out").mkdir()
    examples = [(f"name : {number}", text) for number, group in enumerate(groups) for text in group]
    (folder / "data" / "test.jsonl").write_text(jsonl_of(examples), encoding="utf-8")
    settings = {"mode": "prefix", "model": "tiny", "seed": 0, "dtype": "float32"}
    found = [[Hypothesis(TOKENIZER.encode_ordinary(output), 0.0)] for output in outputs]
    scored = []

    def evaluate(references, outputs):
        scored.append((references, outputs))
        return dict.fromkeys(metrics.METRICS, 0.5)

    with monkeypatch.context() as patch:
        patch.setattr(describe, "beam_search", lambda *_, **__: found)
        patch.setattr(metrics, "evaluate", evaluate)
        describe.score_test_set(describe.Run(settings, TOKENIZER, MODEL, None), folder / "data",
                                describe.DECODER, 64, folder / "out")
    return scored[0]


def check_own_files(monkeypatch, groups, outputs):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        references, scored_outputs = score(monkeypatch, folder, groups, outputs)
        paths = folder / "out" / "references.txt", folder / "out" / "outputs.txt"
        (corpus,) = metrics.read_corpora(paths[0], paths[1:])
        assert (corpus.references, corpus.outputs) == (references, scored_outputs)
        own = list(group_by_table(read_split(folder / "data", "test")).values())
        assert references == own == [
            [" ".join(text.replace("\ufeff", " ").split()) for text in group] for group in groups
        ]


groups = st.lists(sentences, min_size=1, max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None,
          max_examples=20)
@given(st.lists(st.tuples(groups, written), min_size=2, max_size=4))
@example([(["A."], "\ufeffA ."), (["B."], "B .")])  # a mark that readers take away
def test_a_runs_own_files_read_by_the_scorer_hold_what_the_run_scored(monkeypatch, parts):
    check_own_files(monkeypatch, [group for group, _ in parts], [output for _, output in parts])


def test_the_files_of_a_run_with_a_single_test_table_hold_what_it_scored(monkeypatch):
    check_own_files(monkeypatch, [["A is a pub.", "A, a pub.", "Pub: A."]], ["A is a pub ."])
