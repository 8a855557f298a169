"""ROUGE-L, as the caption evaluation of MS COCO computes it (it is what the E2E challenge runs)."""

BETA = 1.2  # recall counts for more than precision


def rouge_l(references, outputs):
    """ROUGE-L (Lin 2004): how much of output and reference is one common subsequence, with gaps?

        ROUGE-L = (1 + beta^2) P R / (R + beta^2 P)
        P = LCS / length of output,    R = LCS / length of reference

    P is the highest over the references of a segment, and so is R, even if they are of two
    references. The score of a corpus is the mean over its segments. (The paper's recall of
    summaries joins the subsequences of several sentences.)

    references: for each segment a list of references, outputs: for each segment an output; each as
    from `ptb.tokenize`. Returns the score of the corpus and the list of its segments' scores.

    Below, "the cat on mat" is common to both: P = 4/5, R = 4/6.

    >>> score, segments = rouge_l([["the cat sat on the mat"]], ["the cat lay on mat"])
    >>> round(score, 4), round((1 + 1.2**2) * 4/5 * 4/6 / (4/6 + 1.2**2 * 4/5), 4)
    (0.7155, 0.7155)
    """
    segments = []
    for group, output in zip(references, outputs):
        output = output.split(" ")  # an empty text is one empty token
        group = [reference.split(" ") for reference in group]
        common = longest_common_subsequences(output, group)
        precision = max(length / len(output) for length in common)
        recall = max(length / len(reference) for length, reference in zip(common, group))
        total = recall + BETA**2 * precision
        segments.append((1 + BETA**2) * precision * recall / total if total else 0.0)
    return sum(segments) / len(segments), segments


def longest_common_subsequences(output, references):
    """The lengths of the longest common subsequences of an output and each of some references.

    output: a list of tokens, references: a list of such lists; returns a list of int. The usual
    table of lengths has a row for each token of the reference and a column for each of the output.
    From one column to the next a length grows by 0 or 1, so a row is an integer whose bit is 0
    where it grows, and all of the next row comes from a few operations on it (Crochemore et al.
    2001; Hyyrö 2004).

    >>> longest_common_subsequences("a b c d".split(), ["a c b d".split(), "d x".split()])
    [3, 1]
    """
    places = {}  # token -> the columns it stands at, as bits
    for column, token in enumerate(output):
        places[token] = places.get(token, 0) | 1 << column
    every = (1 << len(output)) - 1
    lengths = []
    for reference in references:
        row = every
        for token in reference:
            equal = row & places.get(token, 0)
            row = (row + equal | row - equal) & every
        lengths.append(len(output) - bin(row).count("1"))
    return lengths
