"""A run's folder: nothing overwritten, nothing changed unseen, nothing lost or half-written."""

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from conftest import ROOT, random_model, run_here, run_warm, start_warm
from test_hostile_weights import change_tensors

import beam
import compare
import describe
import gpt2
import train
from gpt2 import GPT2Config, load_both, save_model
from support import files as common
from support import record
from support.commands import InputError, escape_controls
from support.downloads import lock_folder
from support.files import read_json, write_aside, write_json, write_text
from support.record import Record
from support.run_folder import claim, fingerprints

TABLE = "name : Cocum | Type : pub"
PLACES = ("The Mill", "Blue Fox", "Old Oak", "Zizzi")
QUICK = ("--num-beams", 1, "--max-new-tokens", 2, "--batch-size", 4, "--device", "cpu")


@pytest.fixture
def data(tmp_path):
    """A data set of a few lines that may be altered."""
    (tmp_path / "data").mkdir()
    for split in ("train", "valid", "test"):
        lines = [f"name : {place} | Type : pub||{place} is a pub . \n" for place in PLACES]
        write_text(tmp_path / "data" / f"src1_{split}.txt", "".join(lines))
    return tmp_path / "data"


@pytest.fixture
def base(small_vocabulary, tmp_path):
    """A small base that may be altered."""
    config = GPT2Config(n_vocab=300, n_ctx=256, n_embd=8, n_head=2, n_layer=1, eos_token=0)
    save_model(random_model(config, 0, torch.float32), tmp_path / "base", small_vocabulary)
    return tmp_path / "base"


