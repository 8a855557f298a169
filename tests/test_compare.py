"""Comparing runs: means, spreads, costs, figures, and what is told where there is no run."""

import json
import re
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import run_here

import compare
from support import drawing
from support.commands import InputError
from support.files import sha256
from support.settings import Settings


def write_run(folder, bleu, **settings):
    """The files of a finished run that `compare` reads."""
    folder.mkdir(parents=True)
    defaults = asdict(Settings(mode="prefix", model="tiny", lr=1e-3,
                               seed=len(list(folder.parent.iterdir()))))
    scores = {"BLEU": bleu, "NIST": 8.0, "METEOR": None, "ROUGE_L": 0.7, "CIDEr": 2.0}
    costs = {"trained": 1000, "kept": 10, "seconds_per_step": bleu, "tokens_per_second": 100.0,
             "peak_memory": 2**30}
    log = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "validation_loss": 2.5}]
    (folder / "run.json").write_text(json.dumps(defaults | settings))
    (folder / "scores.json").write_text(json.dumps(scores | {"costs": costs, "signature": {}}))
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    return folder


def change_scores(folder, **changes):
    """Writes the scores.json of a run anew, with such values."""
    scores = json.loads((folder / "scores.json").read_text())
    (folder / "scores.json").write_text(json.dumps(scores | changes))


def describe_again(folder, settings=None, decoder={}, **signature):
    """Makes of a run's folder one as describe.py --out writes it: scores without run.json."""
    (folder / "run.json").unlink(missing_ok=True)
    change_scores(folder, signature={
        "mode": "prefix", "model": "tiny", "data": "sample", "seed": None,
        "settings": settings or {}, "decoder": decoder, "test_sha256": "a", **signature})
    return compare.read_run(folder)


def write_runs(folder, changes):
    """The finished runs of such settings, read again."""
    first = len(list(folder.iterdir()))
    return [compare.read_run(write_run(folder / str(number), **({"bleu": 0.5} | change)))
            for number, change in enumerate(changes, first)]


def test_seeds_become_a_mean_and_a_spread(tmp_path):
    runs = write_runs(tmp_path, [{"bleu": bleu} for bleu in (0.60, 0.66, 0.63)])
    mean, spread = compare.score_rows(compare.group_runs(runs))
    assert mean[0] == "prefix 5, tiny, e2e, mean of 3 seeds"
    assert spread[0].strip() == "highest - lowest"
    assert mean[1]["BLEU"] == pytest.approx(0.63) and spread[1]["BLEU"] == pytest.approx(0.06)
    assert mean[1]["METEOR"] is None and spread[1]["METEOR"] is None and spread[1]["NIST"] == 0


def test_a_run_on_a_system_that_does_not_tell_its_memory_is_compared_like_any_other(tmp_path):
    folder = write_run(tmp_path / "run", 0.6)
    change_scores(folder, costs={"peak_memory": None})
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 3.0, "peak_memory": null}\n')
    done = run_here(compare.main, folder, "--out", tmp_path)
    assert done.error is None and (tmp_path / "losses.png").exists()
    for damaged, reason in (('{"step": 1, "loss": null}', "line 1 holds what is no number"),
                            ('{"loss": 1.0}', "a line says of no step"), ("", "it holds no loss"),
                            ('{"step": 2, "validation_loss": 2.5}', "it holds no loss")):
        (folder / "log.jsonl").write_text(damaged + "\n" * bool(damaged))
        assert f"log.jsonl is corrupt; leave this run out ({reason})" in run_here(
            compare.main, folder).error


def test_runs_of_other_settings_or_of_the_same_seed_are_groups_of_their_own(tmp_path):
    changes = [{}, {"prefix_length": 10}, {"prefix_form": "direct"}, {"model": "gpt2"},
               {"data": "sample"}, {"mode": "finetune"}, {"lr": 0.5}, {"epochs": 9}]
    groups = compare.group_runs(write_runs(tmp_path, changes))
    assert [len(runs) for runs in groups.values()] == [1] * len(changes)
    again = [compare.read_run(tmp_path / "0") for _ in range(2)]  # no spread over seeds
    assert list(compare.group_runs(again)) == ["prefix 5, tiny, e2e", "prefix 5, tiny, e2e (2)"]


def test_an_unfinished_run_is_marked_and_is_no_seed_of_finished_ones(tmp_path):
    described = [describe_again(write_run(tmp_path / str(seed), 0.5), asdict(
        Settings(mode="prefix", model="tiny")) | mark, seed=seed)
        for seed, mark in enumerate([{}, {}, {"unfinished": True}])]
    groups = compare.group_runs(described)
    assert {label: len(runs) for label, runs in groups.items()} == {
        "prefix 5, tiny, sample": 2, "prefix 5, tiny, sample, not finished": 1}
    assert list(compare.group_runs(described[2:])) == ["prefix 5, tiny, sample, not finished"]


