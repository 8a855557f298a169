"""The README is true where a program can tell."""

import re

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_file_that_it_links_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links and all((ROOT / link).exists() for link in links)


def test_it_names_every_program():
    programs = [*ROOT.glob("*.py"), *(ROOT / "experiments").glob("**/*.py")]
    names = {path.name for path in programs} - {"alone.py", "twins.py", "__init__.py"}  # no programs
    assert len(names) > 10
    assert [name for name in sorted(names) if name not in README] == []
