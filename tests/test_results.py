"""The experiment: its runs, what is gathered of them, the documents' tables, the figures."""

import contextlib
import dataclasses
import json
import re
import shlex
from statistics import mean
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, assert_close, run_here

import describe
import metrics
import train
from e2e_data import read_split
from experiments import draw as figures
from experiments import lora, make, tables
from gpt2 import GPT2, load_both, load_config, save_model
from support import drawing
from support.commands import InputError

MEASURED = [part for part in make.PARTS if (ROOT / "experiments/results" / f"{part}.json").exists()]


@pytest.mark.parametrize("part", MEASURED)
def test_the_results_are_those_of_the_commands_of_today(part, monkeypatch):
    results = tables.read(part)
    monkeypatch.setattr(make, "validation_loss",  # by which learning rates are chosen
                        lambda run: tables.kept_loss([results[run.name]])[0])
    assert {run.name: run.command for run in make.PARTS[part]()} == {
        name: told["command"] for name, told in results.items()}
    for told in results.values():  # the settings are those that the command asks for
        words = shlex.split(told["command"])
        for name, value in told.get("settings", {}).items():
            option = f"--{name.replace('_', '-')}"
            if option in words:
                asked = type(value)(words[words.index(option) + 1])
                assert asked == value, (told["command"], name)


