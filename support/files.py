"""Errors of one sentence, commands, files that are whole or absent. The standard library alone."""

import argparse
import errno
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]  # where models/ and data/ lie, wherever a command was started
ASIDE = ".new-"  # folders that begin so hold what is being written
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)  # of a file system


class InputError(ValueError):
    """A user's mistake: one sentence that says what is wrong, where, and what to do."""


# --------------------------------------------------------------------------------------------------
# Commands
# --------------------------------------------------------------------------------------------------


def run_command(main, goes_on=False):
    """Runs a module's main(); a user's mistake ends as one line on stderr, without a traceback.

    goes_on    whether the work is worth doing when nobody reads what is printed any more
    """
    plain = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Printable(plain[0], goes_on), Printable(plain[1], goes_on=True)
    try:
        for text in (*sys.argv, os.getcwd()):
            if any("\ud800" <= character <= "\udfff" for character in text):  # no JSON holds them
                raise InputError(f"{text!r} is not in UTF-8; rename it, or write it otherwise")
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
    except OSError as error:  # no space, no permission, no such file, a folder in a file's place
        fail(f"{error.filename}: {error.strerror}" if error.filename else error)
    except (MemoryError, RuntimeError) as error:
        if not is_memory_full(error):
            raise
        fail("the memory is full; a smaller --batch-size (with another --out) or "
             "--decode-batch-size needs less")
    finally:
        sys.stdout, sys.stderr = plain


def fail(sentence):
    """Ends the command with a sentence on stderr, and status 1."""
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    sys.exit(1)


def is_memory_full(error):
    """Whether an exception says that memory is full: the computer's or a GPU's."""
    said = re.search("out of memory|allocate memory|not enough memory|bad_alloc|ALLOC_FAILED",
                     str(error))
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and bool(said)


class Printable:
    """A text stream in which a terminal meets no control characters, and no text is refused.

    Names and sentences come from files and models of other people; printed as they are, they could
    steer the terminal. What its encoding lacks is shown by its number.
    """

    def __init__(self, stream, goes_on=False):
        self.stream = stream or open(os.devnull, "w")  # None where it was closed at the start
        self.goes_on = goes_on
        if hasattr(self.stream, "reconfigure"):  # a notebook's stream has no encoding of its own
            self.stream.reconfigure(errors="backslashreplace")

    def write(self, text):
        with self.while_read():
            self.stream.write(printable(text))
        return len(text)

    def flush(self):
        with self.while_read():
            self.stream.flush()

    @contextmanager
    def while_read(self):
        """Where nothing can be printed any more, what is still to come goes nowhere."""
        try:
            yield
        except OSError as error:  # nobody reads it, or the disk on which it would lie is full
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if not self.goes_on:
                error.filename = self.stream.name
                raise

    def __getattr__(self, name):
        return getattr(self.stream, name)


def printable(text):
    """Text with its control characters, but for tabs and line ends, as \\x1b and the like."""
    unsafe = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
    return re.sub(unsafe, lambda match: ascii(match[0])[1:-1], text)


def progress_bar(**options):
    """A bar on stderr, as tqdm draws it; in a file or a log, a line every half minute instead."""
    from tqdm import tqdm

    stream = getattr(sys.stderr, "stream", sys.stderr)  # a bar goes back to its line's start
    if stream.isatty() or "ipykernel" in sys.modules:  # a cell of Jupyter or Colab, too, moves it
        return tqdm(**options, file=stream)
    return tqdm(**options, file=Lines(sys.stderr), mininterval=30)


class Lines:
    """A text stream in which a bar, redrawn from the start of its line, is a line each time."""

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


def seed_number(text):
    """The seed that a command line gives: PyTorch takes what fits in 64 bits."""
    if not -2**63 <= (number := int(text)) < 2**64:
        raise argparse.ArgumentTypeError(f"{number} does not fit in 64 bits")
    return number


