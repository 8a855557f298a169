"""Files of weights that are wrong in any way: nothing is taken for what it is not."""

import json
import math
import random
import re
import shutil
import struct
import time
import zipfile

import google_crc32c
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import other_defaults
from transformers import AutoTokenizer

import gpt2
from gpt2 import GPT2, GPT2Config, load_both, load_model, save_model
from prefix import Prefix, load_prefix, save_prefix
from support import bases
from support.commands import InputError
from support.files import read_json, write_json
from support.tf_checkpoint import MAGIC, read_tf_checkpoint

INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"
SIZES = {"n_vocab": 304, "n_ctx": 8, "n_embd": 4, "n_head": 2, "n_layer": 2}

# --------------------------------------------------------------------------------------------------
# OpenAI's files, whole or with anything in them; every checksum is right
# --------------------------------------------------------------------------------------------------


def varint(number):
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def field(number, value):
    """A protobuf field."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def masked_crc(content):
    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def block(pairs):
    """A LevelDB block with its checksum after it; a pair is (shared, rest of the key, value)."""
    content = b"".join(
        varint(shared) + varint(len(rest)) + varint(len(value)) + rest + value
        for shared, rest, value in pairs
    ) + struct.pack("<II", 0, 1)
    return content + b"\0" + masked_crc(content + b"\0")


def tf_index(*blocks):
    """A whole index around blocks of pairs."""
    index, handles = b"", []
    for pairs in blocks:
        stored = block(pairs)
        place = varint(len(index)) + varint(len(stored) - 5)
        handles.append((0, pairs[-1][1], place))
        index += stored
    footer = b""
    for stored in (block([]), block(handles)):  # the meta-index, the index
        footer += varint(len(index)) + varint(len(stored) - 5)
        index += stored
    return index + footer.ljust(40, b"\0") + MAGIC


def tf_pairs(variables):
    """(pairs of the index, the data file) of {name: float32 array}."""
    pairs, data = [(0, b"", field(1, 1))], b""
    for name, array in sorted(variables.items()):
        content = array.tobytes()
        shape = b"".join(field(2, field(1, size)) for size in array.shape)
        value = field(1, 1) + field(2, shape) + field(4, len(data)) + field(5, len(content))
        pairs.append((0, name.encode(), value + bytes([6 << 3 | 5]) + masked_crc(content)))
        data += content
    return pairs, data


def published_layout(n_vocab, n_ctx, n_embd, n_head, n_layer):
    """(name in OpenAI's checkpoint, name in GPT2, shape there) for each variable of a GPT-2."""
    n = n_embd
    layer_layout = (
        ("ln_1/g", "ln_1.weight", (n,)),
        ("ln_1/b", "ln_1.bias", (n,)),
        ("attn/c_attn/w", "attn.c_attn.weight", (1, n, 3 * n)),
        ("attn/c_attn/b", "attn.c_attn.bias", (3 * n,)),
        ("attn/c_proj/w", "attn.c_proj.weight", (1, n, n)),
        ("attn/c_proj/b", "attn.c_proj.bias", (n,)),
        ("ln_2/g", "ln_2.weight", (n,)),
        ("ln_2/b", "ln_2.bias", (n,)),
        ("mlp/c_fc/w", "mlp.c_fc.weight", (1, n, 4 * n)),
        ("mlp/c_fc/b", "mlp.c_fc.bias", (4 * n,)),
        ("mlp/c_proj/w", "mlp.c_proj.weight", (1, 4 * n, n)),
        ("mlp/c_proj/b", "mlp.c_proj.bias", (n,)),
    )
    layout = [
        ("model/wte", "wte.weight", (n_vocab, n)),
        ("model/wpe", "wpe.weight", (n_ctx, n)),
        ("model/ln_f/g", "ln_f.weight", (n,)),
        ("model/ln_f/b", "ln_f.bias", (n,)),
    ]
    for layer in range(n_layer):
        for theirs, ours, shape in layer_layout:
            layout.append((f"model/h{layer}/{theirs}", f"h.{layer}.{ours}", shape))
    return layout


def random_variables(sizes):
    """{name in OpenAI's checkpoint: array} of a model of random weights."""
    draw = np.random.default_rng(0)
    return {name: draw.standard_normal(shape, dtype=np.float32)
            for name, _, shape in published_layout(**sizes)}


def write_openai_folder(folder, hparams, variables, n_blocks=1):
    """Writes a model as OpenAI did."""
    folder.mkdir(exist_ok=True)
    pairs, data = tf_pairs(variables)
    at_once = math.ceil(len(pairs) / n_blocks)
    blocks = [pairs[at : at + at_once] for at in range(0, len(pairs), at_once)]
    (folder / INDEX).write_bytes(tf_index(*blocks))
    (folder / DATA).write_bytes(data)
    write_json(folder / "hparams.json", hparams)


# --------------------------------------------------------------------------------------------------
# Whole folders, one in each form
# --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(small_vocabulary, tmp_path_factory):
    """{form: folder} of one small model, and of one prefix, in every form that is read."""
    root = tmp_path_factory.mktemp("sound") / "folders"
    torch.manual_seed(0)
    model = GPT2(GPT2Config(**SIZES, eos_token=0))
    save_model(model, root / "safetensors", small_vocabulary)
    tensors = safetensors.torch.load_file(root / "safetensors" / "model.safetensors")
    for form in ("bin", "legacy", "compressed", "sharded", "tokenizer"):
        shutil.copytree(root / "safetensors", root / form)
        if form != "tokenizer":
            (root / form / "model.safetensors").unlink()
    for form in ("bin", "legacy"):
        torch.save(tensors, root / form / "pytorch_model.bin",
                   _use_new_zipfile_serialization=form == "bin")
    with (zipfile.ZipFile(root / "bin" / "pytorch_model.bin") as plain, zipfile.ZipFile(
            root / "compressed" / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as compressed):
        for name in plain.namelist():
            compressed.writestr(name, plain.read(name))
    write_json(root / "bin" / "added_tokens.json", {"<name>": 300})
    weight_map = {}
    for number in range(2):
        shard, names = f"pytorch_model-{number + 1:05}-of-00002.bin", sorted(tensors)[number::2]
        torch.save({name: tensors[name] for name in names}, root / "sharded" / shard)
        weight_map |= dict.fromkeys(names, shard)
    write_json(root / "sharded" / "pytorch_model.bin.index.json", {"weight_map": weight_map})
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    tokenizer.add_tokens(["<name>"])
    tokenizer.save_pretrained(root / "tokenizer")
    for name in ("vocab.json", "merges.txt"):
        (root / "tokenizer" / name).unlink()
    shutil.copytree(small_vocabulary, root / "tf")
    write_openai_folder(root / "tf", SIZES | {"eos_token": 0}, {
        theirs: model.get_parameter(ours).detach().numpy().reshape(shape)
        for theirs, ours, shape in published_layout(**SIZES)})
    save_prefix(Prefix(model.config, 3, form="direct"), root / "adapter", "tiny")
    shutil.copytree(root / "adapter", root / "adapter bin")
    safe = root / "adapter bin" / "adapter_model.safetensors"
    torch.save(safetensors.torch.load_file(safe), safe.with_suffix(".bin"))
    safe.unlink()
    return {folder.name: folder for folder in root.iterdir()}


FORMS = ("safetensors", "bin", "legacy", "compressed", "sharded", "tf", "adapter", "adapter bin")


def load(folder):
    """What a folder holds, a model or a prefix."""
    return (load_prefix if folder.name.startswith("adapter") else load_model)(folder)


@pytest.fixture
def folders(sound, tmp_path):
    """{form: folder}, to be damaged."""
    shutil.copytree(sound["tf"].parent, tmp_path / "folders")
    return {form: tmp_path / "folders" / form for form in sound}


def change_tensors(folder, change):
    """Saves the tensors of a folder after a change to their dictionary; returns the file's path."""
    for path in folder.glob("*model.safetensors"):
        tensors = safetensors.torch.load_file(path)
        change(tensors)
        path.unlink()  # it may be mapped, by old versions of safetensors
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
        return path
    (path,) = folder.glob("*model.bin")
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)
    return path


def change_values(path, **values):
    write_json(path, read_json(path) | values)


# --------------------------------------------------------------------------------------------------
# Silently wrong
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_numbers_whatever_the_default_device_and_dtype(
        sound, old_safetensors, form):
    expected = load(sound["adapter" if "adapter" in form else "safetensors"]).state_dict()
    with other_defaults():
        found = load(sound[form]).state_dict()
    assert found.keys() == expected.keys() and len(found) > 0
    for name, tensor in found.items():
        assert (tensor.dtype, tensor.device.type) == (torch.float32, "cpu")
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_missing_or_cut_is_named(folders, form):
    draw = random.Random(0)
    for path in folders[form].iterdir():
        if path.name in ("vocab.json", "merges.txt", "added_tokens.json"):
            continue
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(InputError, match=re.escape(str(path.parent))):
            load(folders[form])
        for length in (0, 1, 7, 8, 9, 48, len(content) - 2, *draw.sample(range(len(content)), 9)):
            path.write_bytes(content[:length])
            with pytest.raises(InputError, match=re.escape(path.name)):
                load(folders[form])
        path.write_bytes(content)


@pytest.mark.parametrize("form, message", [
    ("safetensors", "not those that were written"), ("adapter", "not those that were written"),
    ("tf", r"the checksum of model/")])
def test_a_flipped_bit_of_the_numbers_is_noticed(folders, form, message):
    path = max(folders[form].iterdir(), key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    for at in (1, 3, len(content) // 3):
        damaged = bytearray(content)
        damaged[-at] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{re.escape(path.name)} is corrupt.*{message}"):
            load(folders[form])


@pytest.mark.parametrize("form, name", [
    ("safetensors", "transformer.h.1.mlp.c_fc.bias"), ("adapter", "prompt_embeddings")])
def test_what_is_no_finite_number_is_refused_by_file_and_tensor(folders, form, name):
    for change in (lambda tensor: tensor * math.nan, lambda tensor: tensor - math.inf,
                   lambda tensor: tensor.double() + 1e300, torch.Tensor.int):
        path = change_tensors(folders[form], lambda tensors: tensors.update(
            {name: change(torch.ones_like(tensors[name], dtype=torch.float32))}))
        message = f"{re.escape(str(path))}: {name.removeprefix('transformer.')} "
        with pytest.raises(InputError, match=message):
            load(folders[form])


@pytest.mark.parametrize("form, name", [("tf", "hparams"), ("safetensors", "config")])
def test_a_head_count_that_is_not_that_of_the_name_is_refused(folders, monkeypatch, form, name):
    models = folders["tf"].parent / "root" / "models"
    folder = shutil.copytree(folders[form], models / "gpt2-medium")
    for other in bases.VOCABULARY_FILES:
        (folder / other).touch()
    monkeypatch.setattr(bases, "ROOT", models.parent)
    monkeypatch.setitem(bases.PUBLISHED, "gpt2-medium", SIZES)
    load_model("gpt2-medium")
    change_values(folder / f"{name}.json", n_head=4)
    load_model(folder)  # somebody's own model may have another
    with pytest.raises(InputError, match=rf"{name}\.json is not that of .*: its n_head is 4"):
        load_model("gpt2-medium")


# --------------------------------------------------------------------------------------------------
# Sizes that are only claimed
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded", "tf"])
def test_a_configuration_is_believed_only_if_the_weights_are_as_large(folders, form, monkeypatch):
    monkeypatch.setattr(gpt2, "GPT2", lambda *_: pytest.fail("it was built all the same"))
    path = folders[form] / ("hparams.json" if form == "tf" else "config.json")
    sound = path.read_bytes()
    for claim in (
        {"n_layer": 100}, {"n_embd": 10**40}, {"n_vocab": 10**9, "vocab_size": 10**9},
        {"n_ctx": 10**15, "n_positions": 10**15}, {"n_embd": 1, "n_head": 1, "n_layer": 40},
    ):
        path.write_bytes(sound)
        change_values(path, **claim)
        with pytest.raises(InputError, match=f"{folders[form]}.* asks for more than .* can hold"):
            load_model(folders[form])


@pytest.mark.parametrize("shape", [[100, 300], [2**40], [2**62, 4], [2**31] * 3])
def test_a_variable_larger_than_the_data_is_refused_before_there_is_room_made_for_it(
        folders, shape, monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *_, **options: pytest.fail("memory was taken"))
    dims = field(2, b"".join(field(2, field(1, size)) for size in shape))
    value = field(1, 1) + dims + field(5, 4 * math.prod(shape) % 2**64) + bytes([6 << 3 | 5] * 5)
    (folders["tf"] / INDEX).write_bytes(tf_index([(0, b"model/wpe", value)]))
    with pytest.raises(InputError, match=r"model\.ckpt\.data.* model/wpe is cut off"):
        list(read_tf_checkpoint(folders["tf"] / "model.ckpt"))


def test_a_variable_of_another_type_is_refused(folders):
    value = field(1, 9) + field(2, field(2, field(1, 2))) + field(5, 16)
    (folders["tf"] / INDEX).write_bytes(tf_index([(0, b"step", value)]))
    with pytest.raises(InputError, match=r"model\.ckpt\.index: step is not of the type float32"):
        list(read_tf_checkpoint(folders["tf"] / "model.ckpt"))


@pytest.mark.parametrize("make, message", [
    (lambda: torch.zeros(1).expand(10**6, 10**6), "larger than the file"),
    (lambda: torch.eye(4).to_sparse(), ""),
    (lambda: torch.ones(4, device="meta"), ""), (lambda: [torch.ones(2)], "")])
def test_a_tensor_of_another_kind_or_of_few_numbers_repeated_is_refused(folders, make, message):
    path = change_tensors(folders["bin"],
                          lambda tensors: tensors.update({"transformer.h.0.ln_1.bias": make()}))
    with pytest.raises(InputError, match=f"{re.escape(str(path))} .*{message}"):
        load_model(folders["bin"])


# --------------------------------------------------------------------------------------------------
# Anything else
# --------------------------------------------------------------------------------------------------

ODD = [0, 1, -1, 2, 255, 2**31, 2**64, 10**30, 0.5, math.nan, None, True, "", "\ud800", "../x",
       "lm_head.weight", "h.999999999.ln_1.bias", "F16", "I64", [], {}, [1], {"a": 1}]


def flip(draw, content):
    """Bytes changed, cut, put in or taken out at random places."""
    content = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 30])):
        at = draw.randrange(len(content) + 1)
        end = draw.choice([at, at + 1, at + 1, at + 100, None])
        content[at:end] = draw.choice([b"", b"\0", b"\xff", draw.randbytes(1), draw.randbytes(100)])
    return bytes(content)


