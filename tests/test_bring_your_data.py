"""Data of one's own: every form means the same, what is missing is said, options for small data."""

import csv
import io
import json
import shlex
import shutil
import sys
import zipfile
from contextlib import contextmanager

import pytest
import torch
from conftest import random_config, random_model, random_prefix
from hypothesis import given, settings
from hypothesis import strategies as st

import describe
import e2e_data
import metrics
import train
from e2e_data import KEYS, encode_table, group_by_table, read_split, read_table
from gpt2 import load_tokenizer
from support import drawing, record
from support.files import InputError
from support.reading import CSV_NAMES, SRC1_NAMES, ZIP_NAME, find_data
from support.record import Record
from support.run_folder import read_settings
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


def as_csv(header, rows):
    file = io.StringIO(newline="")
    csv.writer(file).writerows([header, *rows])
    return file.getvalue()


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

keys = st.sampled_from(["name", "eatType", "priceRange", "familyFriendly", "customer rating"])
values = st.text("abC 1.,:'é", min_size=1).map(lambda text: " ".join(text.split())).filter(bool)
tables = st.lists(st.tuples(keys, values), min_size=1, max_size=5)


def as_official(slots):
    return ", ".join(f"{key}[{value}]" for key, value in slots)


def as_it_stands_there(slots):
    return " | ".join(f"{key} : {value}" for key, value in slots)


def as_model_reads(slots):
    return as_it_stands_there((KEYS.get(key, key), value) for key, value in slots)


@pytest.mark.parametrize("value", ["A | food : B", "A\t|\tB", "A |", "A-|-B", "£|£ : B",
                                   "A \ufeff|\ufeff B"])
def test_a_value_with_what_divides_slots_is_refused_and_does_not_become_two(value):
    with pytest.raises(InputError, match="divides slots"):
        read_table([["name", value]])
    with pytest.raises(InputError, match="divides slots"):
        read_table(f"name[{value}]")
    assert read_table([["name", "A|B"]]) == "name : A|B"


@given(tables, st.sampled_from([" ", "\n", "  \t", "\u2028"]))
def test_e2es_form_alone_is_renamed_and_the_others_stay_as_they_are(slots, white):
    renamed, as_it_stands = as_model_reads(slots), as_it_stands_there(slots)
    assert read_table(as_official(slots)) == read_table(renamed) == renamed
    assert read_table(slots) == read_table([list(slot) for slot in slots]) == as_it_stands
    assert read_table(white + as_it_stands.replace(" ", white)) == as_it_stands
    if len(dict(slots)) == len(slots):
        assert read_table(dict(slots)) == as_it_stands


@pytest.mark.parametrize("value", ["2014-08-25", "-5", "£20-25", "a[b], c", "3.50"])
def test_own_values_are_one_prompt_in_a_string_an_object_and_pairs(value, tmp_path):
    tables = [f"priceRange : {value}", {"priceRange": value}, [["priceRange", value]]]
    write_jsonl(tmp_path, test=[(table, "x") for table in tables])
    texts = [table for table, _ in read_split(tmp_path, "test")]
    assert texts == [*map(read_table, tables)] == 3 * [tables[0]]


def test_the_example_of_the_readme_is_linearised_as_the_papers_data_are():
    official = "name[Blue Spice], eatType[coffee shop], priceRange[£20-25], near[]"
    table = "name : Blue Spice | Type : coffee shop | price : £ 20 - 25 | near :"
    assert read_table(official) == table
    assert read_table("near[], name[A]") == "near : | name : A" == read_table("near : | name : A")


@pytest.mark.parametrize(
    "table", ["name : A : B | Type : [pub]", "name : a[b], c[d]", "name : x]", "a b : c , d"])
def test_a_table_in_the_models_form_stays_as_it_is(table):
    assert read_table(table) == table


def test_a_table_in_either_form_is_the_same_prompt_and_gets_the_same_sentence(
        run, capsys):
    tokenizer = load_tokenizer("tiny")
    forms = [
        "name[Cocum], eatType[pub], priceRange[£20-25]",
        "name : Cocum | Type : pub | price : £ 20 - 25"
    ]
    prompts = [encode_table(tokenizer, form) for form in forms]
    assert prompts[0] == prompts[1]
    assert tokenizer.decode(prompts[0]) == f" {forms[1]}<|endoftext|>"
    run(describe, "tiny", *forms, "--device", "cpu", "--num-beams", 2, "--max-new-tokens", 8)
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


# Forms of files


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(tables, values), min_size=1, max_size=6),
       st.permutations(["mr", "ref", "orig_mr", "fixed"]))
