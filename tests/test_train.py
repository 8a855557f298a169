"""Training does what it says: step by step, from a seed, and from wherever it was stopped."""

import dataclasses
import gc
import hashlib
import json
import random
import re
import shutil
import weakref
from contextlib import nullcontext

import pytest
import torch
from conftest import (DECODER, ROOT, assert_close, by_pefts_names, dtypes_seen,
                      hugging_face_loss, hugging_face_twin, other_defaults, peft_twin, random_config,
                      random_examples, random_model, random_prefix, rows_seen, run_here,
                      weights_in)
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

import train
from beam import beam_search
from describe import draw_sentences, load_run, log_probability
from e2e_data import make_batch
from gpt2 import load_both, load_config
from prefix import Prefix
from support import devices, record
from support.commands import InputError
from support.files import sha256
from support.record import Record
from support.run_folder import read_settings
from support.settings import read_arguments

TABLES = ["name : The Mill", "Type : pub"]
CPU = torch.device("cpu")
MODES = ("network", "per-layer", "direct", "finetune")  # the forms of a prefix, and no prefix
QUICK = ("--model", "tiny", "--device", "cpu", *DECODER)


def settings(mode="network", **changes):
    """The settings of a training of two epochs of four steps."""
    first = train.Settings(mode="prefix", model="tiny", data="sample", epochs=2, lr=1e-2,
                           batch_size=2, prefix_length=3, prefix_hidden=12, prefix_form=mode)
    if mode == "finetune":
        first = dataclasses.replace(first, mode="finetune", prefix_form="network")
    return dataclasses.replace(first, **changes)


def small_parts(mode="network", dtype=torch.float64):
    """(model, prefix or None, seven examples), the same at each call."""
    config = random_config(3)
    prefix = None
    if mode != "finetune":
        prefix = random_prefix(config, 3, form=mode, dtype=dtype)
    return random_model(config, 3, dtype), prefix, random_examples(3, config.n_vocab)


def train_here(data, folder, *arguments):
    """Trains a prefix by the command, in this process."""
    return run_here(train.main, "--mode", "prefix", *QUICK, "--data", data, "--out", folder,
                    *arguments)


def copy_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def values_of(log, name="loss"):
    return [entry[name] for entry in log if name in entry]


# --------------------------------------------------------------------------------------------------
# A step
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_no_size_in_a_step_depends_on_what_is_on_the_device_and_no_work_is_done_on_padding(mode):
    """Or the host would wait for the device in each step. There are no numbers on "meta"."""
    model, prefix, examples = small_parts(mode, torch.float32)
    model, prefix = model.to("meta"), prefix and prefix.to("meta")
    seen = rows_seen(model.requires_grad_(prefix is None))
    loss = train.batch_loss(model, prefix, make_batch(examples, "meta"))
    loss.backward()
    trained = model if prefix is None else prefix
    assert loss.is_meta and all(parameter.grad is not None for parameter in trained.parameters())
    n_read = sum(len(prompt) + len(answer) - 1 for prompt, answer in examples)
    n_loss = sum(len(answer) for _, answer in examples)
    assert seen["ln_f"] == n_loss and set(seen.values()) == {n_read, n_loss}


# --------------------------------------------------------------------------------------------------
# The loop
# --------------------------------------------------------------------------------------------------


def train_independently(twin, examples, validation, of):
    """The losses of all steps, those after each epoch, and the norms of all gradients."""
    trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=of.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0)
    steps_per_epoch = (len(examples) + of.batch_size - 1) // of.batch_size
    n_steps, step, rise = of.max_steps or steps_per_epoch * of.epochs, 0, of.warmup_steps
    losses, validation_losses, norms = [], [], []
    for epoch in range(of.epochs):
        order = list(range(len(examples)))
        random.Random(f"{of.seed} {epoch}").shuffle(order)
        for at in range(0, len(order), of.batch_size):
            if step == n_steps:
                break
            loss = hugging_face_loss(twin, [examples[i] for i in order[at : at + of.batch_size]])
            gradients = torch.autograd.grad(loss, trained)
            norms.append(sum((gradient**2).sum() for gradient in gradients).sqrt().item())
            for parameter, gradient in zip(trained, gradients):
                parameter.grad = gradient * min(1, of.clip / (norms[-1] + 1e-6))
            fall = 1 - (step - rise) / (n_steps - rise)
            optimizer.param_groups[0]["lr"] = of.lr * (step / rise if step < rise else fall)
            optimizer.step()
            step += 1
            losses.append(loss.item())
        with torch.no_grad():
            validation_losses.append(hugging_face_loss(twin, validation).item())
    return losses, validation_losses, norms


