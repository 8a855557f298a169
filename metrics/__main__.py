"""The command line of the metrics: `python -m metrics --help`."""

import argparse
import json

from tqdm import tqdm

from common import InputError, run_command
from metrics import METRICS, evaluate, format_table, read_outputs, read_references

DESCRIPTION = """\
Score outputs against references as the E2E NLG challenge does, without its Perl and Java.

The table shows BLEU, METEOR and ROUGE-L times 100; a dash stands for a score that was not computed.
"""

EPILOG = """\
Files are UTF-8. By their names:
  .csv, .tsv     a table: a header, a column of sources ('mr') and one of texts ('ref', 'output')
  anything else  plain text: outputs one a line; references one a line, a blank line between groups
Where references and outputs are both tables, they are paired by equal sources, else by their order.

Example:
  python -m metrics runs/prefix/references.txt runs/prefix/outputs.txt runs/finetune/outputs.txt
"""


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
    args = parser.parse_args()

    try:  # all files are read before any is scored: a mistake in the last one shows at once
        corpora = [(read_references(args.references, path), read_outputs(path)) for path in args.outputs]
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; give the path of a file that can be read") from None
    progress = tqdm(corpora, unit="file", delay=3, leave=False, disable=None)  # disable=None: not into a log file
    results = [evaluate(references, outputs) for references, outputs in progress]

    if args.json:
        print(json.dumps(results if len(results) > 1 else results[0]))
        return
    print(format_table(list(zip(args.outputs, results))))
    missing = [name.replace("_", "-") for name in METRICS if results[0][name] is None]
    if missing:
        print(f"Not implemented yet: {', '.join(missing)}.")


if __name__ == "__main__":
    run_command(main)
