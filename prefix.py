"""The prefix (Li & Liang 2021, section 4): a few keys and values in front of every layer of a frozen GPT-2.

    python prefix.py            shapes, numbers trained and numbers kept, for each size of GPT-2
"""

import argparse
import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from common import InputError, run_command, write_aside
from gpt2 import GPT2, SIZES, GPT2Config, read_json


class Prefix(nn.Module):
    """The prefix while it is trained: P_theta[i, :] = MLP_theta(P'_theta[i, :]) (section 4.3).

    Trained directly, the key/values are sensitive to the learning rate; so a smaller matrix P' [length, n_embd] is
    trained together with a network that makes the key/values of all layers from it.

    start      the numbers [length, n_layer * 2 * n_embd] to which the network adds its own (default: 0)
    """

    def __init__(self, config, length, hidden=512, start=torch.zeros(())):
        super().__init__()
        self.config = config
        self.register_buffer("start", start, persistent=False)  # follows from the settings, needs no saving
        self.embedding = nn.Embedding(length, config.n_embd)
        self.mlp = nn.Sequential(
            nn.Linear(config.n_embd, hidden),
            nn.Tanh(),
            nn.Linear(hidden, config.n_layer * 2 * config.n_embd),
        )

    def numbers(self):
        """The numbers that GPT-2 sees, [length, n_layer * 2 * n_embd]: all that is kept after training."""
        made = self.mlp(self.embedding.weight)  # [length, n_embd] -> hidden -> [length, n_layer * 2 * n_embd]
        return self.start + made

    def forward(self):
        """The past to give to `GPT2.forward`: for each layer (key, value), each [1, n_head, length, head_dim]."""
        return as_past(self.numbers(), self.config)


class LayerwisePrefix(nn.Module):
    """The same with a network for each layer, as a later re-implementation describes it."""

    def __init__(self, config, length, hidden=800, start=torch.zeros(())):
        super().__init__()
        self.config = config
        self.register_buffer("start", start, persistent=False)
        self.embedding = nn.Embedding(length, config.n_embd)
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(config.n_embd, hidden), nn.Tanh(), nn.Linear(hidden, 2 * config.n_embd))
            for _ in range(config.n_layer)
        )

    def numbers(self):
        of_layers = [mlp(self.embedding.weight) for mlp in self.mlps]  # each [length, 2 * n_embd]
        return self.start + torch.cat(of_layers, dim=1)  # [length, n_layer * 2 * n_embd]

    def forward(self):
        return as_past(self.numbers(), self.config)


class BarePrefix(nn.Module):
    """The numbers of a prefix and nothing else: after training, or trained directly."""

    def __init__(self, config, numbers):
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(numbers)  # [length, n_layer * 2 * n_embd]

    def numbers(self):
        return self.embedding

    def forward(self):
        return as_past(self.embedding, self.config)


def as_past(numbers, config):
    """Numbers [P, n_layer * 2 * n_embd] -> for each layer (key, value), each [1, n_head, P, head_dim].

    Of the 2 * n_layer vectors of a position, number 2i is layer i's key and number 2i + 1 its value (PEFT's order).
    """
    x = numbers.view(len(numbers), config.n_layer, 2, 1, config.n_head, config.head_dim)
    x = x.permute(1, 2, 3, 4, 0, 5)  # [P, n_layer, 2, 1, n_head, head_dim] -> [n_layer, 2, 1, n_head, P, head_dim]
    return [(key, value) for key, value in x]


FORMS = {
    "network": "made by one network for all layers (section 4.3)",
    "per-layer": "made by a network for each layer",
    "direct": "its numbers themselves are trained",
}
HIDDEN = {"network": 512, "per-layer": 800}  # the widths of the networks in the paper's code and the re-implementation


def make_prefix(form, model, length, hidden=None, words=None):
    """A prefix to be trained, in one of FORMS.

    hidden     the width of the networks (default: as in HIDDEN)
    words      tokens: the prefix starts from what the model makes of them (section 7.4), else from random numbers
    """
    start = activations(model, (words * length)[:length]) if words else torch.zeros(())
    if form == "network":
        return Prefix(model.config, length, hidden or HIDDEN[form], start)
    if form == "per-layer":
        return LayerwisePrefix(model.config, length, hidden or HIDDEN[form], start)
    random = torch.randn(length, model.config.n_layer * 2 * model.config.n_embd)
    return BarePrefix(model.config, start if words else random)


