"""Where it is computed: devices, the numbers they multiply, the memory they take."""

import re
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from support.commands import InputError, first_line


class Unset(TorchFunctionMode):
    """A context in which modules draw no numbers: those on the device "meta" have none, but PyTorch
    would load its compiler to draw them, for two seconds."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.init.normal_:
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


@contextmanager
def default_tensors():
    """A context in which new tensors are float32 and on the CPU by default, even if other defaults
    were set in PyTorch, as in a notebook."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)


def pick_device(name):
    """The torch.device for "auto" (a GPU where there is one), "cpu", "cuda:1", ...

    Raises InputError where it cannot be used here.
    """
    if name == "auto":
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        torch.zeros(1, dtype=torch.float32, device=name).tolist()  # "meta" would hold no numbers
        return torch.device(name)
    except NotImplementedError:  # which says so in a thousand characters
        reason = "this PyTorch computes nothing on it"
    except Exception as error:  # each device has errors of its own
        reason = first_line(error)
    raise InputError(f"the device {name!r} cannot be used here ({reason})")


def random_generator(seed):
    """A torch.Generator with a seed. Raises InputError for a seed that PyTorch does not take."""
    try:
        return torch.Generator().manual_seed(seed)
    except (RuntimeError, OverflowError, ValueError):
        raise InputError(f"the seed must fit into 64 bits, but is {seed}") from None


def autocast(device, dtype):
    """A context in which, for "bfloat16", products are computed in it; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def reset_peak_memory(device):
    """Resets `peak_memory`, so that each of several runs has its own."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (path := Path("/proc/self/clear_refs")).exists():
        with suppress(OSError):  # where it is not allowed, runs share their peak
            path.write_text("5")


def peak_memory(device):
    """The most memory held since `reset_peak_memory`, in bytes: the GPU's, or the process's.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    path = Path("/proc/self/status")  # Linux
    found = re.search(r"VmHWM:\s*(\d+) kB", path.read_text()) if path.exists() else None
    return int(found[1]) * 1024 if found else None
