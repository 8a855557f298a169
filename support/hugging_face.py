"""Hugging Face's folders, as transformers 4 and 5 write them: configuration, weights, tokenizer.

They come from anywhere. So nothing is unpickled that can run code, what differs from GPT-2 is
refused by name, and whatever is wrong inside a file ends in one error that names it.
"""

import math
import re
import shutil
import zipfile

import safetensors
import safetensors.torch
import torch

from support.files import InputError, read_json, reading, write_aside, write_json


def check_file(path):
    """The path of a file that is there. Raises InputError where it only stands for another."""
    if not path.exists():
        raise InputError(f"{path} is missing")
    with open(path, "rb") as file:
        if file.read(64).startswith(b"version https://git-lfs"):
            raise InputError(f"{path} is a Git LFS pointer, not the file: run git lfs pull")
    return path


SIZES = {  # OpenAI's names, which are ours -> Hugging Face's
    "n_vocab": "vocab_size", "n_ctx": "n_positions", "n_embd": "n_embd", "n_head": "n_head",
    "n_layer": "n_layer",
}
ONLY = {  # what this GPT-2 always does: OpenAI's choices, and Hugging Face's defaults
    "model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
    "n_inner": None, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False, "tie_word_embeddings": True,
}
WEIGHTS = (  # the first that is there is read, as transformers does
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read_config(path):
    """The sizes in a config.json by OpenAI's names, and eos_token. InputError for other models."""
    values = read_json(check_file(path))
    with reading(path, "is not of a GPT-2 that is supported here"):
        for name, value in ONLY.items():
            found = values.get(name, value)
            if found != value and not (name == "n_inner" and found == 4 * values["n_embd"]):
                raise ValueError(f"{name} is {found!r}, but only {value!r} is supported")
        eos_token = values.get("eos_token_id")
        if isinstance(eos_token, list) and len(eos_token) == 1:
            (eos_token,) = eos_token
        if eos_token is not None and type(eos_token) is not int:
            raise ValueError(f"eos_token_id is {eos_token!r}, but must be a single token")
        sizes = {name: values[theirs] for name, theirs in SIZES.items() if theirs in values}
        return sizes | {"eos_token": eos_token}


def weight_files(folder):
    """The files that hold a folder's weights: one, or the shards that an index names."""
    path = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if path is None:
        raise InputError(
            f"{folder} has a config.json, but neither model.safetensors nor pytorch_model.bin")
    if path.suffix != ".json":
        return [check_file(path)]
    with reading(check_file(path)):
        shards = sorted(set(read_json(path)["weight_map"].values()))
        for name in shards:
            if not re.fullmatch(r"[\w.-]+\.(safetensors|bin)", name):
                raise ValueError(f"{name!r} is not the name of a file of the same folder")
    return [check_file(folder / name) for name in shards]


def read_weights(folder):
    """Yields (path, name, tensor) for each weight of a folder; names without "transformer."."""
    for path in weight_files(folder):
        for name, tensor in read_tensors(path)[0].items():
            name = name.removeprefix("transformer.")
            if not re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name):  # old versions' causal mask
                yield path, name, tensor


def read_tensors(path):
    """({name: tensor}, metadata) of a .safetensors or .bin file, memory-mapped.

    Raises InputError where it is damaged, or holds anything but named tensors.
    """
    if path.suffix == ".safetensors":
        with reading(check_file(path)), safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    with reading(check_file(path), "is damaged, or holds more than tensors; fetch it again"):
        with open(path, "rb") as file:
            is_zip = file.read(4) == b"PK\3\4"  # before PyTorch 1.6 it was none
        # PyTorch maps a member as it lies in the file, and would take compressed bytes for numbers.
        if is_zip and any(member.compress_type for member in zipfile.ZipFile(path).infolist()):
            raise ValueError("it is compressed, as torch.save never does")
        # weights_only: tensors are read, no pickled code is run.
        tensors = dict(torch.load(path, "cpu", weights_only=True, mmap=is_zip))
        for name, tensor in tensors.items():
            if not (isinstance(name, str) and torch.is_tensor(tensor)
                    and tensor.layout == torch.strided and tensor.device.type == "cpu"):
                raise TypeError(f"{name!r} is no plain tensor")
        if sum(tensor.nbytes for tensor in tensors.values()) > 2 * path.stat().st_size:
            raise ValueError("its tensors are larger than the file")  # two names may share one
    return tensors, {}


