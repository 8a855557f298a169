"""Files of weights that are wrong in any way: nothing is taken for what it is not."""

import json
import math
import re
import shutil
import struct
import tracemalloc
import zipfile

import pytest
import safetensors.torch
import torch
from fuzz_weights import block, field, fuzz, make_folders, tf_index, tf_pairs

import gpt2
from gpt2 import load_config, load_model
from prefix import load_prefix
from support import bases
from support.files import InputError
from support.tf_checkpoint import read_tf_checkpoint


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("sound") / "folders")


@pytest.fixture
def folders(sound, tmp_path):
    """{form: folder}, to be damaged."""
    shutil.copytree(next(iter(sound.values())).parent, tmp_path / "folders")
    return {form: tmp_path / "folders" / folder.name for form, folder in sound.items()}


def rewrite(folder, change):
    """Saves the tensors of a folder after a change to their dictionary; returns the file's path."""
    for path in folder.glob("*model.safetensors"):
        tensors = safetensors.torch.load_file(path)
        change(tensors)
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
        return path
    (path,) = folder.glob("*model.bin")
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)
    return path


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# --------------------------------------------------------------------------------------------------
# Silently wrong
# --------------------------------------------------------------------------------------------------


def put(value):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[3] = value
        return tensor

    return change


@pytest.mark.parametrize("form", ["safetensors", "bin", "adapter", "adapter bin"])
@pytest.mark.parametrize(
    "change",
    [
        put(float("nan")),
        put(float("inf")),
        put(-float("inf")),
        lambda tensor: tensor.double() + 1e300,
        lambda tensor: tensor.to(torch.int32),
        lambda tensor: tensor.to(torch.uint8),
        lambda tensor: tensor > 0,
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: tensor.to(torch.float8_e4m3fn),
    ],
    ids=["nan", "inf", "-inf", "too large", "int", "byte", "bool", "complex", "float8"],
)
def test_what_is_no_finite_number_is_refused_by_file_and_tensor(folders, form, change):
    is_adapter = form.startswith("adapter")
    name = "prompt_embeddings" if is_adapter else "transformer.h.1.mlp.c_fc.bias"
    path = rewrite(folders[form], lambda tensors: tensors.update({name: change(tensors[name])}))
    with pytest.raises(
        InputError, match=f"{re.escape(str(path))}: {name.removeprefix('transformer.')} "
    ):
        (load_prefix if is_adapter else load_model)(folders[form])


@pytest.mark.parametrize("form, load", [("safetensors", load_model), ("adapter", load_prefix)])
def test_a_flipped_bit_of_what_we_wrote_is_noticed(folders, form, load):
    (path,) = folders[form].glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"\.safetensors is damaged.* not those that were written"):
        load(folders[form])


def test_nan_in_openais_checkpoint_is_refused(folders):
    model = load_model(folders["tf"])
    model.h[0].attn.c_proj.bias.data[1] = float("nan")
    pairs, data = tf_pairs(model)
    (folders["tf"] / "model.ckpt.index").write_bytes(tf_index(pairs))
    (folders["tf"] / "model.ckpt.data-00000-of-00001").write_bytes(data)
    with pytest.raises(
        InputError, match=r"model\.ckpt.*h\.0\.attn\.c_proj\.bias holds what is no finite"
    ):
        load_model(folders["tf"])


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_bin_is_refused_and_not_read_as_it_lies(folders, kind):
    path = folders["bin"] / "pytorch_model.bin"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(path.with_suffix(".new"), "w", kind) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    path.with_suffix(".new").replace(path)
    with pytest.raises(InputError, match=r"pytorch_model\.bin .*it is compressed"):
        load_model(folders["bin"])


def test_a_rezipped_bin_without_compression_is_right(folders):
    before, path = load_model(folders["bin"]).state_dict(), folders["bin"] / "pytorch_model.bin"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(path.with_suffix(".new"), "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    path.with_suffix(".new").replace(path)
    for name, tensor in load_model(folders["bin"]).state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_head_count_that_is_not_the_published_one_is_refused(folders, monkeypatch):
    published = {"n_vocab": 264, "n_ctx": 8, "n_embd": 4, "n_head": 2, "n_layer": 2}
    monkeypatch.setitem(bases.PUBLISHED, "gpt2-medium", published)
    for form in ("tf", "safetensors"):
        load_model(folders[form])
    change_json(folders["tf"] / "hparams.json", n_head=4)
    with pytest.raises(InputError, match=r"hparams\.json is not that of gpt2-medium: .*'n_head': 4"):
        load_model(folders["tf"])
    change_json(folders["safetensors"] / "config.json", n_head=4)
    load_model(folders["safetensors"])  # somebody's own model may have another
    models = folders["tf"].parent / "root" / "models"
    shutil.copytree(folders["safetensors"], models / "gpt2-medium")
    monkeypatch.setattr(bases, "ROOT", models.parent)
    with pytest.raises(InputError, match=r"config\.json is not that of gpt2-medium: .*'n_head': 4"):
        load_model("gpt2-medium")


def test_what_was_downloaded_under_a_name_has_the_sizes_of_that_name(folders, monkeypatch):
    models = folders["tf"].parent / "root" / "models"
    shutil.copytree(folders["tf"], models / "gpt2-medium")
    for name in ("encoder.json", "vocab.bpe"):
        (models / "gpt2-medium" / name).touch()
    monkeypatch.setattr(bases, "ROOT", models.parent)
    with pytest.raises(InputError, match=r"hparams\.json is not that of gpt2-medium"):
        load_model("gpt2-medium")


# --------------------------------------------------------------------------------------------------
# Sizes that are only claimed
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["safetensors", "bin", "legacy", "sharded", "tf"])
@pytest.mark.parametrize(
    "claim",
    [
        {"n_layer": 10**9},
        {"n_layer": 100},
        {"n_embd": 2 * 10**9},
        {"n_embd": 10**40},
        {"n_vocab": 10**9},
        {"n_vocab": 10**100},
        {"n_ctx": 10**15},
        {"n_embd": 1, "n_head": 1, "n_layer": 40},
    ],
)
def test_a_configuration_is_believed_only_if_the_weights_are_as_large(
    folders, form, claim, monkeypatch
):
    def build(*_):
        raise AssertionError("a model was built for sizes that are not there")

    monkeypatch.setattr(gpt2, "GPT2", build)
    if form == "tf":
        change_json(folders[form] / "hparams.json", **claim)
    else:
        names = {"n_vocab": "vocab_size", "n_ctx": "n_positions"}
        change_json(
            folders[form] / "config.json", **{names.get(name, name): claim[name] for name in claim}
        )
    for load in (load_config, load_model):
        with pytest.raises(InputError, match=f"{folders[form]}.* asks for more than .* can hold"):
            load(folders[form])


