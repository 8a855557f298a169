"""What the modules share about files: errors of one sentence, files whole or absent."""

import argparse
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

from safetensors import SafetensorError
from tqdm import tqdm

ROOT = Path(__file__).parents[1]  # where models/ and data/ lie, wherever a command was started
ASIDE = ".new-"  # folders that begin so hold what is being written


class InputError(ValueError):
    """A user's mistake: one sentence that says what is wrong, where, and what to do."""


def run_command(main):
    """Runs a module's main(); a user's mistake ends as one line on stderr, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's stream has no encoding of its own
            stream.reconfigure(errors="backslashreplace")
    plain, sys.stdout = sys.stdout, Printable(sys.stdout)
    try:
        for text in (*sys.argv, os.getcwd()):
            if any("\ud800" <= character <= "\udfff" for character in text):  # no JSON holds them
                raise InputError(f"{text!r} is not in UTF-8; rename it, or write it otherwise")
        main()
        sys.stdout.flush()
    except InputError as error:
        sys.exit(f"error: {printable(str(error))}")
    except KeyboardInterrupt as error:
        print(f"\nstopped{error}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever reads the output (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # PyTorch's, which is not imported here
            raise
        sys.exit("error: the GPU's memory is full; a smaller --batch-size (with another --out) or "
                 "--decode-batch-size needs less")
    except OSError as error:  # no space, no permission, no such file, a folder in a file's place
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(printable(f"error: {where}{error.strerror or error}"))
    finally:
        sys.stdout = plain


def command_line(words):
    """Words as a line that can be pasted into a shell."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def seed_number(text):
    """The seed that a command line gives: PyTorch takes what fits in 64 bits."""
    if not -2**63 <= (number := int(text)) < 2**64:
        raise argparse.ArgumentTypeError(f"{number} does not fit in 64 bits")
    return number


class Printable:
    """A text stream in which a terminal meets no control characters, and no text is refused.

    Names and sentences come from files and models of other people; printed as they are, they could
    steer the terminal. What its encoding lacks is shown by its number.
    """

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        return self.stream.write(printable(text))

    def __getattr__(self, name):
        return getattr(self.stream, name)


def printable(text):
    """Text with its control characters, but for tabs and line ends, as \\x1b and the like."""
    unsafe = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
    return re.sub(unsafe, lambda match: ascii(match[0])[1:-1], text)


def progress_bar(**options):
    """A bar on stderr, as tqdm draws it; in a file or a log, a line every half minute instead."""
    if sys.stderr.isatty():
        return tqdm(**options)
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


@contextmanager
def write_aside(path):
    """Gives a path to write to; moves it to `path` after a block without error, and not before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=ASIDE, dir=path.parent) as folder:
        aside = Path(folder) / path.name
        try:
            yield aside
        except (RuntimeError, SafetensorError) as error:  # theirs where the disk is full
            raise InputError(f"{path} cannot be written ({error}); is the disk full?") from error
        move_into_place(aside, path)


def move_into_place(aside, path):
    """Renames a file that was written aside, with the permissions of any other new file.

    It is flushed to the disk before, so that a power cut leaves the old file or the new one.
    """
    mask = os.umask(0)
    os.umask(mask)
    with suppress(OSError):  # file systems that know no permissions
        aside.chmod(0o666 & ~mask)
    with open(aside, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)
    if os.name == "posix":  # the name, too, must reach the disk
        folder = os.open(path.parent, os.O_RDONLY)
        with suppress(OSError):  # some file systems cannot do this for a folder
            os.fsync(folder)
        os.close(folder)


def write_text(path, text):
    """Writes a text file, whole or not at all."""
    with write_aside(path) as aside:
        aside.write_bytes(text.encode("utf-8"))  # line ends stay what they are, on Windows, too


def write_json(path, value):
    """Writes a JSON file, whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


@contextmanager
def reading(path, wrong="is damaged; fetch it again"):
    """Makes whatever goes wrong in a block that reads `path` an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a damaged file shows it anywhere, and by nearly any exception
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise InputError(f"{path} {wrong} ({reason})") from None


def read_json(path):
    """The object that a JSON file holds; raises InputError naming file and line."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, deep nesting
        raise InputError(f"{path}: not JSON that can be read ({error})") from None
    if not isinstance(values, dict):
        raise InputError(
            f"{path}: a JSON object was expected, but it is a {type(values).__name__}")
    return values


def sha256(path):
    """The SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
