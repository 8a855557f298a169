"""Several processes, each with a device of its own; one alone notices nothing of it.

    torchrun --nproc-per-node 2 train.py --mode prefix

Each process has all the data and does its share of every batch.
"""

import os
import sys

import torch
from torch import distributed

from support.files import InputError

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # torchrun's


def join(device):
    """Meets the other processes. The first alone prints, and writes files.

    Raises InputError where there are more of them than GPUs.
    """
    if WORLD > 1:
        if device.type == "cuda" and device.index is None:  # "cuda" becomes a GPU of its own
            own, n_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if own >= n_gpus:
                raise InputError(f"there are {n_gpus} GPUs; --nproc-per-node must not be above it")
            torch.cuda.set_device(own)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if RANK > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


def add_up(tensors):
    """Makes each tensor, in every process, the sum of what the processes have."""
    if WORLD > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)


def wait_for_all():
    if WORLD > 1:
        distributed.barrier()


def collect(mine):
    """All items in order, in every process, where `mine` are items[RANK::WORLD] of them."""
    if WORLD == 1:
        return mine
    parts = [None] * WORLD
    distributed.all_gather_object(parts, mine)
    items = [None] * sum(map(len, parts))
    for rank, part in enumerate(parts):
        items[rank::WORLD] = part
    return items
