"""ROUGE-L and CIDEr against definitions spelt out, numbers worked out by hand, and on odd input."""

import doctest
import math
from collections import Counter
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metrics import cider, rouge

# On a busy machine a slow example is no failure.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

texts = st.lists(st.sampled_from("abcde"), max_size=9).map(" ".join)
groups = st.lists(texts, min_size=1, max_size=4)
corpora = st.lists(st.tuples(groups, texts), min_size=1, max_size=5)


def cider_of(references, outputs):
    return cider.cider(cider.References(references), outputs)


# --- ROUGE-L


def common_by_definition(a, b):
    @cache
    def longest(i, j):
        if i == len(a) or j == len(b):
            return 0
        if a[i] == b[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    return longest(0, 0)


@patient
@given(texts, texts)
def test_the_common_subsequence_is_the_longest(a, b):
    a, b = a.split(" "), b.split(" ")
    assert rouge.longest_common_subsequence(a, b) == common_by_definition(a, b)


def test_rouge_takes_precision_and_recall_of_different_references():
    score, _ = rouge.rouge_l([["a b x y z", "a"]], ["a b"])
    assert score == pytest.approx(1.0)  # P = 2/2 of the first, R = 1/1 of the second


@pytest.mark.parametrize(
    "references, output, score",
    [
        (["a b"], "c d", 0.0),
        (["a b"], "", 0.0),
        ([""], "a", 0.0),
        ([""], "", 1.0),  # an empty text is one empty token, and two of them are equal
        (["1\xa01/2 a"], "1 1/2", 0.0),  # a token may contain a blank that does not break
    ],
)
def test_rouge_of_one_segment(references, output, score):
    assert rouge.rouge_l([references], [output]) == (score, [score])


# --- CIDEr


def cider_by_definition(references, outputs):
    """The formula with every n-gram of the corpus a dimension of the vectors."""

    def ngrams(text, n):
        tokens = text.split()
        return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))

    scores = []
    for group, output in zip(references, outputs):
        total = 0.0
        for reference in group:
            for n in range(1, 5):
                seen = [{g for text in texts for g in ngrams(text, n)} for texts in references]
                space = sorted({*ngrams(output, n), *ngrams(reference, n)})
                times = [max(1, sum(g in segment for segment in seen)) for g in space]
                rarity = [math.log(len(seen) / segments) for segments in times]
                o = [ngrams(output, n)[g] * weight for g, weight in zip(space, rarity)]
                r = [ngrams(reference, n)[g] * weight for g, weight in zip(space, rarity)]
                norms = math.hypot(*o) * math.hypot(*r)
                delta = max(0, len(output.split()) - 1) - max(0, len(reference.split()) - 1)
                product = sum(min(a, b) * b for a, b in zip(o, r)) / norms if norms else 0.0
                total += math.exp(-(delta**2) / 72) * product / 4
        scores.append(10 * total / len(group))
    return scores


@patient
@given(corpora)
def test_cider_equals_its_definition(corpus):
    references, outputs = zip(*corpus)
    expected = cider_by_definition(references, outputs)
    score, segments = cider_of(references, outputs)
    assert segments == pytest.approx(expected, abs=1e-9)
    assert score == pytest.approx(sum(expected) / len(expected), abs=1e-9)


def test_cider_clips_what_is_repeated_and_punishes_another_length():
    _, (once, twice, _) = cider_of([["a x"], ["a x"], ["y"]], ["a", "a a", "y"])
    # n = 1 only, as no bigram is in common: cosine 1 / sqrt(2); 0 and 1 bigrams against 1
    assert once == pytest.approx(10 / 4 / math.sqrt(2) * math.exp(-1 / 72))
    # |a a| is 2 |a|, but the product stays the same.
    assert twice == pytest.approx(10 / 4 / math.sqrt(2) / 2)


def test_cider_of_a_single_segment_is_zero():
    assert cider_of([["a b c d"]], ["a b c d"]) == (0.0, [0.0])


def test_cider_cuts_at_all_white_space():
    one, other = ["1\xa01/2 a b", "c"], ["1 1/2 a b", "c"]
    score, expected = (cider_of([[text] for text in texts], other)[0] for texts in (one, other))
    assert score == pytest.approx(expected)


@pytest.mark.parametrize("module", [rouge, cider])
def test_worked_examples_hold(module):
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0
