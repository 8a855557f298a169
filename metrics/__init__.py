"""The five scores of the E2E NLG challenge in Python, equal to the official ones to four decimals.

    mteval.py    BLEU and NIST
    meteor.py    METEOR 1.5, with meteor_data.py; download.py fetches its data
    rouge.py     ROUGE-L
    cider.py     CIDEr
    ptb.py       the tokenizer in front of the last three
    files.py     the file formats of the official script
    __main__.py  the command line: python -m metrics REFERENCES OUTPUTS
"""

from metrics import cider, meteor, mteval, ptb, rouge
from metrics.files import read_corpora, read_outputs, read_references
from support.commands import InputError

__all__ = ["METRICS", "Scorer", "evaluate", "format_table",
           "read_corpora", "read_outputs", "read_references"]

METRICS = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")
PERCENTAGES = ("BLEU", "METEOR", "ROUGE_L")  # printed times 100; the others have their own scales


def evaluate(references, outputs):
    """Score a corpus: each output against its group of references.

    references: a list of lists of str, outputs: a list of str; other sequences and generators will
    do. Returns a dict with a value for each of METRICS: BLEU, METEOR and ROUGE_L as fractions; None
    where a score could not be computed (METEOR without its data). The CIDEr of one group is 0.
    Raises InputError for a str in place of a list, for an empty reference, for a text that is not a
    str, and where the numbers of outputs and of groups differ.

    >>> references = [["A cheap pub.", "The pub is cheap."], ["A bar."]]
    >>> scores = evaluate(references, ["The pub is cheap.", "A bar"])
    >>> [f"{name} {scores[name]:.4f}" for name in ("BLEU", "NIST", "ROUGE_L", "CIDEr")]
    ['BLEU 0.8669', 'NIST 3.2743', 'ROUGE_L 1.0000', 'CIDEr 5.4358']
    """
    return Scorer(references).score(outputs)[0]


class Scorer:
    """Scores outputs against references, which are tokenized and counted once for any number."""

    def __init__(self, references):
        self.references = []
        for number, group in enumerate(references, start=1):
            group = _texts(group, f"references {number:,}")
            if not group or not all(map(str.strip, group)):
                raise InputError(f"group {number:,} has no references, or an empty one: "
                                 f"{group[:3]}; give it one at least, and none that is empty")
            self.references.append(group)
        if not self.references:
            raise InputError("there is nothing to score: no references and no outputs")
        tokens = [[mteval.tokenize(text) for text in group] for group in self.references]
        self.counts = mteval.count_references(tokens)
        tokenized = iter(ptb.tokenize([text for group in self.references for text in group]))
        self.tokenized = [[next(tokenized) for _ in group] for group in self.references]
        self.weighed = cider.References(self.tokenized)
        self.meteor = meteor.prepare(self.tokenized)  # None without its data

    def score(self, outputs):
        """Score outputs: (scores of the corpus as from `evaluate`, scores of its segments).

        The latter are a dict, too, with a list for METEOR, ROUGE_L and CIDEr.
        """
        outputs = _texts(outputs, "outputs")
        if len(self.references) != len(outputs):
            raise InputError(f"{len(self.references):,} groups of references for {len(outputs):,} "
                             "outputs; give one output for each group")
        counts = mteval.count(self.counts, [mteval.tokenize(output) for output in outputs])
        tokenized = ptb.tokenize(outputs)
        no_scores = None, [None] * len(outputs)
        results = {
            "METEOR": self.meteor.score(tokenized) if self.meteor else no_scores,
            "ROUGE_L": rouge.rouge_l(self.tokenized, tokenized),
            "CIDEr": cider.cider(self.weighed, tokenized),
        }
        corpus = {"BLEU": mteval.bleu(counts), "NIST": mteval.nist(counts)}
        corpus |= {name: score for name, (score, _) in results.items()}
        return corpus, {name: segments for name, (_, segments) in results.items()}


def _texts(given, name):
    """What is given, as a list of str."""
    if isinstance(given, str):  # whose letters would be taken for texts
        raise InputError(f"{name}: one str; give a list of them")
    texts = list(given)
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise InputError(f"{name}: number {number:,} is a {kind}; give a str, '' for no text")
    return texts


def format_table(rows):
    """Format rows of (label, scores) as a table, aligned at the decimal points.

    scores: a dict as from `evaluate`. A value that is a str already, such as a published "69.7",
    stays as it is.

    >>> ours = {"BLEU": 0.68354, "NIST": 8.69061, "METEOR": None, "ROUGE_L": None, "CIDEr": None}
    >>> theirs = dict(zip(METRICS, "69.7 8.81 46.1 71.4 2.49".split()))
    >>> print(format_table([("ours", ours), ("theirs", theirs)]))
              BLEU      NIST     METEOR   ROUGE-L    CIDEr
    ours     68.35      8.6906    -         -         -
    theirs   69.7       8.81     46.1      71.4       2.49
    """
    width = max(len(label) for label, _ in rows)
    lines = [" " * width + "".join(f"  {name.replace('_', '-'):^8}" for name in METRICS)]
    for label, scores in rows:
        cells = [f"  {_cell(name, scores[name])}" for name in METRICS]
        lines.append(f"{label:<{width}}" + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def _cell(name, score):
    if score is None:
        score = "-"
    if not isinstance(score, str):
        score = f"{100 * score:.2f}" if name in PERCENTAGES else f"{score:.4f}"
    whole, point, digits = score.partition(".")
    return f"{whole:>3}{point}{digits:<{5 - len(point)}}"