@pytest.mark.parametrize("mode", ["network", "direct", "finetune"])
@pytest.mark.parametrize("seed, max_steps, warmup_steps", [(1, None, 0), (3, 7, 2)])
def test_every_loss_and_all_final_parameters_are_those_of_a_loop_around_peft_or_hugging_face(
        mode, seed, max_steps, warmup_steps, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "LOG_EVERY", 1)
    model, prefix, examples = small_parts(mode)
    validation = random_examples(4, model.config.n_vocab)
    clip = {"network": 0.6, "direct": 0.15, "finetune": 5.0}[mode]
    of = settings(mode, seed=seed, max_steps=max_steps, warmup_steps=warmup_steps, clip=clip)
    twin = hugging_face_twin(model)
    if prefix:
        twin = peft_twin(twin, prefix)
    truth = train_independently(twin, examples, validation, of)
    log = train.train(of, model, prefix, examples, validation, Record(tmp_path))

    losses, validation_losses, norms = truth
    assert len(losses) == (max_steps or 8)
    assert min(norms) < clip < max(norms)  # or clipping would go untested
    assert_close(torch.tensor(values_of(log)), torch.tensor(losses))
    assert_close(torch.tensor(values_of(log, "validation_loss")), torch.tensor(validation_losses))
    if prefix:
        ours, truth = by_pefts_names(prefix), twin.prompt_encoder["default"].named_parameters()
    else:
        ours, truth = dict(model.named_parameters()), twin.transformer.named_parameters()
    truth = dict(truth)
    assert ours.keys() == truth.keys()
    for name, parameter in ours.items():
        assert_close(parameter.detach(), truth[name].detach())


