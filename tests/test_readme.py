"""The README is true where a program can tell."""

import re

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_file_that_it_names_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links and all((ROOT / link).exists() for link in links)


def test_it_names_every_program():
    programs = {"models/tiny/make.py", "data/sample/make.py"}
    for folder in (ROOT, ROOT / "bench", ROOT / "sentences"):
        programs |= {path.relative_to(ROOT).as_posix() for path in folder.glob("*.py")}
    programs.remove("bench/twins.py")  # it has no main
    assert len(programs) > 15
    assert [program for program in sorted(programs) if f"[`{program}`]" not in README] == []
