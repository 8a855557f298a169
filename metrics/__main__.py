"""The command line of the metrics: `python -m metrics --help`."""

import argparse
import json
import sys
from pathlib import Path

if not __package__:  # started as `python /path/to/metrics`, which leaves out the folder above it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from metrics import METRICS, Scorer, format_table, meteor, mteval, read_corpora  # noqa: E402
from support.commands import InputError, run_command  # noqa: E402

DESCRIPTION = """\
Score outputs against references as the E2E NLG challenge does, without its Perl and Java.

The table shows BLEU, METEOR and ROUGE-L times 100; a dash is a score that was not computed.
The line below it says what was computed: scores are comparable only where this is the same, with
the SHA-256 of the references."""

EPILOG = """\
Files are UTF-8. By their names:
  .csv, .tsv     a table: a header, a column of sources ('mr') and one of texts ('ref', 'output')
  anything else  plain text: outputs one a line; references one a line, a blank line between groups
Where references and outputs are both tables, they are paired by equal sources, else by their order.

Example:
  python -m metrics runs/prefix/references.txt runs/prefix/outputs.txt runs/finetune/outputs.txt
"""

SIGNATURE = (
    "\nBLEU, NIST: mteval-v13a.pl. METEOR: 1.5, English, normalized, task rank. ROUGE-L: beta 1.2. "
    "CIDEr: CIDEr-D, sigma 6.\nMETEOR, ROUGE-L and CIDEr compare the tokens of PTBTokenizer 3.4.1, "
    "in lower case and without punctuation.\n{}: {}, SHA-256 {}."
)


def read_arguments():
    """The command line's arguments; what is wrong with them shows before any file is read."""
    parser = argparse.ArgumentParser("python -m metrics", description=DESCRIPTION, epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("references", metavar="REFERENCES", help="the file of references")
    add("outputs", metavar="OUTPUTS", nargs="+", help="files of outputs, each a row of the table")
    add("--json", action="store_true", help="print JSON and nothing else: an object with the five "
        "scores at full precision, BLEU, METEOR and ROUGE_L as fractions, null for one that was "
        "not computed; for several files of outputs a list of such objects")
    add("--segments", metavar="FILE", help="also write the scores of each segment to this file, "
        "with tabs between its columns")
    args = parser.parse_args()
    if args.segments and len(args.outputs) > 1:
        raise InputError(f"--segments {args.segments}: takes the scores of one file of outputs; "
                         "give only one")
    inputs = [Path(path).resolve() for path in (args.references, *args.outputs)]
    if args.segments and Path(args.segments).resolve() in inputs:
        raise InputError(f"--segments {args.segments}: this file is to be read; give another name")
    return args


def main():
    from tqdm import tqdm

    args = read_arguments()
    corpora = read_corpora(args.references, args.outputs)  # a mistake in the last one shows at once
    results = []
    scorer = None
    for corpus in tqdm(corpora, unit="file", delay=3, leave=False, disable=None):  # not in a log
        if scorer is None or scorer.references != corpus.references:
            scorer = Scorer(corpus.references)
        scores, segments = scorer.score(corpus.outputs)
        results.append(scores)
    if args.json:
        print(json.dumps(results if len(results) > 1 else results[0]))
    else:
        print(format_table(list(zip(args.outputs, results))))
        print(SIGNATURE.format(size(corpora[0]), args.references, corpora[0].sha256[:16]))
        if any(sorted(corpus.references) != sorted(corpora[0].references) for corpus in corpora):
            sizes = (f"{path}: {size(corpus)}" for path, corpus in zip(args.outputs, corpora))
            print("Not comparable: these tables have other rows, and so other references each.",
                  *sizes, sep="\n")
    if args.segments:
        write_segments(args.segments, corpus, segments)
    if scores["METEOR"] is None:
        print(f"note: {meteor.HOW_TO_GET}", file=sys.stderr)
    if len(scorer.references) == 1:
        print("note: CIDEr is 0, as there is one group of references: it counts what sets a group "
              "apart from others", file=sys.stderr)


def size(corpus):
    """How many references a corpus has, in words."""
    groups = corpus.references
    return f"{sum(map(len, groups)):,} references in {len(groups):,} groups"


def write_segments(path, corpus, segments):
    """Write a line for each segment, as the official script does with its option -l."""
    lines = [["src", "sys_out", "BLEU", "sentBLEU", *METRICS[1:]]]
    scored = zip(corpus.references, corpus.sources, corpus.outputs, *segments.values())
    for references, source, output, *scores in scored:
        scores = [*mteval.segment_scores(references, output), *scores]
        cells = ["-" if score is None else f"{score:.4f}" for score in scores]
        lines.append([source, output, *cells])
    text = "".join("\t".join(line) + "\n" for line in lines)
    Path(path).write_bytes(text.encode("utf-8"))  # it may be a pipe


if __name__ == "__main__":
    run_command(main)
