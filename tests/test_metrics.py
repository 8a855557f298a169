"""The metrics against nltk and numbers worked out by hand, their files and their command line."""

import doctest
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from unittest import mock

import pytest
from conftest import ROOT, run_here, run_python
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu

import metrics
from metrics import __main__ as main
from metrics import mteval
from support.commands import InputError

# On a busy machine a slow example is no failure.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)


@pytest.fixture(autouse=True, scope="module")
def without_meteor():
    """Its tests are in test_meteor.py; here its table would be read for each set of references."""
    with mock.patch("metrics.meteor.prepare", lambda references: None):
        yield


def counts_of(references, outputs):
    """Counts of a corpus whose texts are cut at blanks only."""
    references = mteval.count_references([[text.split() for text in group] for group in references])
    return mteval.count(references, [text.split() for text in outputs])


# --- The tokenizer


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("", []),
        (" \u3000\u2028\x85\xa0 ", []),
        ("ÉCLAIR Café", ["Éclair", "café"]),
        ("family-friendly 20-25 -5", ["family-friendly", "20", "-", "25", "-5"]),
        ("£20. 3,000 3,x .5 5.", ["£20", ".", "3,000", "3", ",", "x", ".", "5", "5", "."]),
        ("a.m. e.g.,", ["a", ".", "m", ".", "e", ".", "g", ".", ","]),
        ("it's ‘so’ 'x'", ["it's", "‘so’", "'x'"]),
        ("&amp;lt; &AMP; &quot;", ["<", "&", "amp", ";", '"']),
        ("a<skipped>b A/B", ["ab", "a", "/", "b"]),
        ("٣.5", ["٣", ".", "5"]),  # a digit, but not of ASCII
        ("a\x1fb\x1cc", ["a\x1fb\x1cc"]),  # white space to Python, but not to Perl
        ("[x]^_`{|}~@#$%*+", list("[x]^_`{|}~@#$%*+")),
        ("a </seg> b", ["a", "<", "/", "seg", ">", "b"]),  # which ends a text in SGML
    ],
)
def test_tokenizer_follows_the_rules_of_mteval(text, tokens):
    assert mteval.tokenize(text) == tokens


# --- BLEU

sentences = st.lists(st.sampled_from("abcde"), min_size=4, max_size=12)
sentence_groups = st.lists(sentences, min_size=1, max_size=4)
segments = st.lists(st.tuples(sentence_groups, sentences), min_size=1, max_size=5)


@patient
@given(segments)
def test_bleu_equals_nltk_where_nltk_is_exact(corpus):
    """nltk counts one n-gram too many for fewer than n tokens, and is 0 where no token matches."""
    references, outputs = zip(*corpus)
    counts = mteval.count(mteval.count_references(references), outputs)
    assume(counts.matched)
    theirs = corpus_bleu(references, outputs, smoothing_function=SmoothingFunction().method3)
    assert mteval.bleu(counts) == pytest.approx(theirs, rel=1e-12)


def test_bleu_halves_what_nothing_matches_and_leaves_out_n_grams_longer_than_every_output():
    halved = 1 / (2 * 3) / (4 * 2) / (8 * 1)
    assert mteval.bleu(counts_of([["x x x"]], ["a b c"])) == pytest.approx(halved ** (1 / 4))


@pytest.mark.parametrize(
    "references, length",
    [
        (["a", "a b c"], 1),  # equally close: the shorter one
        (["a b c d e", ""], 5),  # a reference without tokens is passed over ...
        (["", "a b c d e"], 0),  # ... unless it is the first
    ],
)
def test_reference_length_is_that_of_the_closest(references, length):
    assert counts_of([references], ["a b"]).closest_length == length


# --- NIST


def test_nist_weighs_n_grams_by_the_references_of_all_segments():
    # The references have 8 words: a 4 times, b and c twice; "a b" and "a c" stand there twice.
    counts = counts_of([["a b a c"], ["a c", "a b"]], ["a b", "c a c x"])
    # a and b match in the first output, a and one c in the second;
    words = 2 * math.log2(8 / 4) + 2 * math.log2(8 / 2)
    bigrams = 2 * math.log2(4 / 2)  # "a b" in the first, "a c" in the second
    # 6 words and 1 + 3 bigrams in the outputs, more than 2 segments * 8/3 words a reference: no
    # penalty
    assert mteval.nist(counts) == pytest.approx(words / 6 + bigrams / 4)