def test_what_several_runs_say_of_other_data_stays_apart(tmp_path):
    runs = [describe_again(write_run(tmp_path / str(number), 0.5), settings, {"num_beams": 1},
                           seed=seed, test_sha256=test_sha256)
            for number, (settings, seed, test_sha256) in enumerate([
                ({"prefix_length": 5, "data": "e2e"}, 0, "a"),
                ({"prefix_length": 5, "data": "e2e"}, 1, "b"),
                ({"prefix_length": 50, "data": "e2e"}, 0, "a"),
                ({"adapter": "x"}, None, "a"), ({"adapter": ["y"]}, None, "a")])]
    assert list(compare.group_runs(runs)) == [
        "prefix 5, tiny, sample", "prefix 5, tiny, sample (2)", "prefix 50, tiny, sample",
        "prefix, tiny, sample, adapter x", "prefix, tiny, sample, adapter ['y']"]
    with pytest.raises(InputError, match="a score, a cost or a length is no number"):
        describe_again(tmp_path / "0", {"prefix_length": "5"})


def test_prefixes_stand_by_their_length_after_the_base_and_fine_tuning_last(tmp_path):
    """In whatever order they are given: a shell sorts length-10 before length-3."""
    runs = write_runs(tmp_path, [{"mode": "finetune"}, {"prefix_length": 10},
                                 {"prefix_length": 50}, {"prefix_length": 3}])
    runs.append(describe_again(write_run(tmp_path / "base", 0.2), mode="the base alone"))
    labels = [label.split(",")[0] for label in compare.group_runs(runs)]
    assert labels == ["the base alone", "prefix 3", "prefix 10", "prefix 50", "finetune"]


def test_a_label_names_what_distinguishes_the_runs_of_a_mode_and_stays_short(tmp_path):
    words = "<|endoftext|> name : Cocum | Type : pub<|endoftext|> Cocum is a pub" + 20 * " ."
    runs = write_runs(tmp_path, [{"lr": 0.1, "prefix_words": words},
                                 {"mode": "finetune", "lr": 1e-3, "prefix_words": None}])
    assert list(compare.group_runs(runs)) == ["prefix 5, tiny, e2e", "finetune, tiny, e2e"]
    runs += write_runs(tmp_path, [{"prefix_words": None}, {"prefix_words": words},
                                  {"prefix_words": words + " !"}])
    labels = list(compare.group_runs(runs))
    assert len(labels) == 5 and all(len(label) < 100 for label in labels)
    assert labels[0].startswith("prefix 5, tiny, e2e, lr 0.1, prefix_words <|endoftext|> name")
    assert labels[1] == "prefix 5, tiny, e2e, lr 0.001"


def test_the_command_prints_both_tables_and_draws_both_figures(tmp_path):
    folders = [write_run(tmp_path / "a", 0.5), write_run(tmp_path / "b", 0.6, prefix_length=10)]
    done = run_here(compare.main, *folders, "--out", tmp_path)
    assert done.error is None, done.error
    assert "prefix 5, tiny, e2e    50.00" in done.stdout
    costs = [line.split()[-5:] for line in done.stdout.splitlines()[-4:-2]]
    assert costs == [["1,000", "10", speed, "100", "1.00"] for speed in ("0.500", "0.600")]
    for figure in ("losses.png", "curve.png"):
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")
        assert str(tmp_path / figure) in done.stdout


def write_sentences(folder, tables, outputs, references):
    """The other files of a run; scores.json knows them."""
    files = {"tables.txt": "\n".join(tables) + "\n", "outputs.txt": "\n".join(outputs) + "\n",
             "references.txt": "\n\n".join(references) + "\n"}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    sums = {name: sha256(folder / name) for name in (*files, "log.jsonl")}
    change_scores(folder, signature={"files": sums})


def test_each_run_and_a_person_are_shown_on_the_same_tables_spread_over_the_test_set(tmp_path):
    folders, tables = [write_run(tmp_path / name / "run", 0.5) for name in "xy"], [*"ABCD"]
    for folder, says in zip(folders, ("abcd", "efgh")):
        write_sentences(folder, tables, says, ["One .\nUno .", "Two .", "Three .", "Four ."])
    blocks = compare.format_sentences(folders, 2).split("\n\n")
    shown = [[line.split(maxsplit=1) for line in block.replace("a person", "person").splitlines()]
             for block in blocks]
    x, y = map(str, folders)
    assert shown == [[["table", "A"], [x, "a"], [y, "e"], ["person", "One ."]],
                     [["table", "C"], [x, "c"], [y, "g"], ["person", "Three ."]]]
    done = run_here(compare.main, *folders, "--out", tmp_path, "--tables", 9)
    assert done.error is None and re.findall("(?m)^table +(.)$", done.stdout) == tables
    assert "--tables must be" in run_here(compare.main, *folders, "--tables", "-1").error
    write_sentences(folders[1], [*"ABCE"], "efgh", "1234")
    assert f"{y} describes other tables than {x}" in run_here(
        compare.main, *folders, "--tables", 1).error


