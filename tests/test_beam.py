"""Beam search against Hugging Face's `generate`, and against trying out every continuation."""

import dataclasses
import doctest
import itertools
import random
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import (EOS, N_VOCAB, assert_same, hugging_face_twin, model_that_ends, peft_twin,
                      random_past, random_prefix, random_prompts, run_here, run_python)

import beam
import gpt2
from beam import Hypothesis, beam_search
from e2e_data import encode_table
from gpt2 import load_config, load_model, load_tokenizer
from prefix import load_past, save_prefix
from support import speed
from support.commands import InputError
from support.devices import autocast
from support.drawing import draw_tree
from support.speed import KVCache, compact_rows

MAX_NEW = 12
BANNED = (3, 17, 29, 41)


def ended_share(results):
    """The share of prompts whose best hypothesis ended before the limit."""
    return sum(len(hypotheses[0].tokens) < MAX_NEW for hypotheses in results) / len(results)


@torch.no_grad()
def let_half_of_them_end(model, search):
    """Finds a bias of <|endoftext|> with which about half of the best hypotheses end in time."""
    low, high = -20.0, 20.0
    for _ in range(12):
        model.wte.weight[EOS, 0] = (low + high) / 2
        share = ended_share(search())
        if 0.42 < share < 0.58:
            return
        low, high = (low, (low + high) / 2) if share > 0.5 else ((low + high) / 2, high)


