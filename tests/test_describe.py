"""A finished run: what was trained is what was saved, describes the tables and is scored."""

import itertools
import json
import re
import shutil
import zipfile

import pytest
import torch
from conftest import DECODER, ROOT, hugging_face_loss, run_here, run_python, start_warm
from peft import PeftModel
from transformers import GPT2LMHeadModel

import compare
import describe
import metrics
from describe import PUBLISHED, Run, describe_tables, load_run
from e2e_data import encode_example, encode_table, group_by_table, read_examples
from gpt2 import load_model, load_tokenizer
from support.reading import ZIP_NAME

TINY = ROOT / "models" / "tiny"
BEAMS = {"num_beams": 2, "length_penalty": 1.0, "max_new_tokens": 12}  # what DECODER says
TABLE = "name : The Mill | area : north"


@pytest.fixture(params=["prefix_run", "finetune_run"])
def folder(request):
    """The folder of a run of each mode."""
    return request.getfixturevalue(request.param)[0]


def split(folder, name):
    return [example for _, example in read_examples(folder, name)]


@pytest.fixture
def tables(small_data):
    return list(group_by_table(split(small_data, "test")))


def opened_by_others(folder):
    """A run as PEFT or Hugging Face opens its folder."""
    if not (folder / "adapter_config.json").exists():
        return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = GPT2LMHeadModel.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, folder).eval()


@torch.no_grad()
def sentences_by_generate(model, tables, **options):
    """What a model's own `generate` writes for each table."""
    tokenizer = load_tokenizer("tiny")
    ids = json.loads((TINY / "vocab.json").read_text(encoding="utf-8"))
    banned = [[ids[breaks]] for breaks in ("Ċ", "ĊĊ") if breaks in ids]  # line breaks
    prompts = {table: encode_table(tokenizer, table) for table in tables}
    sentences = {}
    by_length = sorted(tables, key=lambda table: len(prompts[table]))
    for _, group in itertools.groupby(by_length, key=lambda table: len(prompts[table])):
        group = list(group)  # of one length, so that nothing is padded
        tokens = torch.tensor([prompts[table] for table in group])
        written = model.generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), do_sample=False,
            early_stopping=False, bad_words_ids=banned, pad_token_id=ids["<|endoftext|>"],
            eos_token_id=ids["<|endoftext|>"], **options)
        for table, row in zip(group, written[:, tokens.shape[1] :].tolist()):
            kept = [token for token in row if token != ids["<|endoftext|>"]]
            sentences[table] = " ".join(tokenizer.decode(kept).split())
    return [sentences[table] for table in tables]


# --------------------------------------------------------------------------------------------------
# What was saved is what was trained, and is what describes
# --------------------------------------------------------------------------------------------------


def test_outputs_are_what_peft_or_hugging_face_generate_from_the_runs_folder(folder, tables):
    outputs = metrics.read_outputs(folder / "outputs.txt")
    assert outputs == sentences_by_generate(opened_by_others(folder), tables, **BEAMS)
    # They are not what would come without what was trained.
    bare = describe_tables(load_run("tiny", "cpu"), tables, BEAMS)
    assert sum(a != b for a, b in zip(outputs, bare)) > len(tables) / 2


@torch.no_grad()
def test_what_others_open_has_the_last_validation_loss_of_the_training(folder, small_data):
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [entry["validation_loss"] for entry in log if "validation_loss" in entry]
    tokenizer = load_tokenizer("tiny")
    encoded = [encode_example(tokenizer, *example) for example in split(small_data, "valid")]
    loss = hugging_face_loss(opened_by_others(folder), encoded).item()
    assert loss == pytest.approx(losses[-1], rel=1e-4) and abs(losses[-1] - losses[0]) > 0.03


# --------------------------------------------------------------------------------------------------
# Describing
# --------------------------------------------------------------------------------------------------