def test_a_folder_of_runs_stands_for_its_runs(tmp_path):
    several = [write_run(tmp_path / "several" / f"length-5-seed-{seed}", 0.5) for seed in range(3)]
    (tmp_path / "several" / "losses.png").write_bytes(b"")  # what train.py draws beside them
    single = write_run(tmp_path / "one" / "run", 0.6, mode="finetune")
    assert compare.runs_in([tmp_path / "several", single]) == [*several, single]
    done = run_here(compare.main, tmp_path / "several", single, "--out", tmp_path)
    assert done.error is None and "mean of 3 seeds" in done.stdout
    assert "holds no scores" in run_here(compare.main, tmp_path).error
    (several[1] / "scores.json").unlink()  # stopped, say
    done = run_here(compare.main, tmp_path / "several", single, "--out", tmp_path)
    assert "mean of 2 seeds" in done.stdout
    assert f"{several[1]} is left out: it holds no scores (yet)" in done.stderr


@pytest.mark.parametrize("name", ["tables.txt", "outputs.txt", "references.txt", "log.jsonl"])
def test_files_that_scores_json_was_not_made_with_are_refused(tmp_path, name):
    folder = write_run(tmp_path / "run", 0.5)
    write_sentences(folder, "AB", "ab", "12")
    assert run_here(compare.main, folder, "--tables", 2, "--out", tmp_path).error is None
    for damage in (lambda path: path.write_bytes(path.read_bytes() + b"x"), Path.unlink):
        damage(folder / name)
        assert f"{folder / name} is not what {folder / 'scores.json'} was made with" in run_here(
            compare.main, folder, "--tables", 2, "--out", tmp_path).error


@pytest.fixture
def figures(monkeypatch):
    """The axes of the figures that are drawn in this test."""
    drawn = []

    @contextmanager
    def noted(path, real=drawing.figure_at):
        with real(path) as (figure, axes):
            yield figure, axes
            drawn.append(axes)

    monkeypatch.setattr(drawing, "figure_at", noted)
    return drawn


def test_the_curve_has_a_line_for_each_setting_and_a_point_for_each_length(tmp_path, figures):
    kinds = [(0.6, 10, "network"), (0.5, 1, "network"), (0.61, 10, "network"),
             (0.68, 10, "network"), (0.7, 3, "direct")]
    runs = write_runs(tmp_path, [{"bleu": bleu, "prefix_length": length, "prefix_form": form}
                                 for bleu, length, form in kinds])
    compare.draw_curve(compare.group_runs(runs), tmp_path / "curve.png")
    (axes,) = figures
    drawn = {bars.get_label(): (*map(list, bars.lines[0].get_data()),
                                bars.lines[2][0].get_segments())
             for bars in axes.containers}
    assert list(drawn) == ["tiny, e2e, prefix_form network", "tiny, e2e, prefix_form direct"]
    lengths, means, spreads = drawn["tiny, e2e, prefix_form network"]
    assert lengths == [1, 10] and means == pytest.approx([50, 63])
    assert spreads[1][:, 1] == pytest.approx([60, 68])
    assert drawn["tiny, e2e, prefix_form direct"][:2] == ([3], pytest.approx([70]))


def test_of_each_runs_losses_those_of_training_are_a_line_and_those_of_validation_dots(tmp_path,
                                                                                       figures):
    groups = compare.group_runs(write_runs(tmp_path, [{}, {}, {"mode": "finetune"}]))
    logs = {label: [run.log for run in runs] for label, runs in groups.items()}
    compare.draw_losses(logs, tmp_path / "losses.png")
    (axes,) = figures
    drawn = [(line.get_marker(), [*zip(*line.get_data())]) for line in axes.lines]
    assert drawn == 3 * [("None", [(1, 3.0), (2, 2.0)]), ("o", [(2, 2.5)])]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(groups)


def test_a_size_that_is_no_number_is_told_and_one_of_0_is_shown(tmp_path):
    folders = [write_run(tmp_path / name, 0.5) for name in "ab"]
    for value, message in (("many", "scores.json is corrupt"), (0, None)):
        change_scores(folders[0], costs={"trained": value, "seconds_per_step": value})
        error = run_here(compare.main, *folders, "--out", tmp_path).error
        assert message in error if message else error is None


def test_a_setting_that_no_run_has_is_refused(tmp_path):
    folder = write_run(tmp_path / "run", 0.5, notes=[1])
    assert "notes is '[1]', which no run has" in run_here(compare.main, folder).error


def test_a_dollar_in_a_name_is_a_dollar(tmp_path, figures):
    drawing.draw_losses({"a$_$": [[{"step": 1, "loss": 2.0}]]}, tmp_path / "losses.png")
    assert figures[0].get_legend().get_texts()[0].get_text() == r"a\$_\$"
