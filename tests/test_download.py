"""What is fetched on first use, from where, and that it is fetched once."""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import e2e_data
import gpt2
from support import bases, downloads, reading
from support.commands import InputError

WEIGHTS, VOCABULARY = sorted(bases.WEIGHT_FILES), sorted(bases.VOCABULARY_FILES)
SRC1 = sorted(reading.SRC1_NAMES.values())


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves the folder `server.files`; `server.asked` has the names of the files asked for."""
    monkeypatch.setattr(downloads, "PAUSE", 0.001)
    files, asked = tmp_path / "served", []
    files.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path.rpartition("/")[2])

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(files)))
    server.files, server.asked = files, asked
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,)).start()
    yield server
    server.shutdown()
    server.server_close()


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


@pytest.fixture
def openai(server, shared, tmp_path, monkeypatch):
    """A server that has a small model where OpenAI has GPT-2 Medium, and an empty models/."""
    (server.files / "355M").mkdir()
    for name in (*WEIGHTS, *VOCABULARY):
        folder = shared / ("gpt2-bpe" if name in VOCABULARY else "tf-checkpoint")
        shutil.copyfile(folder / name, server.files / "355M" / name)
    monkeypatch.setattr(bases, "ROOT", tmp_path)
    monkeypatch.setattr(bases, "OPENAI_URL", server.url)
    size = (server.files / "355M" / "model.ckpt.data-00000-of-00001").stat().st_size
    monkeypatch.setitem(bases.OPENAI_FOLDERS, "gpt2-medium", ("355M", size))
    sizes = dict(n_vocab=301, n_ctx=32, n_embd=48, n_head=4, n_layer=3)
    monkeypatch.setitem(bases.PUBLISHED, "gpt2-medium", sizes)
    return server


def test_a_model_is_downloaded_on_first_use_and_never_again(openai, shared, tmp_path):
    folder = tmp_path / "models" / "gpt2-medium"
    missing = openai.files / "355M" / "model.ckpt.index"
    missing.rename(openai.files / "elsewhere")
    with pytest.raises(InputError, match="model.ckpt.index could not be .* run the same command"):
        gpt2.load_model("gpt2-medium")
    (openai.files / "elsewhere").rename(missing)
    gpt2.load_model("gpt2-medium")
    assert openai.asked.count("hparams.json") == 1
    gpt2.load_tokenizer("gpt2-medium")
    assert names(folder) == sorted((*WEIGHTS, *VOCABULARY))
    openai.asked.clear()
    model, tokenizer = gpt2.load_model("gpt2-medium"), gpt2.load_tokenizer("gpt2-medium")
    truth = gpt2.load_model(shared / "tf-checkpoint").state_dict()
    assert all(torch.equal(tensor, truth[name]) for name, tensor in model.state_dict().items())
    assert tokenizer.encode_ordinary(" The Vaults pub") == [383, 21314, 2240]
    assert bases.model_folder("gpt2-medium") == folder and openai.asked == []


def test_a_hugging_face_folder_under_a_models_name_is_used_as_it_is(
        openai, small_vocabulary, tmp_path):
    sizes = bases.PUBLISHED["gpt2-medium"] | {"n_vocab": 310}
    model = gpt2.GPT2(gpt2.GPT2Config(**sizes))  # as with added tokens
    gpt2.save_model(model, tmp_path / "models" / "gpt2-medium", small_vocabulary)
    assert gpt2.load_model("gpt2-medium").config == model.config
    assert openai.asked == []


def test_an_altered_vocabulary_is_refused(openai):
    with open(openai.files / "355M" / "vocab.bpe", "ab") as file:
        file.write(b"\n")
    with pytest.raises(InputError, match=r"vocab\.bpe: .* is not the known file"):
        gpt2.load_tokenizer("gpt2-medium")


@pytest.fixture
def e2e(server, shared, tmp_path, monkeypatch):
    """A server that has the three files of E2E, and an empty data/; gives its folder."""
    for name in SRC1:
        shutil.copyfile(shared / "e2e" / name, server.files / name)
    monkeypatch.setattr(reading, "ROOT", tmp_path)
    monkeypatch.setattr(reading, "SRC1_URL", server.url)
    return tmp_path / "data" / "e2e"


def test_the_data_are_downloaded_on_first_use_and_never_again(e2e, server):
    assert e2e_data.find_data("e2e") == e2e
    assert names(e2e) == sorted(server.asked) == SRC1
    server.asked.clear()
    assert len(e2e_data.read_split(e2e_data.find_data("e2e"), "valid")) == 4_672
    assert server.asked == []


def test_the_official_release_is_used_where_it_lies(e2e, server, shared):
    e2e.mkdir(parents=True)
    shutil.copyfile(shared / "e2e" / "e2e-dataset.zip", e2e / "e2e-dataset.zip")
    assert len(e2e_data.read_split(e2e_data.find_data("e2e"), "valid")) == 4_672
    assert server.asked == []


def test_altered_data_are_refused(e2e, server):
    path = server.files / "src1_valid.txt"
    path.write_bytes(path.read_bytes().replace(b"pub", b"bar", 1))
    with pytest.raises(InputError, match=r"src1_valid\.txt: .* is not the known file"):
        e2e_data.find_data("e2e")
    assert names(e2e) == ["src1_train.txt"]