def test_nist_takes_the_mean_length_over_all_references():
    # Mean length (3 * 2 + 8) / 4 = 3.5, so 7 for two segments; averaged segment by segment it would
    # be 2 + 8 = 10.
    counts = counts_of([["a b", "a b", "a b"], ["c d e f g h i j"]], ["a b", "c"])
    unpunished = (2 * math.log2(14 / 3) + math.log2(14)) / 3
    penalty = math.exp(math.log(0.5) * (math.log(3 / 7) / math.log(1.5)) ** 2)
    assert mteval.nist(counts) == pytest.approx(penalty * unpunished)


def test_nist_counts_no_reference_without_tokens():
    outputs = ["a", "a b"]
    with_empty = counts_of([["a b", ""], ["c a b"]], outputs)
    assert mteval.nist(with_empty) == mteval.nist(counts_of([["a b"], ["c a b"]], outputs))


def test_nist_has_perls_quirk_for_the_token_zero():
    quirk = mteval.nist(counts_of([["0 a"]], ["0 a"]))
    plain = mteval.nist(counts_of([["1 a"]], ["1 a"]))
    assert (quirk, plain) == (1 + 1, 1)  # info("0 a") is log2(2 / 1), info("1 a") is log2(1 / 1)


# --- Scores of segments


def test_scores_of_segments_are_those_of_the_port_to_python():
    bleu, smoothed, nist = mteval.segment_scores(["0 B c É e f", "0 b"], "0 b C é e")
    # 5 tokens, closest to 6; all n-grams match; no quirk for "0"; É is lower-cased
    brevity = math.exp(1 - 6 / 5)
    assert (bleu, smoothed) == (pytest.approx(brevity), pytest.approx(brevity))
    words = (2 * math.log2(8 / 2) + 3 * math.log2(8)) / 5
    # c after b, and after 0 b
    assert nist == pytest.approx(words + math.log2(2) / 4 + math.log2(2) / 3)


def test_a_negative_number_of_n_grams_counts_as_almost_none_as_in_the_port():
    # Of "a b" the port counts 2 words, 1 bigram, 0 trigrams and -1 four-grams; sentBLEU adds 1.
    _, smoothed, _ = mteval.segment_scores(["a b"], "a b")
    assert smoothed == pytest.approx((3 / 3 * 2 / 2 * 1 / 1 * 1 / 1e-9) ** (1 / 4))


# --- All scores

reference = st.text().filter(str.strip) | st.just("<skipped>")


@patient
@given(st.lists(st.tuples(st.lists(reference, min_size=1, max_size=3), st.text()), min_size=1,
                max_size=4))
@example([(["a cheap pub ."], "word " * 1_000)])
def test_any_text_has_scores(corpus):
    scores = metrics.evaluate(*zip(*corpus))
    for metric, highest in zip(metrics.METRICS, (1, 99, 1, 1, 10)):
        assert metric == "METEOR" or 0 <= scores[metric] <= highest + 1e-12
    for segment in corpus:  # also one that is too short for the official script
        assert all(0 <= score < math.inf for score in mteval.segment_scores(*segment))


@pytest.mark.parametrize("references, outputs, message", [
    ([["a"], ["b"]], ["a"], "2 groups of references for 1 outputs"),
    ([], [], "nothing to score"),
    ([["a"], []], ["a", "b"], "group 2 has no references"),
    ([["a"], ["b", " "]], ["a", "b"], r"group 2 has .* an empty one: \['b', ' '\]"),
    (["a"], ["a"], "references 1: one str"),
    ([["a"], ["b", float("nan")]], ["a", "b"], "references 2: number 2 is a float"),
])
def test_evaluate_says_what_is_wrong_with_its_arguments(references, outputs, message):
    with pytest.raises(InputError, match=message):
        metrics.evaluate(references, outputs)


def test_evaluate_takes_generators():
    references, outputs = [["a cheap pub", "a pub"], ["a bar", "the bar"]], ["a pub", "one bar"]
    generated = metrics.evaluate(map(iter, references), iter(outputs))
    assert generated == metrics.evaluate(references, outputs)


# --- Files


