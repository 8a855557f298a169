"""The same numbers in less time: no work on padding or on unused logits, and matrix products by the
faster of PyTorch's own libraries.

You can read the lesson without this file. `GPT2.forward` is the idea, on a batch [B, T, n_embd].
This file computes the same from the model's own parts, and a test compares the two.
"""

import platform
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode


def pad(rows, device="cpu"):
    """Token lists of any lengths as (tokens int [B, T], padded on the right, places int [N]).

    `places` says where in B * T the real tokens stand. It is counted from the lengths, which the
    host knows, so that no step waits for the device to tell how many there are.
    """
    T = max(map(len, rows))
    padded = [[*row] + [0] * (T - len(row)) for row in rows]
    token_indices = [number * T + at for number, row in enumerate(rows) for at in range(len(row))]
    return torch.tensor(padded, device=device), torch.tensor(token_indices, device=device)


def packed_logits(model, tokens, token_indices, output_indices, past=None, positions=None,
                  mask=None, return_past=False):
    """The logits [M, n_vocab] at some positions of a padded batch.

    Equals `model(tokens, past, positions, mask).flatten(0, 1)[output_indices]`. All layers except
    attention treat tokens one by one. Here they work on the N real tokens, packed into one row
    without padding; only attention needs them in B rows of T. In random batches of 10 from E2E, 28%
    of all cells are padding. After the last attention only the M output positions are computed.

    token_indices    int [N]: indices of the real tokens in B * T, in order
    output_indices   int [M]: indices in B * T of the positions whose logits are needed, all real
    The other arguments, and the effect of return_past, are those of `GPT2.forward`.
    """
    B, T = tokens.shape

    def pack(x):
        return x.flatten(0, 1)[token_indices]  # [B, T, n] -> [B * T, n] -> [N, n]

    def unpack(x):
        padded = x.new_zeros(B * T, x.shape[1])
        padded[token_indices] = x  # [N, n] -> [B * T, n]; index_copy would keep x for backward
        return padded.unflatten(0, (B, T))  # -> [B, T, n]

    x = pack(model.embed(tokens, past, positions))  # [B, T] -> [N, n_embd]
    visible = model.visible(tokens, past, mask)
    presents = []
    for layer, block in enumerate(model.h):
        q, k, v = block.attn.c_attn(block.ln_1(x)).chunk(3, dim=1)  # three times [N, n_embd]
        layer_past = None if past is None else past[layer]
        attended, present = block.attn.attend(unpack(q), unpack(k), unpack(v), layer_past, visible)
        x = x + block.attn.c_proj(pack(attended))
        if layer == len(model.h) - 1:  # no token attends to another after this
            x = x[torch.searchsorted(token_indices, output_indices)]  # [N, n_embd] -> [M, n_embd]
        x = x + block.mlp(block.ln_2(x))
        presents.append(present)
    logits = F.linear(model.ln_f(x), model.wte.weight)  # -> [M, n_vocab]
    return (logits, presents) if return_past else logits


class KVCache:
    """A preallocated cache of keys (or values) that grows token by token, without gradients.

    The tensor has spare room at its end, so that a step copies only what is new.
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

        Only rows that change their place are copied: give them an order in which few do.
        """
        moved = [i for i, row in enumerate(rows) if row != i]
        self.data[moved] = self.data[[rows[i] for i in moved]]
        self.data = self.data[: len(rows)]


def compact_rows(is_over):
    """The unfinished rows of a batch, in an order in which few move: the last ones take the places
    of the finished ones.

    >>> compact_rows([False, True, False, False])
    [0, 3, 2]
    """
    going_on = [row for row, over in enumerate(is_over) if not over]
    stay = set(range(len(going_on))) & set(going_on)
    movers = [row for row in going_on if row not in stay]
    return [row if row in stay else movers.pop() for row in range(len(going_on))]


# --------------------------------------------------------------------------------------------------
# Products
# --------------------------------------------------------------------------------------------------


def fast_products():
    """A context in which `F.linear` takes the faster of PyTorch's libraries, where one is known."""
    return OneDNNProducts() if products_library() == "oneDNN" else nullcontext()


@cache
def products_library():
    """Which library multiplies float32 matrices in `fast_products`: "oneDNN" or "PyTorch's choice".

    PyTorch chooses Intel's MKL, which on AMD's processors reaches half of what oneDNN does. Only
    the processor and the version decide, so a run that is resumed gives the same bits.
    """
    cpuinfo = Path("/proc/cpuinfo")  # Linux
    processor = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    if "AuthenticAMD" not in processor or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return "PyTorch's choice"
    try:  # a private operation, which another version may lack
        multiply(torch.ones(1, 1), torch.ones(1, 1))
        return "oneDNN"
    except (AttributeError, RuntimeError):
        return "PyTorch's choice"


def multiply(x, weight, bias=None):
    """x weight^T + bias by oneDNN: [..., n_in], [n_out, n_in], [n_out] -> [..., n_out]."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class OneDNNProducts(TorchFunctionMode):
    """`F.linear` by oneDNN, for true float32 on a CPU; everything else stays as it is."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        function = self.linear if function is F.linear else function
        return function(*args, **(kwargs or {}))

    def linear(self, input, weight, bias=None):
        is_float32 = input.dtype == weight.dtype == torch.float32
        if is_float32 and input.is_cpu and input.numel() and not torch.is_autocast_enabled("cpu"):
            return LinearByOneDNN.apply(input, weight, bias)
        return F.linear(input, weight, bias)


class LinearByOneDNN(torch.autograd.Function):
    """`F.linear` and its gradients, each one product."""

    @staticmethod
    def forward(ctx, input, weight, bias):
        ctx.save_for_backward(input, weight)
        return multiply(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        grad_input = multiply(grad, weight.T) if needs_input else None  # [..., n_in]
        grad = grad.reshape(-1, len(weight))  # [..., n_out] -> [N, n_out]
        input = input.reshape(-1, weight.shape[1])  # [..., n_in] -> [N, n_in]
        grad_weight = None
        if needs_weight and weight.is_contiguous():
            grad_weight = multiply(grad.T, input.T)  # -> [n_out, n_in]
        elif needs_weight:  # `Affine` gives a transpose; in any other layout autograd would copy it
            grad_weight = multiply(input.T, grad.T).T
        return grad_input, grad_weight, grad.sum(0) if needs_bias else None