def said_in(name):
    """A document as one line."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def test_what_the_documents_say_of_loras_place_was_measured():
    runs = tables.read("place")
    loss = {name: mean(tables.kept_loss(tables.at_best_rate(runs, name)))
            for name in ("prefix", "finetune", *make.RANKS)}
    closed = {layer: (loss["prefix"] - loss[layer]) / (loss["prefix"] - loss["finetune"])
              for layer in make.RANKS}
    c_attn, c_fc = (f"{share:.0%} ({{}}`{layer}`)" for layer, share in closed.items())
    for name, beside, word in (("RESULTS.md", "", "and"), ("TUTORIAL.md", "beside ", "or")):
        assert f"{c_attn.format(beside)} {word} {c_fc.format(beside)} of the gap" in said_in(name)


def test_what_the_documents_say_of_bases_was_measured():
    bases = [(prefixes, tuned) for _, _, prefixes, tuned in tables.of_bases()]
    losses = [[mean(tables.kept_loss(found)) for found in modes] for modes in bases]
    gap_1, gap_2, gap_3 = (prefix - tuned for prefix, tuned in losses)
    prefix_gains, tuned_gains = (first - last for first, last in zip(losses[0], losses[-1]))
    scores = [[mean(tables.bleu(found)) for found in modes] for modes in bases]
    share_1, share_2, share_3 = (f"{100 * prefix / tuned:.0f}" for prefix, tuned in scores)
    kept_1, kept_2, kept_3 = (f"{100 * prefixes[0]['kept'] / tuned[0]['kept']:.1f}"
                              for prefixes, tuned in bases)
    for said, name in (
            (f"from {gap_1:.3f} to {gap_3:.3f}: fine-tuning gains {tuned_gains:.3f}", "RESULTS.md"),
            (f"a prefix {prefix_gains:.3f}. In BLEU", "RESULTS.md"),
            (f"it has {kept_1}, {kept_2} and {kept_3}%", "RESULTS.md"),
            (f"{gap_1:.2f}, {gap_2:.2f} and {gap_3:.2f} after", "TUTORIAL.md"),
            (f"{share_1}, {share_2} and {share_3}% of fine-tuning's BLEU", "TUTORIAL.md"),
            (f"{share_3}% after a thousand steps", "TUTORIAL.md"),
            (f"{share_1}, {share_2} and {share_3}% of fine-tuning's on", "README.md")):
        assert said in said_in(name)


def test_what_the_documents_say_of_longer_prefixes_was_measured():
    short, long = (mean(tables.kept_loss(tables.named(tables.read("longer"), f"length-{P}-")))
                   for P in (50, 200))
    tuned = mean(tables.kept_loss(tables.named(tables.read("length"), "finetune")))
    closed = f"{(short - long) / (short - tuned):.0%}"
    assert f"the loss falls by {closed} of its distance to fine-tuning's" in said_in("RESULTS.md")
    assert f"four times as long closes {closed} of the gap" in said_in("TUTORIAL.md")


def test_what_the_documents_say_of_each_modes_best_was_measured():
    runs = tables.read("best")
    prefix, tuned = runs["prefix-seed-0"], runs["finetune-seed-0"]
    share = f"{prefix['scores']['BLEU'] / tuned['scores']['BLEU']:.0%}"
    left_out, twice = (prefix["faults"][name] for name in ("left out", "near twice"))
    losses, tuned_losses = ([loss for _, loss in told["validation"]] for told in (prefix, tuned))
    first, fifth, tenth = losses[0], losses[4], losses[9]
    earlier = [mean(tables.kept_loss(tables.named(tables.read("e2e"), mode)))
               for mode in tables.MODES]
    gap, gap_before = losses[-1] - min(tuned_losses), earlier[0] - earlier[1]
    assert losses == sorted(losses, reverse=True) and min(tuned_losses) == tuned_losses[3]
    for said, name in (
            (f"reaches {share} and leaves out {left_out}%", "README.md"),
            (f"reaches {share} of fine-tuning's", "RESULTS.md"),
            (f"the gap in loss falls from {gap_before:.3f} to {gap:.3f}", "RESULTS.md"),
            (f"in {twice}% of the sentences", "RESULTS.md"),
            (f"to {first:.3f} after the first, {fifth:.3f} after the fifth and {tenth:.3f} after",
             "RESULTS.md"),
            (f"reach {share} and leave out {left_out}% of the values, people", "TUTORIAL.md")):
        assert said in said_in(name)
    assert left_out < 7.5  # what people leave out


@pytest.mark.parametrize("part", make.PARTS)
def test_every_run_has_its_own_folder_and_a_command_that_its_program_takes(part, parse_only,
                                                                           monkeypatch):
    monkeypatch.setattr(make, "validation_loss", lambda run: 1.0)
    runs = list(make.PARTS[part]())
    assert len({run.folder for run in runs}) == len(runs)
    for run in runs:
        program, *arguments = shlex.split(run.command.replace("-m ", ""))[1:]
        parse_only({"train.py": train, "describe.py": describe,
                    "experiments.lora": lora}[program].main, *arguments)


def test_the_tables_of_the_documents_are_those_of_the_results_and_all_of_them():
    places = set()
    for name in tables.DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert tables.filled(text) == text
        own = re.findall(r"<!-- results: (\w+) -->", text)
        assert text.count("<!-- end -->") == len(own)
        places.update(own)
    measured = {name for name, (_, *parts) in tables.TABLES.items() if set(parts) <= set(MEASURED)}
    assert measured and measured <= places <= set(tables.TABLES)


def test_what_the_documents_say_of_the_experiment_in_words_agrees_with_its_results():
    text = {name: " ".join((ROOT / name).read_text(encoding="utf-8").split())
            for name in (*tables.DOCUMENTS, "TUTORIAL.md")}
    runs = tables.read("e2e")
    prefixes, tuned = (tables.named(runs, mode) for mode in tables.MODES)
    share = mean(tables.bleu(prefixes)) / mean(tables.bleu(tuned))
    assert all(f"reaches {share:.0%}" in one for one in text.values())
    left_out = [[told["faults"]["left out"] for told in group] for group in (prefixes, tuned)]
    ranges = [f"{min(values):.0f} to {max(values):.0f}%" for values in left_out]
    assert f"{ranges[0]} of the values, where fine-tuning leaves out {ranges[1]}" in text[
        "README.md"]
    for label, told in (("a prefix", prefixes[0]), ("fine-tuning", tuned[0])):
        assert f"| {label} | {told['says']} |" in text["README.md"]
    (shown,) = re.findall(r"\| the base alone \| (The .*?) \.\.\. \|", text["README.md"])
    assert runs["base"]["says"].startswith(shown)
    assert len(prefixes) == len(tuned) == 2 and "means of two seeds" in text["README.md"]


@pytest.fixture
def few_examples(tmp_path, small_data, monkeypatch):
    """A data set of two batches an epoch, 2 validation examples and 2 test tables; no METEOR, whose
    tables take longer than all else."""
    monkeypatch.setattr(metrics.meteor_data, "find", lambda: None)
    for split, n in (("train", 12), ("valid", 2), ("test", 2)):
        examples = list(dict(read_split(small_data, split)).items())[:n]
        make.write_data(tmp_path / "data", **{split: examples})
    return tmp_path / "data"


# --------------------------------------------------------------------------------------------------
# Choosing learning rates, and LoRA
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("losses, best, tried", [
    ({}, None, [0.03, 0.1, 0.3]),
    ({0.03: 2, 0.1: 1, 0.3: 2}, 0.1, [0.03, 0.1, 0.3]),
    ({0.03: 1, 0.1: 2, 0.3: 3}, None, [0.03, 0.1, 0.3, 0.01]),
    ({0.03: 3, 0.1: 2, 0.3: 1, 1.0: 5}, 0.3, [0.03, 0.1, 0.3, 1.0]),
])
def test_a_best_rate_at_the_edge_gets_one_beyond_and_the_best_gets_all_seeds(losses, best, tried,
                                                                             monkeypatch):
    monkeypatch.setattr(make, "validation_loss", lambda run: losses.get(float(
        shlex.split(run.arguments)[2])))
    seeds = [(lr, 0) for lr in tried] + [(best, seed) for seed in (1, 2) if best]
    assert [run.name for run in make.tuned("few", "x", "train.py", 0.1)] == [
        f"x-{lr:g}-seed-{seed}" for lr, seed in seeds]


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
                                                                      few_examples):
    monkeypatch.setattr(make, "RUNS", tmp_path)
    monkeypatch.setitem(lora.DECODER, "num_beams", 1)
    monkeypatch.setitem(lora.DECODER, "max_new_tokens", 3)
    run = make.Run("few", "c_attn", "-m experiments.lora")
    arguments = ["--place", "c_attn", "--rank", 25, "--lr", 0.01, "--data", few_examples,
                 "--max-steps", 3, "--out", run.folder]
    with monkeypatch.context() as patched:
        patched.setattr(lora, "score_test_set", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_here(lora.main, *arguments)
    assert "holds other files already" in run_here(lora.main, *arguments).error
    done = run_here(lora.main, *arguments, "--resume")
    assert done.error is None and "Step 3 of 3" in done.stdout
    told = make.gather(run)
    assert (told["settings"]["mode"], told["settings"]["place"]) == ("lora", "c_attn")
    assert told["trained"] == told["kept"] == 153_600 and told["scores"]["BLEU"] is not None
    assert [step for step, _ in told["validation"]] == [2, 3]
    assert not (run.folder / "training.pt").exists()


def test_bases_that_are_missing_are_made_of_tinys_vocabulary(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "RUNS", tmp_path)
    with pytest.raises(InputError, match="bases/64 is missing: --pretrain DIR makes it"):
        make.make_data("size")
    made = []
    monkeypatch.setattr(make, "make_base", lambda *given, vocabulary: made.append(
        (*given, vocabulary)))
    make.make_data("size", "DIR")
    assert made == [("DIR", tmp_path / "bases" / name, make.BASES[name], ROOT / "models/tiny")
                    for name in ("64", "128")]


# --------------------------------------------------------------------------------------------------
# Running and gathering
# --------------------------------------------------------------------------------------------------


def test_it_runs_what_is_not_finished_and_gathers_what_the_runs_tell(tmp_path, monkeypatch,
                                                                     few_examples):
    small = dataclasses.replace(load_config("tiny"), n_embd=8, n_head=2, n_layer=2)
    save_model(GPT2(small), tmp_path / "small", "tiny")
    command = (f"train.py --mode prefix --model {tmp_path / 'small'} --data {few_examples} "
               "--max-steps 3 --num-beams 1 --max-new-tokens 3 --device cpu")
    runs = prefix, short = [make.Run("e2e", "a/prefix", command),
                            make.Run("e2e", "short", f"{command} --prefix-length 3")]
    monkeypatch.setattr(make, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(make, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(make, "PARTS", {"e2e": lambda: runs})
    monkeypatch.setattr(make, "faults", lambda pairs: {"left out": len(pairs)})
    called = []

    def run(command, stdout, **how):
        called.append((command[1:], how["cwd"], how["env"]["OMP_NUM_THREADS"]))
        done = run_here(train.main, *command[2:])
        stdout.write((done.stdout + done.stderr).encode())
        return SimpleNamespace(returncode=done.error)

    monkeypatch.setattr(make.subprocess, "run", run)
    (prefix.folder / "outputs.txt").mkdir(parents=True)  # of one that was stopped
    prefix.log.write_text(f"$ {prefix.command}\n")
    assert run_here(make.main, "e2e", "--jobs", 1).error is None
    commands = [shlex.split(run.command)[1:] for run in (prefix, short)]
    assert called == [(command, ROOT, "1") for command in commands]
    results = tmp_path / "results" / "e2e.json"
    told = json.loads(results.read_text())
    assert list(told) == ["a/prefix", "short"]
    scores = json.loads((prefix.folder / "scores.json").read_text())
    assert told["a/prefix"]["scores"] == {name: scores[name] for name in metrics.METRICS}
    assert told["a/prefix"]["kept"] == 5 * 2 * 2 * 8 < told["a/prefix"]["trained"]
    log = [json.loads(line) for line in (short.folder / "log.jsonl").read_text().splitlines()]
    assert told["short"]["validation"][0] == [2, round(log[1]["validation_loss"], 4)]
    assert told["short"]["training"] == make.mean_losses(log) and log[-1]["step"] == 3
    assert told["short"]["faults"] == {"left out": 2} and told["short"]["says"] is None

    (short.folder / "scores.json").unlink()  # as if stopped before its end
    results.unlink()
    assert run_here(make.main, "--jobs", 1).error is None
    again = json.loads(results.read_text())["short"]
    assert again == told["short"] | {"minutes": again["minutes"]}
    assert called[2:] == [([*commands[1], "--resume"], ROOT, "1")]

    prefix.log.write_bytes(prefix.log.read_bytes() + "£ é".encode("cp1252"))  # as Windows writes
    assert run_here(make.main, "--list").stdout.count("done  python train.py") == 2
    other = dataclasses.replace(prefix, arguments="train.py --mode prefix --lr 0.5")
    make.PARTS["e2e"] = lambda: [other]
    assert "a/prefix was not made by `python train.py --mode prefix --lr 0.5" in run_here(
        make.main).error


def test_a_run_that_fails_is_named_with_its_log_and_no_result_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(make, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(make, "PARTS", {"few": lambda: [make.Run("few", "wrong", "-m metrics a")]})
    done = run_here(make.main)
    assert "wrong.log says why" in done.error and "-m metrics a" in done.error
    assert "unrecognized arguments" in (tmp_path / "runs" / "few" / "wrong.log").read_text()
    assert not (tmp_path / "results").exists()
    assert "the parts are few" in run_here(make.main, "many").error
    assert "--jobs must be at least 1" in run_here(make.main, "--jobs", 0).error


def test_few_examples_are_drawn_with_a_validation_set_of_three_tenths(tmp_path, monkeypatch):
    sample = make.find_data("sample")
    monkeypatch.setattr(make, "find_data", lambda name: sample)
    monkeypatch.setattr(make, "RUNS", tmp_path)
    monkeypatch.setattr(make, "FEW_EXAMPLES", (20, 50))
    make.make_data("small")
    drawn = {n: [read_split(tmp_path / f"small/data-{n}-{draw}", "train") for draw in make.SEEDS]
             for n in (20, 50)}
    everything = read_split(sample, "train")
    for n, draws in drawn.items():
        assert len({tuple(examples) for examples in draws}) == 3
        assert all(len(examples) == n and set(examples) <= set(everything) for examples in draws)
    valid = read_split(tmp_path / "small/data-50-1", "valid")
    assert len(valid) == 15 and set(valid) <= set(read_split(sample, "valid"))
    assert read_split(tmp_path / "small/data-20-2", "test") == read_split(sample, "test")

    make.make_data("forms")
    assert {path.name for path in (tmp_path / "forms/data").iterdir()} == {"train.jsonl",
                                                                           "valid.jsonl"}
    assert read_split(tmp_path / "forms/data", "train") == everything
    assert len(read_split(tmp_path / "forms/data", "valid")) == 53


def test_what_a_run_says_of_the_table_that_the_readme_shows_is_kept(tmp_path, monkeypatch):
    folder = tmp_path / "decoding" / "greedy"
    folder.mkdir(parents=True)
    (folder / "tables.txt").write_text(f"name : Cocum\n{make.SHOWN}\n")
    (folder / "outputs.txt").write_text("It .\nThe Vaults .\n")
    signature = {"mode": "prefix", "model": "tiny", "data": "e2e", "seed": 0, "decoder": {},
                 "test_sha256": ""}
    (folder / "scores.json").write_text(json.dumps(
        dict.fromkeys(metrics.METRICS, 0.5) | {"signature": signature}))
    monkeypatch.setattr(make, "RUNS", tmp_path)
    run = make.Run("decoding", "greedy", "describe.py")
    told = make.gather(run)
    assert told["says"] == "The Vaults ." and told["faults"]["left out"] == pytest.approx(88.9)
    (folder / "scores.json").write_text('{"BLEU": 1}')
    with pytest.raises(InputError, match="scores.json is damaged"):
        make.gather(run)


def test_losses_are_means_over_steps():
    log = [{"step": step, "loss": float(step), "steps": 10} for step in range(10, 211, 10)]
    log += [{"step": 215, "loss": 1.0, "steps": 5}, {"step": 215, "validation_loss": 9.0}]
    assert make.mean_losses(log) == [[100, 55.0], [200, 155.0], [215, 140.3333]]  # of 15 steps


def test_minutes_are_those_of_the_median_step_and_a_pause_is_none():
    log = [{"step": 10 * n, "loss": 1.0, "steps": 10, "seconds": 9000.0 if n == 3 else 6.0}
           for n in range(1, 11)]
    log += [{"step": 105, "loss": 1.0, "steps": 5, "seconds": 3.0}]
    assert make.minutes([*log, {"step": 105, "validation_loss": 2.0}]) == pytest.approx(1.05)


def test_faults_are_counted_by_the_rules_for_slots():
    pairs = [("name : Ann | area : riverside", "Ann in the city ."),
             ("name : Ben | near : Cid", "Ben ."),
             ("name : Dora | near : Cid", "Dora , Cid , Cid .")]
    assert make.faults(pairs) == {"left out": 16.7, "contradicted": 16.7, "near twice": 50.0}


# --------------------------------------------------------------------------------------------------
# Tables and figures
# --------------------------------------------------------------------------------------------------


def made_up(mode, seed, bleu, loss, lr=0.1):
    scores = {"BLEU": bleu, "NIST": 8.5, "METEOR": 0.4, "ROUGE_L": 0.6, "CIDEr": 2.0}
    return {"command": "train.py", "settings": {"mode": mode, "seed": seed, "lr": lr},
            "scores": scores, "trained": 1234, "kept": 12,
            "minutes": 60.0 + seed, "validation": [[5, 3.0], [10, loss]],
            "training": [[5, 3.5], [10, loss]],
            "faults": {"left out": 100 * bleu, "contradicted": 0.0, "near twice": 7.0}}


@pytest.fixture
def made_up_results(monkeypatch, tmp_path):
    """Results in a folder of their own, {part: {name of a run: what it told}}."""
    e2e = {f"{mode}-{seed}": made_up(mode, seed, bleu + seed / 100, bleu + seed)
           for mode, bleu in (("prefix", 0.5), ("finetune", 0.7)) for seed in (0, 1)}
    e2e["base"] = {"scores": made_up("", 0, 0.25, 0)["scores"], "trained": None, "kept": None}
    length, longer, small = {"base": e2e["base"]}, {}, {}
    for seed in (0, 1):
        for P in tables.LENGTHS:
            run = made_up("prefix", seed, P / 100 + seed / 5, 2)
            length[f"length-{P}-seed-{seed}"] = run | {"kept": 6 * P}
        length[f"finetune-seed-{seed}"] = made_up("finetune", seed, 0.6 + seed / 5, 1) | {
            "kept": 1200}
        for n in tables.FEW_EXAMPLES:
            small[f"prefix-{n}-{seed}"] = made_up("prefix", seed, n / 1000 + seed / 5, 2)
            small[f"finetune-{n}-{seed}"] = made_up("finetune", seed, n / 1000 + 0.1, 2)
    for P in tables.FROM_EXAMPLES:
        longer[f"length-{P}-seed-0"] = made_up("prefix", 0, 0.5, 2) | {"kept": 0}
    place = {f"{name}-0.1-seed-{seed}": made_up(name, seed, 0.4 + seed / 100, 1)
             for name in ("prefix", "finetune", "c_attn", "c_fc") for seed in (0, 1, 2)}
    for name in ("prefix", "c_fc"):
        place[f"{name}-0.3-seed-0"] = made_up(name, 0, 0.9, 3, lr=0.3)
    size = {f"{base}/{name}": told for base in tables.BASES
            for name, told in (place | {"base": e2e["base"]}).items()}
    best = {f"{mode}-seed-0": made_up(mode, 0, bleu, 0.75) | {"command": "train.py --keep best"}
            for mode, bleu in (("prefix", 0.6), ("finetune", 0.8))}
    best["prefix-seed-0"]["validation"] = [[5, 0.25], [10, 0.75]]
    parts = {"e2e": e2e, "best": best, "length": length, "longer": longer, "small": small,
             "place": place, "size": size, "decoding": {"num-beams-1": made_up("", 0, 0.3, 0)}}
    for part, told in parts.items():
        (tmp_path / f"{part}.json").write_text(json.dumps(told))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return tmp_path


def cells(markdown):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines()]


def test_the_tables_of_the_experiment_have_means_spreads_and_costs(made_up_results):
    rows = cells(tables.e2e())
    assert rows[2] == ["the base alone", "25.00", "8.5000", "40.00", "60.00", "2.0000", *4 * [""]]
    assert rows[3] == ["prefix-tuning", "50.50", "8.5000", "40.00", "60.00", "2.0000", "1.000",
                       "1,234", "12", "60 (60 to 61)"]
    assert rows[4][:3] == ["highest - lowest", "1.00", "0.0000"]
    assert rows[5][:2] == ["fine-tuning", "70.50"]
    short = cells(tables.scores())
    assert [row[1] for row in short[2:]] == ["25.00", "50.50", "60.00", "70.50"]
    assert [row[-1] for row in short[2:]] == ["0", "1,234", "1,234", "1,234"]
    assert cells(tables.faults())[2] == ["prefix-tuning", "50.5 (50.0 to 51.0)",
                                          "0.0 (0.0 to 0.0)", "7.0 (7.0 to 7.0)"]
    assert cells(tables.decoding())[2:] == [["as above", "50.00", "50.0", "7.0"],
                                            ["--num-beams 1", "30.00", "30.0", "7.0"]]


def test_the_table_of_lengths_begins_with_the_base_and_ends_with_fine_tuning(made_up_results):
    rows = cells(tables.length())[2:]
    assert rows[0][:2] == ["0: the base alone", "25.0"]
    assert rows[1] == ["1", "11.0 (1.0 to 21.0)", "2.000 (2.000 to 2.000)", "0.50%"]
    assert rows[-1] == ["fine-tuning", "70.0 (60.0 to 80.0)", "1.000 (1.000 to 1.000)", "100.00%"]
    assert rows[5:-1] == [
        ["50, from 1 example", "50.0", "2.000", "0.00%"],
        ["100, from 2 examples", "50.0", "2.000", "0.00%"],
        ["200, from 4 examples", "50.0", "2.000", "0.00%"]]


def test_places_and_bases_are_shown_at_the_rate_that_all_seeds_have(made_up_results):
    rows = cells(tables.place())[2:]
    assert [row[2:] for row in rows] == 4 * [["0.1", "1.000 (1.000 to 1.000)", "41.0 (40.0 to 42.0)"
                                              ]]
    assert rows[2][0] == "LoRA of rank 20 beside `c_fc`"
    assert [row[:2] + row[5:6] + row[8:] for row in cells(tables.size())[2:]] == [
        [name, "1,234", "100%", "0.000"] for name in ("64", "128", "tiny")]


def test_each_modes_best_is_shown_at_its_lowest_loss(made_up_results):
    rows = cells(tables.e2e("best"))[2:]
    assert [row[:2] + row[6:7] for row in rows] == [["prefix-tuning", "60.00", "0.250"],
                                                    ["fine-tuning", "80.00", "0.750"]]
    assert tables.filled(EMPTY.format("best")) == EMPTY.format("best").replace(
        "old\n", tables.e2e("best"))


EMPTY = "A\n<!-- results: {} -->\nold\n<!-- end -->\nB\n"


@pytest.mark.parametrize("name, old, new", [
    ("e2e", '"BLEU": 0.5', '"BLEU": NaN'), ("e2e", '"BLEU": 0.5', '"BLEU": 1e999'),
    ("decoding", '"BLEU"', '"BLEUX"'), ("length", '"base"', '"bass"'), ("small", "{", "["),
    ("place", '"trained": 1234', '"trained": null'),
])
def test_damaged_results_are_told_and_no_document_is_written(name, old, new, made_up_results):
    path = made_up_results / f"{name}.json"
    text = path.read_text()
    path.write_text(text.replace(old, new, 1))
    assert path.read_text() != text
    with pytest.raises(InputError, match=f"{name}.json"):
        tables.filled(EMPTY.format(name))


def test_a_place_in_a_document_is_filled_and_the_rest_stays(made_up_results, monkeypatch):
    text = EMPTY.format("faults")
    filled = tables.filled(text)
    assert filled == text.replace("old\n", tables.faults()) == tables.filled(filled)
    monkeypatch.setattr(tables, "ROOT", made_up_results)
    for name in tables.DOCUMENTS:
        (made_up_results / name).write_text(text)
    assert run_here(tables.main).error is None
    assert (made_up_results / "README.md").read_text() == filled
    (made_up_results / "e2e.json").unlink()
    assert tables.filled(text) == text  # as it is, until there are results


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The figures that were drawn; none is written into the repository."""
    found, figure_at = [], drawing.figure_at

    @contextlib.contextmanager
    def keep(path, *sizes):
        with figure_at(tmp_path / "drawn.png", *sizes) as (figure, axes):
            yield figure, axes
        found.append(figure)

    for module in (figures, drawing):
        monkeypatch.setattr(module, "figure_at", keep)
    return found


