"""Damages files of weights, tokenizers and prefixes: each opens whole or is refused in a sentence.

python tests/fuzz_weights.py --executions 5000 --seed 1
"""

import argparse
import io
import json
import random
import re
import shutil
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import google_crc32c
import safetensors.torch
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from gpt2 import GPT2, GPT2Config, load_both, load_model, save_model  # noqa: E402
from prefix import Prefix, load_prefix, save_prefix  # noqa: E402
from support.files import InputError  # noqa: E402
from support.tf_checkpoint import MAGIC  # noqa: E402
from support.tokenizer import bytes_of_characters  # noqa: E402

NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    127,
    128,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**63,
    2**64 - 1,
    2**64,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
]
WORDS = [
    "",
    "a",
    "a b",
    "<|endoftext|>",
    "\x1b[31m",
    "\ud800",
    "../x",
    "..",
    "transformer.wte.weight",
    "lm_head.weight",
    "h.1.ln_1.bias",
    "h.999999999.ln_1.bias",
    "F16",
    "I64",
    "BOOL",
    "BPE",
    "ByteLevel",
]


def vocabulary():
    """(vocab.json, merges.txt, tokenizer.json) of 262 tokens, as values."""
    characters = sorted(bytes_of_characters())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("p", "u"), ("pu", "b")]
    tokens = ["<|endoftext|>", *characters, *("".join(pair) for pair in merges)]
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = {
        "added_tokens": [
            {"id": 0, "content": "<|endoftext|>", "special": True, "normalized": False},
            {
                "id": 262,
                "content": "<name>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
            },
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "dropout": None, "vocab": ids, "merges": merges},
    }
    return ids, "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), tokenizer


# --------------------------------------------------------------------------------------------------
# Whole folders, one in each form
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
    """A LevelDB block with its checksum behind it; a pair is (shared, rest of the key, value)."""
    content = b"".join(
        varint(shared) + varint(len(rest)) + varint(len(value)) + rest + value
        for shared, rest, value in pairs
    ) + struct.pack("<II", 0, 1)
    return content + b"\0" + masked_crc(content + b"\0")


def tf_index(pairs, handles=None):
    """A whole index around one block of pairs; every checksum is right, whatever the pairs say."""
    index = block(pairs)
    data = varint(0) + varint(len(index) - 5)
    meta, index = len(index), index + block([])
    root, index = len(index), index + block(handles(data) if handles else [(0, b"z", data)])
    footer = varint(meta) + varint(8) + varint(root) + varint(len(index) - root - 5)
    return index + footer.ljust(40, b"\0") + MAGIC


def tf_pairs(model):
    """(pairs of the index, the data file) of a model, named as in OpenAI's checkpoints."""
    pairs, data = [(0, b"", field(1, 1))], b""
    for name, parameter in sorted(model.named_parameters()):
        name = re.sub(r"^h\.(\d+)", r"h\1", name).replace(".bias", ".b")
        name = name.replace(
            ".weight", "" if name.startswith(("wte", "wpe")) else ".g" if "ln_" in name else ".w"
        )
        content = parameter.detach().numpy().tobytes()
        shape = b"".join(field(2, field(1, size)) for size in parameter.shape)
        pairs.append(
            (
                0,
                f"model/{name.replace('.', '/')}".encode(),
                field(1, 1)
                + field(2, shape)
                + field(4, len(data))
                + field(5, len(content))
                + bytes([6 << 3 | 5])
                + masked_crc(content),
            )
        )
        data += content
    return pairs, data


