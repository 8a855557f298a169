"""Matrix products of float32 on a CPU: PyTorch's own choice of library, and oneDNN.

    python -m experiments.bench.products

The shapes are those of GPT-2 Medium's layers for a batch of E2E; each is measured forward and for
the gradients of input and weight. `support/speed.py` says which library a training takes here.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from support.commands import format_rows, run_command
from support.speed import OneDNNProducts, products_library

N_TOKENS = 500  # in a batch of ten examples of E2E
SHAPES = {"c_attn": (1024, 3072), "c_proj": (1024, 1024), "mlp.c_fc": (1024, 4096),
          "mlp.c_proj": (4096, 1024), "the head": (1024, 50257)}  # n_in, n_out
REPEATS = 5  # of which the median counts


def speed_of(product):
    """The median GFLOP/s of a function that returns how many products of two numbers it does."""
    speeds = []
    for _ in range(REPEATS + 1):  # the first is a warm-up
        started = time.perf_counter()
        n_products = product()
        speeds.append(2 * n_products / (time.perf_counter() - started) / 1e9)
    return statistics.median(speeds[1:])


def main():
    argparse.ArgumentParser(description="The speed of matrix products by both of PyTorch's "
                            "libraries.").parse_args()
    print(f"{torch.get_num_threads()} threads; training, validation and decoding take "
          f"{products_library()}. GFLOP/s, medians of {REPEATS}\n")
    rows = [("", ["forward", "oneDNN", "with gradients", "oneDNN"])]
    for name, (n_in, n_out) in SHAPES.items():
        input = torch.randn(N_TOKENS, n_in, requires_grad=True)
        weight = torch.randn(n_in, n_out, requires_grad=True)  # as `Affine` holds it
        grad, n = torch.randn(N_TOKENS, n_out), N_TOKENS * n_in * n_out

        def forward():
            with torch.no_grad():
                F.linear(input, weight.T)
            return n

        def with_gradients():
            torch.autograd.grad(F.linear(input, weight.T), (input, weight), grad)
            return 3 * n

        cells = []
        for product in (forward, with_gradients):
            cells.append(f"{speed_of(product):.0f}")
            with OneDNNProducts():
                cells.append(f"{speed_of(product):.0f}")
        rows.append((name, cells))
    print("\n".join(format_rows(rows)))


if __name__ == "__main__":
    run_command(main)
