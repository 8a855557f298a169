"""BLEU and NIST as NIST's own script mteval-v13a.pl computes them, which the E2E challenge runs.

Both compare the n-grams of an output with those of its references, and both are scores of a whole
corpus: n-grams are counted segment by segment, the counts are added up, and only the sums enter a
formula. So there are three steps here: `tokenize` cuts a text into tokens, `count` counts once for
both scores, `bleu` and `nist` are the two formulas.
"""

import math
import re
import string
from collections import Counter
from typing import NamedTuple

LONGEST = 5  # NIST looks at n-grams of 1 to 5 tokens, BLEU at those of 1 to 4

# Perl's white space, spelt out: Python's \s would also match U+001C to U+001F.
WHITE_SPACE = re.compile(r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
SPLITS = (
    (re.compile(r"([!-&(-+/:-@\[-`{-~])"), r" \1 "),  # ASCII punctuation, but for ' , - .
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # period, comma, unless between two digits
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),  # a hyphen after a digit
)


def tokenize(text):
    """Cut a text into the tokens that BLEU and NIST compare (the rules for English of mteval-v13a).

    Only ASCII counts as a letter, a digit or punctuation: É stays a capital, and £20 is one token.

    >>> tokenize("The Café (family-friendly) costs £20-25.")
    ['the', 'café', '(', 'family-friendly', ')', 'costs', '£20', '-', '25', '.']
    """
    text = WHITE_SPACE.sub(" ", text).replace("<skipped>", "")
    for entity, character in ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} ".translate(ASCII_LOWER)  # the blanks are neighbours for the rules
    for pattern, replacement in SPLITS:
        text = pattern.sub(replacement, text)
    return [token for token in text.split(" ") if token]


class References(NamedTuple):
    """What the two formulas need to know of the references. An n-gram is a tuple of n tokens."""

    ngrams: Counter  # n-gram -> how often all the references of all segments have it
    most: list  # for each segment, n-gram -> how often it stands in the one reference that has most
    lengths: list  # for each segment, the lengths of its references in tokens


class Counts(NamedTuple):
    """What they need to know of the outputs."""

    matched: Counter  # n-gram -> how often outputs have it, each segment clipped by its references
    output_ngrams: list  # [n] -> how many n-grams the outputs have; [1] is their length in tokens
    closest_length: int  # sum over the segments of the length of the closest reference
    references: References


def count_references(references):
    """Count the n-grams of the references, for each segment a list of lists of tokens."""
    in_all, most = Counter(), []
    for group in references:
        most_often = Counter()
        for reference in group:
            ngrams = _ngrams(reference)
            in_all.update(ngrams)
            most_often |= Counter(ngrams)  # of each, the larger count
        most.append(most_often)
    return References(in_all, most, [[*map(len, group)] for group in references])


def count(references, outputs):
    """Count the n-grams of the outputs, for each segment a list of tokens, and match them.

    references: as from `count_references`. Clipping: an n-gram of an output counts as often as it
    stands there, but no more often than in the one reference that has it most often. This keeps
    "the the the" from matching three times:

    >>> references = count_references([["the cat the".split(), "a cat".split()]])
    >>> counts = count(references, ["the the the".split()])
    >>> counts.matched, counts.output_ngrams[1]
    (Counter({('the',): 2}), 3)
    """
    matched = Counter()
    output_ngrams = [0] * (LONGEST + 1)
    closest_length = 0
    for most_often, lengths, output in zip(references.most, references.lengths, outputs):
        matched.update(Counter(_ngrams(output)) & most_often)  # of each, the smaller count
        for n in range(1, LONGEST + 1):
            output_ngrams[n] += max(0, len(output) - n + 1)
        # An empty reference counts only if it is the first; of two equally close, the shorter.
        eligible = lengths[:1] + [length for length in lengths[1:] if length > 0]
        closest_length += min(eligible, key=lambda length: (abs(length - len(output)), length))
    return Counts(matched, output_ngrams, closest_length, references)


def _ngrams(tokens):
    """The n-grams of one text, n = 1 to 5."""
    ngrams = []
    for n in range(1, LONGEST + 1):
        ngrams += zip(*(tokens[start:] for start in range(n)))
    return ngrams


def _matches(counts, n):
    return sum(times for ngram, times in counts.matched.items() if len(ngram) == n)


