"""Data of one's own: every form means the same, what is missing is said, options for small data."""

import json
import shlex
import sys
import zipfile
from contextlib import contextmanager

import pytest
import torch
from conftest import random_config, random_examples, random_model, random_prefix
from hypothesis import given, settings
from hypothesis import strategies as st

import describe
import e2e_data
import metrics
import train
from e2e_data import encode_table, read_split, read_table
from gpt2 import load_both, load_tokenizer
from support import drawing
from support.commands import InputError
from support.reading import CSV_NAMES, SRC1_NAMES, ZIP_NAME
from support.record import Record
from support.settings import Settings

QUICK = ("--model", "tiny", "--device", "cpu", "--prefix-form", "direct", "--prefix-length", "2",
         "--num-beams", "1", "--max-new-tokens", "3", "--epochs", "1", "--batch-size", "4")
EXAMPLES = [(f"name : Place {number % 5} | Type : pub",
             f"Place {number % 5} is pub number {number} .") for number in range(12)]


def write_jsonl(folder, **splits):
    """A folder of data with these splits."""
    folder.mkdir(exist_ok=True)
    for split, examples in splits.items():
        lines = [json.dumps({"table": table, "text": text}) + "\n" for table, text in examples]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def run(monkeypatch):
    """Runs a command's main() in this process; scores, which others test, cost nothing."""
    monkeypatch.setattr(metrics, "evaluate",
                        lambda references, outputs: dict.fromkeys(metrics.METRICS, 0.5))

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        module.main()

    return run


# Forms of tables


@pytest.mark.parametrize("value", ["A | food : B", "A\t|\tB", "A |", "A-|-B", "£|£ : B",
                                   "A \ufeff|\ufeff B"])
def test_a_value_with_what_divides_slots_is_refused_and_does_not_become_two(value):
    with pytest.raises(InputError, match="divides slots"):
        read_table([["name", value]])
    with pytest.raises(InputError, match="divides slots"):
        read_table(f"name[{value}]")
    assert read_table([["name", "A|B"]]) == "name : A|B"


@pytest.mark.parametrize("value", ["2014-08-25", "-5", "£20-25", "a[b], c", "3.50"])
def test_own_values_are_one_prompt_in_a_string_an_object_and_pairs(value, tmp_path):
    tables = [f"priceRange : {value}", {"priceRange": value}, [["priceRange", value]]]
    write_jsonl(tmp_path, test=[(table, "x") for table in tables])
    texts = [table for table, _ in read_split(tmp_path, "test")]
    assert texts == [*map(read_table, tables)] == 3 * [tables[0]]


@pytest.mark.parametrize("key, value", [
    ("height [m]", "12"), ("food", "Thai [hot]"), ("a[b]", "c"), ("x, a[b]", "c[d]"), ("[", "]"),
    ("a[b], c", "d[e]")])
def test_brackets_in_own_keys_and_values_stay_from_the_file_to_the_prompt(tmp_path, key, value):
    slots, tokenizer = [["name", "Tower"], [key, value]], load_tokenizer("tiny")
    for slots in (slots, slots[::-1]):
        text = " | ".join(map(" : ".join, slots))
        write_jsonl(tmp_path, test=[(table, "x") for table in (text, dict(slots), slots)])
        tables = [table for table, _ in read_split(tmp_path, "test")]
        assert tables == 3 * [text]
        assert tokenizer.decode(encode_table(tokenizer, tables[0])) == f" {text}<|endoftext|>"


@pytest.mark.parametrize("text", ["name[Cocum", "name[A], foo", "name[A],eatType[pub]", "[A]"])
def test_a_broken_table_in_e2es_form_is_refused(text):
    with pytest.raises(InputError, match=r"`key\[value\], .* was expected, but it is '(name)?\["):
        read_table(text)


def test_a_table_is_read_once_from_the_file_or_the_program_to_the_prompt(tmp_path, monkeypatch):
    read = []
    for module in (e2e_data, describe):
        monkeypatch.setattr(module, "read_table", lambda table: read.append(table) or table)
    write_jsonl(tmp_path, train=EXAMPLES, valid=EXAMPLES[:4], test=EXAMPLES[:5])
    settings = train.settle(Settings(mode="finetune", model="tiny", data=str(tmp_path)))
    e2e_data.encode_splits(settings, *load_both("tiny"))
    assert len(read) == len(EXAMPLES) + 4 + 5
    read.clear()
    run = describe.load_run("tiny", "cpu")
    decoder = {"num_beams": 1, "length_penalty": 1.0, "max_new_tokens": 1}
    describe.describe_tables(run, ["name : A"], decoder)
    list(describe.draw_sentences(run, ["name : B"], 1.0, max_new_tokens=1))
    describe.log_probability(run, "name : C", "C .")
    assert read == ["name : A", "name : B", "name : C"]
    read.clear()
    describe.score_test_set(run, str(tmp_path), decoder, 64)
    assert len(read) == 5


