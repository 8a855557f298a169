"""A run that is killed goes on as if it had not been; tests/crash.py is the long form."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_runs_end_in_the_same_files_to_the_bit_and_one_of_two_processes_wins():
    crash = Path(__file__).parent / "crash.py"
    done = subprocess.run([sys.executable, crash, "--kills", "6", "--seed", "3"],
                          capture_output=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("6 kills in ")