def write(path, text):
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.mark.parametrize("name, text, expected", [
    # Empty lines count, and all of Unicode's line boundaries cut.
    ("out.txt", "\ufeffa\r\n\n b\u2028c\x0bd\x85e \n\n", ["a", "", "b", "c", "d", "e", ""]),
    # Tables are repaired; a quoted cell may span lines.
    ("out.CSV", '\ufeffID,MR,Output text\n\n1,x,"Ł5, Â£6 CafÃ© ""y"""\n2,y,"one\n\ntwo"\n',
     ['£5, £6 Café "y"', "onetwo"]),
    ("out.tsv", 'mr\tout\nx\t"The Mill" is a "pub".\ny\t6"\n', ['The Mill is a "pub".', '6"']),
    *(("out.tsv", f"sys1\t{source}\nb\tx", ["b"]) for source in (
        "SRC", "Source text", "meaning", "dial act", "Dialogue.Act", "date")),
    # Sentences may hold what other forms are known by.
    ("out.txt", 'a || b\n\n1\t2\n{"x": 1}', ["a || b", "", "1\t2", '{"x": 1}']),
])
def test_outputs_are_read_as_the_official_script_does(tmp_path, name, text, expected):
    assert metrics.read_outputs(write(tmp_path / name, text)) == expected


@pytest.mark.parametrize("text, groups", [
    ("a\nb\n\nc\n", [["a", "b"], ["c"]]),
    ("\ufeffa\n \t\nb\n\n", [["a"], ["b"]]),
    ("a\nb\n\n", [["a"], ["b"]]),  # one group: single references
])
def test_plain_references_are_groups_between_blank_lines(tmp_path, text, groups):
    assert metrics.read_references(write(tmp_path / "ref.txt", text)) == groups


REFERENCE_TABLE = "mr,ref\nx,a\nx,b\ny,c\nx,d\n"


@pytest.mark.parametrize("references, outputs, groups", [
    (("ref.csv", REFERENCE_TABLE), ("out.tsv", "mr\toutput\ny\tY\nx\tX\ny\tY"),
     [["c"], ["a", "b", "d"], ["c"]]),  # by source
    (("ref.csv", REFERENCE_TABLE), ("out.csv", "mr,out\n,1\n,2\n"), [["a", "b", "d"], ["c"]]),
    (("ref.csv", REFERENCE_TABLE), ("out.txt", "1\n2\n"), [["a", "b", "d"], ["c"]]),  # in order
    (("ref.txt", "a\nb\n"), ("one.txt", "a pub\n"), [["a", "b"]]),  # all of the only output
    (("ref.txt", "a\nb\n"), ("two.txt", "a pub\na pub\n"), [["a"], ["b"]]),
])
def test_outputs_are_paired_with_references_all_of_them_with_the_only_output(
        tmp_path, references, outputs, groups):
    paths = [write(tmp_path / name, text) for name, text in (references, outputs)]
    (corpus,) = metrics.read_corpora(paths[0], paths[1:])
    assert corpus.references == groups


@pytest.mark.parametrize("separator", "\v\f\x1c\x1d\x1e\x85\u2028\u2029")
def test_what_cuts_a_line_is_named_with_its_line(separator, tmp_path, capsys):
    path = write(tmp_path / "out.txt", f"a\r\nb\nc{separator}d\ne{separator}f\n")
    assert metrics.read_outputs(path) == ["a", "b", "c", "d", "e", "f"]
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {path}, line 3: U+{ord(separator):04X} ")
    assert warning.count("\n") == 1


TABLE = "mr\toutput\nx\ta\n"
R, O = ("r.txt", "a\n"), ("o.txt", "a\n")  # files that are right


