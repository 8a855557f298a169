"""The command line of the metrics: `python -m metrics --help`."""

import argparse
import json

from tqdm import tqdm

from common import InputError, run_command, sha256, write_aside
from metrics import METRICS, Scorer, format_table, meteor, mteval, read_corpora

DESCRIPTION = """\
Score outputs against references as the E2E NLG challenge does, without its Perl and Java.

The table shows BLEU, METEOR and ROUGE-L times 100; a dash stands for a score that was not computed. Below it stands
what was computed: scores are comparable only where this is the same, the SHA-256 of the references included.
"""

EPILOG = """\
Files are UTF-8. By their names:
  .csv, .tsv     a table: a header, a column of sources ('mr') and one of texts ('ref', 'output')
  anything else  plain text: outputs one a line; references one a line, a blank line between groups
Where references and outputs are both tables, they are paired by equal sources, else by their order.

Example:
  python -m metrics runs/prefix/references.txt runs/prefix/outputs.txt runs/finetune/outputs.txt
"""


SIGNATURE = """
BLEU, NIST: mteval-v13a.pl. METEOR: 1.5, English, normalized, task rank. ROUGE-L: beta 1.2. CIDEr: CIDEr-D, sigma 6.
METEOR, ROUGE-L and CIDEr compare the tokens of PTBTokenizer 3.4.1, in lower case and without punctuation.
{:,} references in {:,} groups: {}, SHA-256 {}."""


def main():
    parser = argparse.ArgumentParser(
        prog="python -m metrics",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("references", metavar="REFERENCES", help="the file of references")
    parser.add_argument("outputs", metavar="OUTPUTS", nargs="+", help="files of outputs, a row of the table for each")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON and nothing else: an object with the five scores at full precision, BLEU, METEOR and ROUGE_L "
        "as fractions, null for one that was not computed; for several files of outputs a list of such objects",
    )
    parser.add_argument(
        "--segments",
        metavar="FILE",
        help="also write the scores of each segment to this file, with tabs between its columns",
    )
    args = parser.parse_args()
    if args.segments and len(args.outputs) > 1:
        raise InputError(f"--segments {args.segments}: takes the scores of one file of outputs; give only one")

    try:  # all files are read before any is scored: a mistake in the last one shows at once
        corpora = read_corpora(args.references, args.outputs)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; give the path of a file that can be read") from None
    results = []
    scorer = None
    for corpus in tqdm(corpora, unit="file", delay=3, leave=False, disable=None):  # disable=None: not into a log file
        if scorer is None or scorer.references != corpus.references:
            scorer = Scorer(corpus.references)
        scores, segments = scorer.score(corpus.outputs)
        results.append(scores)
    if args.segments:
        write_segments(args.segments, corpus, segments)

    if args.json:
        print(json.dumps(results if len(results) > 1 else results[0]))
        return
    print(format_table(list(zip(args.outputs, results))))
    groups = corpus.references
    print(SIGNATURE.format(sum(map(len, groups)), len(groups), args.references, sha256(args.references)[:16]))
    if scores["METEOR"] is None:
        print(meteor.HOW_TO_GET)


def write_segments(path, corpus, segments):
    """Write a line for each segment, as the official script does."""
    try:
        with write_aside(path) as aside, open(aside, "w", encoding="utf-8", newline="\n") as file:
            print("src", "sys_out", "BLEU", "sentBLEU", *METRICS[1:], sep="\t", file=file)
            for i, (references, source, output) in enumerate(zip(*corpus)):
                scores = [*mteval.segment_scores(references, output)]
                scores += [segments[name] and segments[name][i] for name in METRICS[2:]]
                cells = [source.replace("\t", " "), output.replace("\t", " ")]
                print(*cells, *("-" if score is None else f"{score:.4f}" for score in scores), sep="\t", file=file)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give the path of a file that can be written") from None


if __name__ == "__main__":
    run_command(main)
