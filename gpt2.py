"""GPT-2 in one file: the model, its published weights, its tokenizer (Radford et al. 2019).

`GPT2.forward` takes, besides the tokens, a *past*: for every layer the keys and values of tokens that came before.
A prefix that was learnt, a prompt that was read and a beam that goes on are all such pasts, and there is no other path.

    python gpt2.py --model tiny " name : Blue Spice | type : restaurant | area : north<|endoftext|>"
"""

import argparse
import codecs
import json
import math
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import tiktoken
import torch
import torch.nn.functional as F
from torch import nn

from common import ROOT, InputError, download, run_command, write_aside
from tf_checkpoint import read_tf_checkpoint

# ---------------------------------------------------------------------------------------------------------------------
# The model
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class GPT2Config:
    """The numbers that make a GPT-2, under the names of OpenAI's hparams.json."""

    n_vocab: int
    n_ctx: int  # the most tokens, past ones included, that have a position
    n_embd: int
    n_head: int
    n_layer: int
    eos_token: int | None = None  # the id of <|endoftext|>; None: the last one

    def __post_init__(self):
        for name in ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"{name} must be a whole number above 0, but is {value!r}")
        if self.n_embd % self.n_head:
            raise InputError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        if self.eos_token is None:
            self.eos_token = self.n_vocab - 1

    @property
    def head_dim(self):
        return self.n_embd // self.n_head


SIZES = {
    "gpt2": GPT2Config(n_vocab=50257, n_ctx=1024, n_embd=768, n_head=12, n_layer=12),  # 124M
    "gpt2-medium": GPT2Config(n_vocab=50257, n_ctx=1024, n_embd=1024, n_head=16, n_layer=24),  # 355M
    "gpt2-large": GPT2Config(n_vocab=50257, n_ctx=1024, n_embd=1280, n_head=20, n_layer=36),  # 774M
    "gpt2-xl": GPT2Config(n_vocab=50257, n_ctx=1024, n_embd=1600, n_head=25, n_layer=48),  # 1558M
}


class Layout:
    """How a batch [B, T] becomes one long row of N tokens, and back.

    Everything but attention works on single tokens. It works on the row, which leaves out the padding: in E2E's random
    batches of 10 that is 28% of all.
    """

    def __init__(self, shape, real):
        self.shape = shape  # (B, T)
        # [N]: where in [B * T] the row's tokens stand; real: bool [B, T], or None where there is no padding
        self.places = None if real is None else real.flatten().nonzero()[:, 0]

    def pack(self, x):
        x = x.flatten(0, 1)  # [B, T, n] -> [B * T, n]
        return x if self.places is None else x[self.places]  # -> [N, n]

    def unpack(self, x):
        if self.places is not None:
            padded = x.new_zeros(self.shape.numel(), x.shape[1])
            padded[self.places] = x  # [N, n] -> [B * T, n]; index_copy would keep x until the backward pass
            x = padded
        return x.unflatten(0, self.shape)  # -> [B, T, n]


class Affine(nn.Module):
    """y = x W + b, with W [n_in, n_out] the way round in which OpenAI's checkpoints hold it."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)  # [N, n_in] -> [N, n_out]


def concatenate(past, present):
    """Keys (or values) of the past, [B or 1, n_head, P, head_dim], then those of the present, [B, n_head, T, ...]."""
    if isinstance(past, Growing):
        return past.append(present)
    return torch.cat([past.expand(len(present), -1, -1, -1), present], dim=2)  # [B, n_head, P + T, head_dim]


class Growing:
    """Keys (or values) of a past that grows token by token: a tensor with room at its end, so that each step copies
    what is new, and not all that was there. For a past that needs no gradient."""

    ROOM = 64  # tokens

    def __init__(self, tensor):
        self.data, self.length = tensor, tensor.shape[2]

    @property
    def shape(self):
        B, n_head, _, head_dim = self.data.shape
        return torch.Size((B, n_head, self.length, head_dim))

    def append(self, present):
        end = self.length + present.shape[2]
        if end > self.data.shape[2]:
            longer = self.data.new_empty(*self.data.shape[:2], end + self.ROOM, self.data.shape[3])
            longer[:, :, : self.length] = self.data[:, :, : self.length]
            self.data = longer
        self.data[:, :, self.length : end] = present
        self.length = end
        return self.data[:, :, :end]

    def keep(self, rows):
        """Makes row rows[i] row i. Only rows that change their place are copied: give them in such an order."""
        moved = [i for i, row in enumerate(rows) if row != i]
        self.data[moved] = self.data[[rows[i] for i in moved]]
        self.data = self.data[: len(rows)]


class Attention(nn.Module):
    """Causal self-attention with several heads, over the past and the present."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Affine(config.n_embd, 3 * config.n_embd)
        self.c_proj = Affine(config.n_embd, config.n_embd)

    def forward(self, x, past, visible, layout):
        parts = self.c_attn(x).chunk(3, dim=1)  # [N, n_embd] -> [N, 3 * n_embd] -> three times [N, n_embd]
        q, k, v = (layout.unpack(part).unflatten(2, (self.n_head, -1)).transpose(1, 2) for part in parts)
        # each [N, n_embd] -> [B, T, n_embd] -> [B, T, n_head, head_dim] -> [B, n_head, T, head_dim]
        if past is not None:  # here a prefix steers the model: its keys and values stand in front of the tokens' own
            k, v = (concatenate(before, now) for before, now in zip(past, (k, v)))
        # k and v are [B, n_head, P + T, head_dim] from here on
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)  # softmax(q k^T / sqrt(head_dim)) v
        x = layout.pack(x.transpose(1, 2).flatten(2))  # [B, n_head, T, head_dim] -> [B, T, n_embd] -> [N, n_embd]
        return self.c_proj(x), (k, v)