@pytest.fixture
def command(monkeypatch, tmp_path, data, base):
    """Runs train.py's main, as from the command line, on the small base and data set."""

    def run(*arguments, out="run", model=base):
        given = ("train.py", "--mode", "prefix", "--model", model, "--data", data, "--epochs", 2,
                 "--out", tmp_path / out, *QUICK, *arguments)
        monkeypatch.setattr(sys, "argv", list(map(str, given)))
        train.main()
        return tmp_path / out

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# --------------------------------------------------------------------------------------------------
# Nothing is overwritten
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["training.pt", "scores.json", "thesis.docx", ".hidden"])
def test_a_folder_that_holds_anything_but_a_run_is_refused_by_name(command, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    for arguments, message in (((), rf"other files already \({name}\)"),
                               (("--resume",), "no run")):
        with pytest.raises(InputError, match=f"holds {message}"):
            command(*arguments)
        assert contents(tmp_path / "run") == {name: b"mine"}


def test_what_a_start_left_that_was_killed_before_run_json_can_be_repeated(command, tmp_path):
    with claim(tmp_path / "run"):
        (tmp_path / "run" / ".new-abc").mkdir()
        (tmp_path / "run" / ".new-abc" / "run.json").write_text("{")
    folder = command("--max-steps", 1)
    assert not list(folder.glob(".new-*")) and (folder / "scores.json").exists()


def test_describing_cannot_overwrite_a_runs_scores_and_compare_takes_what_it_writes(
        command, tmp_path, data, monkeypatch, capsys):
    folder = command("--max-steps", 1)
    before = contents(folder)
    arguments = ["describe.py", folder, "--data", data, "--num-beams", 1, "--max-new-tokens", 3]
    for out in (folder, tmp_path / "anew"):
        monkeypatch.setattr(sys, "argv", [*map(str, arguments), "--out", str(out)])
        if out == folder:
            with pytest.raises(InputError, match="holds other files already"):
                describe.main()
        else:
            describe.main()
    assert contents(folder) == before
    capsys.readouterr()
    compare.compare_runs([tmp_path / "anew", folder], tmp_path)
    rows = capsys.readouterr().out.splitlines()
    assert sum(row.startswith("prefix") for row in rows) == 4  # two of scores, two of costs


def test_a_folder_is_free_again_once_the_process_that_had_it_was_killed(tmp_path):
    code = ("import sys, time; from pathlib import Path; from support.run_folder import claim\n"
            "with claim(Path(sys.argv[1])): Path(sys.argv[1], 'mine').touch(); time.sleep(60)")
    process = start_warm("-c", code, tmp_path)
    wait_for(tmp_path / "mine")
    with pytest.raises(InputError, match="written by another process"):
        with claim(tmp_path):
            pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with claim(tmp_path):
        pass


# --------------------------------------------------------------------------------------------------
# Nothing changes unseen
# --------------------------------------------------------------------------------------------------


def start_and_stop(monkeypatch, command):
    """Starts a run that is stopped, as by Ctrl-C, after a step; the step is saved."""
    step, steps = train.train_step, []

    def stopped(*arguments):
        if steps:
            raise KeyboardInterrupt
        steps.append(step(*arguments))
        return steps[0]

    with monkeypatch.context() as patched:
        patched.setattr(train, "train_step", stopped)
        save_often(patched)
        with pytest.raises(KeyboardInterrupt):
            command()


def save_often(monkeypatch):
    """Has every step be a line of the log, with its state saved."""
    monkeypatch.setattr(record, "LOG_EVERY", 1)
    monkeypatch.setattr(Record, "pause",
                        lambda self, must_save, pause=Record.pause: pause(self, True))


@pytest.mark.parametrize("what, name", [
    ("data", "train_sha256"), ("weights", "model_sha256"), ("vocabulary", "vocabulary_sha256")])
def test_what_changed_between_start_and_resume_is_told(
        command, base, data, monkeypatch, what, name):
    start_and_stop(monkeypatch, command)
    if what == "data":
        (data / "src1_train.txt").write_text("name : A||A .\n")
    elif what == "weights":
        change_tensors(base, lambda tensors: tensors["transformer.wpe.weight"].add_(1e-6))
    else:
        swap_two_words(base)
    with pytest.raises(InputError, match=f"was started with {name}"):
        command("--resume")


def swap_two_words(base):
    """Gives the ids of two tokens that no merge is made of to each other."""
    merges = (base / "merges.txt").read_text(encoding="utf-8").splitlines()
    first, second = (merge.replace(" ", "") for merge in merges[-2:])
    ids = read_json(base / "vocab.json")
    write_json(base / "vocab.json", ids | {first: ids[second], second: ids[first]})
    write_text(base / "merges.txt", "\n".join([*merges[:-2], merges[-1], merges[-2]]))


@pytest.mark.parametrize("without_run_json", [False, True])
def test_a_prefix_is_used_on_another_base_only_when_asked(command, base, without_run_json):
    folder = command("--max-steps", 1)
    if without_run_json:
        (folder / "run.json").unlink()
    programs = {describe.main: (folder, TABLE), beam.main: (TABLE, "--prefix", folder)}

    def errors(*arguments):
        return [run_here(main, *given, "--max-new-tokens", 3, "--device", "cpu", *arguments).error
                for main, given in programs.items()]

    assert errors() == [None, None]
    change_tensors(base, lambda tensors: tensors["transformer.wpe.weight"].add_(1e-6))
    told, same = errors()
    assert told == same == (
        f"error: {folder} was trained on another model than what {base} holds now; bring that "
        f"back, or use this one all the same with --model {base}")
    assert errors("--model", base) == [None, None]


def test_fingerprints_are_those_of_weights_and_vocabulary_and_not_of_their_files(base):
    model, tokenizer = load_both(base)
    before = fingerprints(model, tokenizer)
    torch.save({f"transformer.{name}": tensor for name, tensor in model.state_dict().items()},
               base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    path = base / "vocab.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=3))  # the same in another dress
    assert fingerprints(*load_both(base)) == before


def test_fine_tuning_reads_the_numbers_of_its_base_once_and_once_those_that_it_wrote(
        command, base, old_safetensors):
    folder = command("--mode", "finetune", "--max-steps", 1)
    assert Counter(old_safetensors) == {path / "model.safetensors": 16 for path in (base, folder)}


# --------------------------------------------------------------------------------------------------
# Nothing is silently wrong
# --------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_at_once_and_keeps_the_last_good_state(
        command, monkeypatch, tmp_path):
    step, steps = train.train_step, []

    def broken(*arguments):
        steps.append(step(*arguments))
        return steps[-1] * (float("nan") if len(steps) == 2 else 1)

    save_often(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", broken)
        with pytest.raises(InputError, match="at step 2, at a learning rate of about .* no finite"):
            command("--epochs", "3")
    names = contents(tmp_path / "run").keys() - {".lock"}  # which old releases of filelock remove
    assert names == {"run.json", "log.jsonl", "training.pt", "adapter_config.json",
                     "adapter_model.safetensors"} and len(steps) == 2  # those of epoch 1
    for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda text: pytest.fail(text))
    state = torch.load(tmp_path / "run" / "training.pt", weights_only=True)
    assert state["step"] == 1
    folder = command("--epochs", "3", "--resume")  # whose losses are sound
    assert len((folder / "log.jsonl").read_text().splitlines()) == 6


def test_a_damaged_training_state_or_one_of_another_run_is_told(command, monkeypatch, tmp_path):
    start_and_stop(monkeypatch, command)
    path = tmp_path / "run" / "training.pt"
    sound, state = path.read_bytes(), torch.load(path, weights_only=True)
    for damaged in (sound[:-1], bytes([*sound[:9999], sound[9999] ^ 4, *sound[10000:]])):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="training.pt is corrupt"):
            command("--resume")
    for change, message in (
            ({"trained": {}}, "is corrupt"),
            ({"run": state["run"] | {"seed": 5}}, "was started with seed 5, not 0")):
        torch.save(state | change, path)
        with pytest.raises(InputError, match=f"training.pt {message}"):
            command("--resume")
    path.write_bytes(sound)
    command("--resume")
    assert not path.exists()


