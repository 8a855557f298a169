"""All scores against the official ones, METEOR's peculiarities, and its data."""

import gzip
import json
import re
import shutil
import zipfile

import pytest
from conftest import ROOT, run_here, run_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import metrics
from metrics import __main__ as command
from metrics import download, meteor_data, ptb
from metrics import meteor as meteor_module
from metrics.meteor import EXACT, SYNONYM, Meteor, align, normalize, score, stem
from metrics.meteor_data import KNOWN, Lexicon
from support.commands import InputError
from support.files import sha256
from test_download import server  # noqa: F401

# On a busy machine a slow example is no failure.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=40)

# --------------------------------------------------------------------------------------------------
# Data: METEOR's own, and a few lines in the same form
# --------------------------------------------------------------------------------------------------

LISTS = {
    "function/english.words": "the\nis\na\nof\nthan\nor\n",
    "synonym/english.synsets": "cheap\n1 2\ninexpensive\n2\npub\n3\ntavern\n3 4\nbe\n5\n"
                               "child\n6\nkid\n6\ndine\n7\neat\n7\n",
    "synonym/english.exceptions": "be\nis was\nchild\nchildren\n",
}
ENTRIES = [
    ("cheap", "low cost"), ("low cost", "cheap"), ("pub", "bar"), ("is a pub", "the pub is"),
    ("the pub is", "is a pub"), ("the", "a"), ("a", "the"), ("not cheap", "more than cheap"),
    ("kid friendly", "good for children"), ("bar", "pub"), ("low", "cheap"), ("unseen", "phrase"),
    ("is", "pub is a"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with small data in the form of METEOR's."""
    folder = tmp_path_factory.mktemp("meteor")
    (folder / "data").mkdir()
    with zipfile.ZipFile(folder / meteor_data.JAR, "w") as jar:
        for name, content in LISTS.items():
            jar.writestr(name, content)
    table = "".join(f"0.5\n{a}\n{b}\n" for a, b in ENTRIES)
    (folder / meteor_data.TABLE).write_bytes(gzip.compress(table.encode()))
    return folder


def known_files(folder):
    return {name: ((folder / name).stat().st_size, sha256(folder / name)) for name in KNOWN}


@pytest.fixture
def small(folder, tmp_path, monkeypatch):
    """The same folder, known as METEOR's data; what is cached goes to an empty folder."""
    monkeypatch.setattr(meteor_data, "KNOWN", known_files(folder))
    monkeypatch.setattr(meteor_data, "OWN_FOLDER", tmp_path / "own")
    monkeypatch.setattr(meteor_data.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("METEOR_DATA", raising=False)
    return folder


@pytest.fixture(scope="module")
def official_data():
    """The folder of METEOR's own data."""
    folder = meteor_data.find()
    if folder is None:
        pytest.skip(meteor_module.HOW_TO_GET)
    return folder


# --------------------------------------------------------------------------------------------------
# The official numbers
# --------------------------------------------------------------------------------------------------


def scores(references, outputs, folder):
    """(the score of the corpus, a list of the score of each output) with the data of a folder."""
    return Meteor(references, folder).score(outputs)


def read_tsv(path):
    return [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n") if line]


def statistics_of(text):
    return tuple(int(float(number)) for number in text.split())


@pytest.mark.parametrize("references", ["adversarial/references1.txt", *(
    pytest.param(name, marks=pytest.mark.long) for name in (
        "adversarial/references2.txt", "adversarial/references3.txt", "references.txt",
        "testset_w_refs.csv"))])
def test_scores_as_tsv_equal_the_official_ones_to_four_decimals(references, official_data, shared):
    folder = shared / "metrics"
    rows = [row for row in read_tsv(folder / "official.tsv") if row[1] == references]
    assert rows
    readme = (ROOT / "metrics" / "README.md").read_text(encoding="utf-8")
    (to_tsv,) = re.findall("'(import json.*)'", readme)
    for name, _, *scores in rows:
        printed = run_here(command.main, folder / references, folder / name, "--json").stdout
        line = "\t".join(["OUTPUTS", *scores]) + "\n"
        assert run_python("-c", to_tsv, input=printed).stdout == line


@pytest.mark.long
@pytest.mark.parametrize("name, references", [
    *((f"{name}.txt", "references.txt") for name in ("paper", "paper-medium", "final_preflen1")),
    ("slug.tsv", "testset_w_refs.csv"), ("zhaw2.tsv", "testset_w_refs.csv")])
def test_segments_are_scored_as_by_the_official_script(
        name, references, official_data, shared, tmp_path):
    """The file to the byte; and of METEOR all digits but the last, and the 23 numbers."""
    folder = shared / "metrics"
    run_here(command.main, folder / references, folder / name, "--segments", tmp_path / "segments")
    official = (folder / "segments" / f"{name}.tsv").read_bytes()
    assert (tmp_path / "segments").read_bytes() == official
    (corpus,) = metrics.read_corpora(folder / references, [folder / name])
    prepared, outputs = metrics.Scorer(corpus.references).meteor, ptb.tokenize(corpus.outputs)
    *rows, (_, theirs) = read_tsv(folder / "meteor_stats" / f"{name}.tsv")
    assert prepared.statistics(outputs) == [statistics_of(numbers) for _, numbers in rows]
    total, segments = prepared.score(outputs)
    theirs = [float(theirs), *(float(segment) for segment, _ in rows)]
    assert [total, *segments] == pytest.approx(theirs, rel=1e-15)  # last bits: pow


@pytest.mark.long
def test_pairs_made_to_find_mistakes_have_the_official_numbers(shared, official_data):
    outputs, references, theirs = zip(*read_tsv(shared / "metrics" / "meteor_stress.tsv"))
    prepared = Meteor([[json.loads(reference)] for reference in references], official_data)
    ours = prepared.statistics(map(json.loads, outputs))
    assert ours == list(map(statistics_of, theirs)) and len(ours) == 4000


def test_normalised_texts_and_stems_equal_the_official_ones(shared):
    rows = read_tsv(shared / "metrics" / "meteor_norm.tsv")
    rows = [(json.loads(text), json.loads(theirs)) for text, theirs in rows]
    stems = read_tsv(shared / "metrics" / "stems.tsv")
    assert (len(rows), len(stems)) == (3000, 25124)
    assert [text for text, theirs in rows if " ".join(normalize(text)) != theirs] == []
    assert [word for word, theirs in stems if stem(word) != theirs] == []


# --------------------------------------------------------------------------------------------------
# The formula
# --------------------------------------------------------------------------------------------------


def test_score_of_a_pair_worked_out_by_hand(small):
    # Of "the pub is cheap" and "the tavern was inexpensive and" match: the (exact, function word),
    # pub and tavern, is and was, cheap and inexpensive (synonyms). "was" is a content word in this
    # small list of function words.
    total, (segment,) = scores([["the tavern was inexpensive and"]], ["the pub is cheap"], small)
    p = (0.25 + 0.8 * (2 * 0.75 + 0.25)) / (2 * 0.25 + 2 * 0.75)
    r = (0.25 + 0.8 * 3 * 0.75) / (0.25 + 4 * 0.75)
    fragmentation = 1 / ((4 + 4) / 2)
    expected = 1 / (0.15 / p + 0.85 / r) * (1 - 0.6 * fragmentation**0.2)
    assert segment == total == pytest.approx(expected, rel=1e-14)


def test_paraphrases_are_matched_in_both_directions(small):
    prepared = Meteor([["cheap pub"], ["low cost pub"], ["good for children"]], small)
    one, other, last = prepared.statistics(["low cost pub", "low cost pub", "kid friendly"])
    assert [one[16:20], other[16:20], last[16:20]] == [(2, 1, 0, 0), (0, 0, 0, 0), (2, 3, 0, 0)]
    assert score(last) == pytest.approx(0.6)


def test_the_corpus_score_is_that_of_the_sums(small):
    references, outputs = [["the pub is cheap"], ["a bar", "low cost"]], ["cheap pub", "low cost"]
    first, second = Meteor(references, small).statistics(outputs)
    assert second == (2, 2, 0, 0, 2, 2, 0, 0, *[0] * 12, 1, 2, 2)
    sums = [a + b for a, b in zip(first, second)]
    sums[-3] -= 1  # the second output is one chunk that leaves no word unmatched
    assert scores(references, outputs, small) == (score(sums), [score(first), 1.0])


@pytest.mark.parametrize("word, java", [("restaurants", 888085718), ("😀", 1772899)])
def test_words_have_javas_hash(word, java):
    """As Java's String.hashCode gives it, without its sign."""
    assert meteor_module.key(word) == java


@pytest.mark.parametrize("output, reference, numbers", [
    # A word is a function word on its own side only.
    ("q4 pub", "or pub", (2, 2, 0, 1, 2, 1, 0, 1, *[0] * 12, 1, 2, 2)),
    ("pubs", "r7b", (1, 1, 0, 0, *[0] * 4, 1, 1, *[0] * 10, 1, 1, 1)),  # only their stems are
])
def test_words_with_the_same_hash_are_equal(output, reference, numbers, small):
    assert Meteor([[reference]], small).statistics([output]) == [numbers]


@pytest.mark.parametrize(
    "word, relatives",
    [
        ("cheap", {"1", "2"}),
        ("pubs", {"3"}),
        ("was", {"5"}),  # an exception
        ("children", {"6"}),
        ("dining", {"7"}), ("eating", {"7"}),
        ("kidss", set()), ("s", set()),
    ],
)
def test_synsets_of_inflected_words(word, relatives, small):
    assert Lexicon(small).synsets(word) == relatives


# --------------------------------------------------------------------------------------------------
# The search
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output, reference, found", [
    # Synonyms count 0; the distance of a match is charged to the path that does without it.
    ("BaB", "aab", [(0, 1)]),
    # A match without a rival is taken by all paths; of equal paths the first stays first.
    ("AbB", "Bbba", [(0, 2), (2, 1), (3, 0)]),
    # Of the paths 40 go on, and neither more nor fewer.
    ("aabAAAa", "aAAbabA", [(0, 0), (1, 3), (2, 4), (4, 1), (5, 2), (6, 5)]),
    ("bacAAA", "aaaacc", [(0, 3), (1, 4), (2, 5), (3, 1), (4, 2)]),
    ("abaab", "abaab", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]),  # what `candidates` relies on
])
def test_the_search_has_the_peculiarities_of_meteors_program(output, reference, found):
    """Tokens are letters; a and A are synonyms."""
    candidates = []
    for word in reference:
        equal = [(i, 1, 1, EXACT) for i, other in enumerate(output) if other == word]
        related = [(i, 1, 1, SYNONYM) for i, other in enumerate(output) if other.swapcase() == word]
        candidates.append(equal + related)
    assert [(j, i) for j, (i, *_) in align(candidates, len(output))] == found


# --------------------------------------------------------------------------------------------------
# Properties
# --------------------------------------------------------------------------------------------------

odd_texts = st.text(st.characters(codec="utf-8") | st.sampled_from("a.'-, \n\t\x00\x1f😀é"),
                    max_size=30)


@pytest.fixture
def without_cache(small, monkeypatch):
    """The small data, their table in memory: it need not be read and cached again and again."""
    monkeypatch.setattr(meteor_data, "paraphrases", lambda folder, phrases: ENTRIES)
    return small


@settings(patient, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(odd_texts, min_size=1), odd_texts)
def test_odd_texts_have_scores(without_cache, references, output):
    total, (segment,) = scores([references], [output], without_cache)
    assert 0 <= total <= 1 and 0 <= segment <= 1
    total, (segment,) = scores([[*references, output]], [output], without_cache)
    assert total == segment == pytest.approx(1.0 if normalize(output) else 0.0)


# --------------------------------------------------------------------------------------------------
# Finding the data
# --------------------------------------------------------------------------------------------------


def test_without_data_there_is_no_score(small):
    assert meteor_module.prepare([["a pub"]]) is None
    assert "pip install pycocoevalcap" in meteor_module.HOW_TO_GET


def test_data_are_found_where_the_user_says_and_where_they_are_installed(
    small, tmp_path, monkeypatch
):
    monkeypatch.setenv("METEOR_DATA", str(small))
    assert meteor_data.find() == small
    monkeypatch.undo()
    monkeypatch.setattr(meteor_data, "KNOWN", known_files(small))
    monkeypatch.setattr(meteor_data, "OWN_FOLDER", tmp_path / "own")
    package = tmp_path / "site" / "pycocoevalcap"
    shutil.copytree(small, package / "meteor")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert meteor_data.find() == package / "meteor"


@pytest.mark.parametrize("name", [meteor_data.JAR, meteor_data.TABLE])
def test_damaged_data_are_an_error(name, small, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(small, folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is not the file of METEOR 1.5"):
        scores([["a pub"]], ["a pub"], folder)


def test_download(small, server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "KNOWN", meteor_data.KNOWN)
    monkeypatch.setattr(download, "OWN_FOLDER", meteor_data.OWN_FOLDER)
    monkeypatch.setattr(download, "URL", server.url)
    shutil.copytree(small, server.files, dirs_exist_ok=True)
    (server.files / meteor_data.TABLE).write_bytes(b"something else")
    assert "not the known file" in run_here(download.main).error
    assert meteor_data.find() is None
    shutil.copy(small / meteor_data.TABLE, server.files / meteor_data.TABLE)
    assert run_here(download.main).error is None
    assert meteor_data.find() == tmp_path / "own"
    downloaded = scores([["a cheap pub"]], ["low cost pub"], meteor_data.find())
    assert downloaded == scores([["a cheap pub"]], ["low cost pub"], small)


# --------------------------------------------------------------------------------------------------
# The table and its cache
# --------------------------------------------------------------------------------------------------

PHRASES = meteor_data.phrases([("a", "cheap", "pub"), ("the", "pub", "is", "good")])
KEPT = [entry for entry in ENTRIES if entry[0] not in ("not cheap", "kid friendly", "unseen")]


@pytest.fixture
def scans(monkeypatch):
    """A list that grows whenever the whole table is read."""
    scans, scan = [], meteor_data.scan
    monkeypatch.setattr(meteor_data, "scan", lambda *arguments: scans.append(1) or scan(*arguments))
    return scans


def test_entries_that_touch_a_reference_are_kept_in_their_order_and_cached(small, scans):
    for phrases, kept, count in ((PHRASES, KEPT, 1), ({"nothing"}, [], 2)):
        for _ in range(2):
            assert meteor_data.paraphrases(small, phrases) == kept and len(scans) == count
    assert len(list(meteor_data.OWN_FOLDER.iterdir())) == 2


@pytest.mark.parametrize("damage", [
    lambda content: content[:-9],
    lambda content: content[:30] + bytes([content[30] ^ 1]) + content[31:],
])
def test_a_broken_cache_is_made_again(damage, small, scans):
    meteor_data.paraphrases(small, PHRASES)
    (cache,) = meteor_data.OWN_FOLDER.iterdir()
    whole = gzip.decompress(cache.read_bytes())
    cache.write_bytes(damage(cache.read_bytes()))
    assert meteor_data.paraphrases(small, PHRASES) == KEPT and len(scans) == 2
    assert gzip.decompress(cache.read_bytes()) == whole
    assert list(meteor_data.OWN_FOLDER.iterdir()) == [cache]


def test_where_no_cache_can_be_written_the_table_is_read_each_time_and_it_says_so(
    small, scans, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(meteor_data, "OWN_FOLDER", tmp_path / "file")
    for count in (1, 2):
        assert meteor_data.paraphrases(small, PHRASES) == KEPT and len(scans) == count
        stderr = capsys.readouterr().err
        assert "looked up anew in each call" in stderr and f"{tmp_path / 'file'}/" in stderr
