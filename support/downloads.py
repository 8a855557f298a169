"""Downloads over networks that may fail at any byte; what came lies in FILE.part, to go on with."""

import sys
import time
from contextlib import contextmanager, suppress
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout

from support.files import InputError, move_into_place, progress_bar, sha256

STALLED = 20  # seconds without a byte
PAUSE, LONGEST_PAUSE = 1, 60  # seconds before another try: 1, 4, 16, or what the server asks for
NEVER = float("inf")


class Failure(Exception):
    """(why an answer was not the rest of the file, after how many seconds to ask again)"""


def download(url, path, expected_sha256=None, expected_size=None):
    """Fetches `url` into `path`, unless it is there; goes on where another call was stopped.

    `path` appears only when the file is whole and, where its hash or size is known, right. Of
    several processes one fetches it, and the others wait. Raises InputError otherwise.
    """
    path = Path(path)
    part, etag = (path.with_name(path.name + ending) for ending in (".part", ".etag"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(path):
            if path.exists():  # it came while this process waited
                return
            fetch(url, part, etag)
            etag.unlink(missing_ok=True)
            is_size = expected_size in (None, part.stat().st_size)
            if not is_size or expected_sha256 not in (None, sha256(part)):
                part.unlink()
                raise InputError(f"{url}: what was downloaded is not the known file (its size or "
                                 "SHA-256 differs); try again later")
            move_into_place(part, path)
    except OSError as error:  # of the disk: those of the network are Failures
        raise InputError(f"{path.parent}/, where {url} shall lie, cannot be written to "
                         f"({error.strerror or error}); mend that and run the same command again, "
                         "or fetch it into a folder of your own and name that folder") from None


@contextmanager
def alone(path):
    """Lets one process at a time fetch `path`."""
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{path.name} is being downloaded by another process; waiting", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            Path(lock.lock_file).unlink()
        lock.release()


def fetch(url, part, etag):
    """Brings `part` to its end, with growing pauses between answers that bring nothing new."""
    furthest = -1
    while True:
        try:
            with open(part, "ab") as file:
                return file.writelines(receive(url, file, etag))
        except Failure as failure:
            reason, asked = failure.args
        have = part.stat().st_size
        pause, furthest = (PAUSE, have) if have > furthest else (4 * pause, furthest)
        if max(pause, asked) > LONGEST_PAUSE:
            if not have:
                part.unlink()
            raise InputError(f"{url} could not be downloaded ({reason}); run the same command again"
                             f" to go on, or fetch it by hand into {part.parent}/")
        print(f"{part.stem}: {reason}; trying again in {max(pause, asked)} s", file=sys.stderr)
        time.sleep(max(pause, asked))


def receive(url, file, etag):
    """Yields what `file` lacks; empties it before, where it is no part of what the server has."""
    start = file.tell()
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urlopen(request, timeout=STALLED) as response:
            version, span = (response.headers.get(name, "") for name in ("ETag", "Content-Range"))
            if response.headers.get_content_type() == "text/html":
                raise Failure("a web page came; does the network ask for a log-in?", NEVER)
            is_other = etag.exists() and etag.read_text() != version
            if response.status == 200:  # all of it, whatever was asked for
                start = file.truncate(0)
                if version:
                    etag.write_text(version)
            elif is_other or not span.startswith(f"bytes {start}-"):
                file.truncate(0)
                raise Failure("the server has another file now", 0)
            whole, rest = span.rpartition("/")[2], response.length  # "", None: it does not tell
            total = int(whole) if whole.isdecimal() else rest and start + rest
            with progress_bar(desc=etag.stem, total=total, initial=start, unit="B",
                              unit_scale=True) as bar:
                while chunk := response.read1(1 << 16):
                    yield chunk
                    bar.update(len(chunk))
            if bar.n == start or total not in (None, bar.n):
                raise Failure(f"the connection closed after {bar.n:,} bytes", 0)
    except HTTPError as error:
        if error.code == 416:  # nothing is left to send: `file` is whole, or of another file
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return
            file.truncate(0)
        asked = error.headers.get("Retry-After", "")[:9]
        seconds = int(asked) if asked.isdecimal() else 0
        may_pass = error.code in (416, 429) or error.code >= 500
        raise Failure(repr(error), seconds if may_pass else NEVER) from None
    except (ConnectionError, TimeoutError, IncompleteRead) as error:
        raise Failure(repr(error), 0) from None
    except (OSError, HTTPException, ValueError) as error:  # there is no way to it, or no HTTP
        raise Failure(repr(getattr(error, "reason", error))[:200], NEVER) from None