class MLP(nn.Module):
    """Two position-wise layers with a GELU between them."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = Affine(config.n_embd, 4 * config.n_embd)
        self.c_proj = Affine(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))  # [N, n_embd] -> 4 * n_embd -> n_embd


class Block(nn.Module):
    """One layer: attention and MLP, each on a normalised input and added to the residual stream."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, past, visible, layout, wanted=None):
        attended, present = self.attn(self.ln_1(x), past, visible, layout)
        x = x + attended
        if wanted is not None:  # in the last layer: from here on no token needs another
            x = x[wanted]  # [N, n_embd] -> [M, n_embd]
        x = x + self.mlp(self.ln_2(x))
        return x, present


class GPT2(nn.Module):
    """GPT-2 with its initial weights (Radford et al. 2019, section 2.3); `load_model` gives it trained ones.

    There is no dropout: the published fine-tuning and prefix-tuning runs use none.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.n_vocab, config.n_embd)
        self.wpe = nn.Embedding(config.n_ctx, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # the 2 * n_layer additions keep the residual stream's size
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.01 if name == "wpe.weight" else 0.02)

    def forward(self, tokens, past=None, positions=None, mask=None, return_past=False):
        """The logits of the token that follows each token.

        tokens     int [B, T]
        past       None, or for each layer (key, value), each [B or 1, n_head, P, head_dim]
        positions  int [B or 1, T]; by default P, P + 1, ..., P + T - 1
        mask       bool [B, P + T], False where a past or present token is padding that no token may look at; or
                   [B, T, P + T], with a row for each token that looks. A batch padded on the right needs none: its
                   padding comes after all that matters.
        returns    logits [B, T, n_vocab]; with return_past also the past that the next tokens need, of length P + T
        Raises InputError where the positions end beyond n_ctx, or P + T is not what the mask covers.
        """
        x, past = self.features(tokens, past, positions, mask)
        logits = self.logits(x)
        return (logits, past) if return_past else logits

    def features(self, tokens, past=None, positions=None, mask=None, real=None, wanted=None):
        """What `forward` computes before the logits: (features [B, T, n_embd], past of length P + T).

        real       bool [B, T], False for padding on the right, on which no work is to be done: its features are 0
        wanted     bool [B, T]: the M tokens whose features are wanted; these alone are returned, [M, n_embd], and
                   behind the last attention no work is done for the others
        """
        T = tokens.shape[1]
        P = 0 if past is None else past[0][0].shape[2]
        if positions is None:
            if P + T > self.config.n_ctx:
                raise InputError(f"{P} past and {T} new tokens are more than the model's n_ctx of {self.config.n_ctx}")
            positions = torch.arange(P, P + T, device=tokens.device)[None]  # [1, T]
        # Token t sees the whole past, the tokens before it and itself.
        visible = torch.ones(T, P + T, dtype=torch.bool, device=tokens.device).tril(P)  # [T, P + T]
        if mask is not None:
            if mask.shape[-1] != P + T:
                raise InputError(f"the mask covers {mask.shape[-1]} tokens, but {P} past and {T} new ones make {P + T}")
            visible = visible & (mask[:, None] if mask.dim() == 3 else mask[:, None, None])  # [B, 1, T, P + T]
        layout = Layout(tokens.shape, real)
        if wanted is not None:
            wanted = layout.pack(wanted[:, :, None]).nonzero()[:, 0]  # [M]: where in the row they stand
        x = layout.pack(self.wte(tokens) + self.wpe(positions))  # [B, T] -> [B, T, n_embd] -> [N, n_embd]
        presents = []
        for layer, block in enumerate(self.h):
            is_last = layer == self.config.n_layer - 1
            x, present = block(x, past and past[layer], visible, layout, wanted if is_last else None)
            presents.append(present)
        x = self.ln_f(x)
        return (layout.unpack(x) if wanted is None else x), presents

    def logits(self, x):
        """Features [..., n_embd] -> logits [..., n_vocab]; the embedding serves as the output layer, too."""
        return F.linear(x, self.wte.weight)


@torch.no_grad()
def generate(model, tokens, max_new_tokens, temperature=0.0, generator=None):
    """Goes on writing after `tokens` (a list): yields one token after the other, until <|endoftext|>.

    temperature 0 takes the likeliest token each time, 1 draws from the model's own distribution.
    """
    device = model.wte.weight.device
    newest, past = torch.tensor([tokens], device=device), None
    for _ in range(max_new_tokens):
        logits, past = model(newest, past, return_past=True)
        if temperature == 0:
            newest = logits[:, -1:].argmax(-1)  # [1, 1]
        else:
            newest = torch.multinomial(F.softmax(logits[:, -1] / temperature, -1).cpu(), 1, generator=generator)
            newest = newest.to(device)
        if newest.item() == model.config.eos_token:
            return
        yield newest.item()


# ---------------------------------------------------------------------------------------------------------------------
# Weights: from OpenAI's TensorFlow checkpoints and from Hugging Face folders; to Hugging Face folders
# ---------------------------------------------------------------------------------------------------------------------

OPENAI_URL = "https://openaipublic.blob.core.windows.net/gpt-2/models"
OPENAI_FOLDERS = {"gpt2": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1558M"}
OPENAI_FILES = {  # with the SHA-256s that are the same for all sizes
    "hparams.json": None,
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "model.ckpt.index": None,
    "model.ckpt.data-00000-of-00001": None,
}


def model_folder(source):
    """The folder of a model: `source` itself, or models/NAME, where OpenAI's files are downloaded on first use."""
    folder = ROOT / "models" / source if source in ("tiny", *OPENAI_FOLDERS) else Path(source)
    if source in OPENAI_FOLDERS and not (folder / "config.json").exists():
        for name, expected_sha256 in OPENAI_FILES.items():
            if not (folder / name).exists():
                download(f"{OPENAI_URL}/{OPENAI_FOLDERS[source]}/{name}", folder / name, expected_sha256)
    if not folder.is_dir():
        raise InputError(f"there is no model {source!r}: give a folder or one of tiny, {', '.join(OPENAI_FOLDERS)}")
    return folder


