"""The versions that are promised are those that are tested."""

import re
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from conftest import ROOT

RUNS = dict(re.findall(r"run-versions (\w+) ([\d.]+)", (ROOT / ".ci/run").read_text()))


def requirements():
    """The requirements of users and of tests."""
    lines = [line.partition("#")[0].strip() for name in ("requirements", "requirements-dev")
             for line in (ROOT / f"{name}.txt").read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("-r")]


def constraints(name):
    """{package: the version} of one of the environments that are tested."""
    lines = (ROOT / f".ci/constraints{name}.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(package): Version(version) for package, version in pairs}


@pytest.mark.parametrize("name", ["", "-lowest", "-newest"])
def test_every_tested_version_is_within_its_range(name):
    tested = constraints(name)
    for requirement in requirements():
        assert tested.pop(canonicalize_name(requirement.name)) in requirement.specifier
    assert not tested


def test_the_lowest_versions_tested_are_the_lowest_promised():
    lowest = constraints("-lowest")
    for requirement in requirements():
        (promised,) = [one.version for one in requirement.specifier if one.operator == ">="]
        assert lowest[canonicalize_name(requirement.name)] == Version(promised)


def test_the_readme_promises_the_python_and_pytorch_that_are_tested():
    found = re.search(r"Python ([\d.]+) and PyTorch ([\d.]+) or later .*?Python ([\d.]+) with"
                      r"\s+PyTorch ([\d.]+)", (ROOT / "README.md").read_text(), re.DOTALL)
    lowest, newest = (constraints(f"-{name}")["torch"] for name in ("lowest", "newest"))
    assert (found[1], found[3]) == (RUNS["lowest"], RUNS["newest"])
    assert Version(found[2]) == lowest and newest.base_version.startswith(found[4])


def test_an_older_python_is_told_which_is_needed():
    below = re.sub(r"\.(\d+)", lambda found: f", {int(found[1]) - 1}", RUNS["lowest"])
    for code, status in ((f"sys.version_info = ({below}, 18)", 1), ("pass", 0)):
        done = subprocess.run([sys.executable, "-c", f"import sys; {code}; import support"],
                              cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == status
        if status:
            assert done.stderr == (f"error: Python {RUNS['lowest']} or later is needed, but this "
                                   "is Python 3.9.18\n")


def test_a_clone_that_would_change_line_ends_has_the_same_bytes(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone, so there is no git to ask")
    files = {}
    for ends in ("true", "false"):  # true: git's setting on Windows
        folder = tmp_path / ends
        subprocess.run(["git", "clone", "-q", "-c", f"core.autocrlf={ends}", ROOT, folder],
                       check=True)
        files[ends] = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*")
                       if path.is_file() and ".git" not in path.parts}
    assert files["true"] == files["false"]
