"""The recipe of models/tiny: sentences say their whole table, loss lies where it should, a stopped run goes on."""

import gzip
import json
import random
import sys

import pytest
import torch
from conftest import ROOT, run_python
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

import pretrain
from e2e_data import NO_LOSS
from gpt2 import generate, load_model, load_tokenizer

ROWS = [
    {"domain": "pubs", "speaker": "system", "table": [["pub name", name], ["area", area], ["has music", "True"]],
     "text": f"Okay, {name} is a pub in the {area}. They play live music."}
    for name in ("Alder", "Birch Inn") for area in ("north", "old town")
] + [
    {"domain": "pubs", "speaker": "system", "table": [["rating", "5"], ["price", "$20"], ["type", "pub"]],
     "text": "Sure, it is a 5 star pub. Rooms cost $20 a night"},
    {"domain": "tv", "speaker": "system", "table": [["act", "inform"], ["name", "ares 11"], ["color", "mat black"]],
     "text": "the ares 11 comes in mat black . "},
]


def fill(pattern, values):
    """The pattern's text with each hole replaced by the value of its slot."""
    for number, slot in enumerate(pattern.slots):
        pattern = pretrain.Pattern(pattern.text.replace(chr(pretrain.FIRST_HOLE + number), values[slot]),
                                   pattern.slots, pattern.facts)
    return pattern.text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    for name, rows in (("sgd", ROWS[:-1]), ("rnnlg", ROWS[-1:])):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def test_the_patterns_of_a_row_are_its_sentences_with_the_values_cut_out():
    [place, music] = pretrain.find_patterns(ROWS[0])
    assert fill(place, {"pub name": "The Oak", "area": "west"}) == "The Oak is a pub in the west."
    assert place.facts == () and set(place.slots) == {"pub name", "area"}
    assert music == pretrain.Pattern("They play live music.", (), (("has music", "True"),))
    [kind, price] = pretrain.find_patterns(ROWS[4])
    assert fill(kind, {"rating": "3", "type": "bar"}) == "It is a 3 star bar."
    assert fill(price, {"price": "£9"}) == "Rooms cost £9 a night."
    [tv] = pretrain.find_patterns(ROWS[5])
    assert fill(tv, {"name": "x", "color": "y"}) == "The x comes in y ."


@pytest.mark.parametrize("table, text", [
    ([["area", "north"]], "It is far away."),  # not said
    ([["area", "north"]], "North of the north."),  # said twice
    ([["area", "north"]], "It is northern."),  # part of another word
    ([["area", "north"]], "Is it in the north?"),
    ([["area", "?"]], "Where is it."),
    ([["area", "north"], ["area", "south"]], "From north to south."),
    ([["act", "inform no match"], ["area", "north"]], "Nothing in the north."),
    ([["has music", "True"], ["area", "north"]], "In the north. They play well. They sing well."),  # which one says it?
    ([["act", "goodbye"]], "Have a nice day."),
])
def test_a_text_that_does_not_say_each_value_once_and_in_one_place_gives_no_pattern(table, text):
    assert pretrain.find_patterns({"domain": "pubs", "speaker": "system", "table": table, "text": text}) == []


@given(st.integers(0, 10**9))
def test_a_document_says_each_value_of_its_table_once_and_its_row_has_one_form_of_tables(source, seed):
    task = pretrain.Task(source, random.Random(seed))
    orders, filled, fill_pattern = [], [], task.fill
    task.fill = lambda pattern, values: filled.append(pattern) or fill_pattern(pattern, values)
    for _ in range(5):
        filled.clear()
        table, text = task.write()
        assert sum(len(pattern.all_slots()) for pattern in filled) == table.count(" | ") + 1
        slots, values = zip(*(pair.split(" : ") for pair in table.split(" | ")))
        assert len(set(slots)) == len(slots)
        said = pretrain.tokenise_text(text)
        assert all(pretrain.tokenise_text(value) in said for value in values if value.lower() not in pretrain.FACTS)
        assert not pretrain.HOLE.search(table + text)
        orders.append(slots)
    order = sorted(task.order, key=task.order.get)
    names = [task.names[slot] for slot in order]
    assert all([name for name in names if name in slots] == list(slots) for slots in orders)


@pytest.fixture(scope="module")
def source(folder):
    return pretrain.read_source(folder)


def test_articles_fit_the_values():
    hole = chr(pretrain.FIRST_HOLE)
    pattern = pretrain.Pattern(f"A {hole} is it .", ("kind",), ())
    assert pretrain.Task.fill(None, pattern, {"kind": "inn"}) == "An inn is it ."
    assert pretrain.Task.fill(None, pattern, {"kind": "pub"}) == "A pub is it ."
    assert pretrain.Task.fill(None, pattern, {"kind": "éclair"}) == "An éclair is it ."
    pattern = pretrain.Pattern(f"We saw the {hole} .", ("name",), ())
    assert pretrain.Task.fill(None, pattern, {"name": "The Oak"}) == "We saw The Oak ."


