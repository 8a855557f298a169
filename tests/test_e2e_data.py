"""The E2E data: read right, linearised as Li & Liang did, batched with the loss where the paper has it."""

import doctest
import shutil
import zipfile

import pytest
import torch
from conftest import run_python
from hypothesis import given
from hypothesis import strategies as st

import e2e_data
from common import InputError
from e2e_data import (NO_LOSS, ZIP_NAME, encode_example, encode_table, find_data, group_by_table, is_known, linearize,
                      make_batch, read_split, shuffled_batches)
from gpt2 import load_tokenizer

SIZES = {"train": (42061, 4862), "valid": (4672, 547), "test": (4693, 630)}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


@pytest.mark.parametrize("split", SIZES)
def test_official_tables_linearise_to_the_papers_files_line_by_line(shared, tmp_path, split):
    shutil.copy(shared / "e2e" / ZIP_NAME, tmp_path)  # a folder with the official release alone
    ours = read_split(tmp_path, split)
    papers = read_split(shared / "e2e", split)
    assert [table for table, _ in ours] == [table for table, _ in papers]
    assert (len(papers), len(group_by_table(papers))) == SIZES[split]


def test_official_csv_files_read_like_the_zip_that_holds_them(shared, tmp_path):
    with zipfile.ZipFile(shared / "e2e" / ZIP_NAME) as archive:
        archive.extractall(tmp_path)
    shutil.copy(shared / "e2e" / ZIP_NAME, tmp_path)
    assert read_split(tmp_path / "e2e-dataset", "test") == read_split(tmp_path, "test")


def test_known_files_are_told_from_altered_ones(shared, tmp_path):
    for name in ("src1_train.txt", "src1_valid.txt", "src1_test.txt", ZIP_NAME):
        assert is_known(shared / "e2e" / name)
    content = (shared / "e2e" / "src1_test.txt").read_bytes()
    (tmp_path / "src1_test.txt").write_bytes(content.replace(b"Blue Spice", b"Blue spice", 1))
    assert not is_known(tmp_path / "src1_test.txt")


def test_every_test_sentence_is_a_reference_of_its_table(shared):
    examples = read_split(shared / "e2e", "test")
    groups = group_by_table(examples)
    assert sum(map(len, groups.values())) == len(examples)
    assert all(sentence in groups[table] for table, sentence in examples)


@given(st.lists(st.tuples(st.sampled_from(["name", "food", "near"]), st.text("ab c'é£-&", min_size=1)), min_size=1))
def test_linearize_keeps_every_slot_and_lets_pounds_and_hyphens_stand_alone(slots):
    table = linearize(", ".join(f"{key}[{value}]" for key, value in slots))
    shown = [slot.split(" : ", 1) if " : " in slot else (slot.removesuffix(" :"), "") for slot in table.split(" | ")]
    assert [key for key, _ in shown] == [key for key, _ in slots]
    for (_, value), (_, original) in zip(shown, slots):
        assert value.replace(" ", "") == original.replace(" ", "")
        assert all(word in ("£", "-") or not set(word) & set("£-") for word in value.split())


@pytest.mark.parametrize("broken", ["", "name", "name[a", "name[a] food[b]", "[a]", "name[a[b]]"])
def test_a_broken_meaning_representation_is_refused(broken):
    with pytest.raises(InputError, match="key\\[value\\]"):
        linearize(broken)


@pytest.mark.parametrize("name, content, message", [
    ("src1_test.txt", "name : a||b\nname : c\n", "src1_test.txt, line 2: `table||sentence` was expected"),
    ("src1_test.txt", "name : a||\n", "line 1"),
    ("src1_test.txt", "\n\n", "is empty"),
    ("src1_test.txt", "name : a||Caf\xe9".encode("latin-1"), "line 1: not UTF-8"),
    ("testset_w_refs.csv", "mr,text\n", "line 1: the columns mr,ref were expected"),
    ("testset_w_refs.csv", 'mr,ref\n"name[a], food[b]",good\nname(a),bad\n', "line 3: `key.value.*`"),
    ("testset_w_refs.csv", "mr,ref\nname[a]\n", "line 2: a table and a sentence were expected"),
    (ZIP_NAME, "no zip", "is damaged"),
    ("notes.txt", "", "has no test data"),
])
def test_errors_in_data_files_name_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        read_split(tmp_path, "test")


def test_an_unknown_data_set_is_refused():
    with pytest.raises(InputError, match="give e2e, sample or a folder"):
        find_data("no-such-folder")


def test_a_folder_with_both_forms_is_read_as_the_papers_files(tmp_path):
    (tmp_path / "src1_test.txt").write_text("name : a||the paper's\n")
    (tmp_path / "testset_w_refs.csv").write_text("mr,ref\nname[a],the official\n")
    assert read_split(tmp_path, "test") == [("name : a", "the paper's")]


def test_an_example_is_table_end_sentence_end_and_only_sentence_and_last_end_carry_loss(tokenizer):
    table, sentence = "name : The Mill | food : Thai", "The Mill serves Thai food . "
    tokens, targets = make_batch([encode_example(tokenizer, table, sentence)])
    end = "<|endoftext|>"
    assert tokenizer.decode(tokens[0].tolist()) == f" {table}{end} {sentence.strip()}"
    assert tokenizer.decode(targets[0][targets[0] != NO_LOSS].tolist()) == f" {sentence.strip()}{end}"
    without = len(encode_table(tokenizer, table)) - 1  # the prompt's last token asks for the sentence's first
    assert (targets[0] == NO_LOSS).tolist() == [True] * without + [False] * (len(targets[0]) - without)


TOKENS = st.lists(st.integers(1, 9), min_size=1)


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1))
def test_a_batch_holds_every_example_and_every_target_is_the_next_token(encoded):
    tokens, targets = make_batch(encoded)
    for row, (prompt, answer) in enumerate(encoded):
        example = torch.tensor(prompt + answer)
        assert torch.equal(tokens[row, : len(example) - 1], example[:-1])
        counted = targets[row] != NO_LOSS
        assert counted.sum() == len(answer)
        assert torch.equal(targets[row, counted], example[1:][counted[: len(example) - 1]])


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 3), st.integers(0, 3))
def test_each_epoch_holds_every_example_once_in_an_order_that_seed_and_epoch_decide(n, batch_size, seed, epoch):
    batches = shuffled_batches(list(range(n)), batch_size, seed, epoch)
    assert sorted(sum(batches, [])) == list(range(n))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert batches == shuffled_batches(list(range(n)), batch_size, seed, epoch)
    if n > 40:
        assert batches != shuffled_batches(list(range(n)), batch_size, seed, epoch + 1)
        assert batches != shuffled_batches(list(range(n)), batch_size, seed + 1, epoch)


def test_the_example_in_the_docstring_is_true():
    assert doctest.testmod(e2e_data) == (0, 2)


def test_the_command_shows_the_tokens_that_carry_loss():
    shown = run_python("e2e_data.py", "--data", "sample").stdout
    assert "test" in shown and "'<|endoftext|>'" in shown
    assert shown.split("train")[1].split()[0] == "2,000"
