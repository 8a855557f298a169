"""The prefix (Li & Liang 2021, section 4): a few keys and values in front of the tokens' own.

Each layer of the frozen GPT-2 has its own keys and values. Nothing else is learnt.

    python prefix.py            shapes, parameters trained and kept, for each size of GPT-2
"""

import argparse
import math

import torch
from torch import nn

from gpt2 import GPT2, GPT2Config, load_both
from support.bases import PUBLISHED, read_adapter, write_adapter
from support.commands import InputError, run_command
from support.devices import Unset, default_tensors
from support.run_folder import fingerprints
from support.settings import HIDDEN



class Prefix(nn.Module):
    """A prefix, during training and afterwards.

    Li & Liang found that training keys and values directly is unstable. So they train a smaller
    matrix P', and a network that computes the keys and values of all layers from it:
    P_theta[i, :] = MLP_theta(P'_theta[i, :]) (section 4.3). The network reads only P', so its
    output is the same for every input. After training the output is kept, and the network is not.

    length     number of positions
    hidden     the width of the networks (default: as in HIDDEN)
    form       "network": one for all layers (section 4.3); "per-layer": one for each layer;
               "direct": none, the keys and values are the parameters
    start      [length, n_layer * 2 * n_embd]: the initial values of a direct prefix (default:
               random), or what the networks add their output to (default: 0)
    """

    def __init__(self, config, length, hidden=None, form="network", start=None):
        super().__init__()
        self.config, self.form = config, form
        width = config.n_layer * 2 * config.n_embd  # a key and a value for each layer
        n_networks = {"network": 1, "per-layer": config.n_layer, "direct": 0}[form]
        hidden = hidden or HIDDEN.get(form)
        if n_networks or start is None:
            self.embedding = nn.Embedding(length, config.n_embd if n_networks else width)  # P'
        else:
            self.embedding = nn.Embedding.from_pretrained(start.clone(), freeze=False)
            start = None
        self.networks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(config.n_embd, hidden),
                nn.Tanh(),
                nn.Linear(hidden, width // n_networks),
            )
            for _ in range(n_networks)
        )
        self.register_buffer("start", start, persistent=False)  # follows from the settings

    def key_values(self):
        """[length, n_layer * 2 * n_embd]: what GPT-2 sees of the prefix, and what is kept of it."""
        x = self.embedding.weight  # [length, n_embd]; direct: [length, n_layer * 2 * n_embd]
        if self.networks:
            x = torch.cat([network(x) for network in self.networks], dim=1)
        return x if self.start is None else self.start + x

    def forward(self):
        """The past for `GPT2.forward`: for each layer (key, value), [1, n_head, length, head_dim].

        Of the 2 * n_layer vectors of a position, number 2i is layer i's key and number 2i + 1 its
        value (PEFT's order).
        """
        x, config = self.key_values(), self.config
        x = x.view(len(x), config.n_layer, 2, 1, config.n_head, config.head_dim)
        x = x.permute(1, 2, 3, 4, 0, 5)  # -> [n_layer, 2, 1, n_head, length, head_dim]
        return [(key, value) for key, value in x]


@torch.no_grad()
def activations(model, tokens):
    """The keys and values that a model computes for `tokens`, [P, n_layer * 2 * n_embd] (section
    7.4). With this prefix the model behaves as it does with these tokens in front."""
    _, past = model(torch.tensor([tokens], device=model.device), return_past=True)
    x = torch.stack([torch.stack(pair) for pair in past])  # [n_layer, 2, 1, n_head, P, head_dim]
    return x.permute(4, 0, 1, 2, 3, 5).flatten(1)  # the inverse of Prefix.forward


def make_prefix(settings, model, tokenizer):
    """The prefix that `settings` ask for, at its start: random, or made of words (section 7.4)."""
    start, length = None, settings.prefix_length
    if settings.prefix_words:
        words = tokenizer.encode(settings.prefix_words, allowed_special="all")
        start = activations(model, (words * length)[:length])
    with default_tensors():  # the random numbers of float32 on the CPU: the same everywhere
        prefix = Prefix(model.config, length, settings.prefix_hidden, settings.prefix_form, start)
    return prefix.to(model.device)


def stack_pasts(pasts):
    """(past, past_lengths) for `beam_search`, from several pasts of batch 1: each becomes a row, so
    that each row of a batch has its own prefix. Shorter ones are padded in front."""
    past_lengths, rows = [past[0][0].shape[2] for past in pasts], []
    for past, P in zip(pasts, past_lengths):
        x = torch.stack([torch.stack(pair) for pair in past])  # [n_layer, 2, 1, n_head, P, ...]
        rows.append(nn.functional.pad(x, (0, 0, max(past_lengths) - P, 0)))
    x = torch.cat(rows, dim=2)  # -> [n_layer, 2, B, n_head, the longest P, head_dim]
    return [(key, value) for key, value in x], past_lengths


