"""GPT-2 in one file: the model, generation, and the published weights (Radford et al. 2019).

Read it from top to bottom. Besides the tokens, `GPT2.forward` takes a *past*: the keys and values
of earlier positions, for every layer (the KV cache). A learnt prefix, a prompt and the beams of a
search are all such pasts; there is no second mechanism.

    python gpt2.py --model tiny " name : Blue Spice | Type : restaurant | area : north<|endoftext|>"
"""

import argparse
import codecs
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from support import bases, hugging_face
from support.commands import InputError, run_command
from support.devices import Unset, pick_device, random_generator
from support.tokenizer import Tokenizer

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
        bases.check_sizes(vars(self))
        if self.eos_token is None:
            self.eos_token = self.n_vocab - 1

    @property
    def head_dim(self):
        return self.n_embd // self.n_head


class Affine(nn.Module):
    """y = x W + b, with W [n_in, n_out] as in OpenAI's checkpoints."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        return F.linear(x, self.weight.T, self.bias)  # [..., n_in] -> [..., n_out]


class Attention(nn.Module):
    """Causal self-attention with several heads, over the past and the present."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Affine(config.n_embd, 3 * config.n_embd)
        self.c_proj = Affine(config.n_embd, config.n_embd)

    def forward(self, x, past, visible):
        q, k, v = self.c_attn(x).chunk(3, dim=2)  # [B, T, n_embd] -> three times [B, T, n_embd]
        x, present = self.attend(q, k, v, past, visible)
        return self.c_proj(x), present

    def attend(self, q, k, v, past, visible):
        """The attention output of each token, and the past for the tokens after it.

        visible    bool, True where a token (second to last dimension) may attend to another (last)
        """
        q, k, v = self.split_heads(q), self.split_heads(k), self.split_heads(v)
        if past is not None:  # Here a prefix steers the model. It has no queries.
            past_key, past_value = past
            k = concatenate(past_key, k)  # -> [B, n_head, P + T, head_dim]
            v = concatenate(past_value, v)
        x = F.scaled_dot_product_attention(q, k, v, visible)  # softmax(q k^T / sqrt(head_dim)) v
        x = x.transpose(1, 2).flatten(2)  # [B, n_head, T, head_dim] -> [B, T, n_embd]
        return x, (k, v)

    def split_heads(self, x):
        x = x.unflatten(2, (self.n_head, -1))  # [B, T, n_embd] -> [B, T, n_head, head_dim]
        return x.transpose(1, 2)  # -> [B, n_head, T, head_dim]


def concatenate(past, present):
    """The keys (or values) of the past, followed by those of the present.

    [B or 1, n_head, P, head_dim] and [B, n_head, T, head_dim] -> [B, n_head, P + T, head_dim]. One
    past may serve all rows. It takes the dtype of the present, which autocast may have lowered.
    """
    if not torch.is_tensor(past):  # a preallocated KV cache (support/speed.py)
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
        x = F.gelu(self.c_fc(x), approximate="tanh")  # [..., n_embd] -> [..., 4 * n_embd]
        return self.c_proj(x)  # -> [..., n_embd]


class Block(nn.Module):
    """One layer: attention and MLP, each on a normalised input and added to the residual stream."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, past, visible):
        attended, present = self.attn(self.ln_1(x), past, visible)
        x = x + attended
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

    @property
    def device(self):
        return self.wte.weight.device

    def forward(self, tokens, past=None, positions=None, mask=None, return_past=False):
        """The logits [B, T, n_vocab] of the token that follows each token.

        tokens     int [B, T]
        past       None, or for each layer (key, value), each [B or 1, n_head, P, head_dim]
        positions  int [B or 1, T or 1]; by default P, P + 1, ..., P + T - 1
        mask       bool [B, P + T], False where a past or present token is padding, to which no
                   token may attend; or [B, T, P + T], with a row for each query. A batch padded on
                   the right needs no mask: its padding comes after the real tokens.
        With return_past it also returns the past for the next tokens, of length P + T. Raises
        InputError if the positions exceed n_ctx, or the mask does not cover P + T.
        """
        x = self.embed(tokens, past, positions)  # [B, T] -> [B, T, n_embd]
        visible = self.visible(tokens, past, mask)  # [T, P + T]; with a mask [B, 1, T, P + T]
        presents = []
        for layer, block in enumerate(self.h):
            x, present = block(x, None if past is None else past[layer], visible)
            presents.append(present)
        x = self.ln_f(x)
        logits = F.linear(x, self.wte.weight)  # -> [B, T, n_vocab]; the embedding serves twice
        return (logits, presents) if return_past else logits

    def embed(self, tokens, past, positions):
        """[B, T] -> [B, T, n_embd]: the first layer's input."""
        T, P = tokens.shape[1], past_length(past)
        if positions is None:
            # A prefix takes the place of P tokens. So the tokens after it start at position P, as
            # they would after any text.
            if P + T > self.config.n_ctx:
                raise InputError(f"{P} past and {T} new tokens are more than the model's n_ctx of "
                                 f"{self.config.n_ctx}")
            positions = torch.arange(P, P + T, device=tokens.device)[None]  # [1, T]
        return self.wte(tokens) + self.wpe(positions)

    def visible(self, tokens, past, mask):
        """What each token may attend to: the whole past, the tokens before it, and itself."""
        T, P = tokens.shape[1], past_length(past)
        visible = torch.ones(T, P + T, dtype=torch.bool, device=tokens.device).tril(P)
        if mask is not None:
            if mask.shape[-1] != P + T:
                raise InputError(f"the mask covers {mask.shape[-1]} tokens, but {P} past and {T} "
                                 f"new ones make {P + T}")
            mask = mask[:, None] if mask.dim() == 3 else mask[:, None, None]  # for all heads
            visible = visible & mask  # [T, P + T] -> [B, 1, T, P + T]
        return visible


