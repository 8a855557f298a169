"""The benchmarks: what they print and when; measurements in processes that end with their parent."""

import os
import re
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, run_here

from experiments.bench import decoding, training
from experiments.bench.alone import alone
from support.commands import InputError

SMALL = "--model", "tiny", "--device", "cpu"


def table_in(text):
    """The rows of what a benchmark prints: the label, then the cells."""
    return [re.split("  +", line) for line in text.splitlines() if re.search(r"  +\d", line)]


def test_a_training_step_is_ours_and_theirs_with_the_same_losses(monkeypatch):
    monkeypatch.setattr(training, "alone", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(training, "BATCH_SIZE", 2)
    done = run_here(training.main, *SMALL, "--steps", 1)
    assert done.error is None, done.stderr
    rows = table_in(done.stdout)
    assert [(row[0], len(row)) for row in rows] == [
        ("prefix: seconds a step", 4), ("prefix: GiB at the peak", 4),
        ("finetune: seconds a step", 4), ("finetune: GiB at the peak", 4),
        ("finetune / prefix: seconds a step", 3), ("finetune / prefix: GiB at the peak", 3)]
    monkeypatch.setattr(training.Theirs, "step", lambda *_: 0.5)
    assert "the losses of step 1 differ" in run_here(training.main, *SMALL, "--steps", 1).error


def test_rows_are_printed_as_they_come_by_a_process_that_holds_no_model(monkeypatch):
    n_printed = []

    def measure(function, *arguments):
        n_printed.append(len(table_in(sys.stdout.buffer.getvalue().decode())))
        return [1.0, 2.0] if function is training.time_steps else 3.0

    monkeypatch.setattr(training, "alone", measure)
    monkeypatch.setattr(training, "GPT2", lambda config: 1 / 0)
    done = run_here(training.main, *SMALL)
    assert n_printed == [0, 1, 1, 2, 3, 3]
    assert table_in(done.stdout)[:2] == [["prefix: seconds a step", "1.00", "2.00", "2.00"],
                                         ["prefix: GiB at the peak", "3.00", "3.00", "1.00"]]


def test_a_measurement_is_made_in_another_process_and_its_troubles_are_told(capfd):
    assert alone(os.getppid) == os.getpid()
    assert alone(signal.getsignal, signal.SIGINT) == signal.SIG_IGN  # Ctrl-C is its parent's
    with pytest.raises(InputError, match="was killed .status -9., perhaps because memory was full"):
        alone(exec, "import os; os.kill(os.getpid(), 9)")
    assert not capfd.readouterr().err
    with pytest.raises(SystemExit, match="1"):
        alone(exec, "from support.files import InputError; raise InputError('no such data')")
    assert capfd.readouterr().err == "error: no such data\n"


@pytest.mark.parametrize("end", [
    lambda process: process.kill(),
    lambda process: os.killpg(process.pid, signal.SIGINT),  # as a terminal does
], ids=["killed", "Ctrl-C"])
def test_a_measurement_ends_with_the_process_that_asked_for_it(end):
    work = "print('begun', flush=True); import time; time.sleep(600)"
    command = ("from experiments.bench.alone import alone; from support.files import run_command; "
               f"run_command(lambda: alone(exec, {work!r}))")
    process = subprocess.Popen([sys.executable, "-c", command], cwd=ROOT, encoding="utf-8",
                               start_new_session=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    assert process.stdout.readline() == "begun\n"
    end(process)
    _, said = process.communicate(timeout=60)  # all that could write there have ended
    assert said in ("", "\nstopped\n")


def test_decoding_compares_ways_that_write_the_same_and_prints_each_as_it_comes(monkeypatch):
    n_printed, find = [], decoding.beam_search

    def search(*given, **options):
        n_printed.append(len(table_in(sys.stdout.buffer.getvalue().decode())))
        return find(*given, **options)

    monkeypatch.setattr(decoding, "beam_search", search)
    done = run_here(decoding.main, *SMALL, "--tables", 2, "--max-new-tokens", 2, "--batch-sizes", 2)
    assert done.error is None, done.error
    rows = table_in(done.stdout)
    assert [row[0] for row in rows] == [
        "ours", "generate, 2 at a time", "generate, 1 at a time", "each row its prefix, one batch",
        "one prefix after the other", "PEFT, one after the other"]
    assert {row[-1] for row in rows} == {"2 of 2"}
    assert n_printed == [0, 3, 4, 4]