def load_model(source, device="cpu", dtype=torch.float32):
    """The GPT-2 of a folder or a name, in evaluation mode.

    Tensors become the parameters one by one (memory-mapped where the format allows): no second copy of the model is
    ever in memory. Raises InputError where a file is damaged, or a tensor missing, unknown or of another shape.
    """
    folder = model_folder(source)
    if (folder / "config.json").exists():
        config, tensors = read_hugging_face_config(folder), read_hugging_face_tensors(folder)
    elif (folder / "hparams.json").exists():
        config, tensors = read_openai_config(folder), read_openai_tensors(folder)
    else:
        raise InputError(f"{folder} holds no model: neither config.json (Hugging Face) nor hparams.json (OpenAI)")
    with torch.device("meta"):  # shapes without memory
        model = GPT2(config)
    parameters, output = dict(model.named_parameters()), None
    weights = {}
    for name, tensor in tensors:
        if name == "lm_head.weight":
            output = tensor
        elif name not in parameters:
            raise InputError(f"{folder}: the tensor {name} is not part of a GPT-2 of {config.n_layer} layers")
        elif tensor.shape != parameters[name].shape:
            raise InputError(f"{folder}: {name} has the shape {list(tensor.shape)}, but the configuration asks for "
                             f"{list(parameters[name].shape)}")
        else:
            weights[name] = tensor.to(device, dtype)
    if missing := sorted(parameters.keys() - weights.keys()):
        raise InputError(f"{folder}: the weights lack {', '.join(missing[:3])}{' ...' * (len(missing) > 3)}")
    if output is not None and not torch.equal(output.to(device, dtype), weights["wte.weight"]):
        raise InputError(f"{folder}: lm_head.weight differs from wte.weight, but GPT-2 uses one matrix for both")
    model.load_state_dict(weights, assign=True)
    return model.eval()


