"""Downloads from servers that fail in every way end in the whole file, or in one sentence."""

import contextlib
import hashlib
import os
import random
import re
import signal
import socket
import struct
import threading
import time

import pytest

from conftest import start_warm
from support import bases
from support import downloads as download_module
from support.commands import InputError
from support.downloads import download

CONTENT = random.Random(0).randbytes(300_000)
SMALL = b"abcdefghijklmnopqrstuvwxyz" * 2
STALL, RESET = "stall", "reset"  # how a connection may end, besides being closed


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Server:
    """A server that gives its n-th connection the n-th answer, and its last answer to all others.

    An answer is a function of the first byte that was asked for (0 without a Range); it gives
    (the bytes to send,) or (the bytes to send, how to end).
    """

    def __init__(self, *answers):
        self.answers, self.asked, self.over = list(answers), [], threading.Event()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}/file"
        self.threads = [threading.Thread(target=self.accept)]

    def __enter__(self):
        self.threads[0].start()
        return self

    def __exit__(self, *_):
        self.over.set()
        with contextlib.suppress(OSError):
            self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()

    def accept(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self.listening.accept()
                thread = threading.Thread(target=self.serve, args=(connection,))
                self.threads.append(thread)
                thread.start()

    def serve(self, connection):
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            request = b""
            while b"\r\n\r\n" not in request:
                received = connection.recv(65536)
                if not received:
                    return
                request += received
            found = re.search(rb"(?i)\r\nRange: bytes=(\d+)-\r\n", request)
            self.asked.append(int(found[1]) if found else None)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            sent, end = (*answer(self.asked[-1] or 0), None)[:2]
            connection.sendall(sent)
            if end == STALL:
                self.over.wait(5)
            elif end == RESET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def message(status, body=b"", **headers):
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode() + body


def good(content=CONTENT, cut=None, end=None):
    """What a server does that is as it should be; but `cut` bytes of its answer alone may come."""

    def answer(start):
        size = len(content)
        if start >= size:
            return message("416 Range Not Satisfiable", Content_Range=f"bytes */{size}"), end
        its_headers = {"Content_Length": size - start}
        if start:
            its_headers["Content_Range"] = f"bytes {start}-{size - 1}/{size}"
        sent = message("206 Partial Content" if start else "200 OK", content[start:], **its_headers)
        return sent[:cut], end

    return answer


def always(status, body=b"", **headers):
    return lambda start: (message(status, body, **headers),)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pauses that nobody notices, and no proxy but the test's own."""
    for name, value in {"STALLED": 0.3, "PAUSE": 0.001}.items():
        monkeypatch.setattr(download_module, name, value)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "file"


def fails(url, path, *expected):
    """The one sentence in which a download ends."""
    with pytest.raises(InputError) as caught:
        download(url, path, *expected)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 600 and url in sentence, sentence
    assert not path.exists()
    return sentence


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


# --------------------------------------------------------------------------------------------------
# What is gone on with
# --------------------------------------------------------------------------------------------------


def test_a_server_that_stops_sending_is_asked_for_the_rest(path):
    head = len(good()(0)[0]) - len(CONTENT)
    with Server(good(cut=head + 100_000, end=STALL), good(cut=20, end=STALL), good()) as server:
        download(server.url, path)
    assert path.read_bytes() == CONTENT and server.asked == [None, 100_000, 100_000]


def test_a_server_that_cuts_every_answer_short_is_asked_as_often_as_it_sends_something_new(path):
    cut = len(good()(1)[0]) - len(CONTENT) + 10_000
    with Server(good(cut=cut)) as server:
        download(server.url, path, sha256(CONTENT), len(CONTENT))
    assert path.read_bytes() == CONTENT and len(server.asked) >= 30


def test_a_server_that_sends_nothing_new_is_asked_a_few_times_and_what_came_is_kept(path, capsys):
    with Server(good(cut=len(good()(0)[0]) - 1000), lambda start: (b"",)) as server:
        sentence = fails(server.url, path)
    assert "run the same command again to go on" in sentence and str(path.parent) in sentence
    assert path.with_name("file.part").read_bytes() == CONTENT[:-1000] and len(server.asked) == 4
    assert len(re.findall(r"trying again in [\d.]+ s\n", capsys.readouterr().err)) == 3


def test_a_chunked_answer_that_is_cut_is_gone_on_with_to_the_byte(path):
    chunks = b"20\r\n" + SMALL[:32] + b"\r\n14\r\n" + SMALL[32:] + b"\r\n0\r\n\r\n"
    chunked = message("200 OK", chunks, Transfer_Encoding="chunked")
    head = chunked.index(b"20\r\n")
    for cut in range(head, len(chunked), 3):
        with Server(lambda start: (chunked[:cut],), good(SMALL)) as server:
            download(server.url, path)
        assert path.read_bytes() == SMALL, cut
        path.unlink()


# --------------------------------------------------------------------------------------------------
# Answers that are not the rest of the file
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("span", [
    "bytes 4-51/52", "bytes 55-51/52", "5-51/52", ""])
def test_a_range_that_was_not_asked_for_is_never_added(path, span):
    path.parent.mkdir()
    path.with_name("file.part").write_bytes(SMALL[:5])
    wrong = always("206 Partial Content", SMALL[5:], Content_Range=span)
    with Server(wrong, good(SMALL)) as server:
        download(server.url, path)
    assert path.read_bytes() == SMALL and server.asked == [5, None]


def test_a_range_that_ends_before_the_file_does_is_followed_by_the_next(path):
    def pieces(start):
        span = f"bytes {start}-{start + 6}/52"
        return (message("206 Partial Content", SMALL[start : start + 7], Content_Range=span),)

    with Server(good(SMALL, cut=len(good(SMALL)(0)[0]) - 50), pieces) as server:
        download(server.url, path)
    assert path.read_bytes() == SMALL and server.asked == [None, *range(2, 52, 7)]


@pytest.mark.parametrize("length", [1, 51, 53, -3, "nonsense"])
def test_a_length_that_is_not_the_files_never_lets_another_file_pass(path, length):
    for known in ((sha256(SMALL), len(SMALL)), (None, len(SMALL))):
        with Server(always("200 OK", SMALL, Content_Length=length), good(SMALL)) as server:
            with contextlib.suppress(InputError):
                download(server.url, path, *known)
        assert not path.exists() or path.read_bytes() == SMALL
        assert path.exists() or length in (1, 51)
        path.unlink(missing_ok=True)


def test_an_answer_without_a_length_is_read_to_its_end_but_nothing_is_no_file(path):
    with Server(always("200 OK")) as server:
        fails(server.url, path)
    with Server(always("200 OK", SMALL)) as server:
        download(server.url, path)
    assert path.read_bytes() == SMALL


def test_an_answer_without_an_end_ends_and_nothing_of_it_is_kept(path, monkeypatch):
    """Each claims ten bytes more and sends forty; or all that it has, for ever."""
    monkeypatch.setattr(download_module, "MOST", 50)

    def liar(start):
        if not start:
            return message("200 OK", b"x" * 40, Content_Length=50), None
        span = f"bytes {start}-{start + 9}/50"
        return message("206 Partial Content", b"x" * 40, Content_Range=span), None

    for known in ((sha256(SMALL), 50), (sha256(SMALL), None), (None, None)):
        for answer in (liar, always("200 OK", CONTENT)):
            with Server(answer) as server:
                assert "more came" in fails(server.url, path, *known)
            assert len(server.asked) <= 12
            path.with_name("file.part").unlink(missing_ok=True)


def test_a_part_that_is_as_long_as_the_file_or_longer_is_thrown_away(path):
    path.parent.mkdir()
    for part, asked in ((b"?" * 53, [53, None]), (SMALL, [52, None])):
        path.with_name("file.part").write_bytes(part)
        with Server(good(SMALL)) as server:
            download(server.url, path)
        assert path.read_bytes() == SMALL and server.asked == asked
        path.unlink()


@pytest.mark.parametrize("known", [(sha256(SMALL),), (None, 52), (sha256(SMALL), 52)])
def test_another_file_than_the_known_one_is_refused_and_removed(path, known):
    for content in (SMALL + b"?", SMALL[:-1], b"log in, please" * 9):
        with Server(good(content)) as server:
            sentence = fails(server.url, path, *known)
        assert "is not the known file" in sentence or "more came than" in sentence
        assert sum(found.stat().st_size for found in path.parent.iterdir()) == 0


def test_the_web_page_of_a_network_that_wants_a_log_in_is_no_file_and_harms_no_part(path):
    page = always("200 OK", b"<html>please log in</html>", Content_Type="text/html; charset=utf-8")
    with Server(good(SMALL, cut=-20), page) as server:
        assert "log-in" in fails(server.url, path)
    assert path.with_name("file.part").read_bytes() == SMALL[:-20]
    with Server(good(SMALL)) as server:
        download(server.url, path)
    assert path.read_bytes() == SMALL


def test_the_sizes_of_openais_weights_are_those_of_float32s_in_published_shapes():
    for name, (_, n_bytes) in bases.OPENAI_FOLDERS.items():
        n_vocab, n_ctx, n_embd, _, n_layer = (bases.PUBLISHED[name][size] for size in bases.SIZES)
        layer = 12 * n_embd**2 + 13 * n_embd  # 4 matrices, 4 biases, 2 norms
        assert n_bytes == 4 * ((n_vocab + n_ctx + 2) * n_embd + n_layer * layer)


# --------------------------------------------------------------------------------------------------
# No answer at all
# --------------------------------------------------------------------------------------------------

REFUSED = {
    "not found": always("404 Not Found"),
    "no HTTP": lambda start: (b"SSH-2.0-OpenSSH_9.2\r\n",),
    "control characters": lambda start: (b"HTTP/1.1 \x1b[31m\x07 no\r\n\r\n",),
    "loop": always("302 Found", Location="/file"),
    "empty": always("204 No Content"),
    "silence": lambda start: (b"", STALL),
    "reset": lambda start: (b"", RESET),
    "chunks of nonsense": always("200 OK", b"zz\r\nabc", Transfer_Encoding="chunked"),
    "no such range": always("416 Range Not Satisfiable"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_answer_is_one_sentence(path, kind):
    with Server(REFUSED[kind]) as server:
        sentence = fails(server.url, path)
    assert "run the same command again" in sentence and f"by hand into {path.parent}/" in sentence
    assert path.with_name("file.part").read_bytes() == b"" and sentence.isprintable()
    assert len(server.asked) <= 5 * download_module.TRIES  # a redirect is followed four times


@pytest.mark.parametrize("proxy", ["http://proxy.invalid:port", "http://[::1", "ü" * 70])
def test_a_proxy_that_is_nonsense_is_one_sentence(path, proxy, monkeypatch):
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", proxy)
    fails("http://127.0.0.1:1/file", path)


# --------------------------------------------------------------------------------------------------
# The disk, and other processes
# --------------------------------------------------------------------------------------------------

CALL = """
import resource, sys
from support.commands import run_command
from support.downloads import download
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
run_command(lambda: download(sys.argv[1], sys.argv[2]))
"""


def start(url, path, room=1_000_000):
    """A process that downloads onto a disk that takes files of so many bytes."""
    return start_warm("-c", CALL, url, path, room)


def test_where_no_folder_can_be_is_one_sentence(path):
    path.parent.write_text("a file")
    with pytest.raises(InputError, match=f"^{path} cannot be written .* exists"):
        download("http://127.0.0.1:1/file", path)


def test_a_disk_that_takes_no_more_is_one_sentence_and_what_came_is_kept(path):
    with Server(good()) as server:
        done = start(server.url, path, 100_000).wait()
        assert done.returncode == 1 and "Traceback" not in done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"error: {path} cannot be written") and "too large" in last
        assert CONTENT.startswith(path.with_name("file.part").read_bytes())
        assert names(path.parent) == ["file.part"]
        download(server.url, path)
    assert path.read_bytes() == CONTENT and server.asked == [None, 100_000]


def slowly(start):
    time.sleep(0.3)
    return good()(start)


def test_of_several_processes_one_fetches_and_the_others_wait(path):
    with Server(slowly) as server:
        processes = [start(server.url, path) for _ in range(3)]
        done = [process.wait() for process in processes]
        assert [process.returncode for process in done] == [0, 0, 0], done
        assert len(server.asked) == 1
    assert path.read_bytes() == CONTENT and names(path.parent) == ["file"]
    assert "being downloaded by another process" in str(done)


def test_where_the_process_that_fetches_is_killed_the_next_one_goes_on(path):
    cut = len(good()(0)[0]) - 100_000
    with Server(good(cut=cut, end=STALL), good()) as server:
        first = start(server.url, path)
        deadline = time.monotonic() + 30
        part = path.with_name("file.part")
        while not (part.exists() and part.stat().st_size > 100_000) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        download(server.url, path)
    assert path.read_bytes() == CONTENT and names(path.parent) == ["file"]
    assert server.asked[0] is None and server.asked[1] > 100_000


# --------------------------------------------------------------------------------------------------
# Everything at once
# --------------------------------------------------------------------------------------------------


def bad_day(draw, content):
    """A random answer of a server that is honest, over a network that is not well."""
    cut = draw.randrange(len(good(content)(0)[0]) + 1)
    return draw.choice([
        good(content, cut), good(content, cut, RESET),
        lambda start: good(content, cut)(0),  # knows no ranges
        always("503 Busy"),
        lambda start: (b"",), lambda start: (b"garbage\r\n",),
        always("200 OK", b"<html>", Content_Type="text/html"),
        always("416 No"), lambda start: good(content)(start + 1), REFUSED["loop"],
    ])


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_a_file_is_right_or_absent_and_a_good_day_completes_it(path, seed):
    draw = random.Random(seed)
    content = draw.randbytes(draw.randint(1, 400))  # without a known hash
    with Server(*(bad_day(draw, content) for _ in range(draw.randint(1, 12)))) as server:
        for _ in range(4):
            with contextlib.suppress(InputError):
                download(server.url, path)
            assert not path.exists() or path.read_bytes() == content
    with Server(good(content)) as server:
        download(server.url, path)
    assert path.read_bytes() == content and names(path.parent) == ["file"]
