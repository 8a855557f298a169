"""Two processes do what one does: the same losses, parameters and sentences."""

import json
import os

import pytest
import torch
from conftest import (assert_close, random_config, random_examples, random_model, random_prefix,
                      run_here, run_python, start_warm)

import describe
import train
from support import processes
from support.commands import InputError

SCRIPT = """
import sys
from pathlib import Path
import torch
import train
from support import processes, record

mode, folder = sys.argv[1], Path(sys.argv[2])
processes.join(torch.device("cpu"))
model, prefix, encoded = torch.load(folder.parent / "start.pt", weights_only=False)
settings = train.Settings(mode=mode, model="", data="", epochs=3, lr=1e-2, batch_size=3,
                          warmup_steps=2, clip=0.5, max_steps=8, seed=1)
record.LOG_EVERY = 1
train.train(settings, model, prefix, encoded, encoded, record.Record(folder))
trained = model if prefix is None else prefix
torch.save(trained.state_dict(), folder / f"rank-{processes.rank()}.pt")
"""
BLIND = """
import os
import train
from support import commands, processes

class Elsewhere(type(processes.Path())):
    def exists(self):
        return False

if os.environ["RANK"] == "1":
    processes.Path = Elsewhere
commands.run_command(train.main)
"""
QUICK = ("--mode", "prefix", "--model", "tiny", "--device", "cpu", "--max-steps", 2, "--num-beams",
         2, "--max-new-tokens", 8)


def joined(folder, number, *arguments):
    """Runs a command in several processes with the variables that torchrun sets."""
    names = {"WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": 20000 + (os.getpid() + hash(str(folder))) % 9000}
    started = [start_warm(*arguments, env=os.environ | {
        name: str(value) for name, value in (names | {"RANK": i, "LOCAL_RANK": i}).items()})
        for i in range(number)]
    return [process.wait() for process in started]


@pytest.mark.parametrize("mode", ["prefix", "finetune"])
def test_two_processes_have_the_losses_and_parameters_of_one(tmp_path, mode):
    config, logs = random_config(3), []
    model, prefix = random_model(config, 3), random_prefix(config, 3) if mode == "prefix" else None
    start = (model if prefix is None else prefix).state_dict()
    torch.save((model, prefix, random_examples(0, config.n_vocab)), tmp_path / "start.pt")
    for number in (1, 2):  # batches of 3, 3 and 1: unequal shares, and an empty one
        folder = tmp_path / str(number)
        for done in joined(folder, number, "-c", SCRIPT, mode, folder):
            assert done.returncode == 0, done.stderr
        lines = (folder / "log.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in lines])
    for name in ("loss", "validation_loss", "tokens"):  # those of all processes
        ours, truth = (torch.tensor([entry[name] for entry in log if name in entry],
                                    dtype=torch.float64) for log in (logs[1], logs[0]))
        assert len(truth) == {"validation_loss": 3}.get(name, 8)
        assert_close(ours, truth, 1e-9)
    truth = torch.load(tmp_path / "1" / "rank-0.pt")
    for rank in (0, 1):
        ours = torch.load(tmp_path / "2" / f"rank-{rank}.pt")
        for name, tensor in truth.items():
            assert_close(ours[name], tensor, 1e-9)
    assert any((truth[name] - tensor).abs().max() > 1e-2 for name, tensor in start.items())


@pytest.mark.parametrize("by_torchrun", [False, pytest.param(True, marks=pytest.mark.long)])
def test_two_processes_describe_the_test_tables_as_one_and_one_of_them_writes(
        small_data, tmp_path, by_torchrun):
    command = ["train.py", *QUICK, "--data", small_data, "--prefix-length", 3, "--seed", 0]
    command += [1, "--out"] if by_torchrun else ["--out"]
    one = run_here(train.main, *command[1:], tmp_path / "1")
    assert one.error is None, one.stderr
    if by_torchrun:
        torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port",
                    29500 + os.getpid() % 1000)
        two = [run_python(*torchrun, *command, tmp_path / "2")]
    else:
        two = joined(tmp_path, 2, *command, tmp_path / "2")
    assert all(done.returncode == 0 for done in two), two
    said = "".join(done.stdout for done in two)
    assert one.stdout.count("trained in") == said.count("trained in") == 1 + by_torchrun
    for path in sorted((tmp_path / "1").rglob("*.*")):
        if path.name in ("outputs.txt", "run.json"):
            other = tmp_path / "2" / path.relative_to(tmp_path / "1")
            assert path.read_text() == other.read_text()


def test_processes_that_do_not_see_one_folder_are_told_at_the_start(small_data, tmp_path):
    done = joined(tmp_path, 2, "-c", BLIND, *QUICK, "--data", small_data, "--out",
                  tmp_path / "run")
    assert all("do not see one and the same folder" in one.stderr for one in done)
    # Old releases of filelock remove their file.
    assert {path.name for path in (tmp_path / "run").iterdir()} - {".lock"} == {"run.json"}


@pytest.mark.parametrize("variables", [
    {"RANK": "1"}, {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "0"}, {"RANK": ""},
    {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}])
def test_variables_that_torchrun_did_not_set_change_nothing(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    processes.join(torch.device("cpu"))
    assert (processes.rank(), processes.world_size(), processes.count_processes()) == (0, 1, 1)


@pytest.mark.parametrize("name, value, message", [
    ("RANK", "2", "RANK is 2, but WORLD_SIZE is 2"), ("RANK", "-1", "RANK is '-1'"),
    ("LOCAL_RANK", "x", "LOCAL_RANK is 'x'"), ("MASTER_PORT", "1.5", "MASTER_PORT is '1.5'"),
    ("MASTER_ADDR", "nowhere", "MASTER_ADDR .* do not meet \\(nobody came\\)")])
def test_variables_that_cannot_be_are_named(monkeypatch, name, value, message):
    given = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": "29401"} | {name: value}
    for variable, text in given.items():
        monkeypatch.setenv(variable, text)

    def meet(backend):
        raise RuntimeError("nobody came")

    monkeypatch.setattr(processes.distributed, "init_process_group", meet)
    with pytest.raises(InputError, match=message):
        processes.join(torch.device("cpu"))


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    chosen = []
    monkeypatch.setattr(processes, "count_processes", lambda: 2)
    monkeypatch.setattr(processes.distributed, "init_process_group", lambda backend: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for local in "01":
        monkeypatch.setenv("LOCAL_RANK", local)
        processes.join(torch.device("cuda"))
    assert chosen == [0, 1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="there are 2 GPUs"):
        processes.join(torch.device("cuda"))
    processes.join(torch.device("cpu"))


def test_describe_is_one_process(monkeypatch):
    monkeypatch.setattr(describe, "count_processes", lambda: 2)
    assert "start it without torchrun" in run_here(describe.main, "tiny", "name : A").error