def test_words_have_every_accent_and_most_have_none(source):
    task = pretrain.Task(source, random.Random(0))
    words = [task.word() for _ in range(3000)]
    assert set("".join(pretrain.ACCENTED.values())) <= set("".join(words))
    assert 0.8 < sum(word.isascii() for word in words) / len(words) < 0.95


@pytest.mark.parametrize("seed", range(3))
def test_a_target_is_the_next_token_of_a_sentence_and_tables_carry_no_loss(source, seed):
    tokenizer = load_tokenizer("tiny")
    tokens, targets = pretrain.write_rows(source, tokenizer, 2, 200, seed)
    again, _ = pretrain.write_rows(source, tokenizer, 2, 200, seed)
    other, _ = pretrain.write_rows(source, tokenizer, 2, 200, seed + 10)
    assert torch.equal(tokens, again) and not torch.equal(tokens, other)
    for row, wanted in zip(tokens.tolist(), targets.tolist()):
        assert len(row) == 200
        in_sentence = False  # rows begin with a table; each <|endoftext|> is the border to the other kind
        for at, token in enumerate(row):
            in_sentence ^= token == tokenizer.eot_token
            assert (wanted[at] != NO_LOSS) == in_sentence
            assert at + 1 == len(row) or wanted[at] in (NO_LOSS, row[at + 1])


def test_a_stopped_run_ends_as_one_that_was_not_and_opens_in_hugging_face(folder, tmp_path, monkeypatch):
    small = dict(CHUNK=2, TOKENS_PER_STEP=128, HELD_OUT=1, N_CTX=64, N_EMBD=16, N_VOCAB=300,
                 STAGES=(pretrain.Stage(16, 4, 2e-3, False), pretrain.Stage(32, 4, 1e-3, True)))
    for name, value in small.items():
        monkeypatch.setattr(pretrain, name, value)
    row_loss, steps = pretrain.row_loss, [0]

    def run(out, stop_at=None):
        def counted_loss(*args):
            steps[0] += torch.is_grad_enabled()  # not where the held-out loss is measured
            if steps[0] == stop_at:
                raise KeyboardInterrupt
            return row_loss(*args)

        steps[0] = 0
        monkeypatch.setattr(pretrain, "row_loss", counted_loss)
        monkeypatch.setattr(sys, "argv", ["pretrain.py", "--data", str(folder), "--out", str(out), "--device", "cpu"])
        pretrain.main()
        return steps[0]

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(whole) == 8
    for stage, step in ((0, 2), (0, 4), (1, 2)):  # what is kept is that of every second step
        with pytest.raises(KeyboardInterrupt):
            run(stopped, stop_at=4)
        state = torch.load(stopped / "training.pt", weights_only=True)
        assert (state["stage"], state["step"]) == (stage, step)
    assert run(stopped) == 2
    for folder in (whole, stopped):
        assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "vocab.json",
                                                            "merges.txt"}
    for name in ("vocab.json", "merges.txt", "model.safetensors"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()
    tokens = torch.tensor([load_tokenizer(whole).encode_ordinary(" area : north")])
    twin = GPT2LMHeadModel.from_pretrained(whole, dtype=torch.float32)
    with torch.no_grad():
        assert torch.allclose(load_model(whole)(tokens), twin(tokens).logits, atol=1e-4)


def test_among_the_first_positions_two_are_as_alike_as_any_two_so_far_apart():
    table = pretrain.first_positions()
    alike = table @ table.T  # [512, 512]
    for distance in range(512):
        diagonal = alike.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[:1], atol=1e-4)
    assert alike[0].argmax() == 0 and table.shape == (512, 256)


def test_missing_data_are_one_clear_error(tmp_path):
    done = run_python("pretrain.py", "--data", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 1 and "sgd.jsonl.gz is missing; --data must name the folder" in done.stderr


def test_the_model_that_ships_is_small_and_has_a_card():
    folder = ROOT / "models" / "tiny"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 14 * 2**20
    assert "CC BY-SA" in (folder / "README.md").read_text(encoding="utf-8")
    assert load_model("tiny").config.n_vocab == load_tokenizer("tiny").n_vocab == 4096


@pytest.mark.parametrize("name", ["Café Brûlée", "El Niño", "Chez Hélène", "Zoë Garçon", "Bjørn Inn"])
def test_the_model_that_ships_copies_names_with_accents(name):
    tokenizer, model = load_tokenizer("tiny"), load_model("tiny")
    example = [" name : Green Oak | Type : pub | area : north", " Green Oak is a pub in the north ."]
    prompt = [token for part in (*example, f" name : {name} | Type : pub | area : south")
              for token in (*tokenizer.encode_ordinary(part), tokenizer.eot_token)]
    assert f"{name} is" in tokenizer.decode(list(generate(model, prompt, 20)))
