"""The bases: names and downloads of the published sizes; configurations and tensors, checked; and
the prefixes that PEFT keeps beside them."""

import json
from pathlib import Path

import torch

from support import hugging_face
from support.commands import InputError
from support.downloads import download
from support.files import ROOT, existing_file, read_json, refuse_file, wrap_errors, write_json
from support.tf_checkpoint import read_openai_weights

SIZES = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")  # OpenAI's own names
PUBLISHED = {
    "gpt2": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12},
    "gpt2-medium": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1024, "n_head": 16, "n_layer": 24},
    "gpt2-large": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1280, "n_head": 20, "n_layer": 36},
    "gpt2-xl": {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1600, "n_head": 25, "n_layer": 48},
}
NAMES = ("tiny", *PUBLISHED)  # what may be given instead of a folder
OPENAI_URL = "https://openaipublic.blob.core.windows.net/gpt-2/models"
OPENAI_FOLDERS = {  # and the bytes of their weights: a float32 for each parameter
    "gpt2": ("124M", 497_759_232),
    "gpt2-medium": ("355M", 1_419_292_672),
    "gpt2-large": ("774M", 3_096_120_320),
    "gpt2-xl": ("1558M", 6_230_444_800),
}
VOCABULARY_FILES = {  # with the SHA-256s that are the same for all sizes
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
WEIGHT_FILES = {
    "hparams.json": None, "model.ckpt.index": None, "model.ckpt.data-00000-of-00001": None,
}


def model_folder(source, needed=()):
    """The folder of a model: `source` itself, or models/NAME, where those of the files that are
    needed, {name: SHA-256}, are downloaded on first use. Raises InputError where there is none."""
    folder = ROOT / "models" / source if source in NAMES else Path(source)
    if source in PUBLISHED and not (folder / "config.json").exists():
        theirs, n_bytes = OPENAI_FOLDERS[source]
        for name in needed:
            expected_size = n_bytes if ".data-" in name else None
            download(f"{OPENAI_URL}/{theirs}/{name}", folder / name, needed[name], expected_size)
    elif not refuse_file(folder).is_dir():
        raise InputError(
            f"there is no model {str(source)!r}: give a folder or one of {', '.join(NAMES)}")
    return folder


# --------------------------------------------------------------------------------------------------
# Configurations
# --------------------------------------------------------------------------------------------------


def check_sizes(sizes, location=""):
    """Raises InputError where the sizes of a GPT-2, or of a prefix for it, are none.

    where      the beginning of its sentence, such as "FILE: "
    """
    for name, size in sizes.items():
        if name != "eos_token" and (type(size) is not int or size < 1):
            raise InputError(f"{location}{name} must be a whole number above 0, but is {size!r}")
    if sizes["n_embd"] % sizes["n_head"]:
        raise InputError(f"{location}n_embd ({sizes['n_embd']}) must be a multiple of n_head "
                         f"({sizes['n_head']})")


def count_weights(sizes):
    """How many numbers the matrices of a GPT-2 hold, without norms and biases."""
    rows = sizes["n_vocab"] + sizes["n_ctx"] + 12 * sizes["n_layer"] * sizes["n_embd"]
    return rows * sizes["n_embd"]


def read_config(source):
    """{name: value} of a folder's or a name's configuration, checked, with eos_token.

    Raises InputError where it is of another model, or asks for more than its weights hold: sizes
    are believed once they fit, before they are used.
    """
    folder = model_folder(source, WEIGHT_FILES)
    is_openai = not (folder / "config.json").exists()
    path = folder / ("hparams.json" if is_openai else "config.json")
    if not path.exists():
        raise InputError(f"{folder} holds no model: neither config.json (Hugging Face) nor "
                         "hparams.json (OpenAI)")
    values = read_json(path) if is_openai else hugging_face.read_config(path)
    if missing := [name for name in SIZES if name not in values]:
        raise InputError(f"{path}: {', '.join(missing)} is missing")
    values = {name: values[name] for name in SIZES} | {"eos_token": values.get("eos_token")}
    check_sizes(values, f"{path}: ")
    for name in ("n_embd", "n_head", "n_layer"):  # a wrong number of heads shows nowhere else
        if values[name] != PUBLISHED.get(source, values)[name]:
            raise InputError(f"{path} is not that of {source}: its {name} is {values[name]}; fetch "
                             "it again")
    if is_openai:
        index, data = (existing_file(folder / f"model.ckpt.{name}")
                       for name in ("index", "data-00000-of-00001"))
        # A number is a float32; an entry of the index has more than 16 bytes.
        n_numbers, n_tensors = data.stat().st_size // 4, index.stat().st_size // 16
        location = f"{index} and {data.name}"
    else:
        sizes = hugging_face.read_sizes(folder)
        n_numbers, n_tensors, location = sum(sizes), len(sizes), f"the weights in {folder}"
    # Where a single matrix is missing, `read_weights` says which.
    if count_weights(values) > 2 * n_numbers or 12 * values["n_layer"] > n_tensors:
        raise InputError(f"{path} asks for more than {location} can hold; one of them is corrupt, "
                         "or of another model")
    return values


# --------------------------------------------------------------------------------------------------
# Weights
# --------------------------------------------------------------------------------------------------


def read_weights(source, shapes, device="cpu", dtype=torch.float32):
    """{name: tensor} of a folder's or a name's weights, each of the names and shapes given.

    Tensors are memory-mapped where the format allows. Raises InputError where a file is corrupt, or
    a tensor missing, unknown, of another shape, given in two versions, or no finite numbers.
    """
    folder, weights = model_folder(source, WEIGHT_FILES), {}
    is_openai = not (folder / "config.json").exists()
    tensors = read_openai_weights(folder) if is_openai else hugging_face.read_weights(folder)
    for path, given, tensor in tensors:
        name = "wte.weight" if given == "lm_head.weight" else given  # one matrix for both ends
        tensor = hugging_face.to_finite(path, given, tensor, device, dtype)
        if not torch.equal(weights.setdefault(name, tensor), tensor):
            two = "lm_head.weight differs from wte.weight" if name == "wte.weight" else \
                f"{name} is given twice and differs"
            raise InputError(f"{path}: {two}, but GPT-2 has one such matrix")
    for name, tensor in weights.items():
        if name not in shapes:
            raise InputError(f"{folder}: the tensor {name} is not part of a GPT-2 of this many "
                             "layers")
        if tensor.shape != shapes[name]:
            raise InputError(f"{folder}: {name} has the shape {list(tensor.shape)}, but the "
                             f"configuration asks for {list(shapes[name])}")
    if missing := sorted(shapes.keys() - weights.keys()):
        more = " ..." if len(missing) > 3 else ""
        raise InputError(f"{folder}: the weights lack {', '.join(missing[:3])}{more}")
    return weights


def eos_token_of(source, tokenizer, n_vocab, eos_token):
    """The id of <|endoftext|> in a model of `n_vocab` tokens whose configuration says `eos_token`.

    Raises InputError where model and vocabulary do not agree.
    """
    path = model_folder(source) / "config.json"
    if path.exists() and hugging_face.read_config(path)["eos_token"] is None:
        eos_token = tokenizer.eot_token  # the vocabulary alone says which it is
    if tokenizer.max_token_value >= n_vocab:
        raise InputError(f"{source}: the vocabulary has {tokenizer.max_token_value + 1:,} tokens, "
                         f"the model {n_vocab:,}; they are of different models")
    if tokenizer.eot_token != eos_token:
        raise InputError(f"{source}: <|endoftext|> is token {tokenizer.eot_token} of the vocabulary"
                         f", but the model ends with {eos_token}; they are of different models, or "
                         "eos_token_id is wrong")
    return eos_token


# --------------------------------------------------------------------------------------------------
# PEFT's folders: a prefix is the keys and values themselves, whatever made them
# --------------------------------------------------------------------------------------------------

ADAPTER_SIZES = {  # ours -> PEFT's
    "length": "num_virtual_tokens", "n_embd": "token_dim", "n_layer": "num_layers",
    "n_head": "num_attention_heads",
}
ADAPTER_KIND = {  # what may stand there; the first is what we write
    "peft_type": ("PREFIX_TUNING",), "task_type": ("CAUSAL_LM", None),
    "num_transformer_submodules": (1, None),
}


def write_adapter(folder, key_values, sizes, base, made_from):
    """Writes a prefix, float32 [length, n_layer * 2 * n_embd], as a PEFT adapter.

    sizes       as ADAPTER_SIZES names them
    base        the name or folder of the model it is for
    made_from   {name: SHA-256} of what it was trained with, kept as the file's metadata
    """
    folder = Path(folder)
    hugging_face.write_tensors(folder / "adapter_model.safetensors",
                               {"prompt_embeddings": key_values},
                               {"made_from": json.dumps(made_from)})
    write_json(folder / "adapter_config.json", {
        **{name: allowed[0] for name, allowed in ADAPTER_KIND.items()},
        **{theirs: sizes[name] for name, theirs in ADAPTER_SIZES.items()},
        "prefix_projection": False, "inference_mode": True, "base_model_name_or_path": str(base),
    })


def read_adapter_config(folder):
    """What adapter_config.json says of a prefix: sizes as ADAPTER_SIZES names them, and its base.

    Raises InputError where it is of another kind.
    """
    path = refuse_file(Path(folder)) / "adapter_config.json"
    values = read_json(path)
    for name, allowed in ADAPTER_KIND.items():
        if values.get(name) not in allowed:
            raise InputError(f"{path}: {name} is {values.get(name)!r}, but only {allowed[0]!r} is "
                             "supported")
    needed = (*ADAPTER_SIZES.values(), "base_model_name_or_path")
    if missing := [name for name in needed if name not in values]:
        raise InputError(f"{path}: {', '.join(missing)} is missing")
    sizes = {name: values[theirs] for name, theirs in ADAPTER_SIZES.items()}
    check_sizes(sizes, f"{path}: ")
    return sizes, values["base_model_name_or_path"]


def read_adapter(folder):
    """(key_values, sizes, made_from), as `write_adapter` takes them. Raises InputError."""
    folder = Path(folder)
    sizes, _ = read_adapter_config(folder)
    path = folder / "adapter_model.safetensors"
    if not path.exists() and (folder / "adapter_model.bin").exists():
        path = folder / "adapter_model.bin"
    tensors, metadata = hugging_face.read_tensors(path)
    if tensors.keys() != {"prompt_embeddings"}:
        raise InputError(f"{path} holds {', '.join(sorted(tensors)[:3]) or 'nothing'}, but a "
                         "prefix is prompt_embeddings alone")
    shape = [sizes["length"], sizes["n_layer"] * 2 * sizes["n_embd"]]
    key_values = tensors["prompt_embeddings"]
    if list(key_values.shape) != shape:
        raise InputError(f"{path}: prompt_embeddings has the shape {list(key_values.shape)}, but "
                         f"adapter_config.json asks for {shape}")
    with wrap_errors(path):
        made_from = dict(json.loads(metadata.get("made_from", "{}")))
    return hugging_face.to_finite(path, "prompt_embeddings", key_values), sizes, made_from