def to_numbers(path, name, tensor, device="cpu", dtype=torch.float32):
    """A tensor of a file as finite numbers of `dtype`. InputError where it holds anything else."""
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise InputError(f"{path}: {name} is of {tensor.dtype}, which weights are not")
    with reading(path):
        tensor = tensor.to(device, dtype).contiguous()
        is_finite = torch.stack(tensor.aminmax()).isfinite().all()  # where one is NaN, both are
    if not is_finite:
        raise InputError(f"{path}: {name} holds what is no finite number of {dtype}")
    return tensor


def write_folder(folder, config, tensors, vocabulary):
    """Writes a folder that transformers opens, with the tokenizer of the folder `vocabulary`."""
    named = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
    with write_aside(folder / "model.safetensors") as path:
        safetensors.torch.save_file(named, path, metadata={"format": "pt"})
    for path in vocabulary_files(vocabulary):
        theirs = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}.get(path.name, path.name)
        with write_aside(folder / theirs) as aside:
            shutil.copyfile(path, aside)
    sizes = {theirs: getattr(config, name) for name, theirs in SIZES.items()}
    write_json(folder / "config.json", {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
        "activation_function": "gelu_new", **sizes, "bos_token_id": config.eos_token,
        "eos_token_id": config.eos_token, "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.0,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "dtype": str(tensors["wte.weight"].dtype).removeprefix("torch."),
    })


BYTE_LEVEL = (  # what a tokenizer.json may say that does what GPT-2's does: (part, name, allowed)
    ("model", "type", (None, "BPE")), ("model", "dropout", (None, 0)),
    ("model", "continuing_subword_prefix", (None, "")), ("model", "end_of_word_suffix", (None, "")),
    ("model", "ignore_merges", (None, False)), ("normalizer", "type", (None,)),
    ("pre_tokenizer", "type", ("ByteLevel",)), ("pre_tokenizer", "add_prefix_space", (False,)),
    ("pre_tokenizer", "use_regex", (None, True)), ("decoder", "type", ("ByteLevel",)),
    ("post_processor", "type", (None, "ByteLevel", "TemplateProcessing")),
    ("post_processor", "special_tokens", (None, {})),
)


def vocabulary_files(folder):
    """The files of a folder's tokenizer, the vocabulary first."""
    flags = "tokenizer_config.json", "special_tokens_map.json"
    for needed, others in ((("tokenizer.json",), flags),
                           (("vocab.json", "merges.txt"), ("added_tokens.json", *flags)),
                           (("encoder.json", "vocab.bpe"), flags)):
        if all((folder / name).exists() for name in needed):
            paths = [folder / name for name in (*needed, *others)]
            return [check_file(path) for path in paths if path.exists()]
    raise InputError(f"{folder} holds no tokenizer: neither vocab.json and merges.txt nor "
                     "tokenizer.json nor OpenAI's encoder.json and vocab.bpe")