def test_every_form_of_a_file_gives_the_same_examples(tmp_path_factory, examples, columns):
    expected = [(as_model_reads(slots), text) for slots, text in examples]
    pairs = [(as_official(slots), text) for slots, text in examples]
    wide = [dict.fromkeys(columns, ".") | {"mr": table, "ref": text} for table, text in pairs]
    renamed = lambda slots: [(KEYS.get(key, key), value) for key, value in slots]
    lines = {
        "official": [{"table": table, "text": text} for table, text in pairs],
        "model": [{"table": table, "text": text, "mr": "name[other]"} for table, text in expected],
        "pairs": [{"text": text, "id": 1, "table": renamed(slots)} for slots, text in examples],
        "mr": [{"mr": table, "ref": text, "table": None} for table, text in pairs],
        "object": [{"table": dict(renamed(slots)) if len(dict(slots)) == len(slots)
                    else renamed(slots), "text": text} for slots, text in examples],
    }
    contents = [(SRC1_NAMES["valid"], "\n".join(f"{table}||{text} " for table, text in expected)),
                (CSV_NAMES["valid"], as_csv(["mr", "ref"], pairs)),
                ("valid.csv", as_csv(["mr", "ref"], pairs)),
                ("valid.csv", as_csv(["text", "table"], [pair[::-1] for pair in expected])),
                ("valid.csv", as_csv(columns, [[row[name] for name in columns] for row in wide]))]
    contents += [("valid.jsonl", "\n".join(json.dumps(row) for row in rows))
                 for rows in lines.values()]
    for name, content in contents:
        folder = tmp_path_factory.mktemp("data")
        (folder / name).write_bytes(content.encode())
        assert read_split(folder, "valid") == expected
        shutil.rmtree(folder)


def test_an_object_keeps_slots_of_one_name_and_numbers_as_they_stand_there(tmp_path):
    table = '{"near": "A", "near": "B", "rating": 4.50, "n": 5}'
    (tmp_path / "test.jsonl").write_text(f'{{"table": {table}, "text": "x"}}')
    assert read_split(tmp_path, "test") == [("near : A | near : B | rating : 4.50 | n : 5", "x")]


def test_a_table_that_stands_there_again_in_whatever_form_has_several_references(tmp_path):
    rows = [("name[A], eatType[pub]", "one"), ("name : B", "two"),
            ("name : A | Type : pub", "three")]
    write_jsonl(tmp_path, test=rows)
    groups = group_by_table(read_split(tmp_path, "test"))
    assert groups == {"name : A | Type : pub": ["one", "three"], "name : B": ["two"]}


def test_of_several_forms_in_a_folder_the_first_is_read_and_they_are_never_mixed(tmp_path):
    row = lambda text: as_csv(["mr", "ref"], [("name[A]", text)])
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


def test_a_folder_without_any_data_is_told_which_files_are_read(tmp_path):
    (tmp_path / "validation.jsonl").write_text("")
    with pytest.raises(InputError,
                       match="has no train data; .*src1_train.txt.*train.jsonl, train.csv"):
        read_split(tmp_path, "train")


@pytest.mark.parametrize(
    "header", ["mr,text", "mr;ref", "ref", "Mr,Ref", "mr,ref,ref", "mr,ref,table,text", ""])
def test_columns_that_do_not_say_what_is_table_and_what_is_text_are_refused(tmp_path, header):
    (tmp_path / "test.csv").write_text(f"{header}\nname[A],A,B,C\n")
    with pytest.raises(InputError, match="test.csv, line [12]: .*columns"):
        read_split(tmp_path, "test")


# Without a validation or test set


@pytest.mark.parametrize("missing", [["valid"], ["test"], ["valid", "test"]])
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
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "loss.png"} <= names
    assert ({"outputs.txt", "references.txt", "scores.json"} <= names) == ("test" not in missing)
    hint = out.splitlines()[-1]
    assert shlex.split(hint)[1:] == ["describe.py", str(tmp_path / "run"), EXAMPLES[0][0]]

    before = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "run").iterdir() if path.name != ".lock"
    }
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
    for number in (5, 20, 40, 99):
        for seed in (0, 1):
            options = ("--max-examples", number, "--seed", seed)
            draws[number, seed], _ = drawn_examples(run, monkeypatch, data, *options)
    for (number, seed), drawn in draws.items():
        assert len(drawn) == min(number, 40)
        assert drawn == draws[99, seed][:number]
        assert all(drawn.count(example) == 1 and example in whole for example in drawn)
    assert sorted(draws[5, 0]) != sorted(draws[5, 1]) and draws[40, 0] != whole
    again, _ = drawn_examples(run, monkeypatch, data, "--max-examples", 20, "--seed", 1)
    assert draws[20, 1] == again
    _, validation = drawn_examples(run, monkeypatch, data, "--max-examples", 5)
    assert len(validation) == 40  # all of it


