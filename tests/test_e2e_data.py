"""The E2E data: read right, linearised as Li & Liang did, the loss where they have it."""

import doctest
import shutil

import pytest
from conftest import run_python
from hypothesis import given
from hypothesis import strategies as st

import e2e_data
from e2e_data import (encode_example, encode_table, group_by_table, linearize, make_batch,
                      read_split, shuffled_batches)
from gpt2 import load_tokenizer
from support.commands import InputError
from support.reading import SRC1_NAMES, ZIP_NAME, find_data, is_published

SIZES = {"train": (42061, 4862), "valid": (4672, 547), "test": (4693, 630)}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


# --------------------------------------------------------------------------------------------------
# Finding and reading
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [pytest.param("train", marks=pytest.mark.long), "valid", "test"])
def test_official_tables_linearise_to_the_papers_files_line_by_line(shared, tmp_path, split):
    shutil.copy(shared / "e2e" / ZIP_NAME, tmp_path)  # a folder with the official release alone
    ours = read_split(tmp_path, split)
    papers = read_split(shared / "e2e", split)
    assert [table for table, _ in ours] == [table for table, _ in papers]
    assert (len(papers), len(group_by_table(papers))) == SIZES[split]
    lines = (shared / "e2e" / SRC1_NAMES[split]).read_text(encoding="utf-8").splitlines()
    assert papers == [tuple(part.strip() for part in line.split("||")) for line in lines]


def test_known_files_are_told_from_altered_ones(shared, tmp_path):
    for name in (*SRC1_NAMES.values(), ZIP_NAME):
        assert is_published(shared / "e2e" / name)
    content = (shared / "e2e" / "src1_test.txt").read_bytes()
    (tmp_path / "src1_test.txt").write_bytes(content.replace(b"Blue Spice", b"Blue spice", 1))
    assert not is_published(tmp_path / "src1_test.txt")


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from("xyz")), max_size=20))
def test_every_sentence_is_a_reference_of_its_table_and_tables_keep_their_order(examples):
    groups = group_by_table(examples)
    assert sum(map(len, groups.values())) == len(examples)
    for table in groups:
        assert groups[table] == [sentence for other, sentence in examples if other == table]
    first = [examples.index((table, sentences[0])) for table, sentences in groups.items()]
    assert first == sorted(first)


SLOTS = st.tuples(st.sampled_from(["name", "food", "near"]), st.text("ab c'é£-&", min_size=1))


@given(st.lists(SLOTS, min_size=1))
def test_linearize_keeps_every_slot_and_lets_pounds_and_hyphens_stand_alone(slots):
    table = linearize(", ".join(f"{key}[{value}]" for key, value in slots))
    shown = [slot.split(" : ", 1) if " : " in slot else (slot.removesuffix(" :"), "")
             for slot in table.split(" | ")]
    assert [key for key, _ in shown] == [key for key, _ in slots]
    for (_, value), (_, original) in zip(shown, slots):
        assert value.replace(" ", "") == original.replace(" ", "")
        assert all(word in ("£", "-") or not set(word) & set("£-") for word in value.split())


@pytest.mark.parametrize("broken", ["", "name", "name[a", "name[a] food[b]", "[a]", "name[a[b]]"])
def test_a_broken_meaning_representation_is_refused(broken):
    with pytest.raises(InputError, match="key\\[value\\]"):
        linearize(broken)


@pytest.mark.parametrize("name, content, message", [
    ("src1_test.txt", "name : a||b\nname : c\n",
     "src1_test.txt, line 2: `table||sentence` was expected"),
    ("src1_test.txt", "name : a||\n", "line 1"),
    ("src1_test.txt", "\n\n", "is empty"),
    ("src1_test.txt", "name : a||Caf\xe9".encode("latin-1"), "line 1: not UTF-8"),
    ("testset_w_refs.csv", "mr,text\n", "line 1: the columns table,text were expected"),
    ("testset_w_refs.csv", 'mr,ref\n"name[a], food[b]",good\nname(a),bad\n',
     "line 3: `key.value.*`"),
    ("testset_w_refs.csv", "mr,ref\nname[a]\n", "line 2: a table and a sentence were expected"),
    ("testset_w_refs.csv", "mr,ref\n", "is empty"),
    (ZIP_NAME, "no zip", "is corrupt"),
    ("notes.txt", "", "has no test data"),
])
def test_errors_in_data_files_name_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        read_split(tmp_path, "test")


def test_an_unknown_data_set_is_refused():
    with pytest.raises(InputError, match="give e2e, sample or a folder"):
        find_data("no-such-folder")


# --------------------------------------------------------------------------------------------------
# From text to batches
# --------------------------------------------------------------------------------------------------


def test_an_example_is_table_end_sentence_end_and_loss_is_on_sentence_and_last_end(tokenizer):
    table, sentence = "name : The Mill | food : Thai", "The Mill serves Thai food . "
    batch = make_batch([encode_example(tokenizer, table, sentence)])
    end = "<|endoftext|>"
    assert tokenizer.decode(batch.tokens[0].tolist()) == f" {table}{end} {sentence.strip()}"
    assert tokenizer.decode(batch.targets.tolist()) == f" {sentence.strip()}{end}"
    # The prompt's last token asks for the sentence's first.
    first = len(encode_table(tokenizer, table)) - 1
    assert batch.loss_indices.tolist() == list(range(first, first + len(batch.targets)))


TOKENS = st.lists(st.integers(1, 9), min_size=1)


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1))
def test_a_batch_holds_every_example_and_every_target_is_the_next_token(encoded):
    batch = make_batch(encoded)
    T, pairs = batch.tokens.shape[1], list(zip(batch.loss_indices.tolist(), batch.targets.tolist()))
    expected = []
    for row, (prompt, answer) in enumerate(encoded):
        example = prompt + answer
        assert batch.tokens[row, : len(example) - 1].tolist() == example[:-1]
        expected += [(row * T + at - 1, example[at]) for at in range(len(prompt), len(example))]
    assert pairs == expected  # each stands at the token before it, and none is left out
    assert batch.tokens.flatten()[batch.token_indices].tolist() == [
        token for prompt, answer in encoded for token in (prompt + answer)[:-1]]


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 3), st.integers(0, 3))
def test_each_epoch_holds_every_example_once_in_an_order_that_seed_and_epoch_decide(
        n, batch_size, seed, epoch):
    batches = shuffled_batches(list(range(n)), batch_size, seed, epoch)
    assert sorted(sum(batches, [])) == list(range(n))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert batches == shuffled_batches(list(range(n)), batch_size, seed, epoch)
    if n > 40:
        assert batches != shuffled_batches(list(range(n)), batch_size, seed, epoch + 1)
        assert batches != shuffled_batches(list(range(n)), batch_size, seed + 1, epoch)


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(e2e_data) == (0, 2)


def test_the_command_shows_the_tokens_that_carry_loss():
    shown = run_python("e2e_data.py", "--data", "sample").stdout
    assert shown.split("train")[1].split()[0] == "2,000"
    rows = shown[shown.index("position") :].splitlines()[1:]
    tokens = [row[12:34].strip() for row in rows]
    targets = [row[34:].strip() for row in rows]
    end = tokens.index("'<|endoftext|>'")
    assert set(targets[:end]) == {"-"} and targets[end:] == [*tokens[end + 1 :], "'<|endoftext|>'"]