@pytest.mark.parametrize("references, outputs, said", [
    (("r.txt", "a\n\nb\n"), ("o.txt", "a\nb\nc\n"), "o.txt: 3 outputs for the 2 groups"),
    (R, ("o.txt", "a\nb\n\udc85\n"), "o.txt cannot be read as UTF-8 text .*0x85"),
    (("r.txt", "a\nb\n\n\nc\n"), O, "r.txt, line 4: a group without references"),
    (("r.csv", 'mr,ref\nx,a\nx," "\n'), O, "group 1 has .* an empty one: .'a', ' '"),
    (("r.csv", "mr,ref\nz,a\n"), ("o.tsv", TABLE), "o.tsv, line 2: no reference in r.csv"),
    (R, ("o.tsv", ""), "o.tsv, line 1: 0 columns of sources and 0 of texts"),
    (R, ("o.csv", "mr,ref,ref 2\nx,a,b\n"), "o.csv, line 1: 1 columns of sources and 2 of texts"),
    (R, ("o.tsv", f"{TABLE}\ny\t\n"), "o.tsv, line 4: 1 cells below a header of 2"),
    (R, ("o.tsv", f'{TABLE}x\t"a\nb"\n\ny\tb\tc\n'), "o.tsv, line 6: 3 cells below a header of 2"),
    # A quote that is not closed takes no rows.
    (R, ("o.tsv", f'{TABLE}x\t"a\ny\tb\n'), "o.tsv, line 3 has a quote"),
    (R, ("o.tsv", f'{TABLE}x\t"a\ny\tthe "b"\n'), "o.tsv, line 3 has a quote"),
    (R, ("o.tsv", f'{TABLE}x\t"{"a" * 200_000}"\n'), "o.tsv, line 3 has a quote"),
    # Data in forms that are not sentences
    (("r.jsonl", '{"table": "name : A", "text": "A ."}\n'), O, "r.jsonl: JSON, not sentences"),
    (R, ("o.txt", "name : A||It is A .\n\nname : B||It is B .\n"), "o.txt: columns with `||`"),
    (R, ("o.txt", TABLE), "o.txt: columns with tabs"),
])
def test_a_mistake_in_a_file_is_one_line_that_says_where(tmp_path, references, outputs, said):
    for name, text in (references, outputs):
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    result = run(references[0], outputs[0], cwd=tmp_path)
    assert re.match(f"error: {said}", result.error)
    assert result.stdout == "" and result.stderr.count("\n") == 1


# --- The command line