def hugging_face_search(twin, prompts, **options):
    """As `beam_search`; prompts of one length go in a call, so that none is padded."""
    results = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for _, group in itertools.groupby(by_length, key=lambda i: len(prompts[i])):
        group = list(group)
        tokens = torch.tensor([prompts[i] for i in group])
        output = twin.generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), early_stopping=False,
            max_new_tokens=MAX_NEW, do_sample=False, return_dict_in_generate=True,
            output_scores=True, pad_token_id=0, **options)
        k = len(output.sequences) // len(group)
        scores = getattr(output, "sequences_scores", None)  # a greedy search tells none
        for row, written in enumerate(output.sequences[:, tokens.shape[1] :].tolist()):
            written = written[: written.index(EOS)] if EOS in written else written
            score = None if scores is None else scores[row].item()
            results[group[row // k]].append(Hypothesis(written, score))
    return results


def random_ragged_prompts(seed, count):
    return random_prompts(seed, N_VOCAB, random.Random(seed).choices(range(1, 14), k=count))


# --------------------------------------------------------------------------------------------------
# Against Hugging Face, and against the definition
# --------------------------------------------------------------------------------------------------

SETTINGS = [  # beams, length penalty, with a prefix, banned tokens
    (2, 1.0, False, ()), (3, 1.0, True, BANNED), (5, 1.0, True, ()), (5, 0.0, False, BANNED),
    (5, 0.6, True, BANNED), (3, 2.0, False, BANNED), (5, -0.7, True, ()),
    (1, 1.0, True, BANNED),  # which is their greedy search
]


@pytest.mark.parametrize("seed, setting", list(enumerate(SETTINGS)),
                         ids=lambda value: str(value).replace(" ", ""))
def test_all_hypotheses_of_90_prompts_equal_hugging_faces(seed, setting):
    num_beams, penalty, with_prefix, banned = setting
    model, prompts = model_that_ends(seed), random_ragged_prompts(seed, 90)
    prefix = random_prefix(model.config, seed, length=3) if with_prefix else None
    options = {"past": prefix() if with_prefix else None, "num_beams": num_beams,
               "length_penalty": penalty, "banned": banned, "max_new_tokens": MAX_NEW}
    let_half_of_them_end(model, lambda: beam_search(model, prompts[:50], **options))

    twin = hugging_face_twin(model)
    truth = hugging_face_search(peft_twin(twin, prefix) if with_prefix else twin, prompts,
                                num_beams=num_beams, num_return_sequences=num_beams,
                                length_penalty=penalty if num_beams > 1 else None,
                                bad_words_ids=[[token] for token in banned] or None)
    assert 1 / 3 < ended_share(truth) < 2 / 3  # or one way to end would go untested
    assert all(len(hypotheses) == num_beams for hypotheses in truth)
    assert_same(beam_search(model, prompts, **options), truth)


@pytest.mark.parametrize("penalty", [0.0, -0.5])  # with these, going on makes no score better
@torch.no_grad()
def test_with_enough_beams_the_hypotheses_are_the_best_of_all_continuations(penalty):
    # Four tokens are likely: 20 beams hold each likely beginning of two, and miss nothing.
    model, prompt = model_that_ends(0), [23, 5]
    model.wte.weight[:, 0] = torch.full((N_VOCAB,), -60.0)
    model.wte.weight[[4, 8, 15, EOS], 0] = 0
    ended = [(*tokens, EOS) for length in (0, 1, 2)
             for tokens in itertools.product((4, 8, 15), repeat=length)]
    whole = list(itertools.product((4, 8, 15), repeat=3))
    everything = []
    for tokens in ended + whole:
        logits = model(torch.tensor([prompt + list(tokens)]))[0, len(prompt) - 1 : -1]
        log_probs = logits.log_softmax(-1)
        total = sum(log_probs[at, token].item() for at, token in enumerate(tokens))
        written = [token for token in tokens if token != EOS]
        everything.append(Hypothesis(written, total / len(tokens) ** penalty))
    everything.sort(key=lambda hypothesis: -hypothesis.score)
    ours = beam_search(model, [prompt], num_beams=20, max_new_tokens=3, length_penalty=penalty)
    assert_same(ours, [everything[:20]])


def test_under_autocast_keys_and_values_after_a_float32_prefix_are_bfloat16_without_gradients(
        monkeypatch):
    grown = []

    class Watched(KVCache):
        def __init__(self, tensor):
            super().__init__(tensor)
            grown.append(self)

    monkeypatch.setattr(beam, "KVCache", Watched)
    model = model_that_ends(8, -50, dtype=torch.float32)  # none ends
    prompts, past = random_ragged_prompts(8, 4), random_past(model.config, 3, 1, 8, torch.float32)
    with autocast(torch.device("cpu"), "bfloat16"):
        beam_search(model, prompts, past, num_beams=2, max_new_tokens=MAX_NEW)
    T = max(map(len, prompts))
    assert len(grown) == 2 * model.config.n_layer  # a key and a value each
    assert {tensor.length for tensor in grown} == {3 + T + 2 * (MAX_NEW - 1)}  # 2 beams a step
    assert {tensor.data.dtype for tensor in grown} == {torch.bfloat16}
    assert not any(tensor.data.requires_grad for tensor in grown)


@torch.no_grad()
def test_under_autocast_scores_are_float32_log_probabilities():
    """In bfloat16 a score would have three digits, and beams would be told apart by rounding."""
    model, prompt = model_that_ends(9, dtype=torch.float32), [4, 7, 1]
    with autocast(torch.device("cpu"), "bfloat16"):
        logits = model(torch.tensor([prompt]))[0, -1]
        (found,) = beam_search(model, [prompt], num_beams=4, max_new_tokens=1)
    best = logits.double().log_softmax(-1).topk(4).values
    assert logits.dtype == torch.bfloat16
    assert [hypothesis.score for hypothesis in found] == pytest.approx(best.tolist(), abs=1e-5)


# --------------------------------------------------------------------------------------------------
# The limits
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts, options, message", [
    ([[1], []], {}, "prompt 2 is empty"),
    ([[1]], {"num_beams": 31}, "31 beams are too many for 60 tokens"),
    ([[1]], {"num_beams": 29, "banned": BANNED}, "29 beams are too many"),
    ([[1]], {"num_beams": 0}, "must be at least 1"),
    ([[1]], {"max_new_tokens": 0}, "must be at least 1"),
    ([[1]], {"batch_size": 0}, "must be at least 1"),
    ([[1]], {"length_penalty": 400.0}, "a length penalty of 400.0 is too large for 12 new tokens"),
    (3 * [[1]], {"past": 2}, "the past has 2 rows, but there are 3 prompts"),
    (3 * [[1]], {"past": 4}, "the past has 4 rows, but there are 3 prompts"),
    (3 * [[1]], {"past_lengths": [4, 4]}, "past_lengths must be 3 numbers, each from 0 to 4"),
    (3 * [[1]], {"past_lengths": [4, 5, 4]}, "past_lengths must be 3 numbers, each from 0 to 4"),
    (3 * [[1]], {"past_lengths": [4, -1, 4]}, "past_lengths must be 3 numbers, each from 0 to 4"),
])
def test_impossible_searches_are_refused(prompts, options, message):
    model = model_that_ends(0)
    past = random_past(model.config, 4, options.get("past", 1), 0)  # rows of 4
    with pytest.raises(InputError, match=message):
        beam_search(model, prompts, **{"max_new_tokens": MAX_NEW} | options | {"past": past})


def test_no_prompts_and_as_many_beams_as_the_vocabulary_allows_work():
    assert beam_search(model_that_ends(0), []) == []
    results = beam_search(model_that_ends(0), [[1], [2, 3]], num_beams=28, banned=2 * BANNED,
                          max_new_tokens=3)  # one that is banned twice is one
    assert [len(row) for row in results] == [28, 28]


def test_of_the_rows_that_stay_only_those_beyond_the_new_end_move():
    assert doctest.testmod(speed) == (0, 1)
    draw = random.Random(0)
    for _ in range(200):
        is_over = [draw.choice([True, False]) for _ in range(draw.randint(0, 9))]
        rows = compact_rows(is_over)
        assert sorted(rows) == [row for row, over in enumerate(is_over) if not over]
        assert all(row == place for place, row in enumerate(rows) if row < len(rows))


# --------------------------------------------------------------------------------------------------
# The tree of one search
# --------------------------------------------------------------------------------------------------


class Numbered:
    """A tokenizer that writes 7 as <7>."""

    def decode(self, tokens):
        return "".join(f"<{token}>" for token in tokens)