def format_rows(rows):
    """Lines of a table: rows of (label, cells), the labels on the left, the cells on the right."""
    width = max(len(label) for label, _ in rows)
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in rows if cells))]
    return [f"{label:<{width}}" + "".join(f"  {cell:>{n}}" for cell, n in zip(cells, widths))
            for label, cells in rows]


# --------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------


def acquire(lock, timeout=0):
    """Acquires a FileLock; where its disk has no locks, says so and goes on. Raises filelock's
    Timeout where another process has it for longer."""
    try:
        lock.acquire(timeout=timeout)
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
            raise
        print(f"note: the disk of {Path(lock.lock_file).parent} has no locks ({first_line(error)});"
              " see to it yourself that no other process writes there", file=sys.stderr)


@contextmanager
def write_aside(path):
    """Gives a path to write to; moves it to `path` after a block without error, and not before.

    Raises InputError where the disk cannot take it.
    """
    path = Path(path)
    with blaming_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=ASIDE, dir=path.parent) as folder:
            aside = Path(folder) / path.name
            yield aside
            move_into_place(aside, path)


@contextmanager
def blaming_disk(path):
    """Makes an error of the disk, in a block that writes `path`, an InputError that names it."""
    try:
        yield
    except Exception as error:
        # PyTorch and safetensors have errors of their own for a disk that is full.
        of_disk = isinstance(error, (OSError, RuntimeError)) and not is_memory_full(error)
        if not of_disk and type(error).__name__ != "SafetensorError":
            raise
        raise InputError(f"{path} cannot be written ({first_line(error)}): make room, or give a "
                         "folder on another disk") from error


def move_into_place(aside, path):
    """Renames a file that was written aside, with the permissions of any other new file.

    It is flushed to the disk before, so that a power cut leaves the old file or the new one.
    """
    mask = os.umask(0)
    os.umask(mask)
    with suppress(OSError):  # file systems that know no permissions
        aside.chmod(0o666 & ~mask)
    with open(aside, "rb+") as file:
        flush_to_disk(file.fileno())
    os.replace(aside, path)
    if os.name == "posix":  # the name, too, must reach the disk
        folder = os.open(path.parent, os.O_RDONLY)
        flush_to_disk(folder)
        os.close(folder)


def flush_to_disk(descriptor):
    """fsync, where the file system has it."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise


def write_text(path, text):
    """Writes a text file, whole or not at all."""
    with write_aside(path) as aside:
        aside.write_bytes(text.encode("utf-8"))  # line ends stay what they are, on Windows, too


def write_json(path, value):
    """Writes a JSON file, whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------


@contextmanager
def blaming(path, wrong="is damaged; fetch it again, or make it anew"):
    """Makes whatever goes wrong in a block that reads `path` an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a damaged file shows it anywhere, and by nearly any exception
        if is_memory_full(error):
            raise
        raise InputError(f"{path} {wrong} ({first_line(error)})") from None


def first_line(error):
    """What an exception says, in one line of at most 200 characters."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def read_json(path):
    """The object that a JSON file holds. Raises InputError."""
    path = existing_file(Path(path))
    with blaming(path, "holds no JSON object that can be read"):
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constant)
        if not isinstance(values, dict):
            raise ValueError(f"it is a {type(values).__name__}")
    return values


def refuse_constant(name):
    """Python's json would read NaN and Infinity, which no JSON has."""
    raise ValueError(f"{name} is no number")


def existing_file(path):
    """The path of a file that is there. Raises InputError where it only stands for another."""
    if not path.exists():
        raise InputError(f"{path} is missing")
    with open(path, "rb") as file:
        if file.read(64).startswith(b"version https://git-lfs"):
            raise InputError(f"{path} is a Git LFS pointer, not the file: run git lfs pull")
    return path


def refuse_file(folder):
    """The path of a folder. Raises InputError where a file lies there."""
    if folder.is_file():
        raise InputError(f"{folder} is a file: give the folder that it lies in")
    return folder


def sha256(path):
    """The SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