@pytest.mark.parametrize("mode", MODES[:-1])
def test_only_what_the_mode_trains_changes_and_the_loss_falls(mode, tmp_path):
    model, prefix, examples = small_parts(mode, torch.float32)
    before = copy_of(model)
    of = settings(mode, epochs=20, lr=0.1 if mode == "direct" else 1e-2)
    log = train.train(of, model, prefix, examples, examples, Record(tmp_path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    losses = values_of(log, "validation_loss")
    assert len(losses) == 20 and losses[-1] < 0.9 * losses[0]


def test_the_log_has_every_step_and_a_learning_rate_that_falls_linearly_to_zero(tmp_path):
    model, prefix, examples = small_parts()
    log = train.train(settings(epochs=10), model, prefix, examples, examples, Record(tmp_path))
    rates = {entry["step"]: entry["lr"] for entry in log if "lr" in entry}
    assert rates == pytest.approx({step: 1e-2 * (1 - step / 40) for step in rates}, abs=1e-15)
    assert 40 in rates and sum(values_of(log, "steps")) == 40
    assert sum(values_of(log, "tokens")) == 10 * sum(len(p) + len(a) for p, a in examples)


def test_a_line_of_the_log_is_the_mean_of_the_losses_since_the_last_one(tmp_path, monkeypatch):
    logs = []
    for log_every in (1, 3):
        monkeypatch.setattr(record, "LOG_EVERY", log_every)
        model, prefix, examples = small_parts()
        logs.append(train.train(settings(), model, prefix, examples, examples,
                                Record(tmp_path / str(log_every))))
    losses = values_of(logs[0])
    parts = (losses[0:3], losses[3:4], losses[4:6], losses[6:8])  # an epoch's end is a line too
    assert values_of(logs[1]) == pytest.approx([sum(part) / len(part) for part in parts])


def test_the_validation_loss_is_the_mean_over_tokens_whatever_the_batches():
    model, prefix, examples = small_parts()
    many = examples * 11  # more than one batch
    total = 0
    for example in many:
        total += train.batch_loss(model, prefix, make_batch([example])).item() * len(example[1])
    mean = total / sum(len(answer) for _, answer in many)
    assert train.validation_loss(model, prefix, many) == pytest.approx(mean, rel=1e-9)


def test_batches_of_the_validation_set_are_small_where_those_of_training_are(tmp_path,
                                                                             monkeypatch):
    sizes = []
    monkeypatch.setattr(train, "validation_loss",
                        lambda *args, batch_size: sizes.append(batch_size) or 1.0)
    for size in (1, 10, 50):
        model, prefix, examples = small_parts()
        train.train(settings(batch_size=size, epochs=1), model, prefix, examples, examples,
                    Record(tmp_path / str(size)))
    assert sizes == [4, 40, 64]


def test_bfloat16_is_what_steps_and_validation_multiply_in_to_nearly_the_same_loss(tmp_path):
    losses = []
    for dtype in ("float32", "bfloat16"):
        model, prefix, examples = small_parts(dtype=torch.float32)
        seen = dtypes_seen(model)
        log = train.train(settings(dtype=dtype), model, prefix, examples, examples,
                          Record(tmp_path / dtype))
        assert seen == {(True, getattr(torch, dtype)), (False, getattr(torch, dtype))}
        assert {parameter.dtype for parameter in prefix.parameters()} == {torch.float32}
        losses.append(log[-1]["validation_loss"])
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)


# --------------------------------------------------------------------------------------------------
# Going on
# --------------------------------------------------------------------------------------------------


class Words:
    """A tokenizer to which every text is the same three tokens."""

    def encode(self, text, allowed_special):
        return [1, 3, 1]


def train_in_parts(mode, folder, steps_a_part, monkeypatch):
    """Trains, stopped after so many steps of each part; each goes on as a new process would.

    Returns (what was trained, log, steps done in all).
    """
    plain_step, done = train.train_step, 0
    of = settings(mode, seed=4, prefix_words=None if mode == "per-layer" else "words")
    for steps in steps_a_part:
        left = steps

        def step_or_stop(*args):
            nonlocal left, done
            if left == 0:
                raise KeyboardInterrupt
            left, done = left - 1, done + 1
            return plain_step(*args)

        monkeypatch.setattr(train, "train_step", step_or_stop)
        model, _, examples = small_parts(mode, torch.float32)
        torch.manual_seed(of.seed)
        prefix = None if mode == "finetune" else train.make_prefix(of, model, Words())
        try:
            log = train.train(of, model, prefix, examples, examples[:3], Record(folder))
        except KeyboardInterrupt:
            continue
        return copy_of(model if prefix is None else prefix), log, done
    raise AssertionError("the training did not end")


@pytest.mark.parametrize("mode, log_every", [*((mode, 1) for mode in MODES), ("direct", 2)])
def test_training_that_was_stopped_at_any_step_ends_to_the_bit_as_if_it_had_not_been(
        mode, log_every, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "LOG_EVERY", log_every)  # states are saved with lines of the log
    monkeypatch.setattr(Record, "pause",
                        lambda self, must_save, pause=Record.pause: pause(self, True))
    whole, whole_log, done = train_in_parts(mode, tmp_path / "whole", [99], monkeypatch)
    assert done == 8
    drop = ("seconds", "peak_memory")
    for parts in ([1, 99], [4, 99], [7, 99], [3, 1, 2, 2, 99]):
        folder = tmp_path / "-".join(map(str, parts))
        ended, log, done = train_in_parts(mode, folder, parts, monkeypatch)
        if log_every == 1 or len(parts) == 2:
            assert done == 8 + parts[0] % log_every  # it went on from where it was stopped
        assert ended.keys() == whole.keys()
        assert all(torch.equal(tensor, whole[name]) for name, tensor in ended.items())
        same, truth = ([{name: value for name, value in entry.items() if name not in drop}
                        for entry in entries] for entries in (log, whole_log))
        assert same == truth
        lines = (folder / "log.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == log


# --------------------------------------------------------------------------------------------------
# What a prefix starts from, and the seed
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def only_training(monkeypatch):
    """Runs in this test end with the weights: nothing is described, scored or drawn."""
    for name in ("load_run", "score_test_set", "draw_losses"):
        monkeypatch.setattr(train, name, lambda *args: None)


def test_a_seed_gives_the_same_prefix_to_the_bit_and_another_seed_another(small_data, tmp_path,
                                                                          only_training):
    kept = []
    for number, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(number)
        done = train_here(small_data, folder, "--max-steps", 1, "--batch-size", 1, "--seed", seed,
                          "--prefix-hidden", 16, "--lr", 1e-5)
        assert done.error is None, done.error
        kept.append(load_file(folder / "adapter_model.safetensors")["prompt_embeddings"])
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])
    torch.manual_seed(1)  # where it starts, not the order of the batches alone
    start = Prefix(load_config("tiny"), 5, 16).key_values().detach()
    assert_close(kept[0], start, 0.01)
    assert (kept[2] - start).abs().max() > 0.1


