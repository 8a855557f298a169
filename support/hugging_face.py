"""Hugging Face's folders, as transformers 4 and 5 write them: configuration and weights.

They come from anywhere. So nothing is unpickled that can run code, what differs from GPT-2 is
refused by name, and whatever is wrong inside a file ends in one error that names it.
"""

import hashlib
import math
import re
import shutil
import zipfile

import safetensors
import safetensors.torch
import torch

from support.commands import InputError
from support.files import existing_file, read_json, wrap_errors, write_aside, write_json
from support.tokenizer import vocabulary_files


THEIR_NAMES = {  # OpenAI's names, which are ours -> Hugging Face's
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
    values = read_json(path)
    with wrap_errors(path, "is not of a GPT-2 that is supported here"):
        for name, value in ONLY.items():
            found = values.get(name, value)
            if found != value and not (name == "n_inner" and found == 4 * values["n_embd"]):
                raise ValueError(f"{name} is {found!r}, but only {value!r} is supported")
        eos_token = values.get("eos_token_id")
        if isinstance(eos_token, list) and len(eos_token) == 1:
            (eos_token,) = eos_token
        if eos_token is not None and type(eos_token) is not int:
            raise ValueError(f"eos_token_id is {eos_token!r}, but must be a single token")
        sizes = {name: values[theirs] for name, theirs in THEIR_NAMES.items() if theirs in values}
        return sizes | {"eos_token": eos_token}


def weight_files(folder):
    """The files that hold a folder's weights: one, or the shards that an index names."""
    path = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if path is None:
        raise InputError(
            f"{folder} has a config.json, but neither model.safetensors nor pytorch_model.bin")
    if path.suffix != ".json":
        return [existing_file(path)]
    with wrap_errors(path):
        shards = sorted(set(read_json(path)["weight_map"].values()))
        return [existing_file(folder / name) for name in shards]


def read_weights(folder):
    """Yields (path, name, tensor) for each weight of a folder; names without "transformer."."""
    for path in weight_files(folder):
        for name, tensor in read_tensors(path)[0].items():
            name = name.removeprefix("transformer.")
            if not re.fullmatch(r"h\.\d+\.attn\.(masked_)?bias", name):  # old versions' causal mask
                yield path, name, tensor


def read_sizes(folder):
    """How many numbers each tensor of a folder holds, as its files' headers tell."""
    sizes = []
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            with wrap_errors(path), safetensors.safe_open(path, "pt") as file:
                sizes += [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]
        else:  # memory-mapped
            sizes += [tensor.numel() for tensor in read_tensors(path)[0].values()]
    return sizes


def read_tensors(path):
    """({name: tensor}, metadata) of a .safetensors or .bin file, memory-mapped.

    Raises InputError where it is corrupt, or holds anything but named tensors.
    """
    if path.suffix == ".safetensors":
        # Old versions of safetensors read to the device that somebody has set as the default.
        with (wrap_errors(existing_file(path)), torch.device("cpu"),
              safetensors.safe_open(path, "pt") as file):
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata() or {}
            if "sha256" in metadata and metadata["sha256"] != hash_tensors(tensors):
                raise ValueError("its numbers are not those that were written")
            return tensors, metadata
    with wrap_errors(existing_file(path),
                     "is corrupt, or holds more than tensors; download it again"):
        # A zip is mapped as its bytes lie there. One that is compressed, and what PyTorch wrote
        # before 1.6, is read as a whole instead.
        is_plain = zipfile.is_zipfile(path) and not any(
            member.compress_type for member in zipfile.ZipFile(path).infolist())
        # weights_only: tensors are read, no pickled code is run.
        tensors = dict(torch.load(path, "cpu", weights_only=True, mmap=is_plain))
        if sum(tensor.nbytes for tensor in tensors.values()) > 2 * path.stat().st_size:
            raise ValueError("its tensors are larger than the file")  # two names may share one
    return tensors, {}


def write_tensors(path, tensors, metadata):
    """Writes {name: tensor} as a .safetensors file that knows the SHA-256 of its numbers."""
    with write_aside(path) as aside:
        safetensors.torch.save_file(tensors, aside, metadata | {"sha256": hash_tensors(tensors)})


def hash_tensors(tensors):
    """The SHA-256 of named tensors, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def to_finite(path, name, tensor, device="cpu", dtype=torch.float32):
    """A tensor of a file as finite numbers of `dtype`. InputError where it holds anything else."""
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise InputError(f"{path}: {name} is of {tensor.dtype}, which weights are not")
    with wrap_errors(path):
        tensor = tensor.to(device, dtype).contiguous()
        is_finite = torch.stack(tensor.aminmax()).isfinite().all()  # where one is NaN, both are
    if not is_finite:
        raise InputError(f"{path}: {name} holds what is no finite number of {dtype}")
    return tensor


def write_folder(folder, config, tensors, vocabulary):
    """Writes a folder that transformers opens, with the tokenizer of the folder `vocabulary`.

    config     the sizes by OpenAI's names, and eos_token
    """
    named = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
    write_tensors(folder / "model.safetensors", named, {"format": "pt"})
    for path in vocabulary_files(vocabulary):
        theirs = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}.get(path.name, path.name)
        with write_aside(folder / theirs) as aside:
            shutil.copyfile(path, aside)
    sizes = {theirs: config[name] for name, theirs in THEIR_NAMES.items()}
    write_json(folder / "config.json", {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
        "activation_function": "gelu_new", **sizes, "bos_token_id": config["eos_token"],
        "eos_token_id": config["eos_token"], "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.0,
        "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "dtype": str(tensors["wte.weight"].dtype).removeprefix("torch."),
    })