def save_prefix(prefix, folder, base, made_from=None):
    """Saves a prefix as a PEFT adapter.

    base        the name or folder of the model that it belongs to
    made_from   {name: SHA-256} of what it was trained with, kept as the file's metadata
    """
    key_values = prefix.key_values().detach().to("cpu", torch.float32).contiguous()
    sizes = {"length": len(key_values)} | vars(prefix.config)
    write_adapter(folder, key_values, sizes, base, made_from or {})


def load_prefix(folder):
    """The prefix of a PEFT adapter folder, in its direct form; `made_from` says with what it was
    trained, where it is known. Raises InputError where the folder holds none."""
    key_values, sizes, made_from = read_adapter(folder)
    length = sizes.pop("length")
    config = GPT2Config(n_vocab=1, n_ctx=length, **sizes)  # a prefix depends on the others alone
    prefix = Prefix(config, length, form="direct", start=key_values)
    prefix.made_from = made_from
    return prefix


@torch.no_grad()
def load_past(folder, model):
    """(past of the prefix in `folder`, its `made_from`), on the model's device, for use alone.

    Raises InputError where the folder holds none, or one for another shape of GPT-2.
    """
    prefix = load_prefix(folder).to(model.device)
    for name in ("n_layer", "n_head", "n_embd"):
        if getattr(prefix.config, name) != getattr(model.config, name):
            raise InputError(f"{folder} holds a prefix for another shape of GPT-2: its {name} is "
                             f"{getattr(prefix.config, name)}, the model's "
                             f"{getattr(model.config, name)}")
    return prefix(), prefix.made_from


def load_pasts(named, device, base=None):
    """(model, tokenizer, {folder: past}) of prefixes over one base, which is loaded once.

    named   {folder of a prefix: the name or folder of the model that it was trained on}
    base    the model to put them before all the same, where they were trained on another
    Raises InputError where a folder holds no prefix, or, without `base`, one that was trained on
    another model than what the first one names holds now.
    """
    first = next(iter(named))
    if base is None and "" in named.values():
        nameless = next(folder for folder in named if not named[folder])
        raise InputError(f"{nameless}/adapter_config.json names no base; give it with --model")
    source = named[first] if base is None else base
    try:
        model, tokenizer = load_both(source, device)
    except InputError as error:
        if base is not None:
            raise
        raise InputError(f"{first} needs the base that it was trained on: {error}; or give it with "
                         "--model") from None
    now = {"model": source} | fingerprints(model, tokenizer) if base is None else {}
    pasts = {}
    for folder in named:
        pasts[folder], made_from = load_past(folder, model)
        known = made_from or {"model": named[folder]}  # PEFT tells the name of a base, no more
        for name, value in known.items():
            if now.get(name, value) != value:
                other = f"was trained on another {name.removesuffix('_sha256')} than"
                if folder != first:
                    raise InputError(f"leave out {folder}: it {other} {first}")
                raise InputError(f"{folder} {other} what {source} holds now; bring that back, or "
                                 f"use this one all the same with --model {source}")
    return model, tokenizer, pasts


def count_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def main():
    parser = argparse.ArgumentParser(
        description="Shows what a prefix is, for each published size of GPT-2.")
    parser.add_argument("--length", type=int, default=5, metavar="P",
                        help="positions of the prefix (default: 5)")
    length = parser.parse_args().length
    if length < 1:
        raise InputError(f"--length must be at least 1, but is {length}")
    print(f"A prefix of length {length} puts {length} keys and values in front of the tokens' own, "
          "in each layer.\n")
    print(f"{'model':<12} {'keys of a layer':>20} {'trained':>12} {'kept':>10} {'GPT-2':>14} "
          f"{'kept / GPT-2':>13}")
    for name, sizes in PUBLISHED.items():
        config = GPT2Config(**sizes)
        with torch.device("meta"), Unset():  # shapes without memory
            trained, whole = map(count_parameters, (Prefix(config, length), GPT2(config)))
        key = [1, config.n_head, length, config.head_dim]
        kept = 2 * config.n_layer * math.prod(key)
        print(f"{name:<12} {str(key):>20} {trained:>12,} {kept:>10,} {whole:>14,} "
              f"{kept / whole:>13.3%}")
    print("\nKeys are [batch, n_head, length, head_dim]: one prefix serves every row of a batch.\n"
          "Trained: the parameters of the matrix and the network that compute the prefix. They are "
          "discarded after training.")


if __name__ == "__main__":
    run_command(main)
