"""Loss by kind of token."""

import gzip
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import run_here

from describe import Run, load_run, log_probability
from e2e_data import encode_example, read_split, tokenise_text
from experiments import kinds
from gpt2 import load_tokenizer
from prefix import Prefix
from support.commands import InputError
from support.reading import ZIP_NAME, find_data

TABLE = "name : Alimentum | area : city centre | family friendly : no"
MET = {".": 20_000, "is": 10_000, "a": 9_999, "not": 100, "place": 99, "in": 12_345}


def test_each_token_of_a_sentence_has_its_kind():
    tokenizer = load_tokenizer("tiny")
    _, answer = encode_example(tokenizer, TABLE, "Alimentum in City Centre is not a piano place .")
    found = kinds.kinds_of(tokenizer, TABLE, answer, kinds.Counter(MET))
    assert len(found) == len(answer)
    words = {}
    for token, kind in zip(answer, found):
        words[kind] = words.get(kind, "") + tokenizer.decode([token])
    assert words == {
        "a value": " Alimentum City Centre", "met 10,000 times or more": " in is .",
        "met 100 to 9,999 times": " not a", "never met": " piano", "met 1 to 99 times": " place",
        "the end": "<|endoftext|>"}


def test_98_percent_of_src1s_sentences_are_the_official_ones_tokenised_by_our_rules(shared,
                                                                                    tmp_path):
    shutil.copy(shared / "e2e" / ZIP_NAME, tmp_path)  # a folder with the official release alone
    pairs = zip(read_split(tmp_path, "test"), read_split(shared / "e2e", "test"), strict=True)
    equal = [tokenise_text(raw) == tokenised for (_, raw), (_, tokenised) in pairs]
    assert sum(equal) / len(equal) > 0.98


def test_the_losses_of_a_sentences_tokens_add_up_to_its_log_probability():
    run = load_run("tiny")
    examples = read_split(find_data("sample"), "valid")[:3]
    encoded = [encode_example(run.tokenizer, *example) for example in examples]
    for past in (None, Prefix(run.model.config, 3, form="direct")()):
        run = Run(run.settings, run.tokenizer, run.model, past)
        losses = kinds.losses_of(run, encoded).split([len(answer) for _, answer in encoded])
        for example, own in zip(examples, losses):
            assert -own.sum().item() == pytest.approx(log_probability(run, *example), rel=1e-4)


def test_the_command_tells_the_mean_loss_of_each_kind(tmp_path, small_data):
    for name in ("sgd", "rnnlg"):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write('{"text": "The food is served in a pub."}\n')
    met = kinds.count_words(tmp_path)
    assert met["the"] == met["."] == 2
    done = run_here(kinds.main, "tiny", "--data", small_data, "--pretrain", tmp_path)
    _, *rows = [(line[:25].strip(), *line[25:].split()) for line in done.stdout.splitlines()]
    assert ("met 10,000 times or more", "0", "-") in rows and rows[-2][:2] == ("the end", "8")
    *of_kind, (_, n, mean) = [(kind, int(number), float(loss)) for kind, number, loss in rows
                             if number != "0"]
    assert sum(number for _, number, _ in of_kind) == n
    assert sum(number * loss for _, number, loss in of_kind) == pytest.approx(n * mean, rel=1e-3)
    assert "sgd.jsonl.gz cannot be read; --pretrain must name" in run_here(
        kinds.main, "tiny", "--data", small_data, "--pretrain", tmp_path / "none").error


def test_runs_of_two_vocabularies_are_refused(monkeypatch, small_vocabulary):
    tokenizers = {"a": load_tokenizer("tiny"), "b": load_tokenizer(small_vocabulary)}
    monkeypatch.setattr(kinds, "load_run", lambda name: SimpleNamespace(tokenizer=tokenizers[name]))
    monkeypatch.setattr(kinds, "losses_of", lambda run, encoded: torch.zeros(9))
    with pytest.raises(InputError, match="leave out b"):
        kinds.losses_by_kind(["a", "b"], [(TABLE, "Alimentum is quiet .")], kinds.Counter(MET))
