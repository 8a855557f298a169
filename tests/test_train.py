"""The whole road: training does what it says, and what a run writes gives the same sentences again."""

import hashlib
import json
import shutil

import pytest
import torch
from conftest import ROOT, assert_close, hugging_face_twin, random_config, random_model, random_prefix, run_python
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

import metrics
from beam import banned_tokens
from common import InputError
from e2e_data import encode_table, group_by_table, make_batch, read_split
from gpt2 import load_tokenizer
from train import PUBLISHED, example_loss, load_run, parse_arguments, train, validation_loss

SETTINGS = {"lr": 1e-2, "batch_size": 2, "epochs": 2, "max_steps": None, "seed": 0, "clip": 1.0, "dtype": "float32"}
QUICK = ("--model", "tiny", "--data", "sample", "--device", "cpu", "--max-new-tokens", "12", "--num-beams", "2")


@pytest.fixture
def small_run():
    """Settings, a small model, a prefix, and seven examples."""
    config = random_config(3)
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(config.n_vocab, (n,), generator=generator).tolist()
    encoded = [(draw(4 + i % 3), draw(3 + i % 4)) for i in range(7)]
    model = random_model(config, 3, torch.float32)
    return dict(SETTINGS), model, random_prefix(config, 3, dtype=torch.float32), encoded