@torch.no_grad()
def activations(model, tokens):
    """The keys and values that a model makes of `tokens`, as the numbers of a prefix [P, n_layer * 2 * n_embd].

    With this prefix in front the model does what it does with these tokens in front.
    """
    _, past = model.features(torch.tensor([tokens], device=model.wte.weight.device))
    x = torch.stack([torch.stack(layer) for layer in past])  # [n_layer, 2, 1, n_head, P, head_dim]
    return x.permute(4, 0, 1, 2, 3, 5).flatten(1)  # as_past the other way round


def save_prefix(prefix, folder, base):
    """Writes a prefix as a PEFT adapter; `base` is the name or folder of the model it belongs to."""
    folder, config = Path(folder), prefix.config
    numbers = prefix.numbers().detach().to("cpu", torch.float32).contiguous()
    with write_aside(folder / "adapter_model.safetensors") as path:
        safetensors.torch.save_file({"prompt_embeddings": numbers}, path)
    values = {
        "peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "inference_mode": True, "prefix_projection": False,
        "base_model_name_or_path": str(base), "num_virtual_tokens": len(numbers), "token_dim": config.n_embd,
        "num_layers": config.n_layer, "num_attention_heads": config.n_head, "num_transformer_submodules": 1,
    }
    with write_aside(folder / "adapter_config.json") as path:
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def load_prefix(folder):
    """The prefix of a PEFT adapter folder, as a `BarePrefix`. Raises InputError where it is none."""
    path, weights_path = Path(folder) / "adapter_config.json", Path(folder) / "adapter_model.safetensors"
    values = read_json(path)
    names = ("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads")
    if values.get("peft_type") != "PREFIX_TUNING":
        raise InputError(f"{path}: peft_type is {values.get('peft_type')!r}, but only 'PREFIX_TUNING' is supported")
    if missing := [name for name in names if name not in values]:
        raise InputError(f"{path}: {', '.join(missing)} is missing")
    length, n_embd, n_layer, n_head = (values[name] for name in names)
    try:
        config = GPT2Config(n_vocab=1, n_ctx=1, n_embd=n_embd, n_head=n_head, n_layer=n_layer)  # what a past depends on
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    try:
        numbers = safetensors.torch.load_file(weights_path)["prompt_embeddings"]
    except FileNotFoundError:
        raise InputError(f"{weights_path} is missing") from None
    except (safetensors.SafetensorError, KeyError) as error:
        raise InputError(f"{weights_path} is damaged, or holds no prompt_embeddings ({error})") from None
    if numbers.shape != (length, n_layer * 2 * n_embd):
        raise InputError(f"{weights_path}: prompt_embeddings has the shape {list(numbers.shape)}, but "
                         f"adapter_config.json asks for {[length, n_layer * 2 * n_embd]}")
    return BarePrefix(config, numbers)


def count(module):
    """How many numbers the parameters of a module are."""
    return sum(parameter.numel() for parameter in module.parameters())


def main():
    parser = argparse.ArgumentParser(description="Shows what a prefix is, for each published size of GPT-2.")
    parser.add_argument("--length", type=int, default=5, metavar="P", help="positions of the prefix (default: 5)")
    length = parser.parse_args().length
    if length < 1:
        raise InputError(f"--length must be at least 1, but is {length}")
    print(f"A prefix of length {length} puts, in each layer, {length} keys and values before the tokens' own.\n")
    print(f"{'model':<12} {'keys of a layer':>20} {'trained':>12} {'kept':>10} {'GPT-2':>14} {'kept / GPT-2':>13}")
    for name, config in SIZES.items():
        with torch.device("meta"):  # shapes without memory
            prefix, model = Prefix(config, length), GPT2(config)
            key, _ = prefix()[0]
        kept = prefix.numbers().numel()
        print(f"{name:<12} {str(list(key.shape)):>20} {count(prefix):>12,} {kept:>10,} {count(model):>14,} "
              f"{kept / count(model):>13.3%}")
    print("\nKeys are [batch, n_head, length, head_dim]: one prefix serves every row of a batch. Trained: the matrix\n"
          "and the network that make the prefix, thrown away after training.")


if __name__ == "__main__":
    run_command(main)
