"""The rules that tell which values of a table a sentence says."""

import doctest

import pytest

from experiments import slots
from support.files import InputError


@pytest.mark.parametrize("slot, value, sentence, expected", [
    ("name", "Blue Spice", "The blue  spice is a pub .", "said"),
    ("near", "Café Sicilia", "A pub near Café Rouge .", "missing"),
    ("Type", "coffee shop", "A cafe in the city centre .", "said"),
    ("Type", "pub", "A restaurant .", "contradicted"),
    ("food", "English", "It serves British food .", "said"),
    ("area", "riverside", "It is located in the city center .", "contradicted"),
    ("family friendly", "yes", "It is family - friendly .", "said"),
    ("family friendly", "yes", "It is not family - friendly .", "contradicted"),
    ("family friendly", "no", "It is n't for kids .", "said"),
    ("family friendly", "no", "Children are welcome .", "contradicted"),
    ("family friendly", "no", "A cheap pub .", "missing"),
    ("customer rating", "5 out of 5", "Its customer rating is 5 out of 5 .", "said"),
    ("customer rating", "high", "A pub with high prices .", "missing"),
    ("customer rating", "low", "It has a high customer rating .", "contradicted"),
    ("price", "less than £ 20", "The price range is less than £ 20 .", "said"),
    ("price", "high", "It has a high customer rating .", "missing"),
    ("price", "cheap", "It has high prices .", "contradicted"),
    ("price", "£ 20 - 25", "Prices are £ 20 to £ 25 .", "said"),
    ("customer rating", "5 out of 5", "The Mill is rated 1 out of 5 .", "contradicted"),
    ("customer rating", "high", "It has a customer rating of 3 out of 5 .", "contradicted"),
    ("customer rating", "high", "It is rated 5 out of 5 .", "said"),
    ("family friendly", "yes", "It is family - friendly . It is not far from the river .", "said"),
    ("family friendly", "yes", "It is not cheap . Kids are welcome .", "said"),
])
def test_judgements(slot, value, sentence, expected):
    assert slots.judge(slot, value, sentence) == expected


def test_the_name_of_a_place_says_nothing_about_the_food():
    table = "name : The Mill | food : Indian | near : Raja Indian Cuisine"
    assert slots.count([(table, "The Mill is near Raja Indian Cuisine .")])["food", "missing"] == 1


def test_a_value_may_be_empty_and_no_table_need_have_a_place_nearby():
    assert slots.count([("name : The Mill | near :", "The Mill .")])["near", "said"] == 1
    assert slots.near_twice([("name : The Mill", "The Mill .")]) == 0


def test_values_that_the_rules_do_not_know_are_told_and_not_judged():
    with pytest.raises(InputError, match="not food : thai"):
        slots.judge("food", "Thai", "It serves Thai food .")


def test_a_place_nearby_is_named_twice_or_not():
    table = "name : The Mill | near : Café Rouge | area : riverside"
    twice = "The Mill is near Café Rouge . It is by the river near café rouge ."
    once, never = "It is near Café Rouge .", "A pub ."
    pairs = [(table, twice), (table, once), (table, never), ("name : Café Rouge", twice)]
    assert slots.near_twice(pairs) == 1 / 3


TABLES = "name : The Mill | area : riverside | near : Café Rouge", "name : The Inn | Type : pub"
REFERENCES = ["The Mill is by the river near Café Rouge .", "The Mill is near Café Rouge ."]


@pytest.fixture
def data(tmp_path):
    """A folder with a test set of two tables, the first of which has both references."""
    lines = [f"{TABLES[0]}||{sentence}\n" for sentence in REFERENCES]
    lines.append(f"{TABLES[1]}||The Inn is a pub .\n")
    (tmp_path / "src1_test.txt").write_text("".join(lines), encoding="utf-8")
    return tmp_path


def test_the_command_prints_for_each_slot_what_runs_and_references_leave_out(
        data, monkeypatch, capsys):
    outputs = "The Mill in the city centre is near Café Rouge , Café Rouge .\nA pub .\n"
    (data / "outputs.txt").write_text(outputs, encoding="utf-8")
    (data / "tables.txt").write_text("\n".join(TABLES) + "\n", encoding="utf-8")
    (data / "scores.json").write_text('{"signature": {}}', encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["slots.py", str(data), "--data", str(data)])
    slots.main()
    lines = capsys.readouterr().out.strip().splitlines()
    lines = [line.removeprefix(str(data)).split() for line in lines]
    assert lines == [
        ["missing,", "%", "all", "Type", "area", "name", "near"],
        ["20.0", "0.0", "0.0", "50.0", "0.0"],
        ["the", "references", "12.5", "0.0", "50.0", "0.0", "0.0"],
        [],
        ["contradicted,", "%", "all", "Type", "area", "name", "near"],
        ["20.0", "0.0", "100.0", "0.0", "0.0"],
        ["the", "references", "0.0", "0.0", "0.0", "0.0", "0.0"],
        [],
        ["near", "twice,", "%"],
        ["100.0"],
        ["the", "references", "0.0"],
    ]


def test_worked_examples_hold():
    result = doctest.testmod(slots)
    assert result.failed == 0 and result.attempted > 0