def read_vocabulary(folder, end):
    """A folder's byte-level BPE: (its file, ranks, added).

    ranks   {bytes: id} of the 256 bytes and of what is merged from them, in the merges' order
    added   {token: id} of `end` and of the tokens that are one wherever they stand in a text
    Raises InputError where it is damaged, or tokenises in any way that GPT-2 does not.
    """
    path, *others = vocabulary_files(folder)
    found = {other.name: read_json(other) for other in others if other.suffix == ".json"}
    with reading(path, "holds no byte-level BPE such as GPT-2's"):
        values, entries = read_json(path), []
        if path.name == "tokenizer.json":
            for part, name, allowed in BYTE_LEVEL:
                if (value := (values.get(part) or {}).get(name)) not in allowed:
                    raise ValueError(f"{name} of its {part} is {value!r}, not {allowed[-1]!r}")
            entries += values.get("added_tokens") or []
            ids, merges = values["model"]["vocab"], values["model"]["merges"]
            merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
        else:
            ids, merges = values, others[0].read_text(encoding="utf-8", errors="replace")
            merges = ["" if line.startswith("#version") else line for line in merges.splitlines()]
        for token, i in found.get("added_tokens.json", {}).items():
            entries.append({"content": token, "id": i})
        config = found.get("tokenizer_config.json", {})
        for i, entry in (config.get("added_tokens_decoder") or {}).items():
            entries.append(entry | {"id": int(i)})
        if config.get("add_prefix_space"):
            raise ValueError("add_prefix_space is not supported")
        entries += special_tokens(config)
        entries += special_tokens(found.get("special_tokens_map.json", {}))
        added = {end}
        for entry in entries:
            token = entry["content"]
            i = entry.get("id", ids.get(token))
            if i is None:  # what has a purpose and no id is in no model: only letters
                continue
            added.add(token)
            for name in ("single_word", "lstrip", "rstrip"):
                if entry.get(name):
                    raise ValueError(f"{name} of its token {token!r} is not supported")
            if not token.encode() or ids.setdefault(token, i) != i:
                raise ValueError(f"its token {token!r} is empty or has two ids")
        if end not in ids:
            raise ValueError(f"{end} is missing")
        are_ids = all(type(i) is int and 0 <= i < 2**31 for i in ids.values())
        if not are_ids or len(set(ids.values())) < len(ids):
            raise ValueError("the ids must be whole numbers, each another one")
        bytes_of = bytes_of_characters()
        if unknown := set("".join(ids.keys() - added)) - bytes_of.keys():
            raise ValueError(f"{min(unknown)!r} is not one of the 256 characters for bytes")
        if not bytes_of.keys() <= ids.keys():
            raise ValueError("some of the 256 bytes have no token")
    known, last = {character: ids[character] for character in bytes_of}, -1
    for number, merge in enumerate(merges, 1):
        if merge:
            left, _, right = merge.partition(" ")
            where = f"{path}, merge" if path.name == "tokenizer.json" else f"{others[0]}, line"
            if ids.get(left + right, -1) <= last or not {left, right} <= known.keys():
                raise InputError(
                    f"{where} {number}: the ids in {path.name} do not follow the merges")
            if merge_until_two(left + right, known) != [left, right]:
                raise InputError(f"{where} {number}: other merges come first inside of "
                                 f"{left + right!r}, so that no text ever becomes this token")
            known[left + right] = last = ids[left + right]
    # A word of the vocabulary that is neither a byte nor merged nor added is never read or written.
    ranks = {b"".join(map(bytes_of.get, text)): i for text, i in known.items()}
    return path, ranks, {token: ids[token] for token in added}


def special_tokens(values):
    """Entries {"content": token, ...} for what a file names by purpose, such as pad_token."""
    for name, value in values.items():
        if name.endswith(("_token", "_special_tokens")):
            if isinstance(value, dict) and "content" not in value:
                value = [*value.values()]  # extra_special_tokens, with their purposes
            for token in value if isinstance(value, list) else [value]:
                if isinstance(token, (str, dict)):  # not null, nor a flag such as add_bos_token
                    yield {"content": token} if isinstance(token, str) else token


def merge_until_two(text, known):
    """The last parts of a text, a list, where of the pairs side by side that are `known` tokens,
    {token: id}, that of the lowest id is merged again and again."""
    parts = list(text)
    while len(parts) > 2:
        pairs = [known.get(left + right, math.inf) for left, right in zip(parts, parts[1:])]
        at = pairs.index(min(pairs))
        if pairs[at] == math.inf:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def bytes_of_characters():
    """{character: byte} of the vocabulary files.

    A printable byte is itself, the others are U+0100, U+0101, ...
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1),
                 *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): bytes([byte]) for byte in printable}
    return characters | {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}