def test_the_losses_of_both_modes_are_drawn(made_up_results, drawn):
    figures.draw_losses("losses.png")
    (axes,) = drawn[0].axes
    assert [line.get_marker() for line in axes.lines] == 4 * ["None", "o"]
    assert axes.get_legend_handles_labels()[1] == ["prefix-tuning", "fine-tuning"]


def lines_of(axes):
    """{label: [(x, lowest, mean, highest)]} of the lines with bars of a figure."""
    found = {}
    for container in axes.containers:
        xs, means = (values.tolist() for values in container.lines[0].get_data())
        bars = [segment[:, 1].tolist() for segment in container.lines[2][0].get_segments()]
        found[container.get_label()] = [
            (x, *(round(y, 6) for y in (low, mean, high)))
            for x, mean, (low, high) in zip(xs, means, bars)]
    return found


def test_lengths_are_drawn_from_0_with_fine_tuning_as_a_line(made_up_results, drawn):
    figures.draw_length("length.png")
    axes = drawn[0].axes[0]
    points, further = lines_of(axes).values()
    assert points[:2] == [(0, 25, 25, 25), (1, 1, 11, 21)]
    assert further == [(P, 50, 50, 50) for P in (50, 100, 200)]
    mean = [line for line in axes.lines if "fine-tuning" in line.get_label()]
    assert [line.get_ydata()[0] for line in mean] == [pytest.approx(70)]


