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
        common = [longest_common_subsequence(output, reference) for reference in group]
        precision = max(common) / len(output)
        recall = max(length / len(reference) for length, reference in zip(common, group))
        total = recall + BETA**2 * precision
        segments.append((1 + BETA**2) * precision * recall / total if total else 0.0)
    return sum(segments) / len(segments), segments


def longest_common_subsequence(a, b):
    """The length of the longest common subsequence of two lists of tokens.

    In the table, lengths[j] is that of what has been read of a with the first j tokens of b.

    >>> longest_common_subsequence("a b c d".split(), "a c b d".split())
    3
    """
    lengths = [0] * (len(b) + 1)
    for token in a:
        diagonal = 0  # the length without this token of a, and without the one of b
        for j, other in enumerate(b):
            above = lengths[j + 1]
            lengths[j + 1] = diagonal + 1 if token == other else max(lengths[j], above)
            diagonal = above
    return lengths[-1]
