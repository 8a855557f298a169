"""A run's folder: what may be written into it, by whom, what its run was made from.

run.json holds the settings and the SHA-256 of base, vocabulary and data, so that resuming and
generating use the same ones. A run is finished once it has scores.json or, without a test set,
loss.png.
"""

import hashlib
import shutil
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from filelock import FileLock, Timeout

from support.bases import NAMES, model_folder, read_adapter_config
from support.commands import InputError
from support.files import ASIDE, acquire, read_json, sha256, wrap_errors, write_json
from support.processes import check_one_folder, rank
from support.settings import Settings

LOCK = ".lock"


def read_settings(folder):
    """The settings in a folder's run.json and the SHA-256s beside them, as a dict.

    Raises InputError where one is none that a run has.
    """
    path = Path(folder) / "run.json"
    values = read_json(path)
    names = [field.name for field in fields(Settings)]
    if missing := [name for name in (*names, "lr") if values.get(name, ...) is ...]:
        raise InputError(f"{path}: {missing[0]} is missing; it is corrupt")
    if values["mode"] == "finetune":
        values["prefix_hidden"] = None  # older runs have a width there, of which nothing was made
    try:
        Settings(**{name: values[name] for name in names}).check()
    except InputError as error:
        raise InputError(f"{path} is corrupt: {error}") from None
    for name, value in values.items():
        if name not in names and not (name.endswith("_sha256") and isinstance(value, str)):
            raise InputError(f"{path}: {name} is {str(value)[:60]!r}, which no run has; it is "
                             "damaged")
    return values


def read_source(source):
    """The settings of a run, an adapter or a bare model. Raises InputError if it is none."""
    folder = model_folder(source)
    settings = {"mode": "the base alone", "model": str(source), "seed": None, "dtype": "float32"}
    if (folder / "run.json").exists():
        settings = read_settings(folder)
        is_prefix = settings["mode"] == "prefix"
        weights = "adapter_model.safetensors" if is_prefix else "model.safetensors"
        if not (folder / weights).exists():
            raise InputError(f"{folder} has no {weights} yet: no epoch of its training has ended; "
                             "continue it with train.py --resume")
        return settings
    if (folder / "adapter_config.json").exists():
        named = str(read_adapter_config(folder)[1] or "")  # "" where it names none
        hub_name = named.removeprefix("openai-community/")  # where Hugging Face has OpenAI's
        return settings | {"mode": "prefix", "model": hub_name if hub_name in NAMES else named,
                           "adapter": str(source)}
    is_model = any((folder / name).exists() for name in ("config.json", "hparams.json"))
    if source not in NAMES and not is_model:
        inside = [str(path.parent) for path in sorted(folder.glob("*/run.json"))]
        what = f"give one of those in it: {', '.join(inside[:9])}" if inside else (
            "run.json, adapter_config.json, config.json and hparams.json are all missing")
        raise InputError(f"{folder} holds neither a run nor a model; {what}")
    return settings


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


def check_parent(folder, names):
    """Raises InputError where several runs cannot be put into a folder: it holds files, of a run or
    of anything else. Figures of earlier runs, `names`, may be there."""
    files = [path.name for path in folder.glob("*") if path.is_file()]
    if others := sorted(set(files) - {LOCK, *names}):
        raise InputError(f"{folder} holds {others[0]}, so it is a folder of its own; give another "
                         "--out for several runs")


def check_folder(folder, new, resume):
    """Raises InputError if a folder holds anything from which a run cannot resume.

    now        the run's settings and, once they are known, the SHA-256 of what it is made from
    """
    if not (folder / "run.json").exists():
        return check_new(folder, "a run")
    if not resume:
        raise InputError(f"{folder} already holds a run; give another --out, or --resume to "
                         "continue it")
    check_same_run(f"{folder}/run.json", read_settings(folder), new)


def check_same_run(location, old, new):
    """Raises InputError where two runs differ in more than where their base and data lie.

    What these are, and not where, is what counts: their SHA-256.
    """
    for name, value in new.items():
        if name not in ("model", "data") and old.get(name) != value:
            raise InputError(f"{location} was started with {name} {old.get(name)!r}, not "
                             f"{value!r}; --resume needs the same")


def is_finished(folder):
    """Whether a run has ended: with its scores or, without a test set, with its figure."""
    folder = Path(folder)
    if (folder / "loss.png").exists() and read_settings(folder).get("test_sha256") == "":
        return True
    return (folder / "scores.json").exists()


@contextmanager
def claim(folder):
    """Keeps a folder for this process, until the block or the process ends, in whatever way.

    What a killed process left half-written is removed. Raises InputError where another has it, or
    nothing can be written there; where the file system has no locks, that is said. (Of several
    processes of one run the first has it for all.)
    """
    if rank() > 0:
        yield
        return
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        acquire(lock)
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


@contextmanager
def open_run(folder, run, resume):
    """Keeps a run's folder until its run has ended; gives `run`, which run.json then holds.

    run        {name: value}: the settings and SHA-256s of what the run is made from
    Raises InputError where the folder is another's (`claim`, `check_folder`), or not all processes
    see it.
    """
    with claim(folder):
        if rank() == 0:
            check_folder(folder, run, resume)
            write_json(folder / "run.json", run)
        check_one_folder(folder)
        yield run
        if rank() == 0:  # the checkpoint is needed no more
            (folder / "training.pt").unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------
# What it was made from, and what it wrote
# --------------------------------------------------------------------------------------------------


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


WRITTEN = ("outputs.txt", "references.txt", "tables.txt", "log.jsonl")  # scores.json has their sums


def hash_files(folder):
    """{name: SHA-256} of the files that scores.json tells of."""
    return {name: sha256(folder / name) for name in WRITTEN if (folder / name).exists()}


def check_hash(folder, name, scores):
    """Raises InputError where a file is not the one that the scores, of scores.json, tell of."""
    path = Path(folder) / name
    scores_path = Path(folder) / "scores.json"
    with wrap_errors(scores_path, "is corrupt; describe.py --data writes it again"):
        known = scores["signature"].get("files", {}).get(name)
    if known and (not path.exists() or sha256(path) != known):
        raise InputError(f"{path} is not what {Path(folder) / 'scores.json'} was made with; "
                         "describe.py --data writes both again")
