"""The experiment: its runs, what is gathered of them, the documents' tables and words, figures."""

import contextlib
import dataclasses
import json
import re
import shlex
import shutil
from statistics import mean
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, assert_close, run_here

import describe
import metrics
import train
from e2e_data import read_split
from experiments import draw, lora, make, parts, show, tables
from experiments.parts import PARTS, Group, Part
from gpt2 import load_both
from support import drawing
from support.commands import InputError
from support.reading import SPLITS, find_data

MEASURED = [part for part in PARTS if (parts.RESULTS / f"{part}.json").exists()]


@pytest.mark.parametrize("part", MEASURED)
def test_the_results_are_those_of_the_commands_of_today(part, monkeypatch):
    results = json.loads((parts.RESULTS / f"{part}.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(make, "validation_loss",  # by which learning rates are chosen
                        lambda run: tables.kept_loss([results[run.name]])[0])
    assert {run.name: run.command for run in make.runs_of(part)} == {
        name: told["command"] for name, told in results.items()}


@pytest.mark.parametrize("part", PARTS)
def test_every_run_has_its_own_folder_and_a_command_that_its_program_takes(part, parse_only,
                                                                           monkeypatch):
    monkeypatch.setattr(make, "validation_loss", lambda run: 1.0)
    runs = list(make.runs_of(part))
    assert len({run.folder for run in runs}) == len(runs)
    for run in runs:
        program, *arguments = shlex.split(run.command.replace("-m ", ""))[1:]
        parse_only({"train.py": train, "describe.py": describe,
                    "experiments.lora": lora}[program].main, *arguments)


# --------------------------------------------------------------------------------------------------
# What the documents say
# --------------------------------------------------------------------------------------------------


def document(name):
    return (ROOT / name).read_text(encoding="utf-8")


def assert_said(name, *claims):
    text = " ".join(document(name).split())
    for claim in claims:
        assert claim in text


def loss(runs):
    return mean(tables.kept_loss(runs))


def test_the_tables_of_the_documents_are_those_of_the_results_and_all_of_them():
    made, places = {}, set()
    for part in MEASURED:
        for name, (function, *others) in PARTS[part].shows.items():
            if not name.endswith(".png"):
                show.show(name, function, [part, *others], made)
    for name in show.DOCUMENTS:
        assert show.filled(document(name), made) == document(name)
        own = re.findall(r"<!-- results: (\w+) -->", document(name))
        assert document(name).count("<!-- end -->") == len(own)
        places.update(own)
    assert made and places == set(made)


def test_what_they_say_of_the_experiment_was_measured():
    alone, prefixes, tuned = show.read("e2e").values()
    share = f"{mean(tables.bleu(prefixes)) / mean(tables.bleu(tuned)):.0%}"
    for name in (*show.DOCUMENTS, "TUTORIAL.md"):
        assert_said(name, f"reaches {share}")
    left_out = [[told["faults"]["left out"] for told in group] for group in (prefixes, tuned)]
    ranges = [f"{min(values):.0f} to {max(values):.0f}%" for values in left_out]
    assert_said("README.md", f"{ranges[0]} of the values, where fine-tuning leaves out {ranges[1]}",
                f"| a prefix | {prefixes[0]['says']} |", f"| fine-tuning | {tuned[0]['says']} |")
    (shown,) = re.findall(r"\| the base alone \| (The .*?) \.\.\. \|", document("README.md"))
    assert alone[0]["says"].startswith(shown)
    assert len(prefixes) == len(tuned) == 2
    assert_said("README.md", "means of two seeds")


def test_what_they_say_of_other_places_and_lengths_was_measured():
    prefix, *loras, tuned = map(loss, show.read("place").values())
    c_attn, c_fc = (f"{(prefix - own) / (prefix - tuned):.0%}" for own in loras)
    short, _, long = map(loss, show.read("longer").values())
    closed = f"{(short - long) / (short - loss(show.read('length')['fine-tuning'])):.0%}"
    assert_said("RESULTS.md", f"{c_attn} (`c_attn`) and {c_fc} (`c_fc`) of the gap",
                f"the loss falls by {closed} of its distance to fine-tuning's")
    assert_said("TUTORIAL.md", f"{c_attn} (beside `c_attn`) or {c_fc} (beside `c_fc`) of the gap",
                f"four times as long closes {closed} of the gap")


def test_what_they_say_of_bases_was_measured():
    bases = [ways for _, (_, *ways) in
             tables.of_bases(*map(show.read, ("size", "place", "e2e")))]
    losses = [[loss(found) for found in ways] for ways in bases]
    gap_1, gap_2, gap_3 = (prefix - tuned for prefix, tuned in losses)
    prefix_gains, tuned_gains = (first - last for first, last in zip(losses[0], losses[-1]))
    scores = [[mean(tables.bleu(found)) for found in ways] for ways in bases]
    share_1, share_2, share_3 = (f"{100 * prefix / tuned:.0f}" for prefix, tuned in scores)
    kept_1, kept_2, kept_3 = (f"{100 * prefixes[0]['kept'] / tuned[0]['kept']:.1f}"
                              for prefixes, tuned in bases)
    assert_said("RESULTS.md", f"from {gap_1:.3f} to {gap_3:.3f}: fine-tuning gains "
                f"{tuned_gains:.3f} from the larger base, a prefix {prefix_gains:.3f}. In BLEU",
                f"it has {kept_1}, {kept_2} and {kept_3}%")
    assert_said("TUTORIAL.md", f"{gap_1:.2f}, {gap_2:.2f} and {gap_3:.2f} after",
                f"{share_1}, {share_2} and {share_3}% of fine-tuning's BLEU",
                f"{share_3}% after a thousand steps")
    assert_said("README.md", f"{share_1}, {share_2} and {share_3}% of fine-tuning's on")


def test_what_they_say_of_each_modes_best_was_measured():
    (prefix,), (tuned,) = show.read("best").values()
    share = f"{prefix['scores']['BLEU'] / tuned['scores']['BLEU']:.0%}"
    left_out, twice = (prefix["faults"][name] for name in ("left out", "near twice"))
    losses, tuned_losses = ([loss for _, loss in told["validation"]] for told in (prefix, tuned))
    _, *earlier = show.read("e2e").values()
    gap_before = loss(earlier[0]) - loss(earlier[1])
    assert losses == sorted(losses, reverse=True) and min(tuned_losses) == tuned_losses[3]
    assert_said("README.md", f"reaches {share} and leaves out {left_out}%")
    assert_said(
        "RESULTS.md", f"reaches {share} of fine-tuning's", f"in {twice}% of the sentences",
        f"the gap in loss falls from {gap_before:.3f} to {loss([prefix]) - loss([tuned]):.3f}",
        f"to {losses[0]:.3f} after the first, {losses[4]:.3f} after the fifth and {losses[9]:.3f}")
    assert_said("TUTORIAL.md", f"reach {share} and leave out {left_out}% of the values, people")
    assert left_out < 7.5  # what people leave out


# --------------------------------------------------------------------------------------------------
# Choosing learning rates, and LoRA
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("losses, runs", [
    ({}, "0.03-0 0.1-0 0.3-0"), ({0.03: 2, 0.1: 1, 0.3: 2}, "0.03-0 0.1-0 0.3-0 0.1-1 0.1-2"),
    ({0.03: 1, 0.1: 2, 0.3: 3}, "0.03-0 0.1-0 0.3-0 0.01-0"),
    ({0.03: 3, 0.1: 2, 0.3: 1, 1: 5}, "0.03-0 0.1-0 0.3-0 1-0 0.3-1 0.3-2"),
])
def test_a_best_rate_at_the_edge_gets_one_beyond_and_the_best_gets_all_seeds(losses, runs,
                                                                             monkeypatch):
    monkeypatch.setitem(PARTS, "few", Part([Group("", "x", "train.py", middle=0.1)]))
    monkeypatch.setattr(make, "validation_loss",
                        lambda run: losses.get(float(run.name.split("-")[1])))
    assert [run.name for run in make.runs_of("few")] == [
        f"x-{name.replace('-', '-seed-')}" for name in runs.split()]


def test_lora_is_added_to_the_layers_it_stands_beside_and_alone_is_trained():
    model, tokenizer = load_both("tiny")
    tokens = torch.tensor([tokenizer.encode_ordinary(" name : Zizzi")])
    before, names, affine = model(tokens), [*model.state_dict()], model.h[2].mlp.c_fc
    added = lora.Beside(model, "c_fc", 20)
    assert sum(parameter.numel() for parameter in added.parameters()) == 153_600
    assert torch.equal(model(tokens), before) and added() is None
    assert [*model.state_dict()] == names  # no part of the base
    own = added.added[2]
    assert abs(own.down.std() * 256**0.5 - 1) < 0.05  # what goes through it keeps its size
    torch.nn.init.normal_(own.up)
    x = torch.randn(2, 256)
    assert_close(affine(x), x @ (affine.weight + own.down @ own.up) + affine.bias, 1e-3)


def test_a_stopped_run_with_lora_goes_on_and_tells_where_it_was_added(tmp_path, monkeypatch,
                                                                      small_data):
    monkeypatch.setattr(make, "RUNS", tmp_path)
    monkeypatch.setattr(metrics.meteor_data, "find", lambda: None)  # whose tables take long
    monkeypatch.setitem(lora.DECODER, "max_new_tokens", 3)
    run = make.Run("place", "c_attn", "")
    arguments = ["--place", "c_attn", "--rank", 25, "--lr", 0.01, "--data", small_data,
                 "--max-steps", 2, "--out", run.folder]
    with monkeypatch.context() as patched:
        patched.setattr(lora, "score_test_set", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_here(lora.main, *arguments)
    assert "holds other files already" in run_here(lora.main, *arguments).error
    done = run_here(lora.main, *arguments, "--resume")
    assert done.error is None and "Step 2 of 2" in done.stdout
    told = make.gather(run)
    assert (told["settings"]["mode"], told["settings"]["place"]) == ("lora", "c_attn")
    assert told["trained"] == told["kept"] == 153_600 and told["scores"]["BLEU"] is not None
    assert not (run.folder / "training.pt").exists()


# --------------------------------------------------------------------------------------------------
# Preparing, running, gathering
# --------------------------------------------------------------------------------------------------


def test_bases_that_are_missing_are_made_of_tinys_vocabulary(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "RUNS", tmp_path)
    with pytest.raises(InputError, match="bases/64 is missing: --pretrain DIR makes it"):
        parts.make_bases(None)
    made = []
    monkeypatch.setattr(parts, "make_base", lambda *given, vocabulary: made.append(
        (*given, vocabulary)))
    PARTS["size"].prepare("DIR")
    assert made == [("DIR", tmp_path / "bases" / name, parts.BASES[name], ROOT / "models/tiny")
                    for name in ("64", "128")]


def test_examples_are_drawn_with_a_validation_set_of_three_tenths(tmp_path, monkeypatch):
    sample = {split: read_split(find_data("sample"), split) for split in SPLITS}
    monkeypatch.setattr(parts, "find_data", lambda name: find_data("sample"))
    monkeypatch.setattr(parts, "RUNS", tmp_path)
    monkeypatch.setattr(parts, "FEW_RATES", {20: 1})
    for part in ("small", "forms"):
        PARTS[part].prepare(None)
    for split, n in (("train", 20), ("valid", 6), ("test", len(sample["test"]))):
        drawn = [read_split(tmp_path / f"small/data-20-{seed}", split) for seed in (0, 1, 2)]
        assert all(len(own) == n and set(own) <= set(sample[split]) for own in drawn)
        assert len(set(map(tuple, drawn))) == (1 if split == "test" else 3)
    assert read_split(tmp_path / "forms/data", "train") == sample["train"]
    assert read_split(tmp_path / "forms/data", "valid") == sample["valid"][::4]
    assert not (tmp_path / "forms/data/test.jsonl").exists()


def test_it_runs_what_is_not_finished_and_gathers_what_the_runs_tell(tmp_path, monkeypatch,
                                                                     prefix_run):
    finished, called = prefix_run[0], []

    def run(command, cwd, env, **streams):
        called.append((command[1:], cwd, env["OMP_NUM_THREADS"]))
        shutil.copytree(finished, command[command.index("--out") + 1], dirs_exist_ok=True)
        return SimpleNamespace(returncode=0)

    groups = [Group("", "a/prefix", "train.py --lr 1 --data data-{seed}", (7,)),
              Group("", "base", "describe.py tiny", ())]
    for name, value in (("RUNS", tmp_path), ("RESULTS", tmp_path),
                        ("PARTS", {"few": Part(groups, keeps_sentences=True)}),
                        ("SHOWN", (finished / "tables.txt").read_text("utf-8").split("\n")[1]),
                        ("faults", lambda pairs: {"left out": len(pairs)})):
        monkeypatch.setattr(make, name, value)
    monkeypatch.setattr(make.subprocess, "run", run)
    prefix, base = make.runs_of("few")
    (prefix.folder / "left").mkdir(parents=True)  # by one that was stopped before its first step
    prefix.log.write_text(f"$ {prefix.command}\n")
    assert run_here(make.main, "--jobs", 1).error is None
    command = ["train.py", "--lr", "1", "--data", "data-7", "--seed", "7", "--out",
               str(prefix.folder)]
    assert called == [(command, ROOT, "1"),
                      (["describe.py", "tiny", "--out", str(base.folder)], ROOT, "1")]
    assert not (prefix.folder / "left").exists()
    results = tmp_path / "few.json"
    told = json.loads(results.read_text(encoding="utf-8"))
    assert list(told) == ["a/prefix-7", "base"]
    told = told["a/prefix-7"]
    scores = json.loads((finished / "scores.json").read_text())
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    sentences = (finished / "outputs.txt").read_text("utf-8").splitlines()
    assert told["settings"].items() >= {"mode": "prefix", "prefix_length": 3, "seed": 0}.items()
    del told["settings"]
    assert told == {
        "command": prefix.command, "minutes": round(make.minutes(log), 1),
        "validation": [[entry["step"], round(entry["validation_loss"], 4)]
                       for entry in log if "validation_loss" in entry],
        "scores": {name: scores[name] for name in metrics.METRICS},
        "trained": scores["costs"]["trained"], "kept": 3 * 6 * 2 * 256,
        "faults": {"left out": len(sentences)}, "says": sentences[1],
        "training": make.mean_losses(log)}

    (prefix.folder / "scores.json").unlink()  # as if stopped before its end
    results.unlink()
    assert run_here(make.main).error is None and results.exists()
    assert called[2:] == [([*command, "--resume"], ROOT, "1")]
    prefix.log.write_bytes(prefix.log.read_bytes() + "£ é".encode("cp1252"))  # as Windows writes
    assert run_here(make.main, "--list").stdout.count("done  python ") == 2
    make.PARTS["few"] = Part([dataclasses.replace(groups[0], command="train.py --lr 0.5")])
    assert "a/prefix-7 was not made by `python train.py --lr 0.5" in run_here(make.main).error


def test_a_run_that_fails_is_named_with_its_log_and_no_result_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(make, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(make, "PARTS", {"few": Part([Group("", "wrong", "-m metrics a", ())])})
    done = run_here(make.main)
    assert "wrong.log says why" in done.error and "-m metrics a" in done.error
    assert "unrecognized arguments" in (tmp_path / "runs/few/wrong.log").read_text()
    assert not (tmp_path / "results").exists()
    assert "many: the parts are forms, " in run_here(make.main, "many").error
    assert "--jobs must be at least 1" in run_here(make.main, "--jobs", 0).error


def test_losses_are_means_over_steps_and_minutes_those_of_the_median_step():
    log = [{"step": 10 * n, "loss": 10.0 * n, "steps": 10, "seconds": 9000.0 if n == 3 else 6.0}
           for n in range(1, 22)]  # it slept
    log += [{"step": 215, "loss": 1.0, "steps": 5, "seconds": 3.0},
            {"step": 215, "validation_loss": 9.0}]
    assert make.mean_losses(log) == [[100, 55.0], [200, 155.0], [215, 140.3333]]  # of 15 steps
    assert make.minutes(log) == pytest.approx(2.15)


# --------------------------------------------------------------------------------------------------
# Tables and figures
# --------------------------------------------------------------------------------------------------


def cells(markdown):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines()[2:]]


def test_tables_have_means_with_the_lowest_and_highest_and_of_what_was_kept_the_loss():
    half, one = ({"command": command, "scores": {"BLEU": bleu}, "minutes": bleu * 100,
                  "validation": [[1, 3.0], [2, 1.0], [3, 2.0]],
                  "faults": {"left out": 9 * bleu, "contradicted": 0.0, "near twice": 7.0}}
                 for bleu, command in ((0.5, "train.py"), (1.0, "train.py --keep best")))
    groups = {"prefix-tuning": [half, one]}
    both = ["75.00 (50.00 to 100.00)", "1.500 (1.000 to 2.000)", "6.8 (4.5 to 9.0)",
            "0.0 (0.0 to 0.0)", "7.0 (7.0 to 7.0)", "75 (50 to 100)"]
    assert cells(tables.times({"half": [half]}, groups, groups)) == [
        ["50 positions, five epochs", *both], ["half", "50.00", "2.000", "4.5", "0.0", "7.0", "50"],
        ["100 positions, ten epochs", *both]]


@pytest.fixture
def results(monkeypatch, tmp_path):
    """A copy of the results, and of all that shows them."""
    for path in (*parts.RESULTS.glob("*.json"), *(ROOT / name for name in show.DOCUMENTS)):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name in ("RESULTS", "ROOT", "FIGURES"):
        monkeypatch.setattr(show, name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("part, old, new", [
    ("e2e", r'"BLEU": [\d.]+', '"BLEU": 1e999'), ("length", '"base"', '"bass"'),
    ("small", "prefix-50-", "prefix-5-"),
])
def test_damaged_results_are_told_and_no_document_is_written(part, old, new, results):
    path = results / f"{part}.json"
    path.write_text(re.sub(old, new, path.read_text("utf-8")), encoding="utf-8")
    text = (results / "README.md").write_text("<!-- results: scores -->\n<!-- end -->")
    done = run_here(show.main, part)
    assert f"{part}.json" in done.error and "writes it again" in done.error
    assert (results / "README.md").stat().st_size == text


def test_a_place_is_filled_and_what_is_not_measured_stays(results):
    (results / "best.json").unlink()
    place = "<!-- results: {} -->\n{}<!-- end -->\nB\n"
    text = place.format("scores", "old\n") + place.format("e2e", "{}")
    for name in show.DOCUMENTS:
        (results / name).write_text(text.format("old\n"))
    done = run_here(show.main, "e2e", "end")
    for name in show.DOCUMENTS:
        assert (results / name).read_text() == text.format(
            tables.scores_and_costs(show.read("e2e")))
    assert "scores is left as it is: `python -m experiments.make best` makes" in done.stdout
    assert [path.name for path in results.glob("*.png")] == ["losses.png"]
    assert "nonsense: the parts are forms, " in run_here(show.main, "nonsense").error


@pytest.fixture
def figure_of(monkeypatch, results):
    """A function that draws one of the figures, and gives its axes."""
    found, figure_at = [], drawing.figure_at

    @contextlib.contextmanager
    def keep(*given):
        with figure_at(*given) as (figure, axes):
            found.append(figure)
            yield figure, axes

    for module in (draw, drawing):
        monkeypatch.setattr(module, "figure_at", keep)

    def axes_of(part):
        ((name, (function, *others)),) = [
            one for one in PARTS[part].shows.items() if one[0].endswith(".png")]
        show.show(name, function, [part, *others], {})
        return found[0].axes

    return axes_of


def lines_of(axes, form=".1f"):
    """{label: {x: mean, lowest and highest, as a table has them}} of the lines of a figure."""
    found = {}
    for container in axes.containers:
        xs, means = (values.tolist() for values in container.lines[0].get_data())
        bars = [segment[:, 1].tolist() for segment in container.lines[2][0].get_segments()]
        found[container.get_label()] = {
            x: f"{mean:{form}}" + f" ({low:{form}} to {high:{form}})" * (low < high)
            for x, mean, (low, high) in zip(xs, means, bars)}
    return found


def test_forms_are_drawn_as_their_table_has_them_those_not_clipped_in_the_same_color(figure_of):
    (axes,) = figure_of("forms")
    assert [[label, *points.values()] for label, points in lines_of(axes, ".2f").items()] == [
        [cell for cell in row if cell] for row in cells(tables.forms(show.read("forms")))]
    assert [container.lines[0].get_color() for container in axes.containers] == [
        "C0", "C0", "C1", "C2", "C2", "C3"]


def test_few_examples_are_drawn_side_by_side_as_their_table_has_them(figure_of):
    left, right = lines_of(figure_of("small")[0]).values()
    rows = cells(tables.small(show.read("small")))
    for (n, *row), x, y in zip(rows, left, right, strict=True):
        assert row == [left[x], right[y]]
        assert 0.98 * int(n) < x < int(n) < y < 1.02 * int(n)  # no bar hides another


def test_lengths_are_drawn_from_0_with_fine_tuning_as_a_line(figure_of):
    (axes,) = figure_of("length")
    shorter, further = lines_of(axes).values()
    assert ([*shorter], [*further]) == ([0, 1, 5, 20, 50], [50, 100, 200])
    (line,) = [line for line in axes.lines if "fine-tuning" in line.get_label()]
    *bleu, tuned = [row[1] for row in
                    cells(tables.lengths(show.read("length"), show.read("longer")))]
    assert [*shorter.values(), *further.values()] == bleu
    assert f"{line.get_ydata()[0]:.1f}" == tuned.split()[0]


def test_bases_are_drawn_by_their_size_as_a_share_of_fine_tuning(figure_of):
    left, right = figure_of("size")
    assert left.lines[0].get_ydata() == [100, 100]
    ((_, shares),), ((_, gaps),) = lines_of(left, ".0f").items(), lines_of(right, ".3f").items()
    rows = cells(tables.bases(*map(show.read, ("size", "place", "e2e"))))
    assert [[f"{x:,.0f}", shares[x].split()[0] + "%", gaps[x].split()[0]] for x in shares] == [
        [row[1], row[5], row[8]] for row in rows]


def test_the_losses_of_both_modes_are_drawn(figure_of):
    (axes,) = figure_of("e2e")
    assert [line.get_marker() for line in axes.lines] == 4 * ["None", "o"]
    assert axes.get_legend_handles_labels()[1] == ["prefix-tuning", "fine-tuning"]