def read_tree(lines):
    """[(tokens from the root to the line's end, total, score or None, whether it is the best)]."""
    read, path = [], {}  # indent -> tokens up to the end of the line above it
    for line in lines:
        total, indent, text, score, best = re.fullmatch(
            r"([ \d.-]{8})  ( *)((?:<\d+>)+)(?:   ends, score (\S+))?(   <- the best)?",
            line).groups()
        tokens = path.get(len(indent) - 4, []) + [int(token) for token in re.findall(r"\d+", text)]
        path[len(indent)] = tokens
        read.append((tokens, float(total), score and float(score), bool(best)))
    return read


def watched_search(model, prompt, past):
    """(search, every beam that it had) of a search with 3 beams."""
    beams = set()

    class Search(beam.WatchedSearch):
        def advance(self, *args):
            grown_from = super().advance(*args)
            beams.update(map(tuple, self.beams))
            return grown_from

    search = Search()
    beam.search_batch(model, [prompt], past, [gpt2.past_length(past)], [search], 3, MAX_NEW, 1.0,
                      [])
    return search, beams


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_the_tree_shows_every_beam_its_total_and_the_hypotheses_of_beam_search(seed):
    model = model_that_ends(seed, bias=-seed / 2)
    (prompt,) = random_ragged_prompts(seed, 1)
    past = random_past(model.config, 2, 1, seed) if seed % 2 else None
    search, beams = watched_search(model, prompt, past)
    lines = read_tree(draw_tree(search, Numbered()))

    shown = {tuple(tokens[:n]) for tokens, *_ in lines for n in range(1, len(tokens) + 1)}
    assert shown == beams and len(lines) > 1
    for tokens, total, *_ in lines:
        logits = model(torch.tensor([prompt + tokens]), past)[0, len(prompt) - 1 : -1]
        truth = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).sum().item()
        assert total == pytest.approx(truth, abs=0.006)
    (found,) = beam_search(model, [prompt], past, num_beams=3, max_new_tokens=MAX_NEW)
    ended = {tuple(tokens): score for tokens, _, score, _ in lines if score is not None}
    assert ended == pytest.approx({tuple(one.tokens): one.score for one in found}, abs=6e-4)
    assert [tokens for tokens, *_, is_best in lines if is_best] == [found[0].tokens]
    forks = {(): []}  # the likeliest next token comes first
    for tokens, *_ in lines:
        fork = max((fork for fork in forks if tuple(tokens[: len(fork)]) == fork), key=len)
        forks[fork].append(search.seen[tuple(tokens[: len(fork) + 1])])
        forks[tuple(tokens)] = []
    assert all(totals == sorted(totals, reverse=True) for totals in forks.values())


def test_the_tree_also_shows_a_best_hypothesis_without_a_token():
    search, _ = watched_search(model_that_ends(0, 30), [1, 2], None)
    assert search.finished[0].tokens == []
    (best,) = [line for line in draw_tree(search, Numbered()) if "<- the best" in line]
    assert f"ends, score {search.finished[0].score:.3f}" in best and not re.search(r"<\d+>", best)


TABLE = "name : The Mill | Type : pub"


def test_the_command_shows_the_tree_of_the_search_with_and_without_a_prefix(tmp_path):
    save_prefix(random_prefix(load_config("tiny"), 0, length=3), tmp_path, "tiny")
    model, tokenizer = load_model("tiny"), load_tokenizer("tiny")
    shown = []
    for arguments, past in (([], None), (["--prefix", tmp_path], load_past(tmp_path, model)[0])):
        done = run_here(beam.main, TABLE, *arguments, "--max-new-tokens", 12, "--device", "cpu")
        shown.append(done.stdout)
        prompt = encode_table(tokenizer, TABLE)
        ((best, *_),) = beam_search(model, [prompt], past, num_beams=3, max_new_tokens=12,
                                    banned=beam.find_banned_tokens(model, tokenizer))
        (line,) = [line for line in shown[-1].splitlines() if line.endswith("<- the best")]
        assert f"ends, score {best.score:.3f}   <- the best" in line
        text = re.sub(r" *ends, score.*", "", line[8:]).strip()
        assert text and tokenizer.decode(best.tokens).endswith(text)
    assert shown[0] != shown[1] and all(text.startswith(TABLE) for text in shown)


def test_the_command_runs_without_arguments():
    done = run_python("beam.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("name : Blue Spice") and "<- the best" in done.stdout


@pytest.mark.parametrize("name, change", [("n_layer", 1), ("n_embd", 128), ("n_head", 1)])
def test_a_prefix_for_another_shape_of_model_is_refused(tmp_path, name, change):
    model = model_that_ends(0)
    other = dataclasses.replace(model.config, **{name: change})  # n_head alone: the same sizes
    save_prefix(random_prefix(other, 0), tmp_path, "other")
    message = f"its {name} is {change}, the model's {getattr(model.config, name)}"
    with pytest.raises(InputError, match=message):
        load_past(tmp_path, model)


def test_line_breaks_that_are_single_tokens_are_banned_one_and_two(shared):
    model = SimpleNamespace(config=SimpleNamespace(n_vocab=50257))
    assert beam.find_banned_tokens(model, load_tokenizer(shared / "gpt2-bpe")) == [198, 628]
