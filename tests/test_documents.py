"""README.md and TUTORIAL.md are true: their Python runs and prints what they say, as do their
commands; what they quote stands there. RESULTS.md's commands, which take hours, are parsed."""

import codeop
import contextlib
import importlib
import io
import re
import shlex

import pytest
from conftest import ROOT, run_here

import metrics
from e2e_data import read_split
from gpt2 import load_config
from prefix import Prefix, save_prefix
from support.reading import find_data

NUMBER = r"-?\d[\d,]*\.?\d*"
TOLERANCE = 0.15  # of a loss, in nats or as a share


def python_blocks(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def agrees(said, printed, tolerance=TOLERANCE):
    """Whether two texts are the same, but for decimals that differ by at most the tolerance.

    Counts are exact, and so is a nothing that is said to two decimals.
    """
    if re.sub(NUMBER, "#", said) != re.sub(NUMBER, "#", printed):
        return False
    for ours, theirs in zip(re.findall(NUMBER, said), re.findall(NUMBER, printed)):
        is_exact = "." not in ours or ours.startswith("0.00")
        ours, theirs = (float(number.replace(",", "")) for number in (ours, theirs))
        if abs(ours - theirs) > (0 if is_exact else tolerance * max(1, abs(ours))):
            return False
    return True


def test_the_rule_for_what_is_printed():
    assert agrees("0.71, 2.4", "0.69, 2.43") and not agrees("0.71", "0.99")
    assert agrees("[1, 4] True", "[1, 4] True") and not agrees("61440", "61441")
    assert not agrees("True", "False") and not agrees("0.00", "0.03")
    assert agrees("0.71", "9.9", float("inf")) and not agrees("7", "8", float("inf"))


def run_blocks(name, folder, change=lambda block: block, tolerance=TOLERANCE):
    """Runs a document's blocks in a folder; returns how many of their claims were checked."""
    (folder / "models").symlink_to(ROOT / "models")
    save_prefix(Prefix(load_config("tiny"), 3), folder / "runs/demo/prefix", ROOT / "models/tiny")
    names, checked = {}, 0
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(metrics.meteor_data, "find", lambda: None)  # whose tables take long
        for block in python_blocks(name):
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(change(block), f"{name}: {block[:40]!r}", "exec"), names)
            printed = output.getvalue().splitlines()
            for claim in re.findall(r"# -> (.*)$", block, re.MULTILINE):
                assert any(agrees(claim, line, tolerance) for line in printed), (claim, printed)
                checked += 1
    return checked


@pytest.mark.long
def test_every_block_runs_and_prints_what_it_says(tmp_path):
    assert run_blocks("TUTORIAL.md", tmp_path) >= 20


def test_every_block_runs_with_fewer_steps_and_prints_what_no_training_changes(tmp_path):
    def shorten(block):
        for whole, part in (("[:100]", "[:2]"), ("[::4]", "[::40]"),
                            ('"valid")[:20]', '"valid")[:2]'), ('"valid")))', '"valid")))[:3]')):
            block = block.replace(whole, part)
        return block

    assert run_blocks("TUTORIAL.md", tmp_path, shorten, tolerance=float("inf")) >= 20


def test_every_block_of_the_readme_runs(tmp_path):
    run_blocks("README.md", tmp_path)


