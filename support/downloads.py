"""Downloads over networks that may fail at any byte; FILE.part keeps what has arrived."""

import sys
import time
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout

from support.commands import InputError, progress_bar
from support.files import acquire, move_into_place, sha256, wrap_disk_errors

STALLED = 20  # seconds without a byte
TRIES, PAUSE = 4, 2  # answers in a row that bring nothing new; seconds between two
MOST = 100_000_000  # bytes of a file whose size is not known


class Failure(Exception):
    """Why an answer was not the rest of the file."""


def download(url, path, expected_sha256=None, expected_size=None):
    """Downloads `url` to `path`, unless it is there; continues where another call was stopped.

    `path` appears only when the file is whole and, where its hash or size is known, right. Of
    several processes one fetches it, and the others wait. Raises InputError otherwise.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    if path.exists():
        return
    with wrap_disk_errors(path), lock_folder(path):
        if path.exists():  # it came while this process waited
            return
        fetch(url, part, expected_size)
        is_size = expected_size in (None, part.stat().st_size)
        if not is_size or expected_sha256 not in (None, sha256(part)):
            part.unlink()
            raise InputError(f"{url}: what was downloaded is not the known file (its size or "
                             "SHA-256 differs); try again later")
        move_into_place(part, path)


@contextmanager
def lock_folder(path):
    """Lets one process at a time fetch into the folder of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.parent / ".lock")
    try:
        acquire(lock)
    except Timeout:
        print(f"{path.name} is being downloaded by another process; waiting", file=sys.stderr)
        acquire(lock, timeout=-1)
    try:
        yield
    finally:
        lock.release()


def fetch(url, part, expected_size):
    """Brings `part` to its end, in as many answers as it takes while each brings something new."""
    furthest = tries = 0
    while True:
        try:
            with open(part, "ab") as file:  # an OSError of its own is one of the disk
                return file.writelines(receive(url, file, expected_size))
        except Failure as failure:
            reason = failure
        have = part.stat().st_size
        furthest, tries = (have, 1) if have > furthest else (furthest, tries + 1)
        if tries == TRIES:
            raise InputError(f"{url} could not be downloaded ({reason}); run the same command again"
                             f" to go on, or fetch it by hand into {part.parent}/")
        print(f"{part.stem}: {reason}; trying again in {PAUSE} s", file=sys.stderr)
        time.sleep(PAUSE)


def receive(url, file, expected_size):
    """Yields what `file` lacks; empties it before, where it is no part of what the server has."""
    start = file.tell()
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urlopen(request, timeout=STALLED) as response:
            if response.headers.get_content_type() == "text/html":
                raise Failure("a web page came; does the network ask for a log-in?")
            span = response.headers.get("Content-Range", "")
            if response.status == 200:  # all of it, whatever was asked for
                start = file.truncate(0)
            elif not span.startswith(f"bytes {start}-"):
                file.truncate(0)
                raise Failure("the server has another file now")
            whole, rest = span.rpartition("/")[2], response.length  # "", None: it does not tell
            total = int(whole) if whole.isdecimal() else rest and start + rest
            with progress_bar(desc=Path(file.name).stem, total=total, initial=start, unit="B",
                              unit_scale=True) as bar:
                while chunk := response.read1(1 << 16):
                    bar.update(len(chunk))
                    if bar.n > (expected_size or MOST):
                        file.truncate(0)
                        raise Failure("more came than the file has")
                    yield chunk
            if bar.n == start or total not in (None, bar.n):
                raise Failure(f"the connection closed after {bar.n:,} bytes")
    except (OSError, HTTPException, ValueError) as error:
        if getattr(error, "code", None) == 416:  # the server's file ends before `file` does
            file.truncate(0)
        raise Failure(repr(error)[:200]) from None