@pytest.fixture(scope="module")
def prefix_run(tmp_path_factory):
    """A run of a few steps from the command line."""
    folder = tmp_path_factory.mktemp("runs") / "prefix"
    done = run_python("train.py", "--mode", "prefix", *QUICK, "--max-steps", 12, "--prefix-length", 3, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def finetune_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finetune"
    done = run_python("train.py", "--mode", "finetune", *QUICK, "--max-steps", 12, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_the_loss_is_the_cross_entropy_of_hugging_faces_logits_over_the_sentences_alone():
    model = random_model(random_config(1), 1)
    examples = [([1, 2, 3], [2, 4]), ([2], [1, 1, 3])]
    log_probs = []
    for prompt, sentence in examples:
        logits = hugging_face_twin(model)(torch.tensor([prompt + sentence])).logits[0]
        log_probs += [logits[len(prompt) - 1 + i].log_softmax(-1)[token] for i, token in enumerate(sentence)]
    assert_close(example_loss(model, None, *make_batch(examples)), -torch.stack(log_probs).mean())


@pytest.mark.parametrize("mode", ["prefix", "finetune"])
def test_only_what_the_mode_trains_changes_and_the_loss_falls(small_run, tmp_path, mode):
    settings, model, prefix, encoded = small_run
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    log = train(settings | {"epochs": 20}, model, prefix if mode == "prefix" else None, encoded, encoded, tmp_path)
    changed = any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert changed == (mode == "finetune")
    losses = [entry["validation_loss"] for entry in log if "validation_loss" in entry]
    assert len(losses) == 20 and losses[-1] < 0.9 * losses[0]
    if mode == "prefix":
        assert all(parameter.grad is None for parameter in model.parameters())


def test_the_learning_rate_falls_linearly_to_zero(small_run, tmp_path):
    settings, model, prefix, encoded = small_run
    log = train(settings | {"epochs": 10}, model, prefix, encoded, encoded, tmp_path)  # 4 batches an epoch
    rates = {entry["step"]: entry["lr"] for entry in log if "lr" in entry}
    assert rates == pytest.approx({step: 1e-2 * (1 - step / 40) for step in rates}) and 40 in rates
    assert sum(entry["steps"] for entry in log if "lr" in entry) == 40  # every step's loss is in the log


def test_training_that_was_stopped_between_epochs_ends_as_if_it_had_not_been(small_run, tmp_path):
    settings, model, prefix, encoded = small_run
    start = {name: tensor.clone() for name, tensor in prefix.state_dict().items()}
    whole = train(settings, model, prefix, encoded, encoded, tmp_path / "whole")
    end = {name: tensor.clone() for name, tensor in prefix.state_dict().items()}

    prefix.load_state_dict(start)
    epochs = iter([encoded, KeyboardInterrupt])  # the validation after the second epoch is interrupted

    class Interrupted(list):
        def __iter__(self):
            part = next(epochs)
            if part is KeyboardInterrupt:
                raise KeyboardInterrupt
            return iter(part)

    with pytest.raises(KeyboardInterrupt):
        train(settings, model, prefix, encoded, Interrupted(encoded), tmp_path / "parts")
    prefix.load_state_dict(start)  # a new process would start anew
    parts = train(settings, model, prefix, encoded, encoded, tmp_path / "parts")
    for name, tensor in prefix.state_dict().items():
        assert torch.equal(tensor, end[name]), name
    drop = lambda log: [{name: value for name, value in entry.items() if name != "seconds"} for entry in log]
    assert drop(parts) == drop(whole)
    lines = (tmp_path / "parts" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == parts


def test_gradients_are_clipped(small_run, tmp_path):
    settings, model, prefix, encoded = small_run
    start = {name: tensor.clone() for name, tensor in prefix.state_dict().items()}
    train(settings | {"max_steps": 1, "clip": 1e-12}, model, prefix, encoded, encoded, tmp_path)
    worst = max((tensor - start[name]).abs().max() for name, tensor in prefix.state_dict().items())
    assert worst < 1e-5  # Adam's step is lr / (1 + epsilon / gradient): gradients far below epsilon (1e-8) show


def test_the_validation_loss_is_the_mean_over_tokens_whatever_the_batches(small_run):
    settings, model, prefix, encoded = small_run
    model, prefix = model.double(), prefix.double()
    many = encoded * 11  # more than one batch
    total = sum(example_loss(model, prefix(), *make_batch([example])).item() * len(example[1]) for example in many)
    mean = total / sum(len(sentence) for _, sentence in many)
    assert validation_loss(settings, model, prefix, many) == pytest.approx(mean, rel=1e-9)


def test_a_run_writes_everything_that_the_readme_promises(prefix_run):
    folder, done = prefix_run
    names = {path.name for path in folder.iterdir()}
    assert names == {"run.json", "log.jsonl", "training.pt", "adapter_config.json", "adapter_model.safetensors",
                     "outputs.txt", "references.txt", "scores.json", "loss.png"}
    settings, scores = (json.loads((folder / name).read_text()) for name in ("run.json", "scores.json"))
    assert settings["max_steps"] == 12 and settings["lr"] == 3e-3 and settings["mode"] == "prefix"
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [10, 12, 12] and "validation_loss" in log[-1]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    test_file = ROOT / "data" / "sample" / "src1_test.txt"
    assert scores["signature"]["test_sha256"] == hashlib.sha256(test_file.read_bytes()).hexdigest()
    assert scores["costs"]["kept"] == load_file(folder / "adapter_model.safetensors")["prompt_embeddings"].numel()


def test_outputs_and_references_are_in_the_order_of_the_test_tables_and_give_the_scores_again(prefix_run):
    folder, done = prefix_run
    groups = list(group_by_table(read_split(ROOT / "data" / "sample", "test")).values())
    references = metrics.read_references(folder / "references.txt")
    outputs = metrics.read_outputs(folder / "outputs.txt")
    assert references == groups and len(outputs) == len(groups)
    scores = json.loads((folder / "scores.json").read_text())
    assert metrics.evaluate(references, outputs) == {name: scores[name] for name in metrics.METRICS}
    assert f"{100 * scores['BLEU']:.2f}" in done.stdout


@pytest.mark.parametrize("run", ["prefix_run", "finetune_run"])
def test_a_saved_run_describes_tables_as_it_did_when_it_was_scored(run, request):
    folder, _ = request.getfixturevalue(run)
    tables = list(group_by_table(read_split(ROOT / "data" / "sample", "test")))
    outputs = (folder / "outputs.txt").read_text(encoding="utf-8").splitlines()
    decoder = ("--num-beams", 2, "--max-new-tokens", 12, "--device", "cpu")
    named = run_python("beam.py", "--run", folder, *decoder, tables[0], tables[7])
    piped = run_python("beam.py", "--run", folder, *decoder, input="\n".join([tables[0], "", tables[7]]))
    assert named.stdout == piped.stdout == f"{outputs[0]}\n{outputs[7]}\n"


def test_decoding_the_test_set_anew_gives_the_same_files(prefix_run, tmp_path):
    folder, _ = prefix_run
    done = run_python("beam.py", "--run", folder, "--data", "sample", "--num-beams", 2, "--max-new-tokens", 12,
                      "--device", "cpu", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("outputs.txt", "references.txt"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_fine_tuned_run_opened_by_hugging_face_gives_our_logits(finetune_run):
    from transformers import GPT2LMHeadModel

    folder, _ = finetune_run
    run = load_run(folder, "cpu")
    tokens = torch.tensor([run.tokenizer.encode_ordinary(" name : The Mill | Type : pub")])
    twin = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    assert_close(run.model(tokens), twin(tokens).logits, 1e-4)
    assert run.past is None


def test_a_prefix_run_opened_by_peft_gives_our_logits(prefix_run):
    from peft import PeftModel
    from transformers import GPT2LMHeadModel

    folder, _ = prefix_run
    run = load_run(folder, "cpu")
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    twin = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base, dtype=torch.float32), folder).eval()
    tokens = torch.tensor([run.tokenizer.encode_ordinary(" name : The Mill | Type : pub")])
    assert_close(run.model(tokens, run.past), twin(tokens).logits, 1e-4)


def test_resume_goes_on_and_refuses_other_settings(prefix_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(prefix_run[0], folder)
    command = ("train.py", "--mode", "prefix", *QUICK, "--max-steps", 12, "--prefix-length", 3, "--out", folder)
    again = run_python(*command)
    assert again.returncode == 1 and again.stderr.startswith("error: ") and "already holds a run" in again.stderr
    other = run_python(*command, "--resume", "--lr", 0.5)
    assert other.returncode == 1 and "started with lr 0.003, not 0.5" in other.stderr
    done = run_python(*command, "--resume")
    assert done.returncode == 0 and "Going on from step 12 of 12" in done.stdout
    assert (folder / "outputs.txt").read_bytes() == (prefix_run[0] / "outputs.txt").read_bytes()


@pytest.fixture(scope="module")
def several_runs(tmp_path_factory):
    """Two lengths and two seeds from one command, of which one has not ended."""
    folder = tmp_path_factory.mktemp("runs") / "several"
    command = ("train.py", "--mode", "prefix", *QUICK, "--max-steps", 2, "--prefix-length", 1, 2, "--seed", 0, 1,
               "--prefix-form", "direct", "--prefix-words", "a pub", "--out", folder)
    done = run_python(*command)
    assert done.returncode == 0, done.stderr
    return folder, done, command


def test_several_lengths_and_seeds_are_a_run_each_with_means_and_figures(several_runs):
    folder, done, _ = several_runs
    names = [f"length-{length}-seed-{seed}" for length in (1, 2) for seed in (0, 1)]
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == names
    for figure in ("losses.png", "curve.png"):
        assert (folder / figure).read_bytes().startswith(b"\x89PNG")
    for length in (1, 2):
        row = next(line for line in done.stdout.splitlines() if line.startswith(f"prefix {length}, tiny, sample, mean"))
        scores = [json.loads((folder / f"length-{length}-seed-{seed}/scores.json").read_text()) for seed in (0, 1)]
        assert f"{50 * (scores[0]['BLEU'] + scores[1]['BLEU']):.2f}" in row and "mean of 2 seeds" in row


def test_of_several_runs_only_those_that_have_not_ended_go_on(several_runs):
    folder, _, command = several_runs
    ended = folder / "length-1-seed-1"
    before = (ended / "scores.json").stat().st_mtime_ns
    shutil.rmtree(folder / "length-2-seed-0")  # one never began, and one was stopped while it was decoded
    (folder / "length-2-seed-1" / "scores.json").unlink()
    refused = run_python(*command)
    assert refused.returncode == 1 and "length-1-seed-0 already holds a run" in refused.stderr
    done = run_python(*command, "--resume")
    assert done.returncode == 0, done.stderr
    assert (ended / "scores.json").stat().st_mtime_ns == before
    assert (folder / "length-2-seed-0" / "scores.json").exists() and "Going on from step 2 of 2" in done.stdout


def test_bfloat16_trains_to_nearly_the_same_loss(small_run, tmp_path):
    settings, model, prefix, encoded = small_run
    start = {name: tensor.clone() for name, tensor in prefix.state_dict().items()}
    losses = []
    for dtype in ("float32", "bfloat16"):
        prefix.load_state_dict(start)
        losses.append(train(settings | {"dtype": dtype}, model, prefix, encoded, encoded, tmp_path / dtype)[-1])
    assert losses[0] != losses[1]
    assert losses[0]["validation_loss"] == pytest.approx(losses[1]["validation_loss"], rel=0.05)


@pytest.mark.parametrize("arguments, lr", [
    (["--mode", "prefix"], 8e-5),
    (["--mode", "finetune"], 5e-5),
    (["--mode", "prefix", "--prefix-form", "direct"], 8e-5),
    (["--mode", "prefix", "--model", "tiny"], 3e-3),
    (["--mode", "prefix", "--model", "tiny", "--prefix-form", "per-layer"], 3e-3),
    (["--mode", "prefix", "--model", "tiny", "--prefix-form", "direct"], 0.1),
    (["--mode", "finetune", "--model", "tiny"], 1e-3),
    (["--mode", "prefix", "--model", "tiny", "--prefix-form", "direct", "--lr", "0.5"], 0.5),
])
def test_the_learning_rate_that_is_taken_where_none_is_given(monkeypatch, arguments, lr):
    monkeypatch.setattr("sys.argv", ["train.py", *arguments])
    assert parse_arguments().lr == lr


@pytest.mark.parametrize("arguments, message", [
    (["--lr", "0"], "--lr must be above 0"),
    (["--epochs", "-1"], "--epochs must be above 0"),
    (["--num-beams", "0"], "--num-beams must be above 0"),
    (["--model", "no-such-model"], "there is no model 'no-such-model'"),
    (["--data", "no-such-data"], "there is no data set 'no-such-data'"),
    (["--device", "warp"], "the device 'warp' cannot be used here"),
    (["--prefix-length", "500"], "more than the 512 that tiny has"),
    (["--resume"], "holds no run to go on with"),
    (["--prefix-length", "3", "0"], "--prefix-length must be above 0, but is 3 0"),
    (["--prefix-form", "direct", "--prefix-hidden", "9"], "a direct prefix has no network"),
    (["--mode", "finetune", "--prefix-length", "1", "2"], "fine-tuning has no prefix"),
    (["--mode", "finetune", "--prefix-words", "pub"], "fine-tuning has no prefix"),
    (["--mode", "finetune", "--prefix-form=direct"], "--prefix-form=direct: fine-tuning has no prefix"),
])
def test_a_mistake_on_the_command_line_is_one_line_and_leaves_no_folder(tmp_path, arguments, message):
    folder = tmp_path / "run"
    done = run_python("train.py", "--mode", "prefix", *QUICK, "--out", folder, *arguments)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
    assert not folder.exists()


def test_beam_py_tells_a_folder_without_a_finished_run(tmp_path, prefix_run):
    assert "run.json is missing" in run_python("beam.py", "--run", tmp_path, "name : a").stderr
    shutil.copy(prefix_run[0] / "run.json", tmp_path)
    assert "its training has not ended" in run_python("beam.py", "--run", tmp_path, "name : a").stderr


def test_beam_py_describes_and_scores_with_a_bare_model():
    sentences = run_python("beam.py", "--run", "tiny", "name : The Mill | area : north", "--device", "cpu").stdout
    twin = GPT2LMHeadModel.from_pretrained(ROOT / "models" / "tiny", dtype=torch.float32)
    tokenizer = load_tokenizer("tiny")
    prompt = torch.tensor([encode_table(tokenizer, "name : The Mill | area : north")])
    tokens = twin.generate(prompt, attention_mask=torch.ones_like(prompt), num_beams=5, max_new_tokens=100,
                           do_sample=False, bad_words_ids=[[token] for token in banned_tokens(tokenizer)],
                           pad_token_id=tokenizer.eot_token)[0, prompt.shape[1] :].tolist()
    written = tokenizer.decode([token for token in tokens if token != tokenizer.eot_token])
    assert sentences == " ".join(written.split()) + "\n"
    done = run_python("beam.py", "--run", "tiny", "--data", "sample", "--max-new-tokens", 5, "--device", "cpu")
    assert "untrained, tiny, sample" in done.stdout


def test_a_prefix_for_another_shape_of_model_is_refused(prefix_run, tmp_path):
    shutil.copytree(prefix_run[0], tmp_path / "run")
    path = tmp_path / "run" / "adapter_config.json"
    path.write_text(path.read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 2'))
    with pytest.raises(InputError, match="another shape"):
        load_run(tmp_path / "run", "cpu")


def test_the_papers_rows_are_printed_below_the_runs_own_only_on_the_papers_test_set(shared, prefix_run, tmp_path):
    assert not any(name in prefix_run[1].stdout for name in PUBLISHED)
    lines = (shared / "e2e" / "src1_train.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "src1_train.txt").write_text("".join(lines[:20]), encoding="utf-8")
    (tmp_path / "src1_valid.txt").write_text("".join(lines[:20]), encoding="utf-8")
    shutil.copy(shared / "e2e" / "src1_test.txt", tmp_path)
    done = run_python("train.py", "--mode", "prefix", "--model", "tiny", "--data", tmp_path, "--max-steps", 1,
                      "--num-beams", 1, "--max-new-tokens", 2, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    rows = done.stdout[done.stdout.index("BLEU") :].splitlines()
    assert rows[1].startswith("prefix, tiny") and [row.split("  ")[0] for row in rows[2:6]] == list(PUBLISHED)
    assert "69.7       8.81     46.1      71.4       2.49" in rows[2]
