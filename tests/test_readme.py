"""The README is true where a program can tell."""

import re

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_files_has_their_lengths():
    rows = re.findall(r"^\| \[`([^`]+)`\]\(([^)]+)\) \| .* \| ([\d,]+) \|$", README, re.MULTILINE)
    assert len(rows) > 10
    for name, link, lines in rows:
        assert name == link
        files = [ROOT / name] if (ROOT / name).is_file() else sorted((ROOT / name).glob("*.py"))
        count = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
        assert int(lines.replace(",", "")) == count, name


def test_every_file_that_it_names_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links and all((ROOT / link).exists() for link in links)


def test_every_program_has_a_row():
    programs = {path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.py"), *(ROOT / "bench").glob("*.py")]}
    assert sorted(program for program in programs if f"[`{program}`]" not in README) == ["bench/twins.py"]
