"""The command line of the metrics: `python -m metrics --help`."""

import argparse
import json
import os
import sys
from pathlib import Path

if not __package__:  # started as `python /path/to/metrics`, which leaves out the folder above it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from metrics import METRICS, Scorer, format_table, meteor, mteval, read_corpora  # noqa: E402
from support.commands import InputError, run_command  # noqa: E402
from support.files import write_text  # noqa: E402

DESCRIPTION = """\
Score outputs against references as the E2E NLG challenge does, without its Perl and Java.

The table shows BLEU, METEOR and ROUGE-L times 100; a dash stands for a score that was not computed.
Below it stands what was computed: scores are comparable only where this is the same, the SHA-256 of
the references included.
"""

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
    add = parser.add_argument_group("options of the official script, with its output").add_argument
    add("-l", "--sent-level", "--seg-level", "--sentence-level", "--segment-level", metavar="FILE",
        help="only write the scores of each segment, and print none of the corpus")
    add("-t", "--table", action="store_true", help="print the scores as a line of a TSV table")
    add("-H", "--header", action="store_true", help="print that table's header above it")
    args = parser.parse_args()
    if args.json and (args.table or args.header):
        raise InputError("--json and -t or -H: the same scores in two forms; give one of them")
    if args.sent_level and (args.json or args.segments):
        raise InputError("-l and --json or --segments: -l only writes its own file; give one of "
                         "them")
    option, path = ("-l", args.sent_level) if args.sent_level else ("--segments", args.segments)
    if path and len(args.outputs) > 1:
        raise InputError(f"{option} {path}: takes the scores of one file of outputs; give only one")
    if path:
        check_target(f"{option} {path}", Path(path), [args.references, *args.outputs])
    return args


def check_target(name, target, inputs):
    """A file that cannot be written, or is read, is refused before the work."""
    if target.is_dir() or not target.parent.is_dir():
        raise InputError(f"{name}: no file can be there; give one in a folder that exists")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise InputError(f"{name}: it may not be written; give a file that may")
    if target.resolve() in [Path(path).resolve() for path in inputs]:
        raise InputError(f"{name}: this file is to be read, too; give another name")


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
    if not any(map(any, scorer.counts.lengths)):
        print("note: no reference has a word; the official script ends in a division by zero, "
              "here NIST is 0", file=sys.stderr)
    if len(scorer.references) == 1:
        print("note: CIDEr is 0, as there is one group of references: it counts what sets a group "
              "apart from others", file=sys.stderr)
    if args.sent_level or args.segments:
        write_segments(args.sent_level or args.segments, corpus, segments)

    official = args.sent_level or args.table or args.header
    if scores["METEOR"] is None and (args.json or official):
        print(f"note: {meteor.HOW_TO_GET}", file=sys.stderr)
    if args.json:
        print(json.dumps(results if len(results) > 1 else results[0]))
    elif not official:
        print(format_table(list(zip(args.outputs, results))))
        print(SIGNATURE.format(size(corpora[0]), args.references, corpora[0].sha256[:16]))
        if any(sorted(corpus.references) != sorted(corpora[0].references) for corpus in corpora):
            sizes = (f"{path}: {size(corpus)}" for path, corpus in zip(args.outputs, corpora))
            print("Not comparable: these tables have other rows, and so other references each.",
                  *sizes, sep="\n")
        if scores["METEOR"] is None:
            print(meteor.HOW_TO_GET)
    elif not args.sent_level:
        print_as_official(args, results)


def size(corpus):
    """How many references a corpus has, in words."""
    groups = corpus.references
    return f"{sum(map(len, groups)):,} references in {len(groups):,} groups"


def print_as_official(args, results):
    """A line of a TSV table for each file of outputs; with -H but without -t, a list for each."""
    if args.table and args.header:
        print("File", *METRICS, sep="\t")
    for path, scores in zip(args.outputs, results):
        values = [_four_decimals(scores[name]) for name in METRICS]
        if args.table:
            print(path, *values, sep="\t")
        else:
            print("SCORES:", "=" * 14, *map(": ".join, zip(METRICS, values)), "", sep="\n")


def write_segments(path, corpus, segments):
    """Write a line for each segment, as the official script does."""
    lines = [["src", "sys_out", "BLEU", "sentBLEU", *METRICS[1:]]]
    for i, output in enumerate(corpus.outputs):
        scores = [*mteval.segment_scores(corpus.references[i], output)]
        scores += [segments[name] and segments[name][i] for name in METRICS[2:]]
        cells = [text.replace("\t", " ") for text in (corpus.sources[i], output)]
        lines.append([*cells, *map(_four_decimals, scores)])
    text = "".join("\t".join(line) + "\n" for line in lines)
    target = Path(path)
    if target.is_symlink() or target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8")  # /dev/stdout and the like are not replaced
    else:
        write_text(target, text)
    lengths = [len(mteval.tokenize(output)) for output in corpus.outputs]
    short = [number for number, n in enumerate(lengths, start=1) if n < mteval.LONGEST]
    if short:
        print(f"note: {len(short):,} outputs, first number {short[0]:,}, have fewer than five "
              "tokens: the official script ends there in a division by zero, here NIST counts the "
              "n-grams that they have", file=sys.stderr)


def _four_decimals(score):
    return "-" if score is None else f"{score:.4f}"


if __name__ == "__main__":
    run_command(main)
