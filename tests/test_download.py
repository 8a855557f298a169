"""Downloads from a server of our own: whole, cut, resumed, refused; and what is fetched when."""

import hashlib
import random
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import e2e_data
import gpt2
from support import downloads as download_module
from support.files import InputError
from support.downloads import download

@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(download_module, "PAUSE", 0.01)
    monkeypatch.setattr(download_module, "LONGEST_PAUSE", 0.1)


CONTENT = random.Random(0).randbytes(3_000_000)
HASH = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; `server.requests` keeps (path, Range header, bytes sent)."""

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        content = server.files.get(self.path)
        start = 0
        if asked and server.knows_ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if content is None or start >= len(content):
            server.requests.append((self.path, asked, 0))
            return self.send_error(404 if content is None else 416)
        part = content[start : server.cut_after]
        server.requests.append((self.path, asked, len(part)))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.requests = {"/file": CONTENT}, []
    server.knows_ranges, server.cut_after = True, None
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def path(tmp_path):
    """Where the file shall lie, in a folder that is not there yet."""
    return tmp_path / "folder" / "file"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_part(path, content):
    path.parent.mkdir()
    path.with_name("file.part").write_bytes(content)


# --------------------------------------------------------------------------------------------------
# download()
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expected", [HASH, None])
def test_a_whole_file_arrives(server, path, expected):
    download(f"{server.url}/file", path, expected)
    assert path.read_bytes() == CONTENT and names(path.parent) == ["file"]
    assert server.requests == [("/file", None, len(CONTENT))]


def test_a_part_is_resumed_and_only_the_rest_is_sent(server, path):
    write_part(path, CONTENT[:1_234_567])
    download(f"{server.url}/file", path, HASH)
    assert path.read_bytes() == CONTENT and names(path.parent) == ["file"]
    assert server.requests == [("/file", "bytes=1234567-", len(CONTENT) - 1_234_567)]


def test_a_server_that_knows_no_ranges_sends_the_whole_file(server, path):
    server.knows_ranges = False
    write_part(path, CONTENT[:1_234_567])
    download(f"{server.url}/file", path, HASH)
    assert path.read_bytes() == CONTENT and names(path.parent) == ["file"]
    assert server.requests == [("/file", "bytes=1234567-", len(CONTENT))]


@pytest.mark.parametrize("expected", [HASH, None])
def test_a_cut_connection_leaves_a_part_that_the_next_call_completes(server, path, expected):
    server.cut_after = 2_000_000
    with pytest.raises(InputError, match="run the same command again to go on"):
        download(f"{server.url}/file", path, expected)
    assert names(path.parent) == ["file.part"]
    part = path.with_name("file.part").read_bytes()
    assert 0 < len(part) <= 2_000_000 and CONTENT.startswith(part)
    server.cut_after = None
    download(f"{server.url}/file", path, expected)
    assert path.read_bytes() == CONTENT and names(path.parent) == ["file"]
    assert server.requests[-1] == ("/file", f"bytes={len(part)}-", len(CONTENT) - len(part))


@pytest.mark.parametrize("expected", [HASH, None])
def test_a_part_that_is_complete_becomes_the_file(server, path, expected):
    write_part(path, CONTENT)  # the server answers 416: nothing is left to send
    download(f"{server.url}/file", path, expected)
    assert path.read_bytes() == CONTENT and names(path.parent) == ["file"]


def test_a_part_of_another_file_ends_in_the_right_file_or_in_one_error(server, path):
    write_part(path, b"x" * (len(CONTENT) + 1))
    download(f"{server.url}/file", path, HASH)  # 416: it cannot be a part of this file
    assert path.read_bytes() == CONTENT
    path.unlink()
    path.with_name("file.part").write_bytes(b"x" * 1000)
    with pytest.raises(InputError, match="is not the known file"):
        download(f"{server.url}/file", path, HASH)
    assert names(path.parent) == []
    download(f"{server.url}/file", path, HASH)
    assert path.read_bytes() == CONTENT


def test_another_file_than_the_known_one_is_refused_and_removed(server, path):
    server.files["/file"] = CONTENT[:-1] + b"?"
    with pytest.raises(InputError, match=f"{server.url}/file: .* is not the known file"):
        download(f"{server.url}/file", path, HASH)
    assert names(path.parent) == []


def test_a_file_that_the_server_does_not_have_is_one_error(server, path):
    message = f"{server.url}/other could not be .*404.* by hand into {path.parent}"
    with pytest.raises(InputError, match=message):
        download(f"{server.url}/other", path)
    assert names(path.parent) == []


def test_a_server_that_is_down_is_one_error_and_keeps_the_part(server, path):
    write_part(path, CONTENT[:1000])
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match=f"{server.url}/file could not be downloaded .*refused"):
        download(f"{server.url}/file", path, HASH)
    assert path.with_name("file.part").read_bytes() == CONTENT[:1000]


# --------------------------------------------------------------------------------------------------
# What is fetched on first use
# --------------------------------------------------------------------------------------------------

OPENAI_NAMES = [
    "encoder.json", "hparams.json", "model.ckpt.data-00000-of-00001", "model.ckpt.index",
    "vocab.bpe",
]


@pytest.fixture
def openai(server, shared, tmp_path, monkeypatch):
    """A server that has a small model where OpenAI has GPT-2 Medium, and an empty models/."""
    for name in OPENAI_NAMES:
        folder = "gpt2-bpe" if name in ("encoder.json", "vocab.bpe") else "tf-checkpoint"
        server.files[f"/355M/{name}"] = (shared / folder / name).read_bytes()
    monkeypatch.setattr(gpt2, "ROOT", tmp_path)
    monkeypatch.setattr(gpt2, "OPENAI_URL", server.url)
    size = len(server.files["/355M/model.ckpt.data-00000-of-00001"])
    monkeypatch.setitem(gpt2.OPENAI_FOLDERS, "gpt2-medium", ("355M", size))
    monkeypatch.setitem(gpt2.SIZES, "gpt2-medium", gpt2.GPT2Config(301, 32, 48, 4, 3))
    return server


def test_a_model_is_downloaded_on_first_use_and_never_again(openai, shared, tmp_path):
    model = gpt2.load_model("gpt2-medium")
    folder = tmp_path / "models" / "gpt2-medium"
    assert names(folder) == OPENAI_NAMES
    fetched = sorted(path for path, _, _ in openai.requests)
    assert fetched == [f"/355M/{name}" for name in OPENAI_NAMES]
    openai.files.clear()
    openai.requests.clear()
    again, tokenizer = gpt2.load_model("gpt2-medium"), gpt2.load_tokenizer("gpt2-medium")
    truth = gpt2.load_model(shared / "tf-checkpoint").state_dict()
    for loaded in (model, again):
        assert all(torch.equal(tensor, truth[name]) for name, tensor in loaded.state_dict().items())
    assert tokenizer.encode_ordinary(" The Vaults pub") == [383, 21314, 2240]
    assert gpt2.model_folder("gpt2-medium") == folder and openai.requests == []


def test_a_model_whose_download_was_cut_is_completed_by_the_next_call(openai, tmp_path):
    openai.cut_after = 200_000  # less than encoder.json
    with pytest.raises(InputError, match="encoder.json.* run the same command again"):
        gpt2.load_model("gpt2-medium")
    openai.cut_after = None
    gpt2.load_model("gpt2-medium")
    assert [path for path, _, _ in openai.requests].count("/355M/hparams.json") == 1
    assert names(tmp_path / "models" / "gpt2-medium") == OPENAI_NAMES


def test_an_altered_vocabulary_is_refused(openai):
    openai.files["/355M/vocab.bpe"] += b"\n"
    with pytest.raises(InputError, match=r"vocab\.bpe: .* is not the known file"):
        gpt2.load_tokenizer("gpt2-medium")


def test_a_hugging_face_folder_under_a_models_name_is_used_as_it_is(
        openai, small_vocabulary, tmp_path):
    model = gpt2.GPT2(gpt2.GPT2Config(n_vocab=20, n_ctx=8, n_embd=4, n_head=2, n_layer=1))
    gpt2.save_model(model, tmp_path / "models" / "gpt2-medium", small_vocabulary)
    assert gpt2.load_model("gpt2-medium").config == model.config
    assert openai.requests == []


@pytest.fixture
def e2e(server, shared, tmp_path, monkeypatch):
    """A server that has the three files of E2E, and an empty data/."""
    for split in e2e_data.SPLITS:
        server.files[f"/src1_{split}.txt"] = (shared / "e2e" / f"src1_{split}.txt").read_bytes()
    monkeypatch.setattr(e2e_data, "ROOT", tmp_path)
    monkeypatch.setattr(e2e_data, "SRC1_URL", server.url)
    return server


def test_the_data_are_downloaded_on_first_use_and_never_again(e2e, tmp_path):
    folder = e2e_data.find_data("e2e")
    assert folder == tmp_path / "data" / "e2e"
    assert names(folder) == ["src1_test.txt", "src1_train.txt", "src1_valid.txt"]
    assert len(e2e.requests) == 3
    e2e.requests.clear()
    folder = e2e_data.find_data("e2e")
    sizes = [len(e2e_data.read_split(folder, split)) for split in e2e_data.SPLITS]
    assert sizes == [42_061, 4_672, 4_693]
    assert e2e.requests == []


def test_the_official_release_is_used_where_it_lies(e2e, shared, tmp_path):
    folder = tmp_path / "data" / "e2e"
    folder.mkdir(parents=True)
    shutil.copyfile(shared / "e2e" / "e2e-dataset.zip", folder / "e2e-dataset.zip")
    assert len(e2e_data.read_split(e2e_data.find_data("e2e"), "train")) == 42_061
    assert e2e.requests == []


def test_altered_data_are_refused(e2e, tmp_path):
    e2e.files["/src1_valid.txt"] = e2e.files["/src1_valid.txt"].replace(b"pub", b"bar", 1)
    message = r"src1_valid\.txt: what was downloaded is not the known file"
    with pytest.raises(InputError, match=message):
        e2e_data.find_data("e2e")
    assert names(tmp_path / "data" / "e2e") == ["src1_train.txt"]
