"""ROUGE-L and CIDEr against their definitions spelt out."""

import math
from collections import Counter
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metrics import cider, rouge

# On a busy machine a slow example is no failure.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# A token may contain a blank that does not break: ROUGE-L leaves it whole, CIDEr cuts it. An empty
# text is one empty token to ROUGE-L, and none to CIDEr.
texts = st.lists(st.sampled_from([*"abcd", "b\xa0c"]), max_size=9).map(" ".join)
corpora = st.lists(st.tuples(st.lists(texts, min_size=1, max_size=4), texts), min_size=1,
                   max_size=5)


def rouge_by_definition(group, output):
    @cache
    def longest(a, b):
        if not a or not b:
            return 0
        if a[0] == b[0]:
            return 1 + longest(a[1:], b[1:])
        return max(longest(a[1:], b), longest(a, b[1:]))

    output, *group = (tuple(text.split(" ")) for text in (output, *group))
    precision = max(longest(output, reference) / len(output) for reference in group)
    recall = max(longest(output, reference) / len(reference) for reference in group)
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision) if recall else 0.0


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
def test_rouge_and_cider_equal_their_definitions(corpus):
    references, outputs = zip(*corpus)
    ours = rouge.rouge_l(references, outputs), cider.cider(cider.References(references), outputs)
    theirs = list(map(rouge_by_definition, references, outputs))
    for (score, segments), expected in zip(ours, (theirs, cider_by_definition(references, outputs))):
        assert segments == pytest.approx(expected, abs=1e-9)
        assert score == pytest.approx(sum(expected) / len(expected), abs=1e-9)