@pytest.mark.parametrize("form", ["network", "per-layer", "direct"])
@pytest.mark.parametrize("text, words", [("a pub<|endoftext|>", 4), ("The Mill is a pub .", 8)])
@torch.no_grad()
def test_prefix_words_are_where_the_prefix_starts(form, text, words):
    model, tokenizer = load_both("tiny")
    of = settings(form, prefix_words=text, prefix_length=5)
    torch.manual_seed(0)
    start = train.make_prefix(of, model, tokenizer).key_values()
    tokens = tokenizer.encode(text, allowed_special="all")
    assert len(tokens) == words
    tokens = (tokens + tokens)[:5]  # repeated, or cut, to the prefix's length
    twin = GPT2LMHeadModel.from_pretrained(ROOT / "models" / "tiny", dtype=torch.float32)
    cache = twin(torch.tensor([tokens]), use_cache=True).past_key_values
    truth = torch.cat([vectors[0].transpose(0, 1).flatten(1)  # [n_head, 5, head_dim] -> [5, n_embd]
                       for layer in cache.layers for vectors in (layer.keys, layer.values)], dim=1)
    if form != "direct":  # what the network makes is added
        torch.manual_seed(0)
        made = Prefix(model.config, 5, 12, form).key_values()
        assert made.abs().max() > 0.1
        truth = truth + made
    assert_close(start, truth, 1e-4)


@pytest.mark.skipif(devices.peak_memory(CPU) is None, reason="the system does not tell")
def test_the_memory_of_an_earlier_run_is_not_a_later_ones(small_data, tmp_path, only_training):
    torch.ones(700 * 2**20, dtype=torch.uint8)
    earlier = devices.peak_memory(CPU)
    train_here(small_data, tmp_path / "run", "--max-steps", 1, "--batch-size", 1,
               "--prefix-hidden", 8)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    (peak,) = values_of(map(json.loads, lines), "peak_memory")
    assert peak < earlier - 300 * 2**20


# --------------------------------------------------------------------------------------------------
# A run's folder
# --------------------------------------------------------------------------------------------------


def test_a_run_writes_everything_that_the_readme_promises(prefix_run, finetune_run, small_data):
    folder, done = prefix_run
    assert (finetune_run[0] / "config.json").exists()  # in no prefix's: it would pass for a model
    names = {path.name for path in folder.iterdir()} - {".lock"}  # an old filelock removes it
    assert names == {"run.json", "log.jsonl", "adapter_config.json",
                     "adapter_model.safetensors", "outputs.txt", "references.txt", "scores.json",
                     "tables.txt", "loss.png"}
    kept, scores = (json.loads((folder / name).read_text()) for name in ("run.json", "scores.json"))
    assert kept["max_steps"] == 12 and kept["lr"] == 3e-3 and kept["mode"] == "prefix"
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [6, 6, 10, 12, 12]
    assert values_of(log, "validation_loss")[-1] == log[-1]["validation_loss"]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert scores["signature"]["test_sha256"] == sha256(small_data / "src1_test.txt")
    written = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
               for path in folder.iterdir() if path.suffix in (".txt", ".jsonl")}
    assert scores["signature"]["files"] == written and len(written) == 4
    adapter = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
    assert scores["costs"]["kept"] == adapter.numel()
    assert "learning rate 0.003\n" in done.stdout


def stop(*args):
    """As Ctrl-C."""
    raise KeyboardInterrupt