def run(*arguments, cwd):
    """What `python -m metrics` would do in a folder, but in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        return run_here(main.main, *arguments)


@pytest.fixture
def small(tmp_path):
    write(tmp_path / "ref.txt", "a cheap pub .\n\nthe food is good .\n")
    write(tmp_path / "good.txt", "a cheap pub .\nthe food is good .\n")
    write(tmp_path / "bad.txt", "a pub\n\n")
    return tmp_path


def test_json_of_one_file_is_an_object_and_nothing_else(small):
    result = run("ref.txt", "good.txt", "--json", cwd=small)
    scores = json.loads(result.stdout)
    sentences = metrics.read_outputs(small / "good.txt")
    assert (result.error, result.stderr) == (None, f"note: {metrics.meteor.HOW_TO_GET}\n")
    assert scores == metrics.evaluate([[sentence] for sentence in sentences], sentences)
    assert tuple(scores) == metrics.METRICS and scores["BLEU"] == 1.0


def test_table_has_a_row_for_each_file_and_says_what_was_computed(small):
    with mock.patch.object(main, "Scorer", wraps=metrics.Scorer) as scorer:
        lines = run("ref.txt", "good.txt", "bad.txt", cwd=small).stdout.splitlines()
    assert scorer.call_count == 1  # the references are prepared once
    assert lines[0].split() == ["BLEU", "NIST", "METEOR", "ROUGE-L", "CIDEr"]
    name, bleu, _, meteor, rouge, cider = lines[1].split()
    assert (name, bleu, meteor, rouge) == ("good.txt", "100.00", "-", "100.00")
    assert float(cider) > 7 and lines[2].split()[0] == "bad.txt" and lines[3] == ""
    digest = hashlib.sha256((small / "ref.txt").read_bytes()).hexdigest()[:16]
    assert lines[6:] == [f"2 references in 2 groups: ref.txt, SHA-256 {digest}."]


def test_tables_of_other_rows_are_said_to_be_not_comparable_and_of_another_order_are(tmp_path):
    write(tmp_path / "ref.csv", REFERENCE_TABLE)
    for name, rows in (("x", "x\ta\n"), ("xy", "x\ta\ny\tc\n"), ("yx", "y\tc\nx\ta\n")):
        write(tmp_path / f"{name}.tsv", "mr\toutput\n" + rows)
    one, other = json.loads(run("ref.csv", "xy.tsv", "yx.tsv", "--json", cwd=tmp_path).stdout)
    assert one["ROUGE_L"] == other["ROUGE_L"] == 1.0
    assert "comparable" not in run("ref.csv", "xy.tsv", "yx.tsv", cwd=tmp_path).stdout
    assert ("\nNot comparable: these tables have other rows, and so other references each.\n"
            "x.tsv: 3 references in 1 groups\nyx.tsv: 4 references in 2 groups\n"
            in run("ref.csv", "x.tsv", "yx.tsv", cwd=tmp_path).stdout)


def test_cider_of_one_group_says_why_it_is_0(small):
    write(small / "one.txt", "a pub .\n")
    result = run("ref.txt", "good.txt", cwd=small)
    assert "CIDEr" not in result.stderr
    result = run("one.txt", "one.txt", "--json", cwd=small)
    assert json.loads(result.stdout)["CIDEr"] == 0 and "note: CIDEr is 0, as" in result.stderr


def test_scores_of_segments_are_a_table_of_the_official_scripts_form(small):
    write(small / "ref.csv", REFERENCE_TABLE)
    write(small / "out.tsv", "mr\toutput\nx\tthe b\ny\tc\n")
    assert run("ref.csv", "out.tsv", "--segments", "s.tsv", cwd=small).stdout
    header, x, y, end = (small / "s.tsv").read_text(encoding="utf-8").split("\n")
    assert header.split("\t") == "src sys_out BLEU sentBLEU NIST METEOR ROUGE_L CIDEr".split()
    assert x.startswith("x\tthe b\t") and end == ""
    assert y == "y\tc\t0.0000\t31622.7766\t0.0000\t-\t1.0000\t2.5000"


@pytest.mark.parametrize("arguments, said", [
    (["good.txt", "bad.txt", "--segments", "s.tsv"], "takes the scores of one file"),
    (["good.txt", "--segments", "./good.txt"], "this file is to be read"),
])
def test_segments_of_several_files_or_in_place_of_one_are_refused(arguments, said, small):
    text = (small / "good.txt").read_text()
    result = run("ref.txt", *arguments, cwd=small)
    assert said in result.error and result.stdout == "" and (small / "good.txt").read_text() == text


def test_a_pipe_is_read_once_and_segments_may_go_to_one(small):
    text = (small / "ref.txt").read_bytes()
    read, to = os.pipe()
    os.write(to, text)
    os.close(to)
    os.mkfifo(small / "pipe")
    segments = os.open(small / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    result = run(f"/dev/fd/{read}", "good.txt", "--segments", "pipe", cwd=small)
    assert f"SHA-256 {hashlib.sha256(text).hexdigest()[:16]}." in result.stdout
    assert os.read(segments, 99).startswith(b"src\tsys_out\tBLEU") and (small / "pipe").is_fifo()
    os.close(read)
    os.close(segments)


def test_it_runs_from_any_folder(small):
    command = [sys.executable, str(ROOT / "metrics"), "ref.txt", "good.txt"]
    environment = {**os.environ, "METEOR_DATA": str(small)}
    result = subprocess.run(command, cwd=small, env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and "does not hold METEOR's data" in result.stderr


def test_a_mistake_in_the_last_file_shows_before_any_score(small):
    result = run("ref.txt", "good.txt", "missing.txt", cwd=small)
    assert result.error.startswith("error: missing.txt cannot be read") and result.stdout == ""


def test_importing_and_scoring_need_the_standard_library_alone():
    code = """if True:
        import sys
        class No:
            def find_spec(self, name, path=None, target=None):
                if name in ("torch", "numpy", "safetensors", "filelock", "tqdm", "tiktoken",
                            "snowballstemmer"):
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, No())
        import metrics, metrics.__main__
        metrics.meteor.prepare = lambda references: None  # which needs some
        print(metrics.evaluate([["a pub"]], ["a pub"])["BLEU"])"""
    done = run_python("-c", code)
    assert done.stdout == "1.0\n", done.stderr


# --- Documentation


@pytest.mark.parametrize("module", [metrics, mteval, metrics.meteor, metrics.meteor_data,
                                    metrics.ptb, metrics.rouge, metrics.cider])
def test_worked_examples_hold(module):
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0
