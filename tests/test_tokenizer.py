"""The tokenizer against Hugging Face's, for GPT-2's vocabulary and others; what it refuses."""

import re
import shutil

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GPT2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

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
    assert tokens == theirs.encode(text)
    assert tokens.count(ours.eot_token) == 2 and ours.eot_token == theirs.eos_token_id
    ordinary = ours.encode_text(text)
    assert ours.eot_token not in ordinary and ours.decode(ordinary) == text
    with pytest.raises(ValueError):
        ours.encode(text)


def test_every_token_has_hugging_faces_bytes(tokenizers):
    ours, theirs = tokenizers
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    assert ours.n_vocab == len(theirs)
    for text, token in theirs.get_vocab().items():
        if text != "<|endoftext|>":
            assert ours.decode_single_token_bytes(token) == bytes(byte_of[c] for c in text)


def test_a_retrained_vocabulary_may_have_endoftext_at_0(small_vocabulary):
    tokenizer = load_tokenizer(small_vocabulary)
    assert tokenizer.eot_token == 0 and tokenizer.decode([0]) == "<|endoftext|>"


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


NO_IDS = "the ids must be whole numbers, each another one"


@pytest.mark.parametrize("change, message", [
    ({"<|endoftext|>": None}, r"<\|endoftext\|> is missing"),
    ({"Ġ": None}, "some of the 256 bytes have no token"),
    ({"a": "x"}, NO_IDS),
    ({"a": 66}, NO_IDS),  # two tokens with one id: b's
    ({"a": -1}, NO_IDS),
])
def test_a_vocabulary_that_is_not_one_is_named(folder, change, message):
    path = folder / "vocab.json"
    ids = read_json(path)
    assert ids["b"] == 66
    changed = {text: i for text, i in (ids | change).items() if i is not None}
    write_json(path, changed)
    with pytest.raises(InputError, match=rf"vocab\.json.*{message}"):
        load_tokenizer(folder)


@pytest.mark.parametrize("content, message", [
    (b"{", "line 1"), (b"\xff", "utf-8"), (b"[1, 2]", "it is a list"), (b'{"a": NaN}', "NaN"),
])
def test_a_vocabulary_that_is_no_json_object_is_named(folder, content, message):
    (folder / "vocab.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"vocab\.json holds no JSON object.*{message}"):
        load_tokenizer(folder)


def test_ids_that_do_not_follow_the_merges_are_named(folder):
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    first, second = (merge.replace(" ", "") for merge in merges[3:5])
    path = folder / "vocab.json"
    ids = read_json(path)
    write_json(path, ids | {first: ids[second], second: ids[first]})
    message = r"merges\.txt, line 6: the ids in vocab.json do not follow the merges"
    with pytest.raises(InputError, match=message):
        load_tokenizer(folder)


@pytest.mark.parametrize("line", [b"zz q\n", b"\xff \xff\n"])  # without a token; not UTF-8
def test_merges_that_are_not_those_of_the_vocabulary_are_named(folder, line):
    path = folder / "merges.txt"
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(InputError, match=re.escape(str(path))):
        load_tokenizer(folder)