def test_resume_goes_on_and_refuses_other_settings(prefix_run, small_data, tmp_path, monkeypatch):
    folder = shutil.copytree(prefix_run[0], tmp_path / "run")
    arguments = ("--max-examples", 12, "--batch-size", 2, "--max-steps", 12, "--prefix-length", 3)
    again = train_here(small_data, folder, *arguments)
    assert again.error.startswith("error: ") and "already holds a run" in again.error
    other = train_here(small_data, folder, *arguments, "--resume", "--lr", 0.5)
    assert "started with lr 0.003, not 0.5" in other.error
    (folder / "scores.json").unlink()
    gone = train_here(small_data, folder, *arguments, "--resume")
    assert "training.pt is missing, so this training cannot resume" in gone.error
    shutil.rmtree(folder)
    with monkeypatch.context() as patched:
        patched.setattr(train, "score_test_set", stop)
        assert train_here(small_data, folder, *arguments).error == 130
    done = train_here(small_data, folder, *arguments, "--resume")
    assert done.error is None and "Step 12 of 12" in done.stdout
    assert (folder / "outputs.txt").read_bytes() == (prefix_run[0] / "outputs.txt").read_bytes()
    saved = [weights_in(run / "adapter_model.safetensors") for run in (folder, prefix_run[0])]
    assert saved[0] == saved[1]


@pytest.mark.parametrize("mode", ["prefix", "finetune"])
def test_another_default_device_or_dtype_changes_nothing(request, tmp_path, mode):
    truth, _ = request.getfixturevalue(f"{mode}_run")
    kept = {name: value for name, value in read_settings(truth).items() if "sha256" not in name}
    folder, of, shown = tmp_path / "run", train.Settings(**kept), []
    with other_defaults():
        with pytest.MonkeyPatch.context() as patched, pytest.raises(ZeroDivisionError):
            patched.setattr(train, "draw_losses", lambda *_: 1 / 0)
            train.train_and_score(of, folder, "cpu")
        train.train_and_score(of, folder, "cpu", resume=True)  # from its last state
        assert torch.get_default_dtype() == torch.float64  # still
    name = f"{'adapter_' if mode == 'prefix' else ''}model.safetensors"
    assert weights_in(folder / name) == weights_in(truth / name)
    assert (folder / "outputs.txt").read_bytes() == (truth / "outputs.txt").read_bytes()
    for context in (nullcontext, other_defaults):
        with context():
            run = load_run(folder, "cpu")
            shown.append((
                list(draw_sentences(run, TABLES, 1.0)), log_probability(run, *TABLES),
                beam_search(run.model, [[9, 4], [7]], run.past, num_beams=3, max_new_tokens=4)))
    assert shown[0] == shown[1]


@pytest.fixture(scope="module")
def several_runs(tmp_path_factory, small_data):
    """Two lengths and two seeds from one command."""
    folder = tmp_path_factory.mktemp("runs") / "several"
    arguments = (small_data, folder, "--max-steps", 1, "--batch-size", 2, "--prefix-length", 1, 2,
                 "--seed", 0, 1, "--prefix-form", "direct", "--max-new-tokens", 4)
    done = train_here(*arguments)
    assert done.error is None, done.error
    return folder, done, arguments


def test_several_lengths_and_seeds_are_a_run_each_with_means_and_figures(several_runs):
    folder, done, _ = several_runs
    names = [f"length-{length}-seed-{seed}" for length in (1, 2) for seed in (0, 1)]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == names
    for figure in ("losses.png", "curve.png"):
        assert (folder / figure).read_bytes().startswith(b"\x89PNG")
    for length in (1, 2):
        start = f"prefix {length}, tiny, small, mean of 2 seeds"
        row = next(line for line in done.stdout.splitlines() if line.startswith(start))
        scores = [json.loads((folder / f"length-{length}-seed-{seed}/scores.json").read_text())
                  for seed in (0, 1)]
        assert f"{50 * (scores[0]['BLEU'] + scores[1]['BLEU']):.2f}" in row


def test_of_several_lengths_the_one_that_has_no_room_is_told_before_any_training(small_data,
                                                                                tmp_path):
    done = train_here(small_data, tmp_path / "out", "--max-steps", 1, "--prefix-length", 1, 600)
    assert "a prefix of 600, " in done.error and "are more than the 512" in done.error
    assert not (tmp_path / "out").exists()


