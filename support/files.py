"""Files that are whole or absent, locks, JSON, checksums. The standard library alone at import."""

import errno
import hashlib
import json
import os
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from support.commands import InputError, first_line, is_out_of_memory

ROOT = Path(__file__).parents[1]  # where models/ and data/ are, wherever a command was started
ASIDE = ".new-"  # folders that begin so hold what is being written
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)  # of a file system


# --------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------


def acquire(lock, timeout=0):
    """Acquires a FileLock; if its disk has no locks, says so and continues. Raises filelock's
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
    with wrap_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=ASIDE, dir=path.parent) as folder:
            aside = Path(folder) / path.name
            yield aside
            move_into_place(aside, path)


@contextmanager
def wrap_disk_errors(path):
    """Makes an error of the disk, in a block that writes `path`, an InputError that names it."""
    try:
        yield
    except Exception as error:
        # PyTorch and safetensors have errors of their own for a disk that is full.
        of_disk = isinstance(error, (OSError, RuntimeError)) and not is_out_of_memory(error)
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
def wrap_errors(path, wrong="is corrupt; download it again or re-create it"):
    """Makes whatever goes wrong in a block that reads `path` an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a damaged file shows it anywhere, and by nearly any exception
        if is_out_of_memory(error):
            raise
        raise InputError(f"{path} {wrong} ({first_line(error)})") from None


def read_json(path):
    """The object that a JSON file holds. Raises InputError."""
    path = existing_file(Path(path))
    with wrap_errors(path, "holds no JSON object that can be read"):
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constant)
        if not isinstance(values, dict):
            raise ValueError(f"it is a {type(values).__name__}")
    return values


def refuse_constant(name):
    """Python's json would read NaN and Infinity, which no JSON has."""
    raise ValueError(f"{name} is no number")


def existing_file(path):
    """The path of an existing file. Raises InputError for a Git LFS pointer."""
    if not path.exists():
        raise InputError(f"{path} is missing")
    with open(path, "rb") as file:
        if file.read(64).startswith(b"version https://git-lfs"):
            raise InputError(f"{path} is a Git LFS pointer, not the file: run git lfs pull")
    return path


def refuse_file(folder):
    """The path of a folder. Raises InputError if it is a file."""
    if folder.is_file():
        raise InputError(f"{folder} is a file: give the folder that contains it")
    return folder


def sha256(path):
    """The SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
