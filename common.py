"""What the modules share about files: errors of one sentence, files whole or absent, downloads."""

import hashlib
import json
import os
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parent  # where models/ and data/ lie, wherever the command was started


class InputError(ValueError):
    """A user's mistake: one sentence that says what is wrong, where, and what to do."""


def run_command(main):
    """Runs a module's main(); a user's mistake ends as one line on stderr, without a traceback."""
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")
    except BrokenPipeError:  # whoever reads the output (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def write_aside(path):
    """Gives a path beside `path` to write to; renames it to `path` after a block without error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".new")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path, text):
    """Writes a text file, whole or not at all."""
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Writes a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


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
