"""What the modules share about files: errors of one sentence, files whole or absent, downloads."""

import hashlib
import json
import os
import re
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parent  # where models/ and data/ lie, wherever the command was started
ASIDE = ".new-"  # folders that begin so hold what is being written


class InputError(ValueError):
    """A user's mistake: one sentence that says what is wrong, where, and what to do."""


def run_command(main):
    """Runs a module's main(); a user's mistake ends as one line on stderr, without a traceback."""
    sys.stdout = Printable(sys.stdout)
    sys.stderr.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        sys.exit(f"error: {printable(str(error))}")
    except KeyboardInterrupt as error:
        print(f"\nstopped{error}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever reads the output (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
    except OSError as error:  # no space, no permission, no such file, a folder in a file's place
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(printable(f"error: {where}{error.strerror or error}"))


class Printable:
    """A text stream in which a terminal meets no control characters, and no text is refused.

    Names and sentences come from files and models of other people; printed as they are, they could
    steer the terminal. What its encoding lacks is shown by its number.
    """

    def __init__(self, stream):
        stream.reconfigure(errors="backslashreplace")
        self.stream = stream

    def write(self, text):
        return self.stream.write(printable(text))

    def __getattr__(self, name):
        return getattr(self.stream, name)


def printable(text):
    """Text with its control characters, but for tabs and line ends, as \\x1b and the like."""
    unsafe = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
    return re.sub(unsafe, lambda match: ascii(match[0])[1:-1], text)


@contextmanager
def write_aside(path):
    """Gives a path to write to; moves it to `path` after a block without error, and not before.

    What is moved was flushed to the disk, so that a power cut leaves the old file or the new one.
    It has the permissions of any other new file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=ASIDE, dir=path.parent) as folder:
        aside = Path(folder) / path.name
        yield aside
        mask = os.umask(0)
        os.umask(mask)
        aside.chmod(0o666 & ~mask)
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    if os.name == "posix":  # the name, too, must reach the disk
        folder = os.open(path.parent, os.O_RDONLY)
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


def download(url, path, expected_sha256=None):
    """Fetches `url` into `path` with a progress bar; goes on where an interrupted one stopped.

    `path` appears only when the file is complete and, where a hash is expected, right. Raises
    InputError otherwise; what came lies in `path`.part.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            if response.status != 206:  # 206: the server sends only the rest
                have = 0
            length = response.headers.get("Content-Length")
            total = have + int(length) if length else None
            with (
                open(part, "ab" if have else "wb") as file,
                tqdm(desc=path.name, total=total, initial=have, unit="B", unit_scale=True) as bar,
            ):
                while chunk := response.read(1 << 20):
                    file.write(chunk)
                    bar.update(len(chunk))
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send: the part is whole, or not of this file
            part.unlink()
            return download(url, path, expected_sha256)
        raise InputError(f"{url} could not be downloaded ({error}); fetch it by hand into "
                         f"{path.parent}/") from None
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"{url} could not be downloaded ({reason}); run the same command again to "
                         f"go on, or fetch it by hand into {path.parent}/") from None
    if total is not None and part.stat().st_size != total:
        raise InputError(f"{url}: the connection closed after {part.stat().st_size:,} of {total:,} "
                         "bytes; run the same command again to go on")
    if expected_sha256 is not None and sha256(part) != expected_sha256:
        part.unlink()
        raise InputError(f"{url}: what was downloaded is not the known file (its SHA-256 differs); "
                         "try again later")
    os.replace(part, path)
