"""CIDEr, as the caption evaluation of MS COCO computes it (it is what the E2E challenge runs)."""

import math
from collections import Counter
from typing import NamedTuple

LONGEST = 4  # n-grams of 1 to 4 tokens
SIGMA = 6.0


class Text(NamedTuple):
    counts: list  # [n - 1] -> how often the text has each of its n-grams
    norms: list  # [n - 1] -> the length of the vector of their weights


class References:
    """The references of a corpus, counted and weighed.

    references: for each segment a list of texts, each as from `ptb.tokenize`. The weight of an
    n-gram in a text is its count there times its rarity:

        rarity = ln(number of segments / number of segments with the n-gram in any reference)

    >>> references = References([["a pub", "a cheap pub"], ["a bar"]])
    >>> references.rarity[("a",)], references.rarity[("a", "bar")], references.unseen
    (0.0, 0.6931471805599453, 0.6931471805599453)
    """

    def __init__(self, references):
        groups = [[_ngrams(reference) for reference in group] for group in references]
        segments_with = Counter()
        for group in groups:
            segments_with.update(set().union(*(ngrams for counts in group for ngrams in counts)))
        self.unseen = math.log(len(groups))  # as rare as an n-gram of a single segment
        self.rarity = {g: self.unseen - math.log(n) for g, n in segments_with.items()}
        self.groups = [[self.weigh(counts) for counts in group] for group in groups]

    def weigh(self, counts):
        """A Text, from how often it has each of its n-grams."""
        rarity, unseen, norms = self.rarity, self.unseen, []
        for times in counts:
            norms.append(math.hypot(*[n * rarity.get(g, unseen) for g, n in times.items()]))
        return Text(counts, norms)


def cider(references, outputs):
    """CIDEr-D (Vedantam et al. 2015): n-grams that set a segment apart count for more.

        CIDEr = 10 * mean over the references and over n = 1..4 of
                exp(-(l_o - l_r)^2 / (2 sigma^2)) * sum of min(o, r) * r / (|o| |r|)

    The sum is over n-grams; o, r: their weights in the output and in the reference; |o|, |r|: the
    lengths of these vectors; l_o, l_r: the lengths of the texts. So it is the cosine of two
    vectors, but that repeating a rare n-gram gains nothing (the minimum), and that another length
    costs something (the first factor, sigma = 6). The score of a corpus is the mean over its
    segments. (The paper stems the words; this does not. The challenge just says CIDEr.)

    references: a `References`, outputs: for each segment an output as from `ptb.tokenize`. Returns
    the score of the corpus and the list of its segments' scores.

    Below, "a" weighs nothing, as both segments have it, and all else as much. So for n = 1 the
    cosine is that of (cheap, pub) with (pub), for n = 2 nothing is common to both, and the
    reference has no longer n-grams.

    >>> score, segments = cider(References([["a pub"], ["a bar"]]), ["a cheap pub", "wine"])
    >>> [round(segment, 4) for segment in segments]
    [1.7434, 0.0]
    >>> round(10 * math.exp(-1 / 72) * (1 / math.sqrt(2)) / 4, 4)
    1.7434
    """
    segments = []
    for group, output in zip(references.groups, outputs):
        output = references.weigh(_ngrams(output))
        total = sum(_similarity(output, text, references.rarity) for text in group)
        segments.append(10 * total / len(group))
    return sum(segments) / len(segments), segments


def _similarity(output, reference, rarity):
    total = 0.0
    for o, r, norm_o, norm_r in zip(output.counts, reference.counts, output.norms, reference.norms):
        if norm_o and norm_r:
            common = (g for g in o if g in r)
            product = sum(min(o[g], r[g]) * r[g] * rarity[g] ** 2 for g in common)
            total += product / (norm_o * norm_r)
    difference = output.counts[0].total() - reference.counts[0].total()
    return math.exp(-(difference**2) / (2 * SIGMA**2)) * total / LONGEST


def _ngrams(text):
    """[n - 1] -> how often a text has each of its n-grams."""
    tokens = text.split()  # at all white space: "1 1/2", one token to the tokenizer, is two here
    return [Counter(zip(*(tokens[start:] for start in range(n)))) for n in range(1, LONGEST + 1)]