def past_length(past):
    """P: how many positions a past has; 0 without one."""
    return 0 if past is None else past[0][0].shape[2]


@torch.no_grad()
def generate(model, tokens, max_new_tokens, temperature=0.0, generator=None, banned=(), past=None):
    """Continues `tokens` (a list): yields one new token after another, until <|endoftext|>.

    temperature 0 takes the likeliest token each time, 1 draws from the model's own distribution.
    banned tokens are never written. A past, as in `GPT2.forward`, precedes `tokens`. Raises
    InputError at other temperatures than 0 and 0.01 to 100.
    """
    if temperature != 0 and not 0.01 <= temperature <= 100:
        raise InputError(f"the temperature must be 0, or from 0.01 to 100, but is {temperature}")
    newest = torch.tensor([tokens], device=model.device)
    for _ in range(max_new_tokens):
        logits, past = model(newest, past, return_past=True)
        logits[..., list(banned)] = -torch.inf
        if temperature == 0:
            newest = logits[:, -1:].argmax(-1)  # [1, 1]
        else:
            probabilities = F.softmax(logits[:, -1] / temperature, -1).cpu()  # [1, n_vocab]
            newest = torch.multinomial(probabilities, 1, generator=generator).to(model.device)
        if newest.item() == model.config.eos_token:
            return
        yield newest.item()


# --------------------------------------------------------------------------------------------------
# Loading and saving. What can be wrong with a file is checked in support/.
# --------------------------------------------------------------------------------------------------


def load_config(source):
    """The GPT2Config of a folder or a name. Raises InputError if it belongs to another kind of
    model, or asks for more than its weights hold."""
    return GPT2Config(**bases.read_config(source))


def load_model(source, device="cpu", dtype=torch.float32):
    """The GPT-2 of a folder (OpenAI's or Hugging Face's) or a name, in evaluation mode.

    Tensors become the parameters one by one: no second copy of the model is ever in memory. Raises
    InputError where a file is missing or damaged, or does not hold just such a model.
    """
    config = load_config(source)
    with torch.device("meta"), Unset():  # shapes without memory; a file read here would have none
        model = GPT2(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    model.load_state_dict(bases.read_weights(source, shapes, device, dtype), assign=True)
    return model.eval()


def load_tokenizer(source):
    """The byte-level BPE of a folder or a name, from the folder's own files."""
    return Tokenizer(bases.model_folder(source, bases.VOCABULARY_FILES))


def load_both(source, device="cpu"):
    """The (model, tokenizer) of a folder or a name. Raises InputError where they do not agree."""
    tokenizer, model = load_tokenizer(source), load_model(source, device)
    config = model.config
    config.eos_token = bases.eos_token_of(source, tokenizer, config.n_vocab, config.eos_token)
    return model, tokenizer


def save_model(model, folder, vocabulary, dtype=torch.float32):
    """Writes `model` as a Hugging Face folder, with the tokenizer of the model `vocabulary`."""
    tensors = {name: tensor.to("cpu", dtype) for name, tensor in model.state_dict().items()}
    folder_of_vocabulary = bases.model_folder(vocabulary)
    hugging_face.write_folder(Path(folder), vars(model.config), tensors, folder_of_vocabulary)


def main():
    parser = argparse.ArgumentParser(
        description="Continues a text with a GPT-2.",
        epilog='example: python gpt2.py --model gpt2 "Once upon a time"')
    add = parser.add_argument
    add("prompt", help="the beginning of the text; <|endoftext|> in it is read as the token")
    add("--model", default="tiny", metavar="NAME|DIR", help="tiny (the default), gpt2, gpt2-medium,"
        " gpt2-large, gpt2-xl (downloaded on first use), or a folder")
    add("--max-new-tokens", type=int, default=60, metavar="N", help="stop after this many "
        "(default: 60)")
    add("--temperature", type=float, default=0.0, metavar="T",
        help="0: the most likely token each time (default); 1: samples from the model")
    add("--seed", type=int, default=0, metavar="N", help="for sampling (default: 0)")
    add("--device", default="auto", help="auto (default), cpu, cuda, ...")
    args = parser.parse_args()
    model, tokenizer = load_both(args.model, pick_device(args.device))
    tokens = tokenizer.encode(args.prompt, allowed_special="all") or [model.config.eos_token]
    room = model.config.n_ctx - len(tokens)
    if room < 1 or args.max_new_tokens < 1:
        raise InputError(f"after {len(tokens)} tokens there is room for {room}; --max-new-tokens "
                         "must be at least 1")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may be several tokens
    generator = random_generator(args.seed)
    max_new_tokens = min(args.max_new_tokens, room)
    written = generate(model, tokens, max_new_tokens, args.temperature, generator,
                       tokenizer.ids_without_text(model.config.n_vocab))
    text = args.prompt
    for token in written:
        text += decoder.decode(tokenizer.decode_single_token_bytes(token))
        print(text, end="", flush=True)
        text = ""
    print(text + decoder.decode(b"", final=True))


if __name__ == "__main__":
    run_command(main)