def test_a_run_goes_on_where_its_base_and_data_lie_elsewhere_now(command, base, data, monkeypatch):
    start_and_stop(monkeypatch, command)
    moved = shutil.move(data, data.parent / "moved"), shutil.move(base, base.parent / "base2")
    folder = command("--resume", "--data", moved[0], model=moved[1])
    assert (folder / "scores.json").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_said_and_is_not_another_process(
        tmp_path, monkeypatch, capsys, number):
    def acquire(self, timeout):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with claim(tmp_path):
        assert f"the disk of {tmp_path} has no locks" in capsys.readouterr().err
    with lock_folder(tmp_path / "file"):
        assert f"the disk of {tmp_path} has no locks" in capsys.readouterr().err


@pytest.mark.parametrize("name, number, may_go_on", [
    ("replace", errno.EPERM, False), ("fsync", errno.ENOSPC, False), ("fsync", errno.EINVAL, True)])
def test_a_disk_that_cannot_rename_or_flush(tmp_path, monkeypatch, name, number, may_go_on):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, refuse)
    if may_go_on:
        write_text(tmp_path / "file", "whole")
    else:
        with pytest.raises(InputError, match=f"{tmp_path / 'file'} cannot be written"):
            write_text(tmp_path / "file", "whole")
    assert contents(tmp_path) == ({"file": b"whole"} if may_go_on else {})


def test_a_warm_up_as_long_as_the_run_is_said(command, capsys):
    command("--max-steps", 1, "--warmup-steps", 1)
    assert "the learning rate rises for 1 steps, and there are 1" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_told_at_the_start(command, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((InputError, OSError), match="file"):
        command(out="file/run")
    with pytest.raises(InputError, match="is a file"):
        command(out="file")


def test_meteors_data_are_asked_for_at_the_start(command, tmp_path, monkeypatch):
    monkeypatch.setenv("METEOR_DATA", str(tmp_path))
    with pytest.raises(InputError, match="METEOR"):
        command()
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------------
# Nothing is lost
# --------------------------------------------------------------------------------------------------


def test_ctrl_c_before_there_is_a_run_says_to_start_again_and_not_to_resume(tmp_path, data):
    def stopped(*args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train, "load_both", stopped)  # as while the base is downloaded
        done = run_here(train.main, "--mode", "prefix", "--model", "tiny", "--data", data, "--out",
                        tmp_path / "run", *QUICK)
    assert done.error == 130 and "; continue with: python " in done.stderr
    assert "--resume" not in done.stderr


FULL_DISK = """
import resource, signal, sys
import gpt2, prefix
from support import commands, files as common, record
base, folder = sys.argv[1:]
model = gpt2.load_model(base)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
for write in (lambda: gpt2.save_model(model, folder, base),
              lambda: prefix.save_prefix(prefix.Prefix(model.config, 50), folder, base),
              lambda: record.save_state(common.Path(folder), {}, {"trained": model}, 0, [])):
    try:
        write()
    except commands.InputError as error:
        assert folder in str(error) and "make room" in str(error), error
        print("told")
"""


@pytest.mark.skipif(os.name != "posix", reason="limits are set as on POSIX systems")
def test_a_full_disk_is_told_whatever_is_written_and_leaves_nothing(base, tmp_path):
    (tmp_path / "new").mkdir()
    done = run_warm("-c", FULL_DISK, base, tmp_path / "new")
    assert done.returncode == 0 and done.stdout.count("told") == 3, done.stderr
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError("MPS backend out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")])
def test_memory_that_is_full_is_one_sentence_on_any_device(error):
    def train_on_it():
        with common.wrap_errors("a file"), common.wrap_disk_errors("another"):
            raise error

    assert "out of memory; a smaller --batch-size" in run_here(train_on_it).error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_says_how_to_go_on_and_what_there_is_can_be_used(tmp_path, data, number):
    folder = tmp_path / "a run"
    training = start_warm("train.py", "--mode", "prefix", "--model", "tiny", "--data", data,
                          "--epochs", 100000, "--out", folder, *QUICK)
    wait_for(folder / "adapter_model.safetensors")
    os.kill(training.pid, number)
    done = training.wait()
    assert done.returncode == 130 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("stopped; continue with: python train.py --mode prefix")
    assert last.endswith("--resume") and f"'{folder}'" in last
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert torch.load(folder / "training.pt", weights_only=True)["step"] == steps[-1]
    told = run_here(describe.main, folder, "name : Cocum", "--max-new-tokens", 2)
    assert told.error is None and f"{folder} is not finished" in told.stderr and told.stdout
    scored = run_here(describe.main, folder, "--data", data, "--out", tmp_path / "scores",
                      "--max-new-tokens", 2)
    assert scored.error is None and "is not finished" in scored.stderr
    shown = run_here(compare.main, tmp_path / "scores", "--out", tmp_path)
    assert ", not finished" in shown.stdout and shown.error is None