def test_several_runs_are_not_put_into_a_folder_that_holds_anything_else(prefix_run, small_data,
                                                                         tmp_path):
    (tmp_path / "scores.json").write_text("{}")  # as describe.py --out leaves it
    for folder, name in ((prefix_run[0], "adapter_config.json"), (tmp_path, "scores.json")):
        before = sorted(folder.iterdir())
        done = train_here(small_data, folder, "--seed", 0, 1)
        assert f"holds {name}, so it is a folder of its own" in done.error
        assert sorted(folder.iterdir()) == before


def test_a_matplotlib_that_does_not_load_is_told_before_any_training(small_data, tmp_path,
                                                                     monkeypatch):
    def refuse():
        raise InputError("matplotlib cannot be loaded")

    monkeypatch.setattr(train, "load_matplotlib", refuse)
    done = train_here(small_data, tmp_path / "run", "--max-steps", 1)
    assert "matplotlib cannot be loaded" in done.error and not (tmp_path / "run").exists()


def test_the_hint_after_a_stop_says_resume_once(small_data, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "train_step", stop)
    for arguments in ([], ["--resume"]):
        done = train_here(small_data, tmp_path / "run", "--max-steps", 1, *arguments)
        assert done.stderr.count("--resume") == 1


def test_what_was_trained_has_left_the_memory_when_what_was_saved_is_loaded(small_data, tmp_path,
                                                                             monkeypatch):
    trained, alive, (load_both, load_run) = [], [], (train.load_both, train.load_run)

    def watch(*args):
        model, tokenizer = load_both(*args)
        trained.append(weakref.ref(model))
        return model, tokenizer

    def load(*args):
        gc.collect()
        alive.append(trained[0]() is not None)
        return load_run(*args)

    monkeypatch.setattr(train, "load_both", watch)
    monkeypatch.setattr(train, "load_run", load)
    run_here(train.main, "--mode", "finetune", *QUICK, "--data", small_data, "--max-steps", 1,
             "--out", tmp_path / "run")
    assert alive == [False]


def test_a_program_gets_the_same_refusal_of_a_seed():
    with pytest.raises(InputError, match=f"the seed must fit into 64 bits, but is {2**70}"):
        train.settle(train.Settings(mode="prefix", model="tiny", seed=2**70))


def test_of_several_runs_only_those_that_have_not_ended_go_on(several_runs):
    folder, _, arguments = several_runs
    ended = folder / "length-1-seed-1"
    before = (ended / "scores.json").stat().st_mtime_ns
    shutil.rmtree(folder / "length-2-seed-0")  # it never began
    done = train_here(*arguments, "--resume")
    assert done.error is None, done.error
    assert (ended / "scores.json").stat().st_mtime_ns == before
    assert (folder / "length-2-seed-0" / "scores.json").exists()
    assert done.stdout.count("Step 0 of 1") == 1


# --------------------------------------------------------------------------------------------------
# The command line
# --------------------------------------------------------------------------------------------------


