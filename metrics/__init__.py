"""The five scores of the E2E NLG challenge in plain Python, equal to the official scripts' to four decimals.

    mteval.py    BLEU and NIST
    files.py     the file formats of the official script
    __main__.py  the command line: python -m metrics REFERENCES OUTPUTS

METEOR, ROUGE-L and CIDEr are not implemented yet; until then they are None, and a dash in the table.
"""

from metrics import mteval
from metrics.files import read_outputs, read_references

__all__ = ["METRICS", "evaluate", "format_table", "read_outputs", "read_references"]

METRICS = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")
PERCENTAGES = ("BLEU", "METEOR", "ROUGE_L")  # printed times 100; NIST and CIDEr have scales of their own


def evaluate(references, outputs):
    """Score a corpus: each output against its group of references.

    references: a list of lists of str, outputs: a list of str. Returns a dict with a value for each of METRICS:
    BLEU, METEOR and ROUGE_L as fractions; None where a score could not be computed.

    >>> scores = evaluate([["A cheap pub.", "The pub is cheap."]], ["The pub is cheap."])
    >>> scores["BLEU"], scores["METEOR"]
    (1.0, None)
    """
    if len(references) != len(outputs):
        raise ValueError(f"{len(references):,} groups of references for {len(outputs):,} outputs")
    if not outputs:
        raise ValueError("there is nothing to score: no references and no outputs")
    for number, group in enumerate(references, start=1):
        if isinstance(group, str):  # would be taken for a group of one-letter references
            raise ValueError(f"references {number:,} are a str; put a single reference in a list of its own")
        if not group:
            raise ValueError(f"group {number:,} has no references")
    counts = mteval.count(
        [[mteval.tokenize(reference) for reference in group] for group in references],
        [mteval.tokenize(output) for output in outputs],
    )
    return {**dict.fromkeys(METRICS), "BLEU": mteval.bleu(counts), "NIST": mteval.nist(counts)}


def format_table(rows):
    """Format rows of (label, scores) as a table, aligned at the decimal points.

    scores: a dict as from `evaluate`. A value that is a str already, such as a published "69.7", stays as it is.

    >>> ours = {"BLEU": 0.68354, "NIST": 8.69061, "METEOR": None, "ROUGE_L": None, "CIDEr": None}
    >>> theirs = {"BLEU": "69.7", "NIST": "8.81", "METEOR": "46.1", "ROUGE_L": "71.4", "CIDEr": "2.49"}
    >>> print(format_table([("ours", ours), ("theirs", theirs)]))
              BLEU      NIST     METEOR   ROUGE-L    CIDEr
    ours     68.35      8.6906    -         -         -
    theirs   69.7       8.81     46.1      71.4       2.49
    """
    width = max(len(label) for label, _ in rows)
    lines = [" " * width + "".join(f"  {name.replace('_', '-'):^8}" for name in METRICS)]
    for label, scores in rows:
        lines.append(f"{label:<{width}}" + "".join(f"  {_cell(name, scores[name])}" for name in METRICS))
    return "\n".join(line.rstrip() for line in lines)


def _cell(name, score):
    if score is None:
        score = "-"
    elif name in PERCENTAGES and not isinstance(score, str):
        score = f"{100 * score:.2f}"
    elif not isinstance(score, str):
        score = f"{score:.4f}"
    whole, point, digits = score.partition(".")
    return f"{whole:>3}{point}{digits:<{5 - len(point)}}"