def change_json(draw, value):
    """A JSON file with something in it that does not belong there, or missing, given its value."""
    at = value
    while True:
        key = draw.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if not (at[key] and isinstance(at[key], (dict, list)) and draw.random() < 0.7):
            break
        at = at[key]
    old = at.pop(key)
    if isinstance(at, list):
        at.append(draw.choice(ODD))
    elif draw.random() < 0.7:
        at[draw.choice([key, key, str(draw.choice(ODD))])] = draw.choice([*ODD, old])
    return json.dumps(value).encode("utf-8", "surrogatepass")


def change_safetensors(draw, content):
    """A safetensors file whose header says something else, or claims to be of another size."""
    size = int.from_bytes(content[:8], "little")
    header = change_json(draw, json.loads(content[8 : 8 + size]))
    claimed = draw.choice([len(header)] * 9 + [2**63, 2**40, 0])
    return claimed.to_bytes(8, "little") + header + content[8 + size :]


def damage(draw, path):
    """Changes a file."""
    content = path.read_bytes()
    if draw.random() < 0.3:
        return flip(draw, content)
    if path.suffix == ".json":
        return change_json(draw, json.loads(content))
    if path.suffix == ".safetensors":
        return change_safetensors(draw, content)
    return flip(draw, content)


def open_all(folder):
    """Opens what a folder holds, and uses it a little."""
    if (folder / "adapter_config.json").exists():
        numbers = [tensor for pair in load_prefix(folder)() for tensor in pair]
    else:
        model, tokenizer = load_both(folder)
        text = " the pub <name>é<|endoftext|>"
        tokens = tokenizer.encode_text(text)
        assert tokenizer.decode(tokens) == text and max(tokens) < model.config.n_vocab
        with torch.no_grad():
            model(torch.tensor([tokens[: model.config.n_ctx]]))
        numbers = model.parameters()
    assert all(torch.isfinite(tensor).all() for tensor in numbers)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("executions", [60, pytest.param(5000, marks=pytest.mark.long)])
def test_a_damaged_file_opens_whole_or_is_refused_in_one_sentence(sound, tmp_path, executions):
    """What comes is no other exception, which would say by its `draw` how to do it again."""
    folder, refused = tmp_path / "damaged", 0
    for number in range(executions):
        draw = random.Random(number)
        shutil.copytree(sound[draw.choice(sorted(sound))], folder)
        path = draw.choice(sorted(folder.iterdir()))
        path.write_bytes(damage(draw, path))
        started = time.monotonic()
        try:
            open_all(folder)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and str(folder) in str(error), (number, path.name)
        assert time.monotonic() - started < 60, (number, path.name)
        shutil.rmtree(folder)
    assert executions / 2 < refused < executions - 5
