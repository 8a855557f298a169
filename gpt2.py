"""GPT-2 in one file: the model, its published weights, its tokenizer (Radford et al. 2019).

Read the model from top to bottom. `GPT2.forward` takes, besides the tokens, a *past*: for every
layer the keys and values of what came before. A prefix that was learnt, a prompt that was read and
a beam that goes on are all such pasts, and there is no other path.

    python gpt2.py --model tiny " name : Blue Spice | Type : restaurant | area : north<|endoftext|>"
"""

import argparse
import codecs
import math
import re
from dataclasses import dataclass
from pathlib import Path

import tiktoken
import torch
import torch.nn.functional as F
from torch import nn

from support import hugging_face
from support.files import ROOT, InputError, read_json, run_command, seed_number
from support.downloads import download
from support.tf_checkpoint import read_openai_weights

# --------------------------------------------------------------------------------------------------
# The model
# --------------------------------------------------------------------------------------------------


@dataclass
class GPT2Config:
    """The sizes of a GPT-2, under the names of OpenAI's hparams.json."""

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
            raise InputError(
                f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        if self.eos_token is None:
            self.eos_token = self.n_vocab - 1

    @property
    def head_dim(self):
        return self.n_embd // self.n_head


SIZES = {
    "gpt2": GPT2Config(n_vocab=50257, n_ctx=1024, n_embd=768, n_head=12, n_layer=12),  # 124M
    "gpt2-medium": GPT2Config(n_vocab=50257, n_ctx=1024, n_embd=1024, n_head=16, n_layer=24),
    "gpt2-large": GPT2Config(n_vocab=50257, n_ctx=1024, n_embd=1280, n_head=20, n_layer=36),
    "gpt2-xl": GPT2Config(n_vocab=50257, n_ctx=1024, n_embd=1600, n_head=25, n_layer=48),  # 1558M
}


class Affine(nn.Module):
    """y = x W + b, with W [n_in, n_out] the way round in which OpenAI's checkpoints hold it."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)  # [N, n_in] -> [N, n_out]


class Attention(nn.Module):
    """Causal self-attention with several heads, over the past and the present.

    x is the batch's N tokens as one long row; `packing.unpack` puts them into B rows of T, since
    only tokens of the same row look at each other. visible: True where a token may look.
    """

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Affine(config.n_embd, 3 * config.n_embd)
        self.c_proj = Affine(config.n_embd, config.n_embd)

    def forward(self, x, past, visible, packing):
        q, k, v = self.c_attn(x).chunk(3, dim=1)  # [N, n_embd] -> three times [N, n_embd]
        q = self.split_heads(packing.unpack(q))  # -> [B, T, n_embd] -> [B, n_head, T, head_dim]
        k = self.split_heads(packing.unpack(k))
        v = self.split_heads(packing.unpack(v))
        if past is not None:  # Here a prefix steers the model. It has no queries: it is looked at.
            past_key, past_value = past
            k = concatenate(past_key, k)  # -> [B, n_head, P + T, head_dim]
            v = concatenate(past_value, v)
        x = F.scaled_dot_product_attention(q, k, v, visible)  # softmax(q k^T / sqrt(head_dim)) v
        x = x.transpose(1, 2).flatten(2)  # [B, n_head, T, head_dim] -> [B, T, n_embd]
        x = packing.pack(x)  # -> [N, n_embd]
        return self.c_proj(x), (k, v)

    def split_heads(self, x):
        return x.unflatten(2, (self.n_head, -1)).transpose(1, 2)


def concatenate(past, present):
    """The keys (or values) of the past in front of those of the present.

    [B or 1, n_head, P, head_dim] and [B, n_head, T, head_dim] -> [B, n_head, P + T, head_dim]. One
    past may serve all rows. It takes the dtype of the present, which autocast may have lowered.
    """
    if isinstance(past, Growing):  # for speed: the same in place, so that the past itself grows
        return past.append(present)
    past = past.to(present.dtype).expand(len(present), -1, -1, -1)
    return torch.cat([past, present], dim=2)


class MLP(nn.Module):
    """Two position-wise layers with a GELU between them."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = Affine(config.n_embd, 4 * config.n_embd)
        self.c_proj = Affine(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        x = F.gelu(self.c_fc(x), approximate="tanh")  # [N, n_embd] -> [N, 4 * n_embd]
        return self.c_proj(x)  # -> [N, n_embd]


class Block(nn.Module):
    """One layer: attention and MLP, each on a normalised input and added to the residual stream."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, past, visible, packing, wanted=None):
        attended, present = self.attn(self.ln_1(x), past, visible, packing)
        x = x + attended
        if wanted is not None:  # in the last layer: from here on no token looks at another
            x = x[wanted]  # [N, n_embd] -> [M, n_embd]
        x = x + self.mlp(self.ln_2(x))
        return x, present


class GPT2(nn.Module):
    """GPT-2 with its initial weights (Radford et al. 2019, section 2.3); `load_model` loads others.

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
            if name.endswith("c_proj.weight"):  # 2 * n_layer additions keep the stream's size
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.01 if name == "wpe.weight" else 0.02)

    def forward(self, tokens, past=None, positions=None, mask=None, places=None, wanted=None,
                return_past=False):
        """The logits of the token that follows each token.

        tokens     int [B, T]
        past       None, or for each layer (key, value), each [B or 1, n_head, P, head_dim]
        positions  int [B or 1, T or 1]; by default P, P + 1, ..., P + T - 1
        mask       bool [B, P + T], False where a past or present token is padding that no token may
                   look at; or [B, T, P + T], with a row for each token that looks. A batch padded
                   on the right needs none: its padding comes after all that matters.
        places     int [N]: where in the B * T tokens the real ones stand. No work is done on the
                   others, and the logits are those of these N
        wanted     int [M]: of which of the N (of the B * T, without places) logits are wanted
        returns    logits [B, T, n_vocab], with places [N, n_vocab], with wanted [M, n_vocab]; with
                   return_past also the past that the next tokens need, of length P + T
        Raises InputError where the positions end beyond n_ctx, or the mask does not cover P + T.
        """
        T = tokens.shape[1]
        P = 0 if past is None else past[0][0].shape[2]
        if positions is None:
            # A prefix stands where P tokens would. What follows it takes the positions behind them,
            # as behind every text that GPT-2 has read.
            if P + T > self.config.n_ctx:
                raise InputError(f"{P} past and {T} new tokens are more than the model's n_ctx of "
                                 f"{self.config.n_ctx}")
            positions = torch.arange(P, P + T, device=tokens.device)[None]  # [1, T]
        # Token t sees the whole past, the tokens before it and itself.
        visible = torch.ones(T, P + T, dtype=torch.bool, device=tokens.device).tril(P)
        if mask is not None:
            if mask.shape[-1] != P + T:
                raise InputError(f"the mask covers {mask.shape[-1]} tokens, but {P} past and {T} "
                                 f"new ones make {P + T}")
            mask = mask[:, None] if mask.dim() == 3 else mask[:, None, None]  # for all heads
            visible = visible & mask  # [T, P + T] -> [B, 1, T, P + T]

        packing = Packing(tokens.shape, places)
        x = self.wte(tokens) + self.wpe(positions)  # [B, T] -> [B, T, n_embd]
        x = packing.pack(x)  # -> [N, n_embd]: all but attention works on single tokens
        presents = []
        for layer, block in enumerate(self.h):
            is_last = layer == self.config.n_layer - 1
            layer_past = None if past is None else past[layer]
            x, present = block(x, layer_past, visible, packing, wanted if is_last else None)
            presents.append(present)
        x = self.ln_f(x)
        logits = F.linear(x, self.wte.weight)  # -> [N or M, n_vocab]; the embedding serves twice
        if places is None and wanted is None:
            logits = packing.unpack(logits)  # -> [B, T, n_vocab]
        return (logits, presents) if return_past else logits


@torch.no_grad()
def generate(model, tokens, max_new_tokens, temperature=0.0, generator=None, banned=(), past=None):
    """Goes on writing after `tokens` (a list): yields token after token, until <|endoftext|>.

    temperature 0 takes the likeliest token each time, 1 draws from the model's own distribution.
    banned tokens are never written. A past, as in `GPT2.forward`, stands before `tokens`.
    """
    device = model.wte.weight.device
    newest = torch.tensor([tokens], device=device)
    for _ in range(max_new_tokens):
        logits, past = model(newest, past, return_past=True)
        logits[..., list(banned)] = -torch.inf
        if temperature == 0:
            newest = logits[:, -1:].argmax(-1)  # [1, 1]
        else:
            probabilities = F.softmax(logits[:, -1] / temperature, -1).cpu()  # [1, n_vocab]
            newest = torch.multinomial(probabilities, 1, generator=generator).to(device)
        if newest.item() == model.config.eos_token:
            return
        yield newest.item()


# --------------------------------------------------------------------------------------------------
# For speed. Skip this at first: the model computes the same without it.
# --------------------------------------------------------------------------------------------------


def pad(rows, device="cpu"):
    """Token lists of any lengths as (tokens int [B, T], padded on the right, places int [N]).

    `places` says where in B * T the real tokens stand. It is counted from the lengths, which the
    host knows, so that no step waits for the device to tell how many there are.
    """
    T = max(map(len, rows))
    tokens = torch.zeros(len(rows), T, dtype=torch.long)
    places = []
    for row, its_tokens in enumerate(rows):
        tokens[row, : len(its_tokens)] = torch.tensor(its_tokens)
        places += range(row * T, row * T + len(its_tokens))
    return tokens.to(device), torch.tensor(places).to(device)


class Packing:
    """How a batch [B, T] becomes one long row of its N real tokens, and back.

    Layers that work on single tokens work on this row. It leaves out the padding: in E2E's random
    batches of 10 that is 28% of all tokens.
    """

    def __init__(self, shape, places=None):
        self.shape = shape  # (B, T)
        self.places = places  # [N]; None where there is no padding, and N is B * T

    def pack(self, x):
        x = x.flatten(0, 1)  # [B, T, n] -> [B * T, n]
        return x if self.places is None else x[self.places]  # -> [N, n]

    def unpack(self, x):
        if self.places is not None:
            padded = x.new_zeros(self.shape.numel(), x.shape[1])
            padded[self.places] = x  # [N, n] -> [B * T, n]; index_copy would keep x for backward
            x = padded
        return x.unflatten(0, self.shape)  # -> [B, T, n]


class Growing:
    """Keys (or values) of a past that grows token by token, for a past that needs no gradient.

    It is a tensor with room at its end: a step copies what is new, and not all that was there.
    """

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
            B, n_head, _, head_dim = self.data.shape
            longer = self.data.new_empty(B, n_head, end + self.ROOM, head_dim)
            longer[:, :, : self.length] = self.data[:, :, : self.length]
            self.data = longer
        self.data[:, :, self.length : end] = present
        self.length = end
        return self.data[:, :, :end]

    def keep(self, rows):
        """Makes row rows[i] row i, and drops the others.

        Only rows that change their place are copied: give them in an order in which few do.
        """
        moved = [i for i, row in enumerate(rows) if row != i]
        self.data[moved] = self.data[[rows[i] for i in moved]]
        self.data = self.data[: len(rows)]


# --------------------------------------------------------------------------------------------------
# Weights: from OpenAI's checkpoints and Hugging Face folders; to Hugging Face folders
# --------------------------------------------------------------------------------------------------

OPENAI_URL = "https://openaipublic.blob.core.windows.net/gpt-2/models"
OPENAI_FOLDERS = {  # and the bytes of their weights: a float32 for each parameter
    "gpt2": ("124M", 497_759_232),
    "gpt2-medium": ("355M", 1_419_292_672),
    "gpt2-large": ("774M", 3_096_120_320),
    "gpt2-xl": ("1558M", 6_230_444_800),
}
OPENAI_FILES = {  # with the SHA-256s that are the same for all sizes
    "hparams.json": None,
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "model.ckpt.index": None,
    "model.ckpt.data-00000-of-00001": None,
}
NAMES = ("tiny", *OPENAI_FOLDERS)  # what may be given in place of a folder


def model_folder(source):
    """The folder of a model: `source` itself, or models/NAME, downloaded on first use."""
    folder = ROOT / "models" / source if source in NAMES else Path(source)
    if source in OPENAI_FOLDERS and not (folder / "config.json").exists():
        theirs, n_bytes = OPENAI_FOLDERS[source]
        for name, expected_sha256 in OPENAI_FILES.items():
            if not (folder / name).exists():
                expected_size = n_bytes if ".data-" in name else None
                download(f"{OPENAI_URL}/{theirs}/{name}", folder / name, expected_sha256,
                         expected_size)
    if not folder.is_dir():
        raise InputError(
            f"there is no model {str(source)!r}: give a folder or one of {', '.join(NAMES)}")
    return folder


def load_config(source):
    """The GPT2Config of a folder or a name. Raises InputError where it is of another model, or asks
    for more than its weights hold: sizes are believed once they fit, before they are used."""
    folder = model_folder(source)
    is_openai = not (folder / "config.json").exists()
    path = folder / ("hparams.json" if is_openai else "config.json")
    if not path.exists():
        raise InputError(f"{folder} holds no model: neither config.json (Hugging Face) nor "
                         "hparams.json (OpenAI)")
    values = read_json(path) if is_openai else hugging_face.read_config(path)
    names = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")
    if missing := [name for name in names if name not in values]:
        raise InputError(f"{path}: {', '.join(missing)} is missing")
    try:
        config = GPT2Config(*(values[name] for name in names), values.get("eos_token"))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    for name, size in SIZES.items():  # a wrong number of heads shows nowhere else
        same_shape = (config.n_embd, config.n_layer) == (size.n_embd, size.n_layer)
        other_heads = same_shape and config.n_head != size.n_head
        if is_openai and source == name and config != size or (
                other_heads and (is_openai or source in SIZES)):
            raise InputError(f"{path} is not that of {name}: {config}; fetch it again")
    if is_openai:
        index, data = (hugging_face.check_file(folder / f"model.ckpt.{name}")
                       for name in ("index", "data-00000-of-00001"))
        n_bytes, n_tensors = data.stat().st_size, index.stat().st_size // 16  # an entry has more
        where = f"{index} and {data.name}"
    else:
        sizes = [tensor.nbytes for _, _, tensor in hugging_face.read_weights(folder)]
        n_bytes, n_tensors, where = sum(sizes), len(sizes), f"the weights in {folder}"
    count = (config.n_vocab + config.n_ctx + 12 * config.n_layer * config.n_embd) * config.n_embd
    if 2 * count > n_bytes or 12 * config.n_layer > n_tensors:  # two bytes a number at the least
        raise InputError(f"{path} asks for more than {where} can hold; one of them is damaged, of "
                         "another model, or in fewer bits than 16")
    return config


def load_model(source, device="cpu", dtype=torch.float32):
    """The GPT-2 of a folder or a name, in evaluation mode.

    Tensors become the parameters one by one (memory-mapped where the format allows): no second copy
    of the model is ever in memory. Raises InputError where a file is damaged, or a tensor missing,
    unknown, of another shape, given in two versions, or anything but finite numbers.
    """
    folder, config = model_folder(source), load_config(source)
    is_openai = not (folder / "config.json").exists()
    tensors = read_openai_weights(folder) if is_openai else hugging_face.read_weights(folder)
    weights = {}
    for path, given, tensor in tensors:
        name = "wte.weight" if given == "lm_head.weight" else given  # one matrix for both ends
        tensor = hugging_face.to_numbers(path, given, tensor, device, dtype)
        if not torch.equal(weights.setdefault(name, tensor), tensor):
            two = "lm_head.weight differs from wte.weight" if name == "wte.weight" else \
                f"{name} is given twice and differs"
            raise InputError(f"{path}: {two}, but GPT-2 has one such matrix")
    with torch.device("meta"):  # shapes without memory
        model = GPT2(config)
    parameters = dict(model.named_parameters())
    for name, tensor in weights.items():
        if name not in parameters:
            raise InputError(
                f"{folder}: the tensor {name} is not part of a GPT-2 of {config.n_layer} layers")
        if tensor.shape != parameters[name].shape:
            raise InputError(f"{folder}: {name} has the shape {list(tensor.shape)}, but the "
                             f"configuration asks for {list(parameters[name].shape)}")
    if missing := sorted(parameters.keys() - weights.keys()):
        more = " ..." if len(missing) > 3 else ""
        raise InputError(f"{folder}: the weights lack {', '.join(missing[:3])}{more}")
    model.load_state_dict(weights, assign=True)
    return model.eval()


def save_model(model, folder, vocabulary, dtype=torch.float32):
    """Writes `model` as a Hugging Face folder, with the tokenizer of the model `vocabulary`."""
    tensors = {name: tensor.to("cpu", dtype) for name, tensor in model.state_dict().items()}
    hugging_face.write_folder(Path(folder), model.config, tensors, model_folder(vocabulary))


# --------------------------------------------------------------------------------------------------
# The tokenizer
# --------------------------------------------------------------------------------------------------

# Text is first cut into words, each with the blank before it; only inside them are bytes merged
# (OpenAI's encoder.py).
END = "<|endoftext|>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class Tokenizer(tiktoken.Encoding):
    """Byte-level BPE, around the tokens that were added to its vocabulary."""

    def encode_ordinary(self, text):
        """The tokens of a text. An added token in it is one, but <|endoftext|> is only letters: no
        line of data ends the text that it is part of."""
        return self.encode_around(text, self.special_tokens_set - {END})

    def encode(self, text, *, allowed_special=frozenset(), **options):
        """The tokens of a text; with allowed_special="all" <|endoftext|> in it is one as well."""
        if allowed_special == "all":
            return self.encode_around(text, self.special_tokens_set)
        return super().encode(text, allowed_special=allowed_special, **options)

    def encode_around(self, text, added):
        """As transformers: of those that begin at one place, the longest is taken."""
        longest_first = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
        parts = re.split(f"({longest_first})", text) if added else [text]
        tokens = super().encode_ordinary(parts[0])
        for token, part in zip(parts[1::2], parts[2::2]):
            tokens += [self.encode_single_token(token), *super().encode_ordinary(part)]
        return tokens


def load_tokenizer(source):
    """The byte-level BPE of a folder or a name, from the folder's own files.

    tiktoken merges the pair whose product has the lowest id; that is byte-level BPE where the ids
    follow the order of the merges, and each product comes about by its own merge, which is checked.
    `encode_ordinary(text)` -> ids, `decode(ids)` -> text, `eot_token` is <|endoftext|>.
    """
    path, ranks, added = hugging_face.read_vocabulary(model_folder(source), END)
    return Tokenizer(str(path), pat_str=WORDS, mergeable_ranks=ranks, special_tokens=added)


# --------------------------------------------------------------------------------------------------


def load_both(source, device="cpu"):
    """The (model, tokenizer) of a folder or a name. Raises InputError where they do not agree."""
    tokenizer, model = load_tokenizer(source), load_model(source, device)
    path = model_folder(source) / "config.json"
    if path.exists() and hugging_face.read_config(path)["eos_token"] is None:
        model.config.eos_token = tokenizer.eot_token  # the vocabulary alone says which it is
    n_vocab, eos_token = model.config.n_vocab, model.config.eos_token
    if tokenizer.max_token_value >= n_vocab:
        raise InputError(f"{source}: the vocabulary has {tokenizer.max_token_value + 1:,} tokens, "
                         f"the model {n_vocab:,}; they are of different models")
    if tokenizer.eot_token != eos_token:
        raise InputError(f"{source}: <|endoftext|> is token {tokenizer.eot_token} of the vocabulary"
                         f", but the model ends with {eos_token}; they are of different models, or "
                         "eos_token_id is wrong")
    return model, tokenizer


def tokens_without_text(model, tokenizer):
    """The ids that a padded vocabulary has beyond its tokens: nobody may write them."""
    texts = [*tokenizer.token_byte_values(), *tokenizer.special_tokens_set]
    known = {tokenizer.encode_single_token(text) for text in texts}
    return sorted(set(range(model.config.n_vocab)) - known)


def pick_device(name):
    """The torch.device for "auto" (a GPU where there is one), "cpu", "cuda:1", ...

    Raises InputError where it cannot be used here.
    """
    if name == "auto":
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the device {name!r} cannot be used here ({reason})") from None


def autocast(device, dtype):
    """A context in which, for "bfloat16", products are computed in it; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def main():
    parser = argparse.ArgumentParser(
        description="A GPT-2 goes on writing.",
        epilog='example: python gpt2.py --model gpt2 "Once upon a time"')
    add = parser.add_argument
    add("prompt", help="the beginning of the text; <|endoftext|> in it is the token")
    add("--model", default="tiny", metavar="NAME|DIR", help="tiny (the default), gpt2, gpt2-medium,"
        " gpt2-large, gpt2-xl (downloaded on first use), or a folder")
    add("--max-new-tokens", type=int, default=60, metavar="N", help="stop after so many "
        "(default: 60)")
    add("--temperature", type=float, default=0.0, metavar="T",
        help="0 takes the likeliest token (default), 1 draws as the model says")
    add("--seed", type=seed_number, default=0, metavar="N", help="for drawing (default: 0)")
    add("--device", default="auto", help="auto (default), cpu, cuda, ...")
    args = parser.parse_args()
    if args.temperature and not 0.01 <= args.temperature <= 100:
        raise InputError("--temperature must be 0, or from 0.01 to 100")
    model, tokenizer = load_both(args.model, pick_device(args.device))
    tokens = tokenizer.encode(args.prompt, allowed_special="all") or [model.config.eos_token]
    room = model.config.n_ctx - len(tokens)
    if room < 1 or args.max_new_tokens < 1:
        raise InputError(f"after {len(tokens)} tokens there is room for {room}; --max-new-tokens "
                         "must be at least 1")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may be several tokens
    generator = torch.Generator().manual_seed(args.seed)
    max_new_tokens = min(args.max_new_tokens, room)
    print(args.prompt, end="", flush=True)
    written = generate(model, tokens, max_new_tokens, args.temperature, generator,
                       tokens_without_text(model, tokenizer))
    for token in written:
        text = decoder.decode(tokenizer.decode_single_token_bytes(token))
        print(text, end="", flush=True)
    print(decoder.decode(b"", final=True))


if __name__ == "__main__":
    run_command(main)
