"""Two processes do what one does: the same losses, parameters and sentences."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import (ROOT, assert_close, random_config, random_model, random_prefix,
                      run_here)

import describe
from support import processes
from support.files import InputError

SCRIPT = """
import random, sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import torch
import train
from conftest import random_config, random_model, random_prefix
from support.processes import RANK, join
from support.run_folder import Settings

mode, folder = sys.argv[1], Path(sys.argv[2])
join(torch.device("cpu"))
config = random_config(3)
model, prefix = random_model(config, 3), random_prefix(config, 3)
draw = random.Random(0)
encoded = [([draw.randrange(config.n_vocab) for _ in range(draw.randint(1, 9))],
            [draw.randrange(config.n_vocab) for _ in range(draw.randint(1, 9))]) for _ in range(7)]
settings = Settings(
    mode=mode, model="", data="", epochs=7, lr=1e-2, batch_size=3, warmup_steps=2,
    max_examples=None, keep="last", prefix_length=0, prefix_form="network", prefix_hidden=None,
    prefix_words=None, clip=0.5, max_steps=20, seed=1, dtype="float32", num_beams=1,
    length_penalty=1.0, max_new_tokens=1)
folder.mkdir(exist_ok=True)
train.LOG_EVERY = 1
train.train(settings, model, prefix if mode == "prefix" else None, encoded, encoded, folder)
trained = prefix if mode == "prefix" else model
torch.save(trained.state_dict(), folder / f"rank-{{RANK}}.pt")
"""


def torchrun(number, *arguments):
    command = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", number,
               "--master-port", 29500 + os.getpid() % 1000, *arguments)
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("mode", ["prefix", "finetune"])
def test_two_processes_have_the_losses_and_parameters_of_one(tmp_path, mode):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests")))
    for number in (1, 2):  # batches of 3, 3 and 1: unequal shares, and an empty one
        torchrun(number, script, mode, tmp_path / str(number))
    logs = []
    for number in (1, 2):
        lines = (tmp_path / str(number) / "log.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in lines])
    for name in ("loss", "validation_loss"):
        ours, truth = (torch.tensor([entry[name] for entry in log if name in entry],
                                    dtype=torch.float64) for log in (logs[1], logs[0]))
        assert len(truth) == {"loss": 20, "validation_loss": 7}[name]
        assert_close(ours, truth, 1e-9)
    truth = torch.load(tmp_path / "1" / "rank-0.pt")
    config = random_config(3)
    start = (random_prefix if mode == "prefix" else random_model)(config, 3).state_dict()
    for rank in (0, 1):
        ours = torch.load(tmp_path / "2" / f"rank-{rank}.pt")
        for name, tensor in truth.items():
            assert_close(ours[name], tensor, 1e-9)
    assert any((truth[name] - tensor).abs().max() > 1e-2 for name, tensor in start.items())


def test_two_processes_describe_the_test_tables_as_one_and_one_of_them_writes(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "valid", "test"):
        lines = [f"name : {name} | Type : pub||{name} is a pub ." for name in ("A", "Bo", "Cy")]
        (data / f"src1_{split}.txt").write_text("\n".join(lines) + "\n")
    shown = {}
    for number in (1, 2):
        done = torchrun(number, "train.py", "--mode", "prefix", "--model", "tiny", "--data", data,
                        "--device", "cpu", "--max-steps", 2, "--num-beams", 2, "--max-new-tokens",
                        8, "--seed", 0, 1, "--out", tmp_path / str(number))
        shown[number] = done.stdout
    for seed in (0, 1):
        one, two = (tmp_path / str(number) / f"length-5-seed-{seed}" for number in (1, 2))
        assert (one / "outputs.txt").read_text() == (two / "outputs.txt").read_text()
        settings = [json.loads((run / "run.json").read_text()) for run in (one, two)]
        assert settings[0] == settings[1]
    assert shown[2].count("trained in") == shown[1].count("trained in") == 2


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    chosen = []
    monkeypatch.setattr(processes, "WORLD", 2)
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
    monkeypatch.setattr(describe, "WORLD", 2)
    assert "start it without torchrun" in run_here(describe.main, "tiny", "name : A").error