def wait_for(path):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_renamed_was_flushed_to_the_disk_and_has_a_new_files_permissions(
        tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, function=function: (
            calls.append(name), function(*args)))
    with write_aside(tmp_path / "new") as path:
        path.write_text("whole")
        path.chmod(0o600)  # as some libraries leave their files
        assert not (tmp_path / "new").exists()
    assert calls[:2] == ["fsync", "replace"]
    (tmp_path / "other").write_text("")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "other"]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(ZeroDivisionError):
        with write_aside(tmp_path / "file") as path:
            path.write_text("half")
            1 / 0
    assert contents(tmp_path) == {"file": b"old"} and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError):
        write_json(tmp_path / "file", {"loss": float("nan")})
    assert contents(tmp_path) == {"file": b"old"}


# --------------------------------------------------------------------------------------------------
# The terminal
# --------------------------------------------------------------------------------------------------


def test_control_characters_are_shown_and_letters_stay():
    assert escape_controls("\x1b]0;owned\x07é £ 日 😀\ta\nb\x9b\u202e") == \
        "\\x1b]0;owned\\x07é £ 日 😀\ta\nb\\x9b\\u202e"


def light(text, stdout="", **variables):
    """Runs a command that only prints, cold, its output into a full disk, or where nobody reads it;
    it needs no PyTorch."""
    code = f"from support.commands import run_command; run_command(lambda: print({ascii(text)}))"
    return into(stdout, "-c", code, **variables)


def into(stdout, *arguments, **variables):
    target = {"closed": ">&-", "unread": "| true", "": ""}.get(stdout, f"> {stdout}")
    line = "set -o pipefail; " + shlex.join([sys.executable, *map(str, arguments)])
    return subprocess.run(["bash", "-c", f"{line} {target}"], cwd=ROOT, capture_output=True,
                          env=os.environ | variables)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_terminal_of_any_encoding_gets_the_sentence(encoding):
    shown = light("Caf\u202e é 日", PYTHONIOENCODING=encoding).stdout.decode(encoding)
    letters = {"ascii": r"\xe9 \u65e5", "cp1252": r"é \u65e5", "utf-8": "é 日"}
    assert shown == rf"Caf\u202e {letters[encoding]}" + "\n"  # \u202e would turn the text around


def test_a_name_that_is_not_utf_8_is_told_before_any_work(tmp_path, monkeypatch):
    name = os.fsdecode(b"caf\xe9")
    done = run_here(describe.main, "tiny", "--data", "sample", "--out", tmp_path / name)
    assert "caf\\udce9' is not UTF-8; rename" in done.error and not any(tmp_path.iterdir())
    monkeypatch.setattr(os, "getcwd", lambda: f"/{name}")
    assert "is not UTF-8" in run_here(describe.main, "tiny", "name : Cocum").error


@pytest.mark.parametrize("stdout, status, message", [
    ("closed", 0, b""), ("unread", 0, b""),
    ("/dev/full", 1, b"error: <stdout>: No space left on device\n")])
def test_a_stream_that_goes_ends_a_command_that_only_prints(stdout, status, message):
    done = light("x" * 99999, stdout)
    assert (done.returncode, done.stderr) == (status, message)


def test_a_training_whose_output_nobody_reads_goes_on_whatever_draws_figures(
        tmp_path, data, base):
    done = into("unread", "train.py", "--mode", "prefix", "--model", base, "--data", data,
                "--epochs", 2, "--out", tmp_path / "run", *QUICK,
                MPLBACKEND="module://no_such_module")  # Jupyter's, elsewhere
    assert done.returncode == 0 and (tmp_path / "run" / "scores.json").exists(), done.stderr


def test_errors_of_the_system_are_one_line(base):
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").mkdir()
    done = run_here(gpt2.main, "--model", base, "hello")
    assert done.error.startswith("error: ") and done.stderr.count("\n") == 1