def peak_of(action):
    """The bytes that Python held at the most during an action that must be refused."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def assert_bounded(folder, index):
    (folder / "model.ckpt.index").write_bytes(index)
    assert peak_of(lambda: list(read_tf_checkpoint(folder / "model.ckpt"))) < 100 * len(index)


def test_keys_that_grow_with_each_entry_do_not_fill_the_memory(folders):
    assert_bounded(folders["tf"], tf_index([(number, b"k", b"") for number in range(20_000)]))


def test_a_block_is_read_once_however_often_it_is_named(folders):
    entries = [(0, b"%06d" % number, b"") for number in range(2_000)]
    assert_bounded(folders["tf"], tf_index(entries, lambda handle: [(0, b"z", handle)] * 2_000))


def test_a_number_without_an_end_is_refused(folders):
    (folders["tf"] / "model.ckpt.index").write_bytes(tf_index([(0, b"name", b"\xff" * 1000)]))
    with pytest.raises(InputError, match=r"model\.ckpt\.index is damaged \(a number does not end"):
        list(read_tf_checkpoint(folders["tf"] / "model.ckpt"))


@pytest.mark.parametrize("shape", [[100, 300], [2**40], [2**62, 4], [2**31] * 3])
def test_a_variable_larger_than_the_data_is_refused_before_there_is_room_made_for_it(
    folders, shape, monkeypatch
):
    def allocate(*_, **options):
        raise AssertionError("memory was taken for a size that is not there")

    monkeypatch.setattr(torch, "empty", allocate)
    dims = field(2, b"".join(field(2, field(1, size)) for size in shape))
    for size in (4 * math.prod(shape) % 2**64, 2**63, 0):
        value = field(1, 1) + dims + field(5, size) + bytes([6 << 3 | 5] * 5)
        (folders["tf"] / "model.ckpt.index").write_bytes(tf_index([(0, b"model/wpe", value)]))
        with pytest.raises(InputError, match=r"model\.ckpt\.data.* model/wpe is cut off"):
            list(read_tf_checkpoint(folders["tf"] / "model.ckpt"))


def test_our_writer_of_an_index_writes_one_that_reads(folders):
    model = load_model(folders["tf"])
    truth = load_model(folders["safetensors"]).state_dict()
    assert all(torch.equal(tensor, truth[name]) for name, tensor in model.state_dict().items())
    assert block([]) and len(dict(read_tf_checkpoint(folders["tf"] / "model.ckpt"))) == len(truth)


def test_a_tensor_that_repeats_few_numbers_is_no_large_one(folders):
    path = rewrite(
        folders["bin"], lambda tensors: tensors.update(h=torch.zeros(1).expand(10**6, 10**6))
    )
    with pytest.raises(InputError, match=f"{re.escape(str(path))} .*larger than the file"):
        load_model(folders["bin"])


@pytest.mark.parametrize("kind", ["sparse", "meta", "nested"])
def test_a_tensor_of_another_kind_is_refused(folders, kind):
    value = {
        "sparse": lambda: torch.eye(4).to_sparse(),
        "meta": lambda: torch.ones(4, device="meta"),
        "nested": lambda: [torch.ones(2)],
    }[kind]()
    path = rewrite(
        folders["bin"], lambda tensors: tensors.update({"transformer.h.0.ln_1.bias": value})
    )
    with pytest.raises(InputError, match=re.escape(str(path))):
        load_model(folders["bin"])


def test_a_zip_bomb_is_refused_before_it_is_unpacked(folders):
    path = folders["bin"] / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in ("archive/data.pkl", "archive/data/0"):
            bomb.writestr(name, bytes(50_000_000))
    assert peak_of(lambda: load_model(folders["bin"])) < 1_000_000


@pytest.mark.parametrize("claimed", [2**63, 2**64 - 1, 2**40, 100_000_001, 10**6])
def test_a_header_of_absurd_size_is_refused(folders, claimed):
    path = folders["safetensors"] / "model.safetensors"
    path.write_bytes(struct.pack("<Q", claimed) + path.read_bytes()[8:])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        load_model(folders["safetensors"])


# --------------------------------------------------------------------------------------------------
# Anything else
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_a_damaged_file_opens_whole_or_is_refused_in_one_sentence(seed):
    opened, refused = fuzz(seed, 300)
    assert opened > 20 and refused > 150
