"""The tokenizer against Hugging Face's, for GPT-2's vocabulary and others; what it refuses."""

import shutil

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GPT2Tokenizer

from e2e_data import read_split
from gpt2 import load_tokenizer
from support.commands import InputError
from support.files import read_json, write_json
from support.reading import SPLITS


@pytest.fixture(scope="module", params=["OpenAI's", "models/tiny", "retrained"])
def tokenizers(request, tmp_path_factory):
    """(our tokenizer, Hugging Face's), from the same two files."""
    if request.param == "OpenAI's":
        source = request.getfixturevalue("shared") / "gpt2-bpe"
        folder = tmp_path_factory.mktemp("gpt2")
        shutil.copyfile(source / "encoder.json", folder / "vocab.json")
        shutil.copyfile(source / "vocab.bpe", folder / "merges.txt")
        theirs = AutoTokenizer.from_pretrained(folder, model_type="gpt2", tokenizer_type="gpt2")
        return load_tokenizer(source), theirs
    folder = ROOT / "models" / "tiny"
    if request.param == "retrained":
        folder = request.getfixturevalue("small_vocabulary")
    return load_tokenizer(folder), GPT2Tokenizer.from_pretrained(folder)


def texts_of(folder):
    """Every table and sentence of a data set, each with a blank in front."""
    texts = set()
    for split in SPLITS:
        for table, sentence in read_split(folder, split):
            texts |= {f" {table}", f" {sentence}"}
    return sorted(texts)


def assert_same_tokens(tokenizers, texts):
    ours, theirs = tokenizers
    tokens = ours.encode_ordinary_batch(texts, num_threads=1)
    for text, a, b in zip(texts, tokens, theirs(texts)["input_ids"], strict=True):
        assert a == b, text
    assert ours.decode_batch(tokens, num_threads=1) == texts


def test_the_sample_has_hugging_faces_tokens(tokenizers):
    assert_same_tokens(tokenizers, texts_of(ROOT / "data" / "sample")[::20])


@pytest.mark.long
def test_all_of_e2e_has_hugging_faces_tokens(tokenizers, shared):
    assert_same_tokens(tokenizers, texts_of(shared / "e2e"))


ODD = "aé中 \n\t'sdll£1²٣\u00a0\u200b\u3000🙂-."


@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60) | st.text(ODD, max_size=60))
@example(text="It's what he'll've said, isn't it? I'm sure you're right; we'd go ®ÿ!~¡¬")
def test_any_text_has_hugging_faces_tokens_and_comes_back(tokenizers, text):
    assert_same_tokens(tokenizers, [text])


def test_endoftext_is_one_token_where_it_is_allowed(tokenizers):
    ours, theirs = tokenizers
    text = "The end.<|endoftext|> A <|endoftext|>beginning"
    tokens = ours.encode(text, allowed_special="all")
    assert tokens == theirs.encode(text) and tokens.count(ours.eot_token) == 2
    ordinary = ours.encode_text(text)
    assert ours.eot_token not in ordinary and ours.decode(ordinary) == text
    with pytest.raises(ValueError):
        ours.encode(text)


# --------------------------------------------------------------------------------------------------
# What is refused
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(small_vocabulary, tmp_path):
    """A copy of the small vocabulary that may be damaged."""
    return shutil.copytree(small_vocabulary, tmp_path / "vocabulary")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    message = f"{folder} holds no tokenizer: neither vocab.json and merges.txt nor"
    with pytest.raises(InputError, match=message):
        load_tokenizer(folder)


@pytest.mark.parametrize("change, message", [
    ({"<|endoftext|>": None}, r"\(<\|endoftext\|> is missing\)"),
    ({"Ġ": None}, r"\('Ġ'\)"),
    ({"a": "b"}, "two of its tokens have the same id"),
    ({"<|endoftext|>": "b"}, "a text is another after encoding and decoding"),
    ({"he": "Ġa", "Ġa": "he"}, "its ids do not follow the merge of "),
    ({"he": None}, "its ids do not follow the merge of h and e"),
])
def test_ids_that_are_not_a_byte_level_bpes_are_refused(folder, change, message):
    """`change` gives tokens the ids of others, or none."""
    path = folder / "vocab.json"
    ids = read_json(path)
    changed = ids | {token: ids.get(other) for token, other in change.items()}
    write_json(path, {token: i for token, i in changed.items() if i is not None})
    with pytest.raises(InputError, match=rf"vocab\.json and the files beside it hold no .*{message}"):
        load_tokenizer(folder)


@pytest.mark.parametrize("line", [b"", b"q z\n", b"h e e\n", b"\xff \xff\n"])
def test_merges_that_lack_one_or_have_another_are_refused(folder, line):
    path = folder / "merges.txt"
    path.write_bytes(path.read_bytes().replace(b"h e\n", line))
    with pytest.raises(InputError, match=r"vocab\.json and the files beside it hold no "):
        load_tokenizer(folder)
