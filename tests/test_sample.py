"""The sample data: what data/sample/README.md says of them, checked."""

import itertools
import random
import re

import pytest
from conftest import ROOT

from data.sample import make as grammar

SAMPLE = ROOT / "data" / "sample"
SPLITS = ("train", "valid", "test")
E2E_KEYS = (
    "name", "Type", "food", "price", "customer rating", "area", "family friendly", "near")


def read(path):
    """(table, sentence) for each line, both as they stand in the file."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [tuple(line.split("||")) for line in lines if line]


def slots(table):
    return dict(slot.split(" : ", 1) for slot in table.split(" | "))


def says(sentence, phrase):
    """Whether the phrase is in the sentence as whole tokens.

    A sentence may begin with it, so capitals do not count.
    """
    return f" {phrase} ".lower() in f" {sentence} ".lower()


def mentions(sentence, key, value):
    """Whether the sentence gives this slot this value, in one of the grammar's ways."""
    if key == "area":
        return says(sentence, grammar.AREAS[value])
    if key != "family friendly":
        return says(sentence, value)
    phrases = grammar.FAMILY[value]
    if value == "yes":
        phrases = (*phrases, "family - friendly")
        for no in grammar.FAMILY["no"]:  # "is not family - friendly" has "family - friendly" in it
            sentence = sentence.replace(no, "")
    return any(says(sentence, phrase) for phrase in phrases)


@pytest.fixture(scope="module")
def sample():
    return {split: read(SAMPLE / f"src1_{split}.txt") for split in SPLITS}


def test_making_it_again_gives_the_same_files_byte_for_byte():
    for split, lines in grammar.make().items():
        assert "".join(lines).encode() == (SAMPLE / f"src1_{split}.txt").read_bytes()


def test_sizes_are_those_the_card_gives(sample):
    card = (SAMPLE / "README.md").read_text(encoding="utf-8")
    sizes = {"train": (2000, 1000), "valid": (212, 60), "test": (305, 60)}
    for split, (lines, tables) in sizes.items():
        assert (len(sample[split]), len({table for table, _ in sample[split]})) == (lines, tables)
        assert f"| `src1_{split}.txt` | {lines:,} | {tables:,} |" in card


def test_every_line_has_the_form_of_e2e(sample):
    name, *others = [rf"{key} : [^|:]+" for key in E2E_KEYS]
    form = re.compile(name + "".join(rf"( \| {key})?" for key in others))  # others: any, in order
    for table, sentence in itertools.chain(*sample.values()):
        assert form.fullmatch(table) and 3 <= len(slots(table)) <= 8
        assert re.fullmatch(r"[A-Z][^|]* \. ", sentence)  # ends in a blank, as E2E's sentences do
        for text in (table, sentence[:-1]):
            # Single blanks only; and tokenised: punctuation stands alone.
            assert re.fullmatch(r"[A-Za-z0-9£:|,.-]+( [A-Za-z0-9£:|,.-]+)*", text)
            assert not re.search(r"[^ ][£,.-]|[£,-][^ ]|\.\w", text)


def test_no_table_of_validation_or_test_is_in_another_file(sample):
    tables = []
    for split in SPLITS:
        tables.append({frozenset(slots(table).items()) for table, _ in sample[split]})
    for one, other in itertools.combinations(tables, 2):
        assert not one & other


@pytest.mark.parametrize("split, fewest, most", [("valid", 3, 4), ("test", 4, 6)])
def test_a_table_has_several_references_together_and_half_of_the_names_are_new(
        sample, split, fewest, most):
    tables = set()
    for table, lines in itertools.groupby(sample[split], key=lambda line: line[0]):
        assert table not in tables  # one run of lines for each table
        tables.add(table)
        sentences = [sentence for _, sentence in lines]
        assert fewest <= len(set(sentences)) == len(sentences) <= most
    names, known = ({slots(table)["name"] for table, _ in sample[which]}
                    for which in (split, "train"))
    assert len(names) == 60 and len(names - known) == 30
    assert set(" ".join(names).split()) <= set(" ".join(known).split())


@pytest.mark.parametrize("split", [
    "valid", "test", pytest.param("train", marks=pytest.mark.long)])
def test_a_sentence_says_every_slot_of_its_table_and_nothing_against_it(sample, split):
    values = {"name": grammar.NAMES, **grammar.VALUES}
    for table, sentence in sample[split]:
        table = slots(table)
        for key in E2E_KEYS:
            said = [value for value in values[key] if mentions(sentence, key, value)]
            expected = [table[key]] if key in table else []
            assert said == expected, f"{key} in: {sentence}"


def test_articles_agree(sample):
    for _, sentence in itertools.chain(*sample.values()):
        for article, word in re.findall(r"\b([Aa]n?) (\w+)", sentence):
            assert (article.lower() == "an") == (word[0] in "aeiouAEIOU"), sentence


def test_the_grammar_can_say_any_set_of_slots_in_six_ways():
    rng = random.Random(0)
    for n in range(2, 8):
        for keys in itertools.combinations(E2E_KEYS[1:], n):
            values = {key: rng.choice(grammar.VALUES[key]) for key in keys}
            table = {"name": "The Tin Hare"} | values
            # describe asserts that no slot is left
            sentences = {grammar.describe(rng, table) for _ in range(80)}
            assert len(sentences) >= 6, table


def test_no_name_landmark_or_sentence_is_from_e2e(sample, shared):
    ours, theirs = [], []
    for split in SPLITS:
        ours += sample[split]
        theirs += read(shared / "e2e" / f"src1_{split}.txt")
    our_sentences = {sentence.strip().lower() for _, sentence in ours}
    assert not our_sentences & {sentence.strip().lower() for _, sentence in theirs}
    proper = set()
    for table in {table for table, _ in theirs}:
        values = slots(table)
        proper |= {values[key].strip() for key in ("name", "near") if key in values}
    assert len(proper) > 50
    text = "".join(f" {table} {sentence}\n" for table, sentence in ours)
    for words in proper:
        assert f" {words} " not in text, words