def test_what_the_tutorial_quotes_from_a_module_stands_there():
    text = (ROOT / "TUTORIAL.md").read_text(encoding="utf-8")
    quotes = re.findall(r"^```python \.noeval (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert quotes and "```python g" not in text  # jupytext would make a cell of it
    for module, quote in quotes:
        lines = [line.strip() for line in quote.splitlines()]
        of_module = [line.strip() for line in (ROOT / module).read_text("utf-8").splitlines()]
        assert any(of_module[at : at + len(lines)] == lines for at in range(len(of_module))), quote


@pytest.mark.parametrize("name", ["TUTORIAL.md", "README.md"])
def test_every_block_can_be_pasted_line_by_line_into_a_prompt(name):
    for block in python_blocks(name):
        compiler, statement = codeop.CommandCompiler(), []
        for line in [*block.splitlines(), ""]:  # a prompt ends what is indented at an empty line
            statement.append(line)
            if not any(statement) or compiler("\n".join(statement), symbol="single") is not None:
                statement = []
        assert not statement, (name, statement)


def prose(text):
    """What is left of a document without blocks, tables, figures and tags."""
    text = re.sub(r"^```.*?^```$|^    .*?$|^\|.*?$|^!\[.*?$", "", text, flags=re.M | re.S)
    return re.sub(r"<[^>]*>", "", text)


def test_the_tutorial_fits_into_two_evenings():
    first, second = (ROOT / "TUTORIAL.md").read_text(encoding="utf-8").split("# Another evening")
    assert len(prose(first).split()) <= 2000 and len(prose(second).split()) <= 700


def test_what_the_tutorial_says_of_the_scores_is_what_they_make_of_broken_sentences():
    text = (ROOT / "TUTORIAL.md").read_text(encoding="utf-8")
    (block,) = [block for block in python_blocks("TUTORIAL.md") if "metrics.Scorer(" in block]
    names, output = {"read_split": read_split, "find_data": find_data}, io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(block, names)
    table, _, _ = output.getvalue().rpartition("\n0.94")
    assert f"```text\n{table}\n```" in text
    for edit, claim in (("another food", "an untrue value, costs {} to {}%"),
                        ("synonyms", "synonyms, which change nothing, cost {} to {}%")):
        costs = [round(100 - 100 * share) for share in names["kept"][edit].values()]
        assert claim.format(min(costs), max(costs)) in " ".join(text.split())


# --------------------------------------------------------------------------------------------------
# Commands
# --------------------------------------------------------------------------------------------------


def commands(name):
    """(program, its arguments, whether it is said to take long) of each command of a document."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    line = r"^    (?:python|torchrun --nproc-per-node \d) (-m (?!venv)[\w.]+|\S+\.py)(.*)$"
    for program, rest in re.findall(line, text, re.MULTILINE):
        is_long = name == "RESULTS.md" or re.search(r"#.*\b(minutes?|hours?|a run each)\b", rest)
        yield program, shlex.split(rest, comments=True), bool(is_long)


def main_of(program):
    name = program.removeprefix("-m ").removesuffix(".py").replace("/", ".")
    name = "metrics.__main__" if name == "metrics" else name
    assert (ROOT / f"{name.replace('.', '/')}.py").exists(), program
    return importlib.import_module(name).main


@pytest.mark.parametrize("name", ["README.md", "TUTORIAL.md", "RESULTS.md"])
def test_every_command_is_one_that_its_program_takes(name, parse_only):
    found = list(commands(name))
    assert found
    for program, arguments, _ in found:
        parse_only(main_of(program), *arguments)


@pytest.mark.parametrize("name", ["README.md", "TUTORIAL.md"])
def test_every_command_that_is_quick_runs(name, tmp_path, monkeypatch, prefix_run, finetune_run,
                                          small_data):
    """In a folder where each run that is named is a small one, and DIR is data of one's own."""
    monkeypatch.chdir(tmp_path)
    words = {"DIR": small_data, "REFERENCES": prefix_run[0] / "references.txt",
             "OUTPUTS": prefix_run[0] / "outputs.txt", "[OUTPUTS": prefix_run[0] / "outputs.txt",
             "...]": finetune_run[0] / "outputs.txt"}
    n_run = 0
    for program, arguments, is_long in commands(name):
        if is_long:
            continue
        for argument in arguments:
            if argument.startswith("runs/") and not (tmp_path / argument).exists():
                (tmp_path / argument).parent.mkdir(parents=True, exist_ok=True)
                run = finetune_run if "finetune" in argument else prefix_run
                (tmp_path / argument).symlink_to(run[0])
        done = run_here(main_of(program), *(words.get(argument, argument)
                                            for argument in arguments))
        assert done.error is None and done.stdout.strip(), (program, arguments, done.error)
        n_run += 1
    assert n_run >= {"README.md": 5, "TUTORIAL.md": 1}[name]
