"""A run that is killed goes on as if it had not been, as tests/crash.py says."""

import os

import pytest
from conftest import run_warm


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kills", [1, pytest.param(30, marks=pytest.mark.long)])
def test_killed_runs_end_in_the_same_files_to_the_bit_and_one_of_two_processes_wins(kills):
    done = run_warm("tests/crash.py", "--kills", kills, "--seed", 3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"{kills} kills in ")
