"""The five scores of the E2E NLG challenge in plain Python, equal to the official scripts' to four
decimals.

    mteval.py    BLEU and NIST
    meteor.py    METEOR 1.5, with meteor_data.py and porter2.py; download.py fetches its data
    rouge.py     ROUGE-L
    cider.py     CIDEr
    ptb.py       the tokenizer in front of the last three
    files.py     the file formats of the official script
    __main__.py  the command line: python -m metrics REFERENCES OUTPUTS
"""

import gc
from contextlib import contextmanager

from metrics import cider, meteor, mteval, ptb, rouge
from metrics.files import read_corpora, read_outputs, read_references

__all__ = ["METRICS", "Scorer", "evaluate", "format_table", "read_corpora", "read_outputs", "read_references"]

METRICS = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")
PERCENTAGES = ("BLEU", "METEOR", "ROUGE_L")  # printed times 100; NIST and CIDEr have scales of their own


def evaluate(references, outputs):
    """Score a corpus: each output against its group of references.

    references: a list of lists of str, outputs: a list of str. Returns a dict with a value for each
    of METRICS: BLEU, METEOR and ROUGE_L as fractions; None where a score could not be computed
    (METEOR without its data).

    >>> scores = evaluate([["A cheap pub.", "The pub is cheap."], ["A bar."]], ["The pub is cheap.", "A bar"])
    >>> [f"{name} {scores[name]:.4f}" for name in ("BLEU", "NIST", "ROUGE_L", "CIDEr")]
    ['BLEU 0.8669', 'NIST 3.2743', 'ROUGE_L 1.0000', 'CIDEr 5.4358']
    """
    return Scorer(references).score(outputs)[0]


class Scorer:
    """Scores outputs against one set of references, which are tokenized and counted once for any number of outputs."""

    def __init__(self, references):
        for number, group in enumerate(references, start=1):
            if isinstance(group, str):  # would be taken for a group of one-letter references
                raise ValueError(f"references {number:,} are a str; put a single reference in a list of its own")
            if not group:
                raise ValueError(f"group {number:,} has no references")
        if not references:
            raise ValueError("there is nothing to score: no references and no outputs")
        self.references = references
        with _no_search_for_cycles():
            self.counts = mteval.count_references([[mteval.tokenize(text) for text in group] for group in references])
            tokenized = iter(ptb.tokenize([text for group in references for text in group]))
            self.tokenized = [[next(tokenized) for _ in group] for group in references]
            self.weighed = cider.References(self.tokenized)
            self.meteor = meteor.prepare(self.tokenized)  # None without its data

    def score(self, outputs):
        """Score a list of outputs: (scores of the corpus as from `evaluate`, scores of its
        segments).

        The latter are a dict, too, with a list for METEOR, ROUGE_L and CIDEr, or None where there
        is no such score.
        """
        if len(self.references) != len(outputs):
            raise ValueError(f"{len(self.references):,} groups of references for {len(outputs):,} outputs")
        with _no_search_for_cycles():
            counts = mteval.count(self.counts, [mteval.tokenize(output) for output in outputs])
            tokenized = ptb.tokenize(outputs)
            results = {
                "METEOR": self.meteor.score(tokenized) if self.meteor else (None, None),
                "ROUGE_L": rouge.rouge_l(self.tokenized, tokenized),
                "CIDEr": cider.cider(self.weighed, tokenized),
            }
        corpus = {"BLEU": mteval.bleu(counts), "NIST": mteval.nist(counts)}
        corpus |= {name: score for name, (score, _) in results.items()}
        return corpus, {name: segments for name, (_, segments) in results.items()}


@contextmanager
def _no_search_for_cycles():
    """Millions of small objects, none in a cycle: looking for cycles among them would take a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def format_table(rows):
    """Format rows of (label, scores) as a table, aligned at the decimal points.

    scores: a dict as from `evaluate`. A value that is a str already, such as a published "69.7",
    stays as it is.

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
