"""Kills training runs, lets them go on, and compares what they end in with an undisturbed run.

    python tests/crash.py --kills 100 --seed 0

A run is killed (nothing can be tidied up) before its n-th file operation, in the midst of
its n-th write, or at a random moment, often several times, and is then started again as the README
says: with --resume, or without it where run.json had not been written yet. It must end in the same
files to the bit, and leave nothing half-written behind. Of two processes in one folder one must
win. Needs fork, so Linux or macOS.
"""

import argparse
import dataclasses
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"

import matplotlib.figure  # noqa: E402, F401  # here, so that each fork has it already
import safetensors.torch  # noqa: E402
import torch._dynamo  # noqa: E402, F401  # the same

import metrics  # noqa: E402
import train  # noqa: E402
from gpt2 import GPT2, load_config, save_model  # noqa: E402
from support import commands, files as common  # noqa: E402
from support import record  # noqa: E402

TRAIN = ["--epochs", "2", "--batch-size", "4", "--num-beams", "2",
         "--max-new-tokens", "6", "--device", "cpu"]
MODES = {"prefix": ["--mode", "prefix", "--prefix-length", "3", "--prefix-hidden", "16"],
         "finetune": ["--mode", "finetune"]}
LIMIT = 120  # seconds that no run takes


def write_inputs(folder):
    """A small base with random weights, and data: 10 examples to train on, 3 to validate with, 4 of
    2 tables to describe. Returns the arguments that name both."""
    config = dataclasses.replace(load_config("tiny"), n_embd=8, n_head=2, n_layer=2)
    save_model(GPT2(config), folder / "base", "tiny")
    names = ["Blue Spice", "The Vaults", "Aromi", "Cocum"]
    for split, n in (("train", 10), ("valid", 3), ("test", 4)):
        lines = [f"name : {names[i % 2 if split == 'test' else i % 4]} | Type : pub||"
                 f"{names[i % 4]} is a pub , number {i} . \n" for i in range(n)]
        (folder / f"src1_{split}.txt").write_text("".join(lines))
    return ["--model", str(folder / "base"), "--data", str(folder)]


# --------------------------------------------------------------------------------------------------
# In the process that is killed
# --------------------------------------------------------------------------------------------------