def bleu(counts):
    """BLEU (Papineni et al. 2002): how much of what the outputs say do references say, too?

        BLEU = min(1, exp(1 - R / T_1)) * (p_1 * p_2 * p_3 * p_4) ** (1/4),    p_n = M_n / T_n

    T_n: n-grams in the outputs; M_n: those that match, clipped; R: the length of the closest
    references. The first factor, the brevity penalty, stands in for recall, which makes little
    sense with several references. One p_n = 0 would make the whole score 0, so mteval takes 1 / (2
    T_n) for the first such p_n, 1 / (4 T_n) for the second, and so on. A p_n without any n-grams
    (T_n = 0) is left out, as a factor 1.

    Below, 5 of 6 words match, 3 of 5 bigrams, 1 of 4 trigrams, 0 of 3 four-grams, equal lengths:

    >>> references = count_references([["the cat sat on the mat".split()]])
    >>> counts = count(references, ["the cat lay on the mat".split()])
    >>> round(bleu(counts), 4), round((5/6 * 3/5 * 1/4 * 1/(2*3)) ** (1/4), 4)
    (0.3799, 0.3799)
    """
    length = counts.output_ngrams[1]
    if length == 0:
        return 0.0
    log_precisions = 0.0
    smoothing = 1
    for n in range(1, 5):
        total = counts.output_ngrams[n]
        matches = _matches(counts, n)
        if matches > 0:
            log_precisions += math.log(matches / total)
        elif total > 0:
            smoothing *= 2
            log_precisions += math.log(1 / (smoothing * total))
    brevity = math.exp(min(0.0, 1 - counts.closest_length / length))
    return brevity * math.exp(log_precisions / 4)


def nist(counts, zero_is_false=True):
    """NIST (Doddington 2002): like BLEU, but rare n-grams count for more, and the five n are added.

        NIST = penalty * sum over n = 1..5 of (sum of info over the matched n-grams) / T_n

        info(w_1 ... w_n) = log2(count(w_1 ... w_{n-1}) / count(w_1 ... w_n))

    counted in all the references. T_n: n-grams in the outputs. info is how many bits the last word
    adds to those before it; before a single word stand all the words there are. The penalty falls
    with r, the outputs' length over that of the references:

        penalty = exp(-b * ln(r) ** 2) for r < 1, else 1        with b such that r = 2/3 gives 0.5

    where the references' length is their mean length times the number of segments. (A later port of
    the script to Python averages segment by segment instead, which gives other numbers where some
    segments have more references.) To Perl the string "0" is false: a history of just this token is
    taken for no history at all.

    Below, info is log2(3/2) for "a" and log2(3/1) for "b", together log2(4.5) over 2 words;
    log2(2/1) for "a b" over 1 bigram; r is 2/3:

    >>> counts = count(count_references([["a b a".split()]]), ["a b".split()])
    >>> round(nist(counts), 4), round(0.5 * (math.log2(4.5) / 2 + 1), 4)
    (1.0425, 1.0425)
    """
    ngrams, lengths = counts.references.ngrams, counts.references.lengths
    reference_tokens = sum(map(sum, lengths))
    if not counts.matched:
        return 0.0
    score = 0.0
    for ngram, times in counts.matched.items():
        history = ngram[:-1]
        no_history = history == () or (zero_is_false and history == ("0",))
        before = reference_tokens if no_history else ngrams[history]
        score += times * math.log2(before / ngrams[ngram]) / counts.output_ngrams[len(ngram)]
    filled = sum(length > 0 for group in lengths for length in group)  # those with tokens
    ratio = counts.output_ngrams[1] / (reference_tokens / filled * len(lengths))
    b = -math.log(0.5) / math.log(1.5) ** 2
    return score * math.exp(-b * math.log(min(1.0, ratio)) ** 2)


def segment_scores(references, output):
    """BLEU, sentBLEU and NIST of one segment, given its references and its output as str.

    For these the challenge runs not the Perl script but its port to Python, which differs: it
    lower-cases all letters, an empty text is one empty token, and in place of the halving above it
    takes M_n to be at least 1e-15. sentBLEU adds 1 to each M_n and each T_n. T_n is below 0 there
    for fewer than n - 1 tokens, and T_n + 1 then counts as 1e-9: such a sentBLEU can be far above
    1. (For fewer than five tokens the port's NIST ends in a division by zero; here n-grams that an
    output does not have add nothing to it.)

    >>> scores = segment_scores(["the cat sat on the mat"], "the cat lay on the mat")
    >>> [round(score, 4) for score in scores]
    [0.0001, 0.4889, 2.2208]
    """
    texts = [[token.lower() for token in tokenize(text)] or [""] for text in [*references, output]]
    counts = count(count_references([texts[:-1]]), texts[-1:])
    length = len(texts[-1])
    brevity = math.exp(min(0.0, 1 - counts.closest_length / length))
    scores = []
    for added in (0, 1):
        product = 1.0
        for n in range(1, 5):
            matches = max(_matches(counts, n) + added, 1e-15)
            product *= matches / max(length - n + 1 + added, 1e-9)
        scores.append(brevity * product ** (1 / 4))
    return *scores, nist(counts, zero_is_false=False)
