"""Several processes, each with a device of its own; one alone notices nothing of it.

    torchrun --nproc-per-node 2 train.py --mode prefix

Each process has all the data and does its share of every batch.
"""

import os
import sys
import uuid
from pathlib import Path

import torch
from torch import distributed

from support.commands import InputError

BY_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def rank():
    """Which of the processes this is; the first, 0, prints and writes."""
    return distributed.get_rank() if is_joined() else 0


def world_size():
    return distributed.get_world_size() if is_joined() else 1


def is_joined():
    return distributed.is_available() and distributed.is_initialized()


def count_processes():
    """How many processes torchrun started: 1 where not all is set that it sets, since clusters
    and other launchers set some of it. Raises InputError where something else than torchrun did."""
    if not all(os.environ.get(name) for name in BY_TORCHRUN):
        return 1
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        if not os.environ[name].isdecimal():
            raise InputError(f"the environment variable {name} is {os.environ[name]!r}, which "
                             "torchrun never sets; unset it")
    number, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if number >= size:
        raise InputError(f"the environment variable RANK is {number}, but WORLD_SIZE is {size}; "
                         "unset both, or start with torchrun")
    return size


def join(device):
    """Meets the other processes that torchrun started; does nothing where it started none.

    The first alone prints, and writes files. Raises InputError where there are more of them than
    GPUs, or they do not meet.
    """
    if count_processes() == 1:
        return
    if device.type == "cuda" and device.index is None:  # "cuda" becomes a GPU of its own
        own, n_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if own >= n_gpus:
            raise InputError(f"there are {n_gpus} GPUs; --nproc-per-node must not be above it")
        torch.cuda.set_device(own)
    try:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:  # no such host, another port, nobody comes
        raise InputError("the processes that the environment variables RANK, WORLD_SIZE, "
                         "MASTER_ADDR and MASTER_PORT tell of do not meet "
                         f"({str(error).splitlines()[0][:200]}); unset them, or start with "
                         "torchrun") from None
    if rank() > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


def add_up(tensors):
    """Makes each tensor, in every process, the sum of what the processes have."""
    if world_size() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)


def wait_for_all():
    if world_size() > 1:
        distributed.barrier()


def collect(mine):
    """All items in order, in every process, where `mine` are items[rank::world_size] of them."""
    if world_size() == 1:
        return mine
    parts = [None] * world_size()
    distributed.all_gather_object(parts, mine)
    items = [None] * sum(map(len, parts))
    for number, part in enumerate(parts):
        items[number::world_size()] = part
    return items


def check_one_folder(folder):
    """Raises InputError, in every process, where one of them does not see this folder's files."""
    if world_size() == 1:
        return
    name = [f".seen-by-all-{uuid.uuid4().hex}"]
    distributed.broadcast_object_list(name)
    mark = Path(folder) / name[0]
    if rank() == 0:
        mark.touch()
    wait_for_all()
    seen = collect([mark.exists()])  # for which each waits for all
    if rank() == 0:
        mark.unlink()
    if not all(seen):
        raise InputError(f"the processes do not see one and the same folder {folder}; give an "
                         "--out on a disk that all of them share")
