"""What an evaluation costs: the time of a call with one file of outputs and with two, and its
memory.

    python -m experiments.bench.metrics REFERENCES OUTPUTS OTHER_OUTPUTS [--official measure_scores.py]

The first call may have METEOR's paraphrases to look up for new references; the others find them in
its cache. Not for Windows, which does not tell the memory.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent

from support.files import InputError, run_command


def seconds(*command, cwd=ROOT):
    """How long a command takes, start of its Python included. Its stdout is not shown."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=cwd, stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(done.returncode)
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("references", metavar="REFERENCES", type=Path)
    parser.add_argument("outputs", metavar="OUTPUTS", type=Path)
    parser.add_argument("other", metavar="OTHER_OUTPUTS", type=Path)
    parser.add_argument(
        "--official",
        type=Path,
        help="e2e-metrics' measure_scores.py, to time it as well; it needs Java, Perl, XML::Twig",
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="calls of which the fastest counts (default: 5)"
    )
    args = parser.parse_args()
    if args.repeats < 1:
        raise InputError("--repeats must be at least 1")
    references = str(args.references.resolve())
    outputs, other = str(args.outputs.resolve()), str(args.other.resolve())

    call = ["-m", "metrics", references, outputs]
    first = seconds(*call)
    one = min(seconds(*call) for _ in range(args.repeats))
    two = min(seconds(*call, other) for _ in range(args.repeats))
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes, kB
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 2**30
    print(f"{'the first call':<32}{first:8.2f} s")
    print(f"{'one file of outputs':<32}{one:8.2f} s")
    print(f"{'each further one in the call':<32}{two - one:8.2f} s")
    print(f"{'memory at the peak':<32}{peak:8.2f} GiB")
    if args.official:
        script = args.official.resolve()
        call = [str(script), references, outputs]
        theirs = min(seconds(*call, cwd=script.parent) for _ in range(args.repeats))
        times = f"{theirs / one:.0f} times as long"
        print(f"{'the official script, one file':<32}{theirs:8.2f} s, {times}")


if __name__ == "__main__":
    run_command(main)
