"""The rules that tell which values of a table a sentence says."""

import doctest
import re

import pytest
from conftest import run_here

from experiments import slots
from support.commands import InputError


@pytest.mark.parametrize("slot, value, sentence, expected", [
    ("name", "Blue Spice", "The blue  spice is a pub .", "said"),
    ("near", "Café Sicilia", "A pub near Café Rouge .", "missing"),
    ("Type", "coffee shop", "A cafe in the city centre .", "said"),
    ("Type", "pub", "A restaurant .", "contradicted"),
    ("food", "English", "It serves British food .", "said"),
    ("area", "riverside", "It is located in the city center .", "contradicted"),
    ("family friendly", "yes", "It is not family - friendly .", "contradicted"),
    ("family friendly", "no", "It is n't for kids .", "said"),
    ("family friendly", "no", "Children are welcome .", "contradicted"),
    ("customer rating", "high", "A pub with high prices .", "missing"),
    ("price", "less than £ 20", "The price range is less than £ 20 .", "said"),
    ("price", "cheap", "It has high prices .", "contradicted"),
    ("price", "£ 20 - 25", "Prices are £ 20 to £ 25 .", "said"),
    ("customer rating", "5 out of 5", "The Mill is rated 1 out of 5 .", "contradicted"),
    ("customer rating", "high", "It is rated 5 out of 5 .", "said"),
    ("family friendly", "yes", "It is family - friendly . It is not far from the river .", "said"),
])
def test_judgements(slot, value, sentence, expected):
    assert slots.judge(slot, value, sentence) == expected


def test_the_name_of_a_place_says_nothing_about_the_food_and_a_value_may_be_empty():
    table = "name : The Mill | food : Indian | near : Raja Indian Cuisine"
    assert ("food", "missing") in slots.judgements([(table, "Near Raja Indian Cuisine .")])
    assert slots.judgements([("near : | area : riverside", "By the river .")]) == [
        ("near", "said"), ("area", "said")]


def test_values_that_the_rules_do_not_know_are_told_and_not_judged():
    with pytest.raises(InputError, match="not food : thai"):
        slots.judge("food", "Thai", "It serves Thai food .")


def test_faults_are_shares_of_the_values_and_places_nearby_named_twice_of_those_there_are():
    pairs = [("name : Ann | area : riverside", "Ann in the city ."),
             ("name : Ben | near : Cid", "Ben ."),
             ("name : Dora | near : Cid", "Dora by cid , Cid , Cid ."),
             ("name : Cid", "Cid , Cid .")]
    assert slots.faults(pairs) == {"left out": 14.3, "contradicted": 14.3, "near twice": 50.0}
    assert slots.near_twice(pairs[3:]) == 0


def test_the_command_prints_for_each_slot_what_runs_and_references_leave_out(tmp_path):
    first, second = "name : Mill | area : riverside | near : Café Rouge", "name : Inn | Type : pub"
    for name, text in {
            "src1_test.txt": f"{first}||Mill is by the river near Café Rouge .\n"
                             f"{first}||Mill is near Café Rouge .\n{second}||Inn is a pub .",
            "tables.txt": f"{first}\n{second}", "scores.json": '{"signature": {}}',
            "outputs.txt": "Mill in the city is near Café Rouge , Café Rouge .\nA pub ."}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    head, run, references = run_here(
        slots.main, tmp_path, "--data", tmp_path).stdout.splitlines()
    assert re.split("  +", head)[1:] == [
        "contradicted", "near twice", "missing: all", "Type", "area", "name", "near"]
    assert run.split()[1:] == "20.0 100.0 20.0 0.0 0.0 50.0 0.0".split()
    assert references.split()[2:] == "0.0 0.0 12.5 0.0 50.0 0.0 0.0".split()
    (tmp_path / "tables.txt").write_text("name : Mill\nname : Inn", encoding="utf-8")
    assert "describes other tables" in run_here(slots.main, tmp_path, "--data", tmp_path).error


def test_worked_examples_hold():
    result = doctest.testmod(slots)
    assert result.failed == 0 and result.attempted > 0