def test_a_saved_run_describes_tables_as_it_did_when_it_was_scored(folder, tables):
    outputs = metrics.read_outputs(folder / "outputs.txt")
    options = (*DECODER, "--device", "cpu")
    named = run_here(describe.main, folder, tables[0], tables[7], *options)
    piped = run_here(describe.main, folder, *options, stdin=f"{tables[0]}\n\n{tables[7]}")
    assert named.stdout == piped.stdout == f"{outputs[0]}\n{outputs[7]}\n"


def test_the_command_describes_tables_of_a_pipe_with_a_bare_model():
    done = run_python("describe.py", "tiny", "--device", "cpu", input=f"{TABLE}\n")
    base = GPT2LMHeadModel.from_pretrained(TINY, dtype=torch.float32)
    (truth,) = sentences_by_generate(base, [TABLE], num_beams=5, max_new_tokens=100)  # the default
    assert (done.stdout, done.stderr) == (f"{truth}\n", "")


def test_tables_may_stand_before_between_and_behind_options():
    shown = {run_here(describe.main, *arguments).stdout for arguments in (
        ("tiny", TABLE, *DECODER), ("tiny", *DECODER, TABLE), (*DECODER, "tiny", TABLE))}
    (sentence,) = shown
    assert len(sentence.split()) > 2