def read_json(path):
    """The object that a JSON file holds; raises InputError naming file and line."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: a JSON object was expected, but it is a {type(values).__name__}")
    return values


def read_config(path, names):
    """A GPT2Config from the values that stand in a JSON file under `names`."""
    values = read_json(path)
    if missing := [name for name in names if name not in values]:
        raise InputError(f"{path}: {', '.join(missing)} is missing")
    try:
        return GPT2Config(*(values[name] for name in names), eos_token=values.get("eos_token_id"))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_hugging_face_config(folder):
    """The configuration of a Hugging Face folder; raises InputError where it is of another architecture."""
    path = folder / "config.json"
    config = read_config(path, ("vocab_size", "n_positions", "n_embd", "n_head", "n_layer"))
    values = read_json(path)
    only = {  # what this GPT-2 always does: OpenAI's choices, which are also Hugging Face's defaults
        "model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "n_inner": None,
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
        "tie_word_embeddings": True,
    }
    for name, value in only.items():
        if values.get(name, value) not in (value, 4 * config.n_embd if name == "n_inner" else value):
            raise InputError(f"{path}: {name} is {values[name]!r}, but only {value!r} is supported")
    return config


def read_hugging_face_tensors(folder):
    """Yields (name, tensor) for each weight of a Hugging Face folder, memory-mapped."""
    if (path := folder / "model.safetensors").exists():
        try:
            with safetensors.safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except safetensors.SafetensorError as error:
            raise InputError(f"{path} is damaged ({error}); fetch it again") from None
    elif (path := folder / "pytorch_model.bin").exists():
        try:
            # weights_only: tensors are read, no pickled code is run; files from before PyTorch 1.6 are not zip archives
            tensors = torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            if not all(isinstance(name, str) and torch.is_tensor(tensor) for name, tensor in tensors.items()):
                raise TypeError("not a dictionary of tensors")
        except Exception as error:  # a damaged file ends torch.load in nearly any exception
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{path} is damaged, or holds more than tensors ({reason}); fetch it again") from None
    else:
        raise InputError(f"{folder} has a config.json, but neither model.safetensors nor pytorch_model.bin")
    for name, tensor in tensors.items():
        name = name.removeprefix("transformer.")
        if not name.endswith((".attn.bias", ".attn.masked_bias")):  # the causal mask, which old versions stored
            yield name, tensor


def read_openai_config(folder):
    """The configuration in OpenAI's hparams.json."""
    return read_config(folder / "hparams.json", ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer"))


def read_openai_tensors(folder):
    """Yields (name, tensor) for each variable of OpenAI's checkpoint, under the name it has in `GPT2`."""
    for name, tensor in read_tf_checkpoint(folder / "model.ckpt"):
        name = re.sub(r"^model/(h(\d+)/)?", lambda match: f"h.{match[2]}." if match[2] else "", name).replace("/", ".")
        name = re.sub(r"\.(w|g)$|(?<=^wte)$|(?<=^wpe)$", ".weight", name)
        name = re.sub(r"\.b$", ".bias", name)
        yield name, tensor[0] if tensor.dim() == 3 else tensor  # [1, n_in, n_out] -> [n_in, n_out]


def save_model(model, folder, vocabulary, dtype=torch.float32):
    """Writes `model` as a Hugging Face folder, with the vocabulary files of another model (a name or folder)."""
    folder, config = Path(folder), model.config
    tensors = {f"transformer.{name}": tensor.to("cpu", dtype) for name, tensor in model.state_dict().items()}
    with write_aside(folder / "model.safetensors") as path:
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    for path, name in zip(vocabulary_files(vocabulary), ("vocab.json", "merges.txt")):
        with write_aside(folder / name) as aside:
            shutil.copyfile(path, aside)
    values = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
        "vocab_size": config.n_vocab, "n_positions": config.n_ctx, "n_embd": config.n_embd, "n_head": config.n_head,
        "n_layer": config.n_layer, "bos_token_id": config.eos_token, "eos_token_id": config.eos_token,
        "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "dtype": str(dtype).removeprefix("torch."),
    }
    with write_aside(folder / "config.json") as path:
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# The tokenizer
# ---------------------------------------------------------------------------------------------------------------------