def test_bases_are_drawn_by_their_size(made_up_results, drawn):
    path = made_up_results / "size.json"
    path.write_text(path.read_text().replace('"trained": 1234', '"trained": 99'))
    figures.draw_size("size.png")
    (shares,), (gaps,) = (lines_of(axes).values() for axes in drawn[0].axes)
    assert [x for x, *_ in shares] == [99, 1234]
    assert shares[1][2] == pytest.approx(100) and gaps[1] == (1234, 0, 0, 0)


def test_few_examples_have_a_column_and_a_line_for_each_mode(made_up_results, drawn):
    assert cells(tables.small())[2] == ["50", "15.0 (5.0 to 25.0)", "15.0 (15.0 to 15.0)"]
    figures.draw_small("small.png")
    lines = lines_of(drawn[0].axes[0])
    assert lines["prefix-tuning"][0] == (pytest.approx(50, rel=0.02), 5, 15, 25)
    assert lines["fine-tuning"][0] == (pytest.approx(50, rel=0.02), 15, 15, 15)
    assert lines["prefix-tuning"][0][0] < lines["fine-tuning"][0][0]  # side by side


def test_forms_are_drawn_as_their_table_has_them(drawn):
    figures.draw_forms("forms.png")
    lines = lines_of(drawn[0].axes[0])
    rows = cells(tables.forms())
    assert list(lines) == [row[0] for row in rows[2:]]
    for row in rows[2:]:
        shown = [f"{mean:.2f} ({low:.2f} to {high:.2f})" for _, low, mean, high in lines[row[0]]]
        assert shown == [cell for cell in row[1:] if cell]


def test_a_figure_without_results_is_left_as_it_is(made_up_results, drawn):
    (made_up_results / "e2e.json").unlink()
    done = run_here(figures.main, "losses", "small")
    assert "losses.png is left as it is: `python -m experiments.make e2e`" in done.stdout
    assert len(drawn) == 1
    assert "the figures are forms, " in run_here(figures.main, "nonsense").error
