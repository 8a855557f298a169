"""README.md and TUTORIAL.md are true: their Python runs, what they say it prints is printed."""

import contextlib
import io
import re

import pytest
from conftest import ROOT

from gpt2 import load_config
from prefix import Prefix, save_prefix

NUMBER = r"-?\d[\d,]*\.?\d*"
TOLERANCE = 0.15  # of a loss, in nats or as a share


def python_blocks(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def agrees(said, printed):
    """Whether two texts are the same, but for decimals that differ by less than TOLERANCE."""
    if re.sub(NUMBER, "#", said) != re.sub(NUMBER, "#", printed):
        return False
    for ours, theirs in zip(re.findall(NUMBER, said), re.findall(NUMBER, printed)):
        is_count = "." not in ours
        ours, theirs = (float(number.replace(",", "")) for number in (ours, theirs))
        if ours != theirs if is_count else abs(ours - theirs) > TOLERANCE * max(1, abs(ours)):
            return False
    return True


def test_the_rule_for_what_is_printed():
    assert agrees("0.71, 2.4", "0.69, 2.43") and not agrees("0.71", "0.99")
    assert agrees("[1, 4] True", "[1, 4] True") and not agrees("61440", "61441")
    assert not agrees("True", "False")


@pytest.mark.parametrize("name, claims", [("TUTORIAL.md", 20), ("README.md", 0)])
def test_every_block_runs_and_prints_what_it_says(name, claims, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    config = load_config("tiny")
    save_prefix(Prefix(config, 3), tmp_path / "runs" / "demo", ROOT / "models" / "tiny")
    names, checked = {}, 0
    for block in python_blocks(name):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(block, f"{name}: {block[:40]!r}", "exec"), names)
        printed = output.getvalue().splitlines()
        for claim in re.findall(r"# -> (.*)$", block, re.MULTILINE):
            assert any(agrees(claim, line) for line in printed), (claim, printed)
            checked += 1
    assert python_blocks(name) and checked >= claims


@pytest.mark.parametrize("name", ["README.md", "TUTORIAL.md", "RESULTS.md"])
def test_every_command_is_one_that_its_program_takes(name, monkeypatch):
    """The arguments of each `python ...` line are parsed; nothing is run."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    line = r"^    (?:python|torchrun --nproc-per-node \d) (\S+\.py) (.*)$"
    commands = re.findall(line, text, re.MULTILINE)
    assert commands
    for program, arguments in commands:
        path = ROOT / program
        assert path.exists(), program
        sources = (path, ROOT / "describe.py", ROOT / "bench" / "training.py")  # that add options
        known = "".join(source.read_text(encoding="utf-8") for source in sources)
        for option in re.findall(r"(?<!\S)--[a-z-]+", arguments.split("  #")[0]):
            assert f'"{option}"' in known, (program, option)