def make_folders(root):
    """{form: folder} of a small model, and of a prefix, in every form that is read."""
    torch.manual_seed(0)
    model = GPT2(GPT2Config(n_vocab=264, n_ctx=8, n_embd=4, n_head=2, n_layer=2, eos_token=0))
    ids, merges, tokenizer = vocabulary()
    plain = root / "safetensors"
    plain.mkdir(parents=True)
    (plain / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (plain / "merges.txt").write_text(merges, encoding="utf-8")
    save_model(model, plain, plain)
    folders = {"safetensors": plain}
    for form in ("bin", "legacy", "sharded", "tokenizer", "tf", "adapter", "adapter bin"):
        folders[form] = Path(shutil.copytree(plain, root / form))
    tensors = safetensors.torch.load_file(plain / "model.safetensors")
    for form in ("bin", "legacy"):
        (folders[form] / "model.safetensors").unlink()
        torch.save(
            tensors,
            folders[form] / "pytorch_model.bin",
            _use_new_zipfile_serialization=form == "bin",
        )
    (folders["bin"] / "added_tokens.json").write_text('{"<name>": 262}')
    names, weight_map = sorted(tensors), {}
    for number in range(2):
        shard, own = f"model-{number + 1:05}-of-00002.safetensors", names[number::2]
        safetensors.torch.save_file(
            {name: tensors[name] for name in own}, folders["sharded"] / shard
        )
        weight_map |= dict.fromkeys(own, shard)
    (folders["sharded"] / "model.safetensors").unlink()
    (folders["sharded"] / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )
    for name in ("vocab.json", "merges.txt"):
        (folders["tokenizer"] / name).unlink()
    (folders["tokenizer"] / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    config = {
        "added_tokens_decoder": {"0": {"content": "<|endoftext|>"}, "262": {"content": "<name>"}}
    }
    (folders["tokenizer"] / "tokenizer_config.json").write_text(json.dumps(config))
    for name in ("model.safetensors", "config.json"):
        (folders["tf"] / name).unlink()
    pairs, data = tf_pairs(model)
    (folders["tf"] / "model.ckpt.index").write_bytes(tf_index(pairs))
    (folders["tf"] / "model.ckpt.data-00000-of-00001").write_bytes(data)
    sizes = {"n_vocab": 264, "n_ctx": 8, "n_embd": 4, "n_head": 2, "n_layer": 2, "eos_token": 0}
    (folders["tf"] / "hparams.json").write_text(json.dumps(sizes))
    for form in ("adapter", "adapter bin"):
        for path in folders[form].iterdir():
            path.unlink()
        save_prefix(Prefix(model.config, 3, form="direct"), folders[form], "tiny")
    safe = folders["adapter bin"] / "adapter_model.safetensors"
    torch.save(safetensors.torch.load_file(safe), folders["adapter bin"] / "adapter_model.bin")
    safe.unlink()
    return folders


# --------------------------------------------------------------------------------------------------
# Damage
# --------------------------------------------------------------------------------------------------


def flip(draw, content):
    """Bytes changed, cut, put in, taken out or doubled at random places."""
    content = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 5, 30])):
        at = draw.randrange(len(content) + 1)
        kind = draw.randrange(6)
        if kind == 0:
            del content[at:]
        elif kind == 1:
            content[at:at] = draw.randbytes(draw.choice([1, 4, 100]))
        elif kind == 2:
            del content[at : at + draw.choice([1, 4, 100])]
        elif kind == 3:
            content[at:at] = content[at : at + 50]
        elif at < len(content):
            content[at] = draw.choice(
                [0, 255, content[at] ^ 1 << draw.randrange(8), draw.randrange(256)]
            )
    return bytes(content)


def change_json(draw, value):
    """A JSON value with something in it that does not belong there."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.choice([1, 1, 2, 4])):
        at = value
        while isinstance(at, (dict, list)) and at:
            key = draw.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if not isinstance(at[key], (dict, list)) or draw.random() < 0.3:
                kind = draw.randrange(5)
                if kind == 0:
                    del at[key]
                elif kind == 1 and isinstance(at, dict):
                    at[draw.choice(WORDS)] = at.pop(key)
                elif kind == 2 and isinstance(at, list):
                    at.append(at[key])
                else:
                    at[key] = draw.choice(
                        [*NUMBERS, *WORDS, None, True, [], {}, [1], {"a": 1}, [[[]]], at]
                    )
                break
            at = at[key]
    return value


def dump(value):
    """JSON, or what cannot be any as a text."""
    try:
        return json.dumps(value).encode("utf-8", "surrogatepass")
    except ValueError:  # it holds itself
        return b'{"a": ' * 100_000


def change_safetensors(draw, content):
    """A safetensors file whose header says something else, or claims to be of another size."""
    size = int.from_bytes(content[:8], "little")
    header, data = change_json(draw, json.loads(content[8 : 8 + size])), content[8 + size :]
    header = dump(header)
    claimed = (
        len(header) if draw.random() < 0.9 else draw.choice([n for n in NUMBERS[:15] if n >= 0])
    )
    return claimed.to_bytes(8, "little") + header + data


def change_bin(draw, content):
    """A zip of PyTorch whose members were changed, compressed, dropped or doubled."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            member, kind = old.read(name), draw.randrange(12)
            if kind == 0 or name.endswith("data.pkl") and kind < 8:
                member = flip(draw, member)
            if kind != 1:
                new.writestr(name, member, draw.choice([0] * 9 + [zipfile.ZIP_DEFLATED]))
            if kind == 2:
                with warnings.catch_warnings(action="ignore"):
                    new.writestr(name, member * 2)
    return out.getvalue()


