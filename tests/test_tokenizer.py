"""The tokenizer against Hugging Face's, for GPT-2's vocabulary and retrained ones; and the vocabularies it refuses."""

import json
import re
import shutil

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GPT2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from common import InputError
from e2e_data import read_split
from gpt2 import load_tokenizer


@pytest.fixture(scope="module", params=["OpenAI's", "models/tiny", "retrained"])
def tokenizers(request, tmp_path_factory):
    """(our tokenizer, Hugging Face's), from the same two files."""
    if request.param != "OpenAI's":
        retrained = request.param == "retrained"
        folder = request.getfixturevalue("small_vocabulary") if retrained else ROOT / "models" / "tiny"
        return load_tokenizer(folder), GPT2Tokenizer.from_pretrained(folder)
    source, folder = request.getfixturevalue("shared") / "gpt2-bpe", tmp_path_factory.mktemp("gpt2")
    shutil.copyfile(source / "encoder.json", folder / "vocab.json")
    shutil.copyfile(source / "vocab.bpe", folder / "merges.txt")
    return load_tokenizer(source), AutoTokenizer.from_pretrained(folder, model_type="gpt2", tokenizer_type="gpt2")


def assert_same_tokens(tokenizers, texts):
    ours, theirs = tokenizers
    tokens = ours.encode_ordinary_batch(texts, num_threads=1)
    for text, a, b in zip(texts, tokens, theirs(texts)["input_ids"], strict=True):
        assert a == b, text
    assert ours.decode_batch(tokens, num_threads=1) == texts


@pytest.mark.parametrize("tokenizers", ["OpenAI's", "models/tiny"], indirect=True)
def test_all_of_e2e_has_hugging_faces_tokens(tokenizers, shared):
    examples = [example for split in ("train", "valid", "test") for example in read_split(shared / "e2e", split)]
    assert len(examples) == 42_061 + 4_672 + 4_693
    assert_same_tokens(tokenizers, sorted({" " + text for example in examples for text in example}))


def test_the_sample_has_hugging_faces_tokens(tokenizers):
    sample = ROOT / "data" / "sample"
    examples = [example for split in ("train", "valid", "test") for example in read_split(sample, split)]
    assert_same_tokens(tokenizers, sorted({" " + text for example in examples for text in example}))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60) | st.text("aé中 \n\t'sdll£1²٣\u00a0\u200b\u3000🙂-.", max_size=60))
def test_any_text_has_hugging_faces_tokens_and_comes_back(tokenizers, text):
    assert_same_tokens(tokenizers, [text])


def test_endoftext_is_one_token_where_it_is_allowed(tokenizers):
    ours, theirs = tokenizers
    text = "The end.<|endoftext|> A <|endoftext|>beginning"
    tokens = ours.encode(text, allowed_special="all")
    assert tokens == theirs.encode(text)
    assert tokens.count(ours.eot_token) == 2 and ours.eot_token == theirs.eos_token_id
    assert ours.eot_token not in ours.encode_ordinary(text) and ours.decode(ours.encode_ordinary(text)) == text
    with pytest.raises(ValueError):
        ours.encode(text)


def test_each_of_the_256_bytes_has_hugging_faces_token(tokenizers):
    ours, theirs = tokenizers
    for byte, character in bytes_to_unicode().items():
        token = theirs.convert_tokens_to_ids(character)
        assert ours.encode_single_token(bytes([byte])) == token
        assert ours.decode_single_token_bytes(token) == bytes([byte])


def test_every_token_has_hugging_faces_bytes(tokenizers):
    ours, theirs = tokenizers
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    assert ours.n_vocab == len(theirs)
    for text, token in theirs.get_vocab().items():
        if text != "<|endoftext|>":
            assert ours.decode_single_token_bytes(token) == bytes(byte_of[character] for character in text)


def test_a_retrained_vocabulary_may_have_endoftext_at_0(small_vocabulary):
    tokenizer = load_tokenizer(small_vocabulary)
    assert tokenizer.eot_token == 0 and tokenizer.decode([0]) == "<|endoftext|>"


def test_two_vocabularies_do_not_mix(small_vocabulary, tmp_path):
    # tiktoken's own readers keep files by their path; a vocabulary that is trained anew must be read anew.
    folder = tmp_path / "vocabulary"
    shutil.copytree(small_vocabulary, folder)
    before = load_tokenizer(folder).encode_ordinary("pub")
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    (folder / "merges.txt").write_text("\n".join(merges[:1]) + "\n", encoding="utf-8")
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    (folder / "vocab.json").write_text(json.dumps({text: i for text, i in ids.items() if i < 257}), encoding="utf-8")
    after = load_tokenizer(folder)
    assert len(before) < len(after.encode_ordinary("pub")) == 3 and after.decode(after.encode_ordinary("pub")) == "pub"


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(small_vocabulary, tmp_path):
    """A copy of the small vocabulary that may be damaged."""
    return shutil.copytree(small_vocabulary, tmp_path / "vocabulary")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{folder} holds no tokenizer: neither vocab.json and merges.txt nor"):
        load_tokenizer(folder)


@pytest.mark.parametrize("change, message", [
    (lambda ids: {text: i for text, i in ids.items() if text != "<|endoftext|>"}, r"<\|endoftext\|> is missing"),
    (lambda ids: {text: i for text, i in ids.items() if text != "Ġ"}, "some of the 256 bytes have no token"),
    (lambda ids: ids | {"日本": 999}, "'日' is not one of the 256 characters"),
    (lambda ids: [1, 2], ""),
    (lambda ids: ids | {"a": "x"}, ""),
    (lambda ids: ids | {"a": ids["b"]}, ""),  # two tokens with one id
    (lambda ids: ids | {"a": -1}, ""),
])
def test_a_vocabulary_that_is_not_one_is_named(folder, change, message):
    path = folder / "vocab.json"
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    with pytest.raises(InputError, match=rf"vocab\.json.*{message}"):
        load_tokenizer(folder)


@pytest.mark.parametrize("content, message", [(b"{", "line 1: not JSON"), (b"\xff", "not UTF-8")])
def test_a_vocabulary_that_is_no_json_is_named(folder, content, message):
    (folder / "vocab.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"vocab\.json.*{message}"):
        load_tokenizer(folder)


def test_ids_that_do_not_follow_the_merges_are_named(folder):
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    first, second = (merge.replace(" ", "") for merge in merges[3:5])
    path = folder / "vocab.json"
    ids = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(ids | {first: ids[second], second: ids[first]}), encoding="utf-8")
    with pytest.raises(InputError, match=r"merges\.txt, line 6: the ids in vocab.json do not follow the merges"):
        load_tokenizer(folder)


@pytest.mark.parametrize("line", [b"zz q\n", b"\xff \xff\n"])  # a merge that has no token; not UTF-8
def test_merges_that_are_not_those_of_the_vocabulary_are_named(folder, line):
    path = folder / "merges.txt"
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(InputError, match=re.escape(str(path))):
        load_tokenizer(folder)