def test_the_example_of_the_readme_is_linearised_as_the_papers_data_are():
    official = "name[Blue Spice], eatType[coffee shop], priceRange[£20-25], near[]"
    table = "name : Blue Spice | Type : coffee shop | price : £ 20 - 25 | near :"
    assert read_table(official) == table
    assert read_table("near[], name[A]") == "near : | name : A" == read_table("near : | name : A")


@pytest.mark.parametrize(
    "table", ["name : A : B | Type : [pub]", "name : a[b], c[d]", "name : x]", "a b : c , d"])
def test_a_table_in_the_models_form_stays_as_it_is(table):
    assert read_table(table) == table


# Forms of files


def test_an_object_keeps_slots_of_one_name_and_numbers_as_they_stand_there(tmp_path):
    table = '{"near": "A", "near": "B", "rating": 4.50, "n": 5}'
    (tmp_path / "test.jsonl").write_text(f'{{"table": {table}, "text": "x"}}')
    assert read_split(tmp_path, "test") == [("near : A | near : B | rating : 4.50 | n : 5", "x")]


def test_of_several_forms_in_a_folder_the_first_is_read_and_they_are_never_mixed(tmp_path):
    row = "mr,ref\nname[A],{}\n".format
    with zipfile.ZipFile(tmp_path / ZIP_NAME, "w") as archive:
        archive.writestr(f"e2e-dataset/{CSV_NAMES['test']}", row("zip"))
    (tmp_path / SRC1_NAMES["test"]).write_text("name : A||src1")
    (tmp_path / CSV_NAMES["test"]).write_text(row("official"))
    (tmp_path / "test.csv").write_text(row("csv"))
    write_jsonl(tmp_path, test=[("name : A", "jsonl")])
    read = []
    for name in (SRC1_NAMES["test"], CSV_NAMES["test"], ZIP_NAME, "test.jsonl", "test.csv"):
        read += [text for _, text in read_split(tmp_path, "test")]
        (tmp_path / name).unlink()
    assert read == ["src1", "official", "zip", "jsonl", "csv"]
    write_jsonl(tmp_path, train=[("name : A", "jsonl")])
    (tmp_path / "test.csv").write_text(row("csv"))
    with pytest.raises(InputError, match="has no test data: test.jsonl is missing"):
        read_split(tmp_path, "test")


@pytest.mark.parametrize(
    "header", ["mr,text", "mr;ref", "ref", "Mr,Ref", "mr,ref,ref", "mr,ref,table,text", ""])
def test_columns_that_do_not_say_what_is_table_and_what_is_text_are_refused(tmp_path, header):
    (tmp_path / "test.csv").write_text(f"{header}\nname[A],A,B,C\n")
    with pytest.raises(InputError, match="test.csv, line [12]: .*columns"):
        read_split(tmp_path, "test")


# Without a validation or test set


@pytest.mark.parametrize("name", ["validation.jsonl", "dev.jsonl", "valid.csv"])
def test_a_set_by_another_name_is_named_and_what_to_call_it(tmp_path, capsys, name):
    write_jsonl(tmp_path, train=EXAMPLES, test=EXAMPLES)
    (tmp_path / name).touch()
    settings = train.settle(Settings(mode="finetune", model="tiny", data=str(tmp_path)))
    e2e_data.encode_splits(settings, *load_both("tiny"))
    assert f"note: not read: {name}; if this split is among them, save it as valid.jsonl" in (
        capsys.readouterr().out)


