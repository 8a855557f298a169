"""The recipe of models/tiny: names are made up in table and text alike, loss lies where it should, both stages run."""

import gzip
import json
import random

import pytest
import torch
from conftest import ROOT, run_python
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

import pretrain
from e2e_data import NO_LOSS
from gpt2 import load_model, load_tokenizer


@given(st.integers(0, 10**6), st.sets(st.sampled_from(["Alder", "Birch Inn", "The Cedar", "Dogwood"]), min_size=1))
def test_a_made_up_name_stands_in_table_and_text_alike(seed, names):
    table = [[f"slot {number} name", name] for number, name in enumerate(names)] + [["price", "cheap"]]
    row = {"table": table, "text": "It is cheap. " + ", ".join(names)}
    slots, text = pretrain.make_up_names(row, ["word", "other"], random.Random(seed))
    assert all(value in text for _, value in slots) and slots[-1] == ("price", "cheap")


def test_half_of_the_names_are_made_up():
    row = {"table": [["restaurant name", "The Mill"]], "text": "The Mill is open."}
    draws = [pretrain.make_up_names(row, ["word"], random.Random(seed))[1] for seed in range(400)]
    assert 0.4 < sum("The Mill" not in text for text in draws) / 400 < 0.6


@pytest.mark.parametrize("sentences_only", [False, True])
def test_a_target_is_the_next_token_and_tables_carry_loss_only_where_asked(sentences_only):
    tokenizer = load_tokenizer("tiny")
    documents = [("name : The Mill", "The Mill is open.")] * 9
    tokens, targets = pretrain.encode_stream(tokenizer, documents, 7, sentences_only)
    stream = (tokenizer.encode_ordinary(" name : The Mill") + [tokenizer.eot_token]
              + tokenizer.encode_ordinary(" The Mill is open.") + [tokenizer.eot_token]) * 9
    tokens, targets = tokens.flatten().tolist(), targets.flatten().tolist()
    assert tokens == stream[: len(tokens)] and len(stream) - len(tokens) <= 7
    counted = [target for target in targets if target != NO_LOSS]
    assert all(target in (NO_LOSS, token) for target, token in zip(targets, stream[1:]))
    text = tokenizer.decode(counted)
    assert ("name :" in text) != sentences_only and text.count("is open") >= 7


def test_both_stages_run_go_on_and_open_in_hugging_face(tmp_path):
    draw = random.Random(0)
    for name in ("sgd", "rnnlg"):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            for number in range(3000):
                name = f"{draw.choice('ABCDEFGH')}{draw.choice('aeiou')}{draw.choice('lmnr')}{number % 50}"
                row = {"domain": "pubs", "speaker": "system", "table": [["pub name", name], ["area", "north"]],
                       "text": f"{name} is a pub in the north, isn't it?"}
                file.write(json.dumps(row) + "\n")
    for stage, more in (("one", []), ("two", ["--start", tmp_path / "one"])):
        done = run_python("pretrain.py", "--data", tmp_path, "--out", tmp_path / stage, "--steps", 2, "--device", "cpu",
                          *more)
        assert done.returncode == 0, done.stderr
        assert "step 2: held-out loss" in done.stderr + done.stdout
        assert {path.name for path in (tmp_path / stage).iterdir()} == {"config.json", "model.safetensors",
                                                                        "vocab.json", "merges.txt"}
    tokens = torch.tensor([load_tokenizer(tmp_path / "two").encode_ordinary(" pub name : Al1 | area : north")])
    twin = GPT2LMHeadModel.from_pretrained(tmp_path / "two", dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(load_model(tmp_path / "two")(tokens), twin(tokens).logits, atol=1e-4)


def test_missing_data_are_one_clear_error(tmp_path):
    done = run_python("pretrain.py", "--data", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 1 and "sgd.jsonl.gz is missing; --data must name the folder" in done.stderr


def test_the_model_that_ships_is_small_and_has_a_card():
    folder = ROOT / "models" / "tiny"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 14 * 2**20
    assert "CC BY-SA" in (folder / "README.md").read_text(encoding="utf-8")
    assert load_model("tiny").config.n_vocab == load_tokenizer("tiny").n_vocab == 4096
