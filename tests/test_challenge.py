"""Challenge systems in the style of the src1 files: right tokens, known tables, mistakes told."""

import csv
import io
import zipfile

import pytest
from conftest import run_python

import metrics
from e2e_data import group_by_table, read_split, tokenise_text
from experiments.challenge import read_system
from support.files import InputError


def test_98_percent_of_src1s_sentences_are_the_official_ones_tokenised_by_our_rules(shared):
    tokenised = [sentence for _, sentence in read_split(shared / "e2e", "test")]
    with zipfile.ZipFile(shared / "e2e" / "e2e-dataset.zip") as archive:
        text = archive.read("e2e-dataset/testset_w_refs.csv").decode("utf-8")
    raw = [row["ref"] for row in csv.DictReader(io.StringIO(text))]
    equal = sum(tokenise_text(a) == b for a, b in zip(raw, tokenised, strict=True))
    assert equal / len(raw) > 0.98


def test_tgen_has_a_sentence_for_each_test_table_and_about_67_bleu(shared):
    groups = group_by_table(read_split(shared / "e2e", "test"))
    outputs = read_system(shared / "metrics" / "tgen.tsv")
    assert set(outputs) == set(groups)
    scores = metrics.evaluate(list(groups.values()), [outputs[table] for table in groups])
    assert 0.665 < scores["BLEU"] < 0.675


@pytest.mark.parametrize("text, complaint", [
    (b"MR\toutput\nname[\xff]\ta\n", "line 2: not UTF-8"),
    ("", "line 1: the columns MR and output"),
    ("MR,output\n", "line 1: the columns MR and output"),
    ("MR\toutput\nname[The Mill]\n", "line 2: a table, a tab and a sentence"),
    ('MR\toutput\nname[A]\t"' + 200_000 * "a", "line 2: field larger than field limit"),
    ("MR\toutput\nname[The Mill]\ta\tb\n", "line 2: a table, a tab and a sentence"),
    ("MR\toutput\nname[The Mill]\ta\nThe Inn\tb\n", "system.tsv, line 3: `key"),
    ("MR\toutput\nname[The Mill]\ta\nname[The Mill]\tb\n",
     "line 3: a second sentence for 'name : The Mill'"),
])
def test_a_file_that_is_no_systems_table_is_told_with_its_line(tmp_path, text, complaint):
    (tmp_path / "system.tsv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=complaint):
        read_system(tmp_path / "system.tsv")


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_system(tmp_path / "system.tsv")


def test_a_table_without_an_output_is_told(tmp_path):
    path = tmp_path / "system.tsv"
    path.write_text("MR\toutput\nname[The Mill], area[north]\tThe Mill is in the north.\n")
    done = run_python("-m", "experiments.challenge", path, "--data", "sample")
    assert done.returncode == 1
    assert "test tables have no output" in done.stderr and "Traceback" not in done.stderr
