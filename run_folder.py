"""A run's folder: what may be written into it, by whom, and what its run was made from.

run.json holds the settings and the SHA-256 of base, vocabulary and data, so that what goes on, or
describes a table, does so with the same.
"""

import hashlib
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

from filelock import FileLock, Timeout

from common import ASIDE, InputError, read_json

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


def check_same(folder, before, now):
    """Raises InputError where a run of `folder` would go on with anything else than before."""
    for name, value in now.items():
        if before.get(name) != value:
            raise InputError(f"{folder}/run.json was started with {name} {before.get(name)!r}, not "
                             f"{value!r}; --resume needs the same")


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


def fingerprint_model(model):
    """The SHA-256 of a model's weights, the same for every format in which they are stored."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {list(parameter.shape)} ".encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()


def fingerprint_tokenizer(tokenizer):
    """The SHA-256 of a vocabulary: which bytes each token stands for."""
    digest = hashlib.sha256()
    for token in range(tokenizer.n_vocab):
        try:
            digest.update(b"%d %r " % (token, tokenizer.decode_single_token_bytes(token)))
        except KeyError:  # an id without a text
            continue
    return digest.hexdigest()
