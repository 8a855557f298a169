"""The rules that tell which values of a table a sentence says."""

import doctest

import pytest

from bench import slots
from common import InputError


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
])
def test_judgements(slot, value, sentence, expected):
    assert slots.judge(slot, value, sentence) == expected


def test_the_name_of_a_place_says_nothing_about_the_food():
    table = "name : The Mill | food : Indian | near : Raja Indian Cuisine"
    assert slots.count([(table, "The Mill is near Raja Indian Cuisine .")])["food", "missing"] == 1


def test_values_that_the_rules_do_not_know_are_told_and_not_judged():
    with pytest.raises(InputError, match="not food : thai"):
        slots.judge("food", "Thai", "It serves Thai food .")


def test_a_place_nearby_is_named_twice_or_not():
    table = "name : The Mill | near : Café Rouge | area : riverside"
    twice = "The Mill is near Café Rouge . It is by the river near café rouge ."
    pairs = [(table, twice), (table, "It is near Café Rouge ."), (table, "A pub ."), ("name : Café Rouge", twice)]
    assert slots.near_twice(pairs) == 1 / 3


def test_worked_examples_hold():
    result = doctest.testmod(slots)
    assert result.failed == 0 and result.attempted > 0