@given(st.integers(1, 60), st.integers(0, 70))
@settings(max_examples=60, deadline=None)
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


def test_training_warms_up_as_long_as_it_is_told(monkeypatch, tmp_path, small):
    model, prefix, encoded = small
    monkeypatch.setattr(record, "LOG_EVERY", 1)
    settings = Settings("prefix", lr=0.01, batch_size=1, epochs=2, warmup_steps=4)
    log = train.train(settings, model, prefix, encoded, [], Record(tmp_path))
    rates = [entry["lr"] for entry in log]  # after each step
    expected = [0.0025, 0.005, 0.0075, 0.01] + [0.01 * (1 - step / 8) for step in range(1, 9)]
    assert rates == pytest.approx(expected) and "validation_loss" not in str(log)


@pytest.fixture
def small():
    """A small model, a prefix, six examples."""
    config = random_config(3)
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(config.n_vocab, (n,), generator=generator).tolist()
    encoded = [(draw(4 + i % 3), draw(3 + i % 4)) for i in range(6)]
    prefix = random_prefix(config, 3, dtype=torch.float32)
    return random_model(config, 3, torch.float32), prefix, encoded


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("mode", ["prefix", "finetune"])
@pytest.mark.parametrize("losses, best", [([3.0, 1.0, 2.0, 1.0], 2), ([4.0, 3.0, 2.0, 1.0], 4),
                                          ([1.0, 2.0, 3.0, 4.0], 1)])
@pytest.mark.parametrize("stop", [None, 1, 3, 4])
def test_kept_are_the_weights_of_the_last_epoch_or_of_the_best_to_the_bit_also_after_a_stop(
        monkeypatch, tmp_path, small, mode, losses, best, stop):
    model, prefix, encoded = small
    if mode == "finetune":
        prefix = None
    trained = prefix or model
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


def test_the_options_are_settings_with_values_always_and_a_run_goes_on_only_with_the_same(
        run, tmp_path):
    data = write_jsonl(tmp_path / "data", train=EXAMPLES, valid=EXAMPLES)
    command = ("--mode", "prefix", *QUICK, "--data", data, "--out", tmp_path / "run")
    run(train, *command)
    (tmp_path / "run" / "loss.png").unlink()  # as if it had been stopped
    found = read_settings(tmp_path / "run")
    assert (found["max_examples"], found["warmup_steps"], found["keep"]) == (None, 0, "last")
    for name, value in (("max-examples", 3), ("warmup-steps", 3), ("keep", "best")):
        with pytest.raises(InputError, match=f"was started with {name.replace('-', '_')} "):
            run(train, *command, f"--{name}", value, "--resume")


@pytest.mark.parametrize("option, value", [("--max-examples", 0), ("--max-examples", -1),
                                           ("--warmup-steps", -1)])
def test_numbers_that_make_no_sense_are_refused(run, option, value):
    with pytest.raises(InputError, match=f"{option} must be"):
        run(train, "--mode", "prefix", "--model", "tiny", option, value)


# The published data


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_all_of_e2e_reads_as_it_stands_there(shared, split):
    lines = (shared / "e2e" / SRC1_NAMES[split]).read_text(encoding="utf-8").split("\n")
    assert read_split(find_data(shared / "e2e"), split) == [
        tuple(part.strip() for part in line.split("||")) for line in lines if line
    ]


def test_e2es_own_csv_files_renamed_and_with_further_columns_are_data_like_any_other(
        shared, tmp_path):
    with zipfile.ZipFile(shared / "e2e" / ZIP_NAME) as archive:
        text = archive.read(f"e2e-dataset/{CSV_NAMES['test']}").decode("utf-8-sig")
    rows = list(csv.reader(io.StringIO(text)))
    content = as_csv([*rows[0], "orig_mr", "fixed"], [[*row, "x[y]", "1"] for row in rows[1:]])
    (tmp_path / "test.csv").write_bytes(content.encode())
    shutil.copy(shared / "e2e" / ZIP_NAME, (tmp_path / "zip").mkdir() or tmp_path / "zip")
    ours = read_split(tmp_path, "test")
    assert ours == read_split(tmp_path / "zip", "test")
    papers = read_split(shared / "e2e", "test")
    assert [table for table, _ in ours] == [table for table, _ in papers]
