"""A run's folder: what may be written into it, by whom, what its run was made from, how it goes on.

run.json holds the settings and the SHA-256 of base, vocabulary and data, so that what goes on, or
describes a table, does so with the same. training.pt holds the state of the training.
"""

import hashlib
import json
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import crc32c
import torch
from filelock import FileLock, Timeout

from support.files import ASIDE, InputError, read_json, write_aside, write_text
from support.processes import RANK

LOCK = ".lock"


@dataclass
class Settings:
    """All that decides what a run's result is."""

    mode: str  # "prefix" or "finetune"
    model: str  # a name, or the resolved path of a folder
    data: str  # the same
    epochs: int
    lr: float
    batch_size: int
    warmup_steps: int
    max_examples: int | None
    keep: str  # the state of which epoch: "last" or "best"
    prefix_length: int
    prefix_form: str
    prefix_hidden: int | None
    prefix_words: str | None
    clip: float
    max_steps: int | None
    seed: int
    dtype: str
    num_beams: int
    length_penalty: float
    max_new_tokens: int


def read_settings(folder):
    """The settings in a folder's run.json, as a dict. Raises InputError where one is no setting."""
    path = Path(folder) / "run.json"
    values = read_json(path)
    for field in fields(Settings):
        value = values.get(field.name, ...)
        if not isinstance(value, (field.type, int) if field.type is float else field.type):
            shown = "is missing" if value is ... else f"is {value!r}"
            raise InputError(f"{path}: {field.name} {shown}, which no run has; it is damaged")
    if values["mode"] not in ("prefix", "finetune"):
        raise InputError(f"{path}: mode is {values['mode']!r}, but a run is prefix or finetune")
    return values


def check_new(folder, what):
    """Raises InputError where a folder already holds something, so that nothing is overwritten."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder for {what}")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = sorted(name for name in names if name != LOCK and not name.startswith(ASIDE))
    if others:
        more = ", ..." * (len(others) > 3)
        raise InputError(f"{folder} holds other files already ({', '.join(others[:3])}{more}); "
                         f"give a new folder for {what}")


def check_folder(folder, now, resume):
    """Raises InputError where a folder holds anything that a run cannot go on with.

    now        the run's settings and, once they are known, the SHA-256 of what it is made from
    """
    if not (folder / "run.json").exists():
        return check_new(folder, "a run")
    if not resume:
        raise InputError(f"{folder} already holds a run; give another --out, or --resume to go on "
                         "with it")
    before = read_settings(folder)
    for name, value in now.items():
        if before.get(name) != value:
            raise InputError(f"{folder}/run.json was started with {name} {before.get(name)!r}, not "
                             f"{value!r}; --resume needs the same")


def is_finished(folder):
    """Whether a run has ended: with its scores or, without a test set, with its figure."""
    if (folder / "loss.png").exists() and read_settings(folder).get("test_sha256") == "":
        return True
    return (folder / "scores.json").exists()


@contextmanager
def claim(folder):
    """Keeps a folder for this process, until the block or the process ends, in whatever way.

    What a killed process left half-written is removed. Raises InputError where another has it, or
    nothing can be written there.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(f"{folder} is being written by another process; give another --out, or "
                         "wait for its end") from None
    except OSError as error:
        raise InputError(f"{folder} cannot be written to ({error.strerror}); give another --out, a "
                         "folder that can be") from None
    try:
        for leftover in folder.glob(f"{ASIDE}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        lock.release()


def fingerprints(model, tokenizer):
    """What a base is, as run.json tells it: the SHA-256 of its weights, the same for every format
    in which they are stored, and that of its vocabulary, which bytes each token stands for."""
    weights, vocabulary = hashlib.sha256(), hashlib.sha256()
    for name, parameter in model.named_parameters():
        weights.update(f"{name} {list(parameter.shape)} ".encode())
        weights.update(parameter.detach().float().cpu().contiguous().numpy())
    for token in range(tokenizer.n_vocab):
        try:
            vocabulary.update(b"%d %r " % (token, tokenizer.decode_single_token_bytes(token)))
        except KeyError:  # an id without a text
            continue
    return {"model_sha256": weights.hexdigest(), "vocabulary_sha256": vocabulary.hexdigest()}


# --------------------------------------------------------------------------------------------------
# The state of a training, and its log
# --------------------------------------------------------------------------------------------------


def save_state(folder, parts, step, log):
    """Writes what is needed to go on to folder/training.pt; returns how many seconds it took.

    Behind PyTorch's own bytes, which it reads without a check, stands their CRC32C.
    """
    started = time.monotonic()
    if RANK > 0:
        return 0.0
    state = {name: part.state_dict() for name, part in parts.items()}
    with write_aside(folder / "training.pt") as path:
        torch.save(state | {"step": step, "log": log}, path)
        checksum = checksum_of(path, path.stat().st_size)
        with open(path, "ab") as file:
            file.write(checksum.to_bytes(4, "little"))
    return time.monotonic() - started


def load_state(folder, parts, device):
    """Sets `parts` to what folder/training.pt holds; returns (step, log), (0, []) without one."""
    path = folder / "training.pt"
    if not path.exists():
        return 0, []
    size = max(0, path.stat().st_size - 4)
    with open(path, "rb") as file:
        file.seek(size)
        stored = file.read()
    if checksum_of(path, size).to_bytes(4, "little") != stored:
        raise InputError(f"{path} is damaged, so that training cannot go on from it; start anew "
                         "with another --out")
    state = torch.load(path, device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"], state["log"]


def checksum_of(path, size):
    """The CRC32C of the first `size` bytes of a file."""
    checksum = 0
    with open(path, "rb") as file:
        while size > 0 and (chunk := file.read(min(size, 1 << 24))):
            checksum = crc32c.crc32c(chunk, checksum)
            size -= len(chunk)
    return checksum


def start_log(folder, log):
    """Writes the entries so far to folder/log.jsonl: what came after the state was saved, goes."""
    if RANK == 0:
        write_text(folder / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in log))


def write_log(folder, log, **entry):
    """Adds an entry to `log`, and to folder/log.jsonl as a line."""
    log.append(entry)
    if RANK > 0:
        return
    with open(folder / "log.jsonl", "a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(entry, allow_nan=False) + "\n")