def test_decoding_the_test_set_anew_gives_the_same_files(prefix_run, small_data, tmp_path):
    folder, _ = prefix_run
    done = run_here(describe.main, folder, "--data", small_data, *DECODER, "--device", "cpu",
                    "--out", tmp_path)
    assert done.error is None and "prefix, tiny, small" in done.stdout
    for name in ("tables.txt", "outputs.txt", "references.txt"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    old, new = (json.loads((where / "scores.json").read_text()) for where in (folder, tmp_path))
    del old["signature"]["files"]["log.jsonl"]
    assert old["signature"] == new["signature"] | {"data": old["signature"]["data"]}
    assert all(old[name] == new[name] for name in metrics.METRICS) and new["costs"] is None
    both = [compare.read_run(where) for where in (folder, tmp_path)]
    assert both[0].settings["prefix_length"] == both[1].settings["prefix_length"]
    assert len(compare.group_runs(both)) == 2  # the same run again is no other seed


def test_outputs_and_references_are_in_the_order_of_the_tables_and_give_the_scores_again(
        prefix_run, small_data):
    folder, done = prefix_run
    groups = list(group_by_table(split(small_data, "test")).values())
    references = metrics.read_references(folder / "references.txt")
    outputs = metrics.read_outputs(folder / "outputs.txt")
    assert references == groups and len(outputs) == len(groups)
    scores = json.loads((folder / "scores.json").read_text())
    assert metrics.evaluate(references, outputs) == {name: scores[name] for name in metrics.METRICS}
    assert f"{100 * scores['BLEU']:.2f}" in done.stdout


# --------------------------------------------------------------------------------------------------
# What is printed beside the scores
# --------------------------------------------------------------------------------------------------

NOT_COMPARABLE = "cannot be compared with them"


@pytest.fixture
def printed(monkeypatch, capsys):
    """printed(data) -> what score_test_set prints, with made-up sentences and scores."""
    monkeypatch.setattr(describe, "search",
                        lambda run, prompts, *_, **__: ["A pub ."] * len(prompts))
    made_up = {"BLEU": 0.5, "NIST": 8.0, "METEOR": 0.4, "ROUGE_L": 0.7, "CIDEr": 2.0}
    monkeypatch.setattr(metrics, "evaluate", lambda references, outputs: made_up)
    settings = {"mode": "prefix", "model": "tiny", "seed": 0}
    run = Run(settings, load_tokenizer("tiny"), load_model("tiny"), None)

    def score(data):
        describe.score_test_set(run, data, BEAMS, 64)
        return capsys.readouterr().out

    return score


def test_the_published_rows_stand_below_a_runs_own_on_the_papers_test_set(shared, printed):
    text = printed(shared / "e2e")
    rows = text[text.index("BLEU") :].splitlines()[1:]
    assert rows[0].startswith("prefix, tiny, e2e")
    assert [row.split("  ")[0] for row in rows[1:5]] == list(PUBLISHED)
    assert rows[1].split()[-5:] == ["69.7", "8.81", "46.1", "71.4", "2.49"]  # Table 1
    assert rows[2].split()[-5:] == ["68.2", "8.62", "46.2", "71.0", "2.47"]
    assert NOT_COMPARABLE not in text


@pytest.mark.parametrize("name", [ZIP_NAME, "testset_w_refs.csv", "src1_test.txt"])
def test_scores_on_any_other_references_stand_alone_and_of_the_official_ones_it_is_said(
        shared, printed, tmp_path, name):
    """The official release has the paper's tables, but raw references: 4 BLEU lower or so."""
    if name.endswith("txt"):
        content = (shared / "e2e" / name).read_bytes().replace(b"Blue Spice", b"Blue spice", 1)
    elif name == ZIP_NAME:
        content = (shared / "e2e" / name).read_bytes()
    else:
        with zipfile.ZipFile(shared / "e2e" / ZIP_NAME) as archive:
            content = archive.read(f"e2e-dataset/{name}")
    (tmp_path / name).write_bytes(content)
    text = printed(tmp_path)
    assert not any(row in text for row in PUBLISHED)
    is_official = not name.endswith("txt")
    assert (NOT_COMPARABLE in text.splitlines()[-1]) == is_official == ("Published" in text)
    assert (str(tmp_path / name) in text.splitlines()[-1]) == is_official


# --------------------------------------------------------------------------------------------------
# What is refused
# --------------------------------------------------------------------------------------------------


def test_a_folder_without_a_finished_run_is_named(tmp_path, prefix_run):
    done = run_here(describe.main, tmp_path, TABLE)
    assert "holds neither a run nor a model" in done.error
    shutil.copy(prefix_run[0] / "run.json", tmp_path)
    done = run_here(describe.main, tmp_path, TABLE)
    assert "has no adapter_model.safetensors yet" in done.error and "--resume" in done.error
    (tmp_path / "several").mkdir()
    shutil.copytree(prefix_run[0], tmp_path / "several" / "one")
    done = run_here(describe.main, tmp_path / "several", TABLE)
    assert f"give one of those in it: {tmp_path / 'several' / 'one'}" in done.error


def test_weights_of_which_one_bit_is_another_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    (path,) = (tmp_path / "run").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40
    path.write_bytes(content)
    assert str(path) in run_here(describe.main, tmp_path / "run", TABLE).error


def test_of_two_that_write_one_folder_one_is_refused(small_data, tmp_path):
    both = [start_warm("describe.py", "tiny", "--data", small_data, *DECODER, "--device", "cpu",
                       "--out", tmp_path / "out") for _ in range(2)]
    both = sorted((process.wait() for process in both), key=lambda done: done.returncode)
    assert [done.returncode for done in both] == [0, 1], both
    assert "is being written by another process" in both[1].stderr or "holds other files" in \
        both[1].stderr


@pytest.mark.parametrize("arguments, message", [
    ([], "there is no table: give one as an argument, or a table a line on stdin"),
    ([TABLE, "--data", "sample"], "give either tables or --data"),
    ([TABLE, "--out", "somewhere"], "--out goes with --data"),
    ([TABLE, "--seed", 3], "--seed goes with --temperature"),
    ([TABLE, "--num-beams", 0], "must be at least 1"),
    ([" | ".join([TABLE] * 99)], "prompt 1: a prefix of 0, a table of"),
    ([TABLE, "--temperature", 1, "--num-beams", 5], "--temperature draws: --num-beams"),
    ([TABLE, "--temperature", 1, "--length-penalty=1"], "--temperature draws: --num-beams"),
    (["--with", "tiny", "--data", "sample"], "--data: not allowed with argument --with"),
    (["--temperature", 1, "--data", "sample"], "--data: not allowed with argument --temperature"),
    (["--with", "tiny", "--temperature", 1], "--temperature: not allowed with argument --with"),
])
def test_a_mistake_on_the_command_line_is_one_line(arguments, message):
    done = run_here(describe.main, "tiny", *arguments, "--device", "cpu")
    last = done.stderr.splitlines()[-1]
    assert re.match("error: |command: error: ", last) and message in last and done.stdout == ""