def change_tf(draw, index, pairs):
    """An index with other entries, all of its checksums right."""
    pairs = list(pairs)
    for _ in range(draw.choice([1, 1, 2])):
        at = draw.randrange(len(pairs))
        shared, key, value = pairs[at]
        kind = draw.randrange(7)
        if kind == 0:
            pairs[at] = draw.choice([0, 1, 5, 2**20, 2**64]), key, value
        elif kind == 1:
            pairs[at] = shared, flip(draw, key), value
        elif kind == 2:
            pairs[at] = shared, key, flip(draw, value)
        elif kind == 3:
            pairs.insert(at, draw.choice(pairs))
        elif kind == 4:
            del pairs[at]
        elif kind == 5:
            shape = b"".join(
                field(2, field(1, draw.choice([0, 1, 4, 8, 264, 2**31, 2**63]))) for _ in range(3)
            )
            pairs[at] = shared, key, field(1, draw.choice([1, 2, 9])) + field(2, shape) + value[2:]
        else:
            value = value + field(
                draw.choice([1, 2, 4, 5, 6]), draw.choice([0, 1, 2**64, b"\xff" * 30])
            )
            pairs[at] = shared, key, value
        if not pairs:
            break
    return tf_index(pairs or [(0, b"", b"")])


def damage(draw, path, folders):
    """Changes a file of one of the folders."""
    content = path.read_bytes()
    if draw.random() < 0.3:
        return flip(draw, content)
    if path.suffix == ".json":
        return dump(change_json(draw, json.loads(content)))
    if path.suffix == ".safetensors":
        return change_safetensors(draw, content)
    if path.suffix == ".bin" and content.startswith(b"PK"):
        return change_bin(draw, content)
    if path.name == "model.ckpt.index":
        return change_tf(draw, content, folders["pairs"])
    if path.name == "merges.txt":
        lines = content.decode().splitlines()
        lines[draw.randrange(len(lines))] = draw.choice(
            [*lines, "a", "a b c", " ", "Ġ Ġ", "é \x85", "\ud800 x"]
        )
        return "\n".join(lines).encode("utf-8", "surrogatepass")
    return flip(draw, content)


def open_all(folder):
    """Opens what a folder holds, and uses it a little."""
    if (folder / "adapter_config.json").exists():
        assert all(
            torch.isfinite(tensor).all() for pair in load_prefix(folder)() for tensor in pair
        )
        return
    load_model(folder)
    model, tokenizer = load_both(folder)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    text = " the pub <name>é<|endoftext|>"
    tokens = tokenizer.encode_text(text)
    assert tokenizer.decode(tokens) == text and max(tokens) < model.config.n_vocab
    with torch.no_grad():
        model(torch.tensor([tokens[: model.config.n_ctx]]))


def fuzz(seed, executions, slow=60):
    """Damages a file `executions` times. Returns (how many opened, how many were refused).

    Raises what is no InputError, as an AssertionError that says how to do it again.
    """
    opened = refused = 0
    with tempfile.TemporaryDirectory() as root, warnings.catch_warnings(action="ignore"):
        folders = make_folders(Path(root) / "whole")
        pairs, _ = tf_pairs(load_model(folders["tf"]))
        for number in range(executions):
            draw, where = random.Random(f"{seed} {number}"), f"seed {seed}, execution {number}"
            form = draw.choice(list(folders))
            folder = Path(shutil.copytree(folders[form], Path(root) / "damaged"))
            path = draw.choice(sorted(folder.iterdir()))
            path.write_bytes(damage(draw, path, {"pairs": pairs}))
            started = time.monotonic()
            try:
                open_all(folder)
                opened += 1
            except InputError as error:
                refused += 1
                assert "\n" not in str(error) and str(folder) in str(error), f"{where}: {error}"
            except BaseException as error:
                kept = Path(tempfile.mkdtemp()) / form
                shutil.copytree(folder, kept)
                raise AssertionError(f"{where}, {path.name} in {kept}: {error!r}") from error
            seconds = time.monotonic() - started
            assert seconds < slow, f"{where}, {form}, {path.name}: {seconds:.1f} seconds"
            shutil.rmtree(folder)
    return opened, refused


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--executions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    opened, refused = fuzz(args.seed, args.executions)
    print(f"{opened} opened whole, {refused} were refused in one sentence")


if __name__ == "__main__":
    main()