def parsed(*arguments):
    """{folder: Settings} that train.py makes of arguments."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.argv", ["train.py", *map(str, arguments)])
        _, _, runs = read_arguments()
    return {str(folder): train.settle(settings) for folder, settings in runs.items()}


def settings_for(*arguments):
    (one,) = parsed(*arguments).values()
    return one


RATES = [  # mode, arguments, learning rate
    ("prefix", [], 8e-5),
    ("finetune", [], 5e-5),
    ("prefix", ["--prefix-form", "direct"], 8e-5),
    ("prefix", ["--model", "tiny"], 3e-3),
    ("prefix", ["--model", "tiny", "--prefix-form", "per-layer"], 1e-3),
    ("prefix", ["--model", "tiny", "--prefix-form", "direct"], 0.1),
    ("finetune", ["--model", "tiny"], 1e-3),
    ("prefix", ["--model", "tiny", "--prefix-form", "direct", "--lr", "0.5"], 0.5),
]


@pytest.mark.parametrize("mode, arguments, lr", RATES)
def test_the_learning_rate_that_is_taken_where_none_is_given(mode, arguments, lr):
    assert settings_for("--mode", mode, *arguments).lr == lr


@pytest.mark.parametrize("n_layer, lr", [(5, 3e-3), (6, 8e-5)])
def test_a_base_is_small_below_50_million_parameters(tmp_path, monkeypatch, n_layer, lr):
    # A layer has 12 n^2 + 13 n, of which 5 and the embeddings are 46.7, 6 are 53.8 million.
    sizes = {"n_vocab": 13_900, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": n_layer}
    monkeypatch.setattr("support.settings.read_config", lambda source: sizes)
    assert settings_for("--mode", "prefix", "--model", tmp_path).lr == lr


def test_only_folders_that_are_not_called_like_a_model_or_a_data_set_are_kept_as_whole_paths(
        tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for model in ("tiny", "gpt2", "another"):
        for data in ("sample", "e2e", "rows"):
            (tmp_path / model).mkdir(exist_ok=True)
            (tmp_path / data).mkdir(exist_ok=True)
            runs = parsed("--mode", "prefix", "--model", model, "--data", data, "--lr", 1)
            ((folder, kept),) = runs.items()
            assert kept.model == (str(tmp_path / model) if model == "another" else model)
            assert kept.data == (str(tmp_path / data) if data == "rows" else data)
            assert folder == f"runs/prefix-{model}-{data}"



MISTAKES = [
    (["--lr", "inf"], "--lr must be above 0 and finite"),
    (["--epochs", "-1"], "--epochs must be above 0"),
    (["--clip", "nan"], "--clip must be above 0"),
    (["--max-examples", "0"], "--max-examples must be above 0"),
    (["--warmup-steps", "-1"], "--warmup-steps must be 0 or more"),
    (["--model", "no-such-model"], "there is no model"),
    (["--data", "no-such-data"], "there is no data set"),
    (["--prefix-length", "500"], "more than the 512 that the model has"),
    (["--num-beams", "3000"], "3000 beams are too many"),
    (["--length-penalty", "nan"], "length penalty of nan"),
    (["--length-penalty", "400", "--max-new-tokens", "100"], "length penalty of 400.0 is"),
    (["--resume"], "holds no run to resume"),
    (["--prefix-length", "3", "0"], "--prefix-length must be above 0 and finite, but is 0"),
    (["--seed", "1", "2", "1"], "--seed 1 2 1: give each number once"),
    (["--seed", str(2**64)], f"the seed must fit into 64 bits, but is {2**64}"),
    ([f"--seed={-2**63 - 1}"], f"the seed must fit into 64 bits, but is {-2**63 - 1}"),
    (["--prefix-form", "direct", "--prefix-hidden", "9"], "a direct prefix has no network"),
    (["--mode", "finetune", "--prefix-words", "pub"], "--prefix-words: fine-tuning has no prefix"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["warp", "", "cpu:x", "cuda:999", "meta", "mps:9", "xpu:9", "hip",
                                  "vulkan", "privateuseone", "lazy", "mkldnn"])
def test_a_device_that_computes_nothing_here_is_refused_in_one_line(name):
    done = run_here(train.main, "--mode", "prefix", "--demo", "--device", name)
    start = f"error: the device {name!r} cannot be used here ("
    assert done.stderr.startswith(start) and done.stderr.count("\n") == 1
    assert len(done.stderr) < len(start) + 205 and done.stdout == ""


@pytest.mark.parametrize("arguments, message", MISTAKES)
def test_a_mistake_on_the_command_line_is_one_line_and_leaves_no_folder(tmp_path,
                                                                        arguments, message):
    folder = tmp_path / "run"
    done = train_here("sample", folder, "--max-steps", 1, *arguments)
    last = done.stderr.splitlines()[-1]
    assert re.match("error: |command: error: ", last) and message in last
    assert done.stdout == "" and not folder.exists()


def test_the_demo_is_a_set_of_defaults_that_others_overrule():
    ((folder, prefix),) = parsed("--demo", "--mode", "prefix").items()
    assert (prefix.model, prefix.data, folder) == ("tiny", "sample", "runs/demo/prefix")
    assert (prefix.prefix_form, prefix.prefix_length, prefix.lr) == ("direct", 50, 0.1)
    ((folder, tuned),) = parsed("--mode", "finetune", "--demo", "--lr", "0.5").items()
    assert (folder, tuned.epochs, tuned.lr) == ("runs/demo/finetune", 2, 0.5)