@pytest.mark.parametrize("missing", [["valid"], ["test"]])
def test_without_validation_or_test_set_training_works_and_says_what_it_leaves_out(
        run, tmp_path, capsys, missing):
    splits = {split: EXAMPLES for split in ("train", "valid", "test") if split not in missing}
    command = ("--mode", "prefix", *QUICK, "--data", write_jsonl(tmp_path / "data", **splits),
               "--out", tmp_path / "run")
    run(train, *command)
    out = capsys.readouterr().out
    assert ("valid.jsonl is missing: no validation loss is measured" in out) == ("valid" in missing)
    assert ("test.jsonl is missing: nothing is described and scored" in out) == ("test" in missing)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("validation_loss" in entry for entry in log) == ("valid" not in missing)
    assert "note: not read" not in out
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "loss.png"} <= names
    assert ({"outputs.txt", "references.txt", "scores.json"} <= names) == ("test" not in missing)
    hint = out.splitlines()[-1]
    assert shlex.split(hint)[1:] == ["describe.py", str(tmp_path / "run"), EXAMPLES[0][0]]

    before = {path: path.stat().st_mtime_ns
              for path in (tmp_path / "run").iterdir() if path.name != ".lock"}
    run(train, *command, "--resume")
    assert "is finished, and is left as it is" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(InputError, match="already holds a run"):
        run(train, *command)
    run(describe, tmp_path / "run", "name[Place 1]", "--device", "cpu", "--max-new-tokens", 3)
    assert capsys.readouterr().out