# Text is first cut into words, each with the blank before it; only inside them are bytes merged (OpenAI's encoder.py).
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def vocabulary_files(source):
    """The two vocabulary files of a model, under OpenAI's or Hugging Face's names: (ids, merges)."""
    folder = model_folder(source)
    for names in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        if all((folder / name).exists() for name in names):
            return tuple(folder / name for name in names)
    raise InputError(f"{folder} holds no tokenizer: neither vocab.json and merges.txt nor encoder.json and vocab.bpe")


def load_tokenizer(source):
    """The byte-level BPE of a folder or a name, from the folder's own two files.

    tiktoken merges the pair whose product has the lowest id; that is byte-level BPE where the ids follow the order of
    the merges, which is checked. `encode_ordinary(text)` -> ids, `decode(ids)` -> text, `eot_token` is <|endoftext|>.
    """
    ids_path, merges_path = vocabulary_files(source)
    ids = read_json(ids_path)
    special = {text: ids[text] for text in ("<|endoftext|>",) if text in ids}
    if not special:
        raise InputError(f"{ids_path}: <|endoftext|> is missing")
    if not all(type(i) is int and i >= 0 for i in ids.values()) or len(set(ids.values())) < len(ids):
        raise InputError(f"{ids_path}: the ids must be whole numbers, each another one")
    byte_of = bytes_of_characters()
    try:
        ranks = {bytes(byte_of[c] for c in text): i for text, i in ids.items() if text not in special}
    except KeyError as error:
        raise InputError(f"{ids_path}: {error} is not one of the 256 characters that stand for bytes") from None
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise InputError(f"{ids_path}: some of the 256 bytes have no token")
    last = -1
    for number, line in enumerate(merges_path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if number == 1 and line.startswith("#version") or not line:
            continue
        merged = ids.get(line.replace(" ", "", 1), -1)
        if merged <= last:
            raise InputError(f"{merges_path}, line {number}: the ids in {ids_path.name} do not follow the merges")
        last = merged
    return tiktoken.Encoding(str(ids_path), pat_str=WORDS, mergeable_ranks=ranks, special_tokens=special)


def bytes_of_characters():
    """{character: byte} of the vocabulary files: a printable byte is itself, the others are U+0100, U+0101, ..."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


# ---------------------------------------------------------------------------------------------------------------------


def pick_device(name):
    """The torch.device for "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", "mps"; raises InputError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"the device {name!r} cannot be used here ({str(error).splitlines()[0]})") from None


def main():
    parser = argparse.ArgumentParser(description="A GPT-2 goes on writing.",
                                     epilog='example: python gpt2.py --model gpt2 "Once upon a time"')
    parser.add_argument("prompt", help="the beginning of the text; <|endoftext|> in it is the token")
    parser.add_argument("--model", default="tiny", metavar="NAME|DIR", help="tiny (the default), gpt2, gpt2-medium, "
                        "gpt2-large, gpt2-xl (downloaded on first use), or a folder")
    parser.add_argument("--max-new-tokens", type=int, default=60, metavar="N", help="stop after so many (default: 60)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T",
                        help="0 takes the likeliest token (default), 1 draws as the model says")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="for drawing (default: 0)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")
    args = parser.parse_args()
    if args.temperature < 0:
        raise InputError(f"--temperature must not be below 0, but is {args.temperature}")
    tokenizer = load_tokenizer(args.model)
    model = load_model(args.model, pick_device(args.device))
    tokens = tokenizer.encode(args.prompt, allowed_special="all") or [model.config.eos_token]
    room = model.config.n_ctx - len(tokens)
    if room < 1 or args.max_new_tokens < 1:
        raise InputError(f"after {len(tokens)} tokens there is room for {room}; --max-new-tokens must be at least 1")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may take several tokens
    print(args.prompt, end="", flush=True)
    generator = torch.Generator().manual_seed(args.seed)
    for token in generate(model, tokens, min(args.max_new_tokens, room), args.temperature, generator):
        print(decoder.decode(tokenizer.decode_single_token_bytes(token)), end="", flush=True)
    print(decoder.decode(b"", final=True))


if __name__ == "__main__":
    run_command(main)
