"""The recipe of models/tiny: sentences say their whole table, loss lies where it should."""

import gzip
import json
import random

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, assert_close, run_python, weights_in
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

from gpt2 import GPT2Config, generate, load_model, load_tokenizer
from models.tiny import make as recipe


def row(domain, table, text):
    """A row of the data that the system says, its table given as "slot: value, slot: value"."""
    pairs = [pair.split(": ") for pair in table.split(", ") if pair]
    return {"domain": domain, "speaker": "system", "table": pairs, "text": text}


ROWS = [
    row("pubs", f"pub name: {name}, area: {area}, has music: True",
        f"Okay, {name} is a pub in the {area}. They play live music.")
    for name in ("Alder", "Birch Inn") for area in ("north", "old town")
]
ROWS += [
    row("pubs", "rating: 5, price: $20, type: pub",
        "Sure, it is a 5 star pub. Rooms cost $20 a night"),
    row("tv", "act: inform, name: ares 11, color: mat black",
        "the ares 11 comes in mat black . "),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with ROWS as the files of the two data sets."""
    folder = tmp_path_factory.mktemp("dialogues")
    for name, rows in (("sgd", ROWS[:-1]), ("rnnlg", ROWS[-1:])):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


@pytest.fixture(scope="module")
def source(folder):
    return recipe.read_source(folder)


# --------------------------------------------------------------------------------------------------
# Sentences with their values cut out
# --------------------------------------------------------------------------------------------------


def fill(pattern, values):
    """The pattern's text with each hole replaced by the value of its slot."""
    text = pattern.text
    for number, slot in enumerate(pattern.slots):
        text = text.replace(chr(recipe.FIRST_HOLE + number), values[slot])
    return text


def test_the_patterns_of_a_row_are_its_sentences_with_the_values_cut_out():
    [place, music] = recipe.find_patterns(ROWS[0])
    assert fill(place, {"pub name": "The Oak", "area": "west"}) == "The Oak is a pub in the west."
    assert place.facts == () and set(place.slots) == {"pub name", "area"}
    assert music == recipe.Pattern("They play live music.", (), (("has music", "True"),))
    [kind, price] = recipe.find_patterns(ROWS[4])
    assert fill(kind, {"rating": "3", "type": "bar"}) == "It is a 3 star bar."
    assert fill(price, {"price": "£9"}) == "Rooms cost £9 a night."
    [tv] = recipe.find_patterns(ROWS[5])
    assert fill(tv, {"name": "x", "color": "y"}) == "The x comes in y ."


@pytest.mark.parametrize("table, text", [
    ("area: north", "It is far away."),  # not said
    ("area: north", "North of the north."),  # said twice
    ("area: north", "It is northern."),  # part of another word
    ("area: north", "Is it in the north?"),
    ("area: ?", "Where is it."),
    ("area: north, area: south", "From north to south."),
    ("act: inform no match, area: north", "Nothing in the north."),
    ("has music: True, area: north",  # which one says it?
     "In the north. They play well. They sing well."),
    ("act: goodbye", "Have a nice day."),
])
def test_a_text_that_does_not_say_each_value_once_and_in_one_place_gives_no_pattern(table, text):
    assert recipe.find_patterns(row("pubs", table, text)) == []


# --------------------------------------------------------------------------------------------------
# Tasks and their documents
# --------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**9))
def test_a_document_says_each_value_of_its_table_once_and_its_row_has_one_form_of_tables(
        source, seed):
    task = recipe.Task(source, random.Random(seed))
    filled, fill_pattern = [], task.fill
    task.fill = lambda pattern, values: filled.append(pattern) or fill_pattern(pattern, values)
    names = [task.names[slot] for slot in sorted(task.order, key=task.order.get)]
    for _ in range(5):
        filled.clear()
        table, text = task.write()
        assert not recipe.HOLE.search(table + text)
        slots, values = zip(*(pair.split(" : ") for pair in table.split(" | ")))
        assert sum(len(pattern.all_slots()) for pattern in filled) == len(slots)
        assert [name for name in names if name in slots] == list(slots)  # each once, in one order
        said = recipe.tokenise_text(text)
        for value in values:
            assert value.lower() in recipe.FACTS or recipe.tokenise_text(value) in said


@pytest.mark.parametrize("text, slot, value, expected", [
    ("A {} is it .", "kind", "inn", "An inn is it ."),
    ("A {} is it .", "kind", "pub", "A pub is it ."),
    ("A {} is it .", "kind", "éclair", "An éclair is it ."),
    ("We saw the {} .", "name", "The Oak", "We saw The Oak ."),
])
def test_articles_fit_the_values(text, slot, value, expected):
    pattern = recipe.Pattern(text.format(chr(recipe.FIRST_HOLE)), (slot,), ())
    assert recipe.Task.fill(None, pattern, {slot: value}) == expected


def test_words_have_every_accent_and_most_have_none(source):
    task = recipe.Task(source, random.Random(0))
    words = [task.word() for _ in range(3000)]
    assert set("".join(recipe.ACCENTED.values())) <= set("".join(words))
    assert 0.8 < sum(word.isascii() for word in words) / len(words) < 0.95


# --------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_sentences_carry_loss_up_to_their_endoftext_and_tables_none(source, seed):
    tokenizer = load_tokenizer("tiny")
    tokens, has_loss = recipe.write_rows(source, tokenizer, 2, 200, seed)
    again, _ = recipe.write_rows(source, tokenizer, 2, 200, seed)
    other, _ = recipe.write_rows(source, tokenizer, 2, 200, seed + 10)
    assert torch.equal(tokens, again) and not torch.equal(tokens, other)
    assert tokens.shape == has_loss.shape == (2, 201)  # the last token is only ever a target
    for row, row_has_loss in zip(tokens.tolist(), has_loss.tolist()):
        in_sentence = False  # rows begin with a table, and each <|endoftext|> ends one kind
        for token, token_has_loss in zip(row, row_has_loss):
            assert token_has_loss == in_sentence
            in_sentence ^= token == tokenizer.eot_token


def test_the_loss_of_rows_is_the_mean_over_their_tokens_with_loss_wherever_they_begin(source):
    tokenizer, model = load_tokenizer("tiny"), load_model("tiny")
    tokens, has_loss = recipe.write_rows(source, tokenizer, 2, 60, 0)
    first, losses = [3, 40], []
    for row, row_has_loss, start in zip(tokens, has_loss, first):
        positions = torch.arange(start, start + 60)[None]
        logits = model(row[None, :-1], positions=positions)[0]  # [60, n_vocab]
        each = F.cross_entropy(logits, row[1:], reduction="none")
        losses += each[row_has_loss[1:]].tolist()
    loss = recipe.row_loss(model, tokens, has_loss, torch.tensor(first)[:, None])
    assert_close(loss, torch.tensor(losses).mean(), 1e-5)


SMALL = {
    "CHUNK": 2, "TOKENS_PER_STEP": 128, "HELD_OUT": 1, "N_TASKS": 400,
    "SIZES": GPT2Config(n_vocab=300, n_ctx=64, n_embd=16, n_head=4, n_layer=6),
    "STAGES": (recipe.Stage(16, 4, 2e-3, False), recipe.Stage(32, 4, 1e-3, True)),
}


@pytest.fixture
def train_small(folder, monkeypatch):
    """Runs the recipe with small sizes: train_small(out, stop_at) -> how many steps it began."""
    for name, value in SMALL.items():
        monkeypatch.setattr(recipe, name, value)
    train_step = recipe.train_step

    def run(out, stop_at=None):
        steps = 0

        def counted_step(*arguments):
            nonlocal steps
            steps += 1
            if steps == stop_at:
                raise KeyboardInterrupt
            return train_step(*arguments)

        monkeypatch.setattr(recipe, "train_step", counted_step)
        arguments = ["--data", str(folder), "--out", str(out), "--device", "cpu"]
        monkeypatch.setattr("sys.argv", ["make.py", *arguments])
        recipe.main()
        return steps

    return run


def test_a_stopped_run_ends_as_one_that_was_not_and_opens_in_hugging_face(train_small, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train_small(whole) == 8
    for stage, step in ((0, 2), (0, 4), (1, 2)):  # what is kept is that of every second step
        with pytest.raises(KeyboardInterrupt):
            train_small(stopped, stop_at=4)
        state = torch.load(stopped / "training.pt", weights_only=True)
        assert (state["stage"], state["step"]) == (stage, step)
    assert train_small(stopped) == 2
    names, weights = ("config.json", "vocab.json", "merges.txt"), "model.safetensors"
    for folder in (whole, stopped):
        assert {path.name for path in folder.iterdir()} == {weights, *names}
    for name in names:
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()
    assert weights_in(whole / weights) == weights_in(stopped / weights)
    tokens = torch.tensor([load_tokenizer(whole).encode_ordinary(" area : north")])
    twin = GPT2LMHeadModel.from_pretrained(whole, dtype=torch.float32)
    with torch.no_grad():
        assert_close(load_model(whole)(tokens), twin(tokens).logits, 1e-4)


def test_among_the_first_positions_two_are_as_alike_as_any_two_so_far_apart():
    table = recipe.first_positions(512, 256)
    alike = table @ table.T  # [512, 512]
    for distance in range(512):
        diagonal = alike.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[:1], atol=1e-4)
    assert alike[0].argmax() == 0 and table.shape == (512, 256)


def test_missing_data_are_one_clear_error(tmp_path):
    done = run_python("models/tiny/make.py", "--data", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "sgd.jsonl.gz is missing; --data must name the folder" in done.stderr


# --------------------------------------------------------------------------------------------------
# The model that ships
# --------------------------------------------------------------------------------------------------


def test_the_model_that_ships_is_small_and_has_a_card():
    folder = ROOT / "models" / "tiny"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 14 * 2**20
    assert "CC BY-SA" in (folder / "README.md").read_text(encoding="utf-8")
    assert load_model("tiny").config.n_vocab == load_tokenizer("tiny").n_vocab == 4096


@pytest.mark.parametrize("name", ["Café Brûlée", "El Niño", "Chez Hélène", "Zoë Garçon",
                                  "Bjørn Inn"])
def test_the_model_that_ships_copies_names_with_accents(name):
    tokenizer, model = load_tokenizer("tiny"), load_model("tiny")
    example = (" name : Green Oak | Type : pub | area : north",
               " Green Oak is a pub in the north .")
    prompt = []
    for part in (*example, f" name : {name} | Type : pub | area : south"):
        prompt += tokenizer.encode_ordinary(part) + [tokenizer.eot_token]
    assert f"{name} is" in tokenizer.decode(list(generate(model, prompt, 20)))