class FileOperations:
    """Notes what the process does to files below `folder`; sends it a signal at the n-th."""

    def __init__(self, folder, n=None, signal_number=signal.SIGKILL):
        self.folder, self.n, self.signal_number = str(folder), n, signal_number
        self.kinds = []

    def is_next(self, kind):
        self.kinds.append(kind)
        return len(self.kinds) == self.n

    def stop(self):
        os.kill(os.getpid(), self.signal_number)

    def install(self):
        sys.addaudithook(self.audit)
        plain_open, plain_fsync = io.open, os.fsync

        def watched_open(file, mode="r", *args, **options):
            opened = plain_open(file, mode, *args, **options)
            is_ours = not isinstance(file, int) and self.folder in os.fsdecode(file)
            return Written(opened, self) if is_ours and set("wax+") & set(mode) else opened

        def watched_fsync(descriptor):
            if self.is_next("fsync"):
                self.stop()
            plain_fsync(descriptor)

        io.open, os.fsync = watched_open, watched_fsync
        sys.modules["builtins"].open = watched_open
        torch.save = self.torn("torch.save", torch.save)
        save_file = safetensors.torch.save_file
        safetensors.torch.save_file = self.torn("save_file", save_file)

    def audit(self, event, args):
        """Called by Python before it opens, renames, removes, ... a file."""
        if event == "open":
            is_ours = isinstance(args[0], (str, bytes)) and self.folder in os.fsdecode(args[0])
            is_change = is_ours and args[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            is_change = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")
            is_change = is_change and any(self.folder in str(arg) for arg in args)
        if is_change and self.is_next(event):
            self.stop()

    def torn(self, kind, save):
        """`save`, but where it is the n-th operation, only half of the file gets to the disk."""

        def torn_save(value, path, *args, **options):
            is_next = self.is_next(kind)
            save(value, path, *args, **options)
            if is_next:
                if self.signal_number == signal.SIGKILL:  # and not only halted
                    os.truncate(path, os.path.getsize(path) // 2)
                self.stop()

        return torn_save


class Written:
    """A file that is written to; where that is the n-th operation, only half of it is written."""

    def __init__(self, file, operations):
        self.file, self.operations = file, operations

    def write(self, content):
        if self.operations.is_next("write"):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            self.operations.stop()
            content = content[len(content) // 2 :]  # where it was only halted
        return self.file.write(content)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)


def start(arguments, out, says, n=None, signal_number=signal.SIGKILL, after=LIMIT):
    """Forks a process that runs `train.py arguments --out out`, what it says into the file `says`.

    It is killed after so many seconds, or at its n-th file operation. Its state is saved at every
    line of the log, which has a line every 2 steps. Returns its id.
    """
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        with open(says, "wb", 0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        signal.setitimer(signal.ITIMER_REAL, after)  # SIGALRM, to which nothing listens
        record.LOG_EVERY, pause = 2, record.Record.pause
        record.Record.pause = lambda self, must_save: pause(self, True)  # every time
        metrics.meteor_data.find = lambda folder=None: None  # its tables take longer than all else
        sys.argv = ["train.py", *arguments, "--out", str(out)]
        operations = FileOperations(out, n, signal_number)
        operations.install()
        commands.run_command(train.main)
        status = 0
        sys.__stderr__.write(f"operations: {' '.join(operations.kinds)}\n")
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.__stderr__.flush()
        sys.__stdout__.flush()
        os._exit(status)


def end(process):
    """Waits for the end of a process; returns its status."""
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


# --------------------------------------------------------------------------------------------------
# What a run leaves
# --------------------------------------------------------------------------------------------------


def contents(folder):
    """{name: what the file holds, without what differs from run to run (seconds, memory)}."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = "a folder"
        elif path.suffix == ".safetensors":  # whose header has no fixed order
            with safetensors.safe_open(path, "np") as file:
                found[name] = file.metadata(), {key: file.get_tensor(key).tobytes()
                                                for key in file.keys()}
        elif name == "log.jsonl":
            entries = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: value for key, value in entry.items()
                            if key not in ("seconds", "peak_memory")} for entry in entries]
        elif name == "scores.json":
            found[name] = {k: v for k, v in json.loads(path.read_text()).items() if k != "costs"}
            del found[name]["signature"]["files"]["log.jsonl"]  # which holds seconds
        elif name == "loss.png":
            found[name] = "whole" if b"IEND" in path.read_bytes()[-12:] else "cut"
        else:
            found[name] = path.read_bytes()
    return found


def differences(folder, truth):
    """Sentences on how a run's folder differs from that of an undisturbed run."""
    found = contents(folder)
    return ([f"{name} is missing" for name in truth.keys() - found.keys()]
            + [f"{name} is left over" for name in found.keys() - truth.keys()]
            + [f"{name} differs" for name in truth.keys() & found.keys()
               if found[name] != truth[name]])


# --------------------------------------------------------------------------------------------------


def kill_and_go_on(arguments, out, says, draw, kills, kinds, seconds):
    """Starts a run, kills it up to `kills` times, and lets it end.

    Returns (sentences on what is wrong, how often it was killed, how that went).
    """
    n_killed, story = 0, []
    while True:
        again = ["--resume"] if (out / "run.json").exists() else []
        n, after = None, LIMIT
        if n_killed < kills:
            if draw.random() < 0.7:  # all kinds alike, the rare ones too
                kind = draw.choice(sorted(set(kinds)))
                n = draw.choice([i for i, other in enumerate(kinds, 1) if other == kind])
            else:
                after = draw.uniform(0, seconds)
        moment = f"operation {n}, {kind}" if n else f"{after:.3f} s"
        story.append(f"{'resumed' if again else 'started'}, to be killed at {moment}")
        status = end(start([*arguments, *again], out, says, n, after=after))
        if status == 0:
            return [], n_killed, story
        if n_killed == kills or status != -(signal.SIGKILL if n else signal.SIGALRM):
            return [f"ended with {status}: {says.read_text()[-1500:]}"], n_killed, story
        n_killed += 1


def two_at_once(arguments, out, says, draw, kinds):
    """Halts a run somewhere, starts a second one in its folder, and lets the first end."""
    n = draw.randint(5, len(kinds) - 5)
    first = start(arguments, out, says.with_suffix(".1"), n, signal.SIGSTOP)
    os.waitpid(first, os.WUNTRACED)  # it has halted
    again = ["--resume"] if (out / "run.json").exists() else []
    status = end(start([*arguments, *again], out, says.with_suffix(".2")))
    os.kill(first, signal.SIGCONT)
    wrong = []
    if end(first):
        wrong.append(f"the first failed: {says.with_suffix('.1').read_text()[-1500:]}")
    sentence = says.with_suffix(".2").read_text().splitlines()[-1]
    if status != 1 or "is being written by another process" not in sentence:
        wrong.append(f"the second ended with {status}: {sentence}")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    # In memory where that can be: what a kill leaves does not depend on the disk.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="crash-", dir=memory) as folder:
        sys.exit(kill_runs(args.kills, args.seed, Path(folder)))


def kill_runs(kills, seed, folder):
    """Kills runs, `kills` times in all; prints what is wrong; returns how much is."""
    draw = random.Random(seed)
    (folder / "data").mkdir()
    inputs = write_inputs(folder / "data")
    says, faults, n_killed, undisturbed = folder / "says", [], 0, {}
    for mode, options in MODES.items():
        arguments = [*TRAIN, *options, *inputs]
        began = time.monotonic()
        if end(start(arguments, folder / mode, says)):
            raise SystemExit(f"the undisturbed run failed: {says.read_text()}")
        seconds = time.monotonic() - began
        kinds = says.read_text().rpartition("operations: ")[2].split()
        undisturbed[mode] = arguments, contents(folder / mode), kinds, seconds

    def judge(wrong, out, mode, story):
        wrong = wrong or differences(out, undisturbed[mode][1])
        for sentence in wrong:
            print(f"FAULT in {mode} ({'; '.join(story)}): {sentence}", flush=True)
        faults.extend(wrong)
        shutil.rmtree(out)

    while n_killed < kills:
        mode = draw.choice(list(MODES))
        arguments, _, kinds, seconds = undisturbed[mode]
        most, out = min(draw.randint(1, 4), kills - n_killed), folder / "out"
        wrong, killed, story = kill_and_go_on(arguments, out, says, draw, most, kinds, seconds)
        judge(wrong, out, mode, story)
        n_killed += killed
    n_pairs = max(1, kills // 10)
    for i in range(n_pairs):
        mode, out = list(MODES)[i % 2], folder / "out"
        arguments, _, kinds, _ = undisturbed[mode]
        judge(two_at_once(arguments, out, says, draw, kinds), out, mode, ["two at once"])
    print(f"{n_killed} kills in all, {n_pairs} pairs at once: {len(faults)} faults")
    return min(len(faults), 1)


if __name__ == "__main__":
    main()