def test_the_figure_of_a_run_without_validation_set_shows_its_training_alone(monkeypatch, tmp_path):
    drawn, figure_at = [], drawing.figure_at

    @contextmanager
    def watched(path):
        with figure_at(path) as (figure, axes):
            drawn.append(axes)
            yield figure, axes

    monkeypatch.setattr(drawing, "figure_at", watched)
    log = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.0}]
    for more in ([], [{"step": 20, "validation_loss": 1.0}]):
        drawing.draw_losses({"$mine": [log + more]}, tmp_path / "loss.png")
    points = [[(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
              for axes in drawn]
    training = ([10, 20], [3.0, 2.0])
    assert points == [[training], [training, ([20], [1.0])]]


def test_a_run_without_test_set_that_was_stopped_is_not_finished(run, tmp_path, capsys,
                                                                 monkeypatch):
    data = write_jsonl(tmp_path / "data", train=EXAMPLES)
    command = ("--mode", "finetune", "--model", "tiny", "--device", "cpu", "--epochs", 1, "--data",
               data, "--out", tmp_path / "run", "--seed", 0, 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "save_model", lambda *_: exec("raise KeyboardInterrupt"))
        run(train, *command)
    assert not list(tmp_path.glob("run/*/model.safetensors"))
    run(train, *command, "--resume")
    assert "is finished" not in capsys.readouterr().out
    run(train, *command, "--resume")
    assert capsys.readouterr().out.count("is finished") == 2
    assert len(list(tmp_path.glob("run/*/model.safetensors"))) == 2


def test_a_run_does_not_go_on_with_a_set_that_was_not_there_or_is_gone(run, tmp_path):
    data = write_jsonl(tmp_path / "data", train=EXAMPLES, valid=EXAMPLES)
    command = ("--mode", "prefix", *QUICK, "--data", data, "--out", tmp_path / "run")
    run(train, *command)
    (tmp_path / "run" / "loss.png").unlink()  # as if it had been stopped
    (data / "valid.jsonl").rename(tmp_path / "valid.jsonl")
    with pytest.raises(InputError, match="valid_sha256"):
        run(train, *command, "--resume")
    (tmp_path / "valid.jsonl").rename(data / "valid.jsonl")
    write_jsonl(data, test=EXAMPLES)
    with pytest.raises(InputError, match="test_sha256"):
        run(train, *command, "--resume")


def test_without_training_set_nothing_is_trained(run, tmp_path):
    data = write_jsonl(tmp_path / "data", valid=EXAMPLES, test=EXAMPLES)
    with pytest.raises(InputError, match="has no train data: train.jsonl is missing"):
        run(train, "--mode", "prefix", *QUICK, "--data", data, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_test_set_alone_can_be_described_and_looked_at(run, tmp_path, capsys):
    data = write_jsonl(tmp_path / "data", test=EXAMPLES)
    run(describe, "tiny", "--data", data, "--device", "cpu", "--num-beams", 1, "--max-new-tokens",
        3, "--out", tmp_path / "out")
    assert len((tmp_path / "out" / "outputs.txt").read_text().splitlines()) == 5
    capsys.readouterr()
    run(e2e_data, "--data", data)
    shown = capsys.readouterr().out
    assert shown.splitlines()[1].split()[:3] == ["test", "12", "5"]
    assert "The first test table" in shown
    assert not any(line.startswith(("train", "valid")) for line in shown.splitlines())


# Options for small data


def drawn_examples(run, monkeypatch, data, *arguments):
    """What `train` would be given to train on."""
    class Stop(Exception):
        pass

    def stop(settings, model, prefix, encoded, validation, record):
        found.append((encoded, validation))
        raise Stop

    found = []
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(train, "train", stop)
        folder = data.parent / f"run-{len(list(data.parent.iterdir()))}"
        run(train, "--mode", "prefix", *QUICK, "--data", data, "--out", folder, *arguments)
    return found[0]


def test_max_examples_draws_by_the_seed_and_of_more_examples_fewer_are_the_first(
        run, monkeypatch, tmp_path):
    examples = [(f"name : {number}", f"text {number}") for number in range(40)]
    data = write_jsonl(tmp_path / "data", train=examples, valid=examples)
    whole, _ = drawn_examples(run, monkeypatch, data)
    assert len(whole) == 40
    draws = {}
    for number in (5, 40, 99):
        for seed in (0, 1):
            options = ("--max-examples", number, "--seed", seed)
            draws[number, seed], _ = drawn_examples(run, monkeypatch, data, *options)
    for (number, seed), drawn in draws.items():
        assert len(drawn) == min(number, 40)
        assert drawn == draws[99, seed][:number]
        assert all(drawn.count(example) == 1 and example in whole for example in drawn)
    assert sorted(draws[5, 0]) != sorted(draws[5, 1]) and draws[40, 0] != whole
    _, validation = drawn_examples(run, monkeypatch, data, "--max-examples", 5)
    assert len(validation) == 40  # all of it


@given(st.integers(1, 60), st.integers(0, 70))
@settings(max_examples=15, deadline=None)
def test_the_learning_rate_with_warm_up_is_that_of_transformers(n_steps, warmup_steps):
    from transformers import get_linear_schedule_with_warmup

    module = torch.nn.Linear(1, 1)
    _, ours = train.make_optimizer(module, 3e-3, n_steps, warmup_steps)
    theirs = get_linear_schedule_with_warmup(torch.optim.SGD(module.parameters(), 3e-3),
                                             warmup_steps, n_steps)
    for step in range(n_steps):
        assert ours.get_last_lr() == pytest.approx(theirs.get_last_lr(), rel=1e-12, abs=1e-18), step
        ours.optimizer.step()
        theirs.optimizer.step()
        ours.step()
        theirs.step()
    assert ours.get_last_lr() == [0] or warmup_steps >= n_steps


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("mode", ["prefix", "finetune"])
@pytest.mark.parametrize("losses, best", [([3.0, 1.0, 2.0, 1.0], 2), ([4.0, 3.0, 2.0, 1.0], 4),
                                          ([1.0, 2.0, 3.0, 4.0], 1)])
@pytest.mark.parametrize("stop", [None, 3])
def test_kept_are_the_weights_of_the_last_epoch_or_of_the_best_to_the_bit_also_after_a_stop(
        monkeypatch, tmp_path, mode, losses, best, stop):
    config = random_config(3)
    model, encoded = random_model(config, 3), random_examples(3, config.n_vocab, 6)
    prefix = random_prefix(config, 3) if mode == "prefix" else None
    trained = model if prefix is None else prefix
    start, saved, stopped = state_of(trained), {}, []

    def run(keep):
        settings = Settings(mode, lr=0.01, batch_size=2, epochs=4, keep=keep)
        made = Record(tmp_path / keep, {}, lambda trained: saved.update({keep: state_of(trained)}))

        def measure(*_, **options):
            epoch = made.epoch()
            if keep == "last":
                saved[epoch] = state_of(trained)
            elif epoch == stop and not stopped:
                stopped.append(epoch)
                raise KeyboardInterrupt
            return losses[epoch - 1]

        monkeypatch.setattr(train, "validation_loss", measure)
        trained.load_state_dict(start)  # as in a new process
        train.train(settings, model, prefix, encoded, encoded, made)

    run("last")
    if stop:
        with pytest.raises(KeyboardInterrupt):
            run("best")
    run("best")
    for name, tensor in start.items():
        assert torch.equal(saved["best"][name], saved[best][name])
        assert torch.equal(saved["last"][name], saved[4][name])
    assert any(not torch.equal(saved[3][name], saved[4][name]) for name in start)


def test_the_best_epoch_cannot_be_kept_without_validation_set(run, tmp_path):
    data = write_jsonl(tmp_path / "data", train=EXAMPLES, test=EXAMPLES)
    with pytest.raises(InputError, match="--keep best: .* has no validation data"):
        run(train, "--mode", "prefix", *QUICK, "--data", data, "--out", tmp_path / "run", "--keep",
            "best")
    assert not (tmp_path / "run").exists()
