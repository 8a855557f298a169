"""Commands: a user's mistake in one sentence, what is printed, progress bars. Standard library."""

import os
import re
import shlex
import subprocess
import sys
from contextlib import contextmanager


class InputError(ValueError):
    """A user's mistake: one sentence that says what is wrong, where, and what to do."""


def run_command(main, goes_on=False):
    """Runs a module's main(); a user's mistake ends as one line on stderr, without a traceback.

    goes_on    whether the work is worth doing when nobody reads the output any more
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = SafeStream(streams[0], goes_on), SafeStream(streams[1], goes_on=True)
    try:
        for text in (*sys.argv, os.getcwd()):
            if any("\ud800" <= character <= "\udfff" for character in text):  # no JSON holds them
                raise InputError(f"{text!r} is not UTF-8; rename the file, or change the argument")
        try:
            main()
        finally:
            sys.stdout.flush()
    except InputError as error:
        fail(error)
    except KeyboardInterrupt as error:
        print(f"\nstopped{error}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever reads the output (`| head`) has seen enough
        pass
    except OSError as error:  # no space, no permission, no such file, a folder instead of a file
        fail(f"{error.filename}: {error.strerror}" if error.filename else error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fail("out of memory; a smaller --batch-size (with another --out) or --decode-batch-size "
             "needs less")
    finally:
        sys.stdout, sys.stderr = streams


def fail(sentence):
    """Ends the command with a sentence on stderr, and status 1."""
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    sys.exit(1)


def is_out_of_memory(error):
    """Whether an exception says that memory is full: the computer's or a GPU's."""
    pattern = "out of memory|allocate memory|not enough memory|bad_alloc|ALLOC_FAILED"
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(re.search(pattern, str(error))))


def first_line(error):
    """The first line of an exception's message, at most 200 characters."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


# --------------------------------------------------------------------------------------------------
# What is printed
# --------------------------------------------------------------------------------------------------


class SafeStream:
    """A text stream that escapes control characters and refuses no text.

    Names and sentences come from other people's files and models. Printed as they are, they could
    control the terminal.
    """

    def __init__(self, stream, goes_on=False):
        self.stream = stream or open(os.devnull, "w")  # None where it was closed at the start
        self.goes_on = goes_on
        if hasattr(self.stream, "reconfigure"):  # a notebook's stream has no encoding of its own
            self.stream.reconfigure(errors="backslashreplace")

    def write(self, text):
        with self.until_closed():
            self.stream.write(escape_controls(text))
        return len(text)

    def flush(self):
        with self.until_closed():
            self.stream.flush()

    @contextmanager
    def until_closed(self):
        """Sends the rest of the output nowhere once its reader is gone or its disk is full."""
        try:
            yield
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if not self.goes_on:
                error.filename = self.stream.name
                raise

    def __getattr__(self, name):
        return getattr(self.stream, name)


def escape_controls(text):
    """Text with its control characters, except tabs and line ends, as \\x1b and the like."""
    unsafe = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
    return re.sub(unsafe, lambda match: ascii(match[0])[1:-1], text)


def progress_bar(**options):
    """A tqdm bar on stderr; in a file or a log, a line every half minute instead."""
    from tqdm import tqdm

    stream = getattr(sys.stderr, "stream", sys.stderr)  # a bar returns to the start of its line
    if stream.isatty() or "ipykernel" in sys.modules:  # a notebook moves it as well
        return tqdm(**options, file=stream)
    return tqdm(**options, file=LineStream(sys.stderr), mininterval=30)


class LineStream:
    """A text stream that writes each redrawing of a bar as a line of its own."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        line = text.strip("\r\n ")
        if line:
            self.stream.write(line + "\n")

    def flush(self):
        self.stream.flush()


def command_line(words):
    """Words as a line that can be pasted into a shell."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def format_rows(rows):
    """Lines of a table: rows of (label, cells), labels aligned left, cells right."""
    width = max(len(label) for label, _ in rows)
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in rows if cells))]
    return [f"{label:<{width}}" + "".join(f"  {cell:>{n}}" for cell, n in zip(cells, widths))
            for label, cells in rows]
