"""Beam search against Hugging Face's `generate`, and against trying out every continuation."""

import dataclasses
import doctest
import itertools
import random
import re

import pytest
import torch
from conftest import (hugging_face_twin, peft_twin, random_model, random_past, random_prefix,
                      random_prompts, run_here, run_python)
from tqdm import tqdm

import beam
import gpt2
from beam import beam_search
from e2e_data import encode_table
from gpt2 import GPT2Config, load_config, load_model, load_tokenizer
from prefix import load_prefix, save_prefix
from support import speed
from support.devices import autocast
from support.drawing import branches, draw_tree
from support.files import InputError
from support.speed import Growing, rows_that_stay

N_VOCAB, EOS, MAX_NEW = 60, 59, 12
BANNED = (3, 17, 29, 41)


@torch.no_grad()
def model_with_biases(seed, biases=None, n_vocab=N_VOCAB, dtype=torch.float64):
    """A random model whose logits have biases: an embedding's number 0.

    The feature that it is multiplied with is always 1.
    """
    config = GPT2Config(n_vocab, n_ctx=40, n_embd=32, n_head=4, n_layer=2)
    model = random_model(config, seed, dtype)
    model.ln_f.weight[0], model.ln_f.bias[0] = 0, 1
    model.wte.weight[:, 0] = torch.zeros(n_vocab) if biases is None else biases
    return model


def ended_share(results):
    """The share of prompts whose best hypothesis ended before the limit."""
    return sum(len(hypotheses[0][0]) < MAX_NEW for hypotheses in results) / len(results)


def as_pairs(results):
    return [[(hypothesis.tokens, hypothesis.score) for hypothesis in hypotheses]
            for hypotheses in results]


@torch.no_grad()
def let_half_of_them_end(model, search):
    """Finds a bias of <|endoftext|> with which about half of the best hypotheses end in time."""
    low, high = -20.0, 20.0
    for _ in range(12):
        model.wte.weight[EOS, 0] = (low + high) / 2
        share = ended_share(as_pairs(search()))
        if 0.42 < share < 0.58:
            return
        low, high = (low, (low + high) / 2) if share > 0.5 else ((low + high) / 2, high)


def hugging_face_search(twin, prompts, **options):
    """[[(tokens, score), ...], ...]; prompts of one length go in a call, so that none is padded."""
    results = [None] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for _, group in itertools.groupby(by_length, key=lambda i: len(prompts[i])):
        group = list(group)
        tokens = torch.tensor([prompts[i] for i in group])
        output = twin.generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), early_stopping=False,
            max_new_tokens=MAX_NEW, do_sample=False, return_dict_in_generate=True,
            output_scores=True, pad_token_id=0, **options)
        k = len(output.sequences) // len(group)
        scores = getattr(output, "sequences_scores", None)
        for row, written in enumerate(output.sequences[:, tokens.shape[1] :].tolist()):
            written = written[: written.index(EOS)] if EOS in written else written
            results[group[row // k]] = results[group[row // k]] or []
            score = None if scores is None else scores[row].item()
            results[group[row // k]].append((written, score))
    return results


def random_ragged_prompts(seed, count):
    return random_prompts(seed, N_VOCAB, random.Random(seed).choices(range(1, 14), k=count))


def assert_same(ours, truth, tolerance=1e-5):
    """The same hypotheses in the same order, with the same scores."""
    assert [[tokens for tokens, _ in row] for row in ours] == [
        [tokens for tokens, _ in row] for row in truth]
    if truth[0][0][1] is None:  # a greedy search tells no scores
        return
    scores, true_scores = (torch.tensor([[score for _, score in row] for row in rows])
                           for rows in (ours, truth))
    assert ((scores - true_scores).abs() / true_scores.abs().clamp(min=1)).max() <= tolerance


# --------------------------------------------------------------------------------------------------
# Against Hugging Face
# --------------------------------------------------------------------------------------------------

SETTINGS = [  # beams, length penalty, with a prefix, banned tokens
    (2, 1.0, False, ()), (3, 1.0, True, BANNED), (5, 1.0, False, BANNED), (5, 1.0, True, ()),
    (5, 0.0, False, ()), (3, 0.0, True, ()), (5, 0.6, True, BANNED), (2, 0.6, False, ()),
    (3, 2.0, False, BANNED), (5, 2.0, True, ()), (3, -0.7, False, ()), (5, -0.7, True, BANNED),
    (1, 1.0, False, BANNED), (1, 1.0, True, BANNED),  # which is their greedy search
]


@pytest.mark.parametrize("seed, setting", list(enumerate(SETTINGS)),
                         ids=lambda value: str(value).replace(" ", ""))
def test_all_hypotheses_of_200_prompts_equal_hugging_faces(seed, setting):
    num_beams, penalty, with_prefix, banned = setting
    model, prompts = model_with_biases(seed), random_ragged_prompts(seed, 200)
    prefix = random_prefix(model.config, seed, length=3) if with_prefix else None
    options = {"past": prefix() if with_prefix else None, "num_beams": num_beams,
               "length_penalty": penalty, "banned": banned, "max_new_tokens": MAX_NEW}
    let_half_of_them_end(model, lambda: beam_search(model, prompts[:100], **options))

    twin = hugging_face_twin(model)
    truth = hugging_face_search(peft_twin(twin, prefix) if with_prefix else twin, prompts,
                                num_beams=num_beams, num_return_sequences=num_beams,
                                length_penalty=penalty if num_beams > 1 else None,
                                bad_words_ids=[[token] for token in banned] or None)
    assert 1 / 3 < ended_share(truth) < 2 / 3  # or one way to end would go untested
    assert all(len(hypotheses) == num_beams for hypotheses in truth)
    assert_same(as_pairs(beam_search(model, prompts, **options)), truth)


# --------------------------------------------------------------------------------------------------
# Against the definition
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.0, -0.5])  # with these, going on makes no score better
@pytest.mark.parametrize("seed", range(5))
@torch.no_grad()
def test_with_enough_beams_the_hypotheses_are_the_best_of_all_continuations(seed, penalty):
    # Four of 40 tokens are likely: 20 beams hold each likely beginning of two, and miss nothing.
    biases = torch.full((40,), -60.0)
    biases[torch.tensor([4, 8, 15, 39])] = 0
    model, prompt = model_with_biases(seed, biases, n_vocab=40), [23, 5]
    twin = hugging_face_twin(model)
    ended = [(*tokens, 39) for length in (0, 1, 2)
             for tokens in itertools.product((4, 8, 15), repeat=length)]
    whole = list(itertools.product((4, 8, 15), repeat=3))
    everything = []
    for tokens in ended + whole:
        logits = twin(torch.tensor([prompt + list(tokens)])).logits[0, len(prompt) - 1 : -1]
        log_probs = logits.log_softmax(-1)
        total = sum(log_probs[at, token].item() for at, token in enumerate(tokens))
        written = [token for token in tokens if token != 39]
        everything.append((written, total / len(tokens) ** penalty))
    everything.sort(key=lambda pair: -pair[1])
    ours = beam_search(model, [prompt], num_beams=20, max_new_tokens=3, length_penalty=penalty)
    assert_same(as_pairs(ours), [everything[:20]])


@torch.no_grad()
def test_scores_are_what_the_model_gives_the_tokens():
    model, prompts = model_with_biases(5), random_ragged_prompts(5, 40)
    past = random_past(model.config, 2, 1, seed=5)
    options = {"past": past, "num_beams": 4, "length_penalty": 1.3, "max_new_tokens": MAX_NEW}
    let_half_of_them_end(model, lambda: beam_search(model, prompts, **options))
    for prompt, hypotheses in zip(prompts, beam_search(model, prompts, **options)):
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(hypothesis.tokens) for hypothesis in hypotheses}) == 4
        for hypothesis in hypotheses:
            # One of MAX_NEW tokens has not ended: with <|endoftext|> it would be longer.
            written = hypothesis.tokens + [EOS] * (len(hypothesis.tokens) < MAX_NEW)
            logits = model(torch.tensor([prompt + written]), past)[0, len(prompt) - 1 : -1]
            total = logits.log_softmax(-1).gather(1, torch.tensor(written)[:, None]).sum().item()
            assert hypothesis.score == pytest.approx(total / len(written) ** 1.3, abs=1e-5)


def test_neither_batches_nor_the_order_of_prompts_matter():
    model, prompts = model_with_biases(6), random_ragged_prompts(6, 70)
    past = random_past(model.config, 3, 1, seed=6)
    options = {"past": past, "num_beams": 3, "max_new_tokens": MAX_NEW}
    let_half_of_them_end(model, lambda: beam_search(model, prompts, **options))
    truth = as_pairs(beam_search(model, prompts, **options))
    for batch_size in (1, 7, 70, 1000):
        ours = as_pairs(beam_search(model, prompts, batch_size=batch_size, **options))
        assert_same(ours, truth, 1e-6)
    order = random.Random(6).sample(range(70), 70)
    shuffled = as_pairs(beam_search(model, [prompts[i] for i in order], **options))
    assert_same(shuffled, [truth[i] for i in order], 1e-6)


def test_banned_tokens_are_never_written_and_nothing_is_banned_unless_told():
    model, prompts = model_with_biases(7), random_ragged_prompts(7, 30)
    free = beam_search(model, prompts, num_beams=2, max_new_tokens=MAX_NEW)
    used = {token for row in free for hypothesis in row for token in hypothesis.tokens}
    banned = sorted(used)[: len(used) // 2]
    bound = beam_search(model, prompts, num_beams=2, max_new_tokens=MAX_NEW, banned=banned)
    written = {token for row in bound for hypothesis in row for token in hypothesis.tokens}
    assert banned and not written & set(banned)


@pytest.fixture
def grown(monkeypatch):
    """The Growing keys and values of the searches of this test."""
    watched = []

    class Watched(Growing):
        def __init__(self, tensor):
            super().__init__(tensor)
            watched.append(self)

    monkeypatch.setattr(beam, "Growing", Watched)
    return watched


@torch.no_grad()
def test_under_autocast_the_keys_and_values_stay_in_bfloat16_behind_a_float32_prefix(grown):
    model, prompts = model_with_biases(8, dtype=torch.float32), random_ragged_prompts(8, 4)
    model.wte.weight[EOS, 0] = -50  # none ends
    past = random_past(model.config, 3, 1, 8, torch.float32)
    with autocast(torch.device("cpu"), "bfloat16"):
        beam_search(model, prompts, past, num_beams=2, max_new_tokens=MAX_NEW)
    T = max(map(len, prompts))
    assert len(grown) == 2 * model.config.n_layer  # a key and a value each
    assert {tensor.length for tensor in grown} == {3 + T + 2 * (MAX_NEW - 1)}  # 2 beams a step
    assert {tensor.data.dtype for tensor in grown} == {torch.bfloat16}


@torch.no_grad()
def test_under_autocast_scores_are_float32_log_probabilities():
    """In bfloat16 a score would have three digits, and beams would be told apart by rounding."""
    model, prompt = model_with_biases(9, dtype=torch.float32), [4, 7, 1]
    with autocast(torch.device("cpu"), "bfloat16"):
        logits = model(torch.tensor([prompt]))[0, -1]
        (found,) = beam_search(model, [prompt], num_beams=4, max_new_tokens=1)
    best = logits.double().log_softmax(-1).topk(4).values
    assert logits.dtype == torch.bfloat16
    assert [hypothesis.score for hypothesis in found] == pytest.approx(best.tolist(), abs=1e-5)


# --------------------------------------------------------------------------------------------------
# The limits
# --------------------------------------------------------------------------------------------------


def test_no_prompts_give_no_hypotheses():
    assert beam_search(model_with_biases(0), []) == []


def test_the_models_last_position_can_be_used_and_none_beyond_it():
    model = model_with_biases(0)
    with torch.no_grad():
        model.wte.weight[EOS, 0] = -50  # none ends
    past = random_past(model.config, 3, 1, seed=0)
    longest = 40 - 3 - MAX_NEW + 1  # the last token that is written is never read
    prompts = random_prompts(0, N_VOCAB, [5, longest])
    results = beam_search(model, prompts, past, num_beams=2, max_new_tokens=MAX_NEW)
    assert all(len(hypothesis.tokens) == MAX_NEW for row in results for hypothesis in row)
    message = f"prompt 2 has {longest + 1} tokens, but with 3 of a prefix and 12 new ones"
    with pytest.raises(InputError, match=message):
        beam_search(model, [prompts[0], prompts[1] + [1]], past, num_beams=2,
                    max_new_tokens=MAX_NEW)


@pytest.mark.parametrize("prompts, options, message", [
    ([[1], []], {}, "prompt 2 is empty"),
    ([[1]], {"num_beams": 31}, "31 beams are too many for 60 tokens"),
    ([[1]], {"num_beams": 29, "banned": BANNED}, "29 beams are too many"),
    ([[1]], {"num_beams": 0}, "must be at least 1"),
    ([[1]], {"max_new_tokens": 0}, "must be at least 1"),
    ([[1]], {"batch_size": 0}, "must be at least 1"),
])
def test_impossible_searches_are_refused(prompts, options, message):
    with pytest.raises(InputError, match=message):
        beam_search(model_with_biases(0), prompts, **{"max_new_tokens": MAX_NEW} | options)


def test_as_many_beams_as_the_vocabulary_allows_work():
    results = beam_search(model_with_biases(0), [[1], [2, 3]], num_beams=28, banned=2 * BANNED,
                          max_new_tokens=3)  # one that is banned twice is one
    assert [len(row) for row in results] == [28, 28]


def test_of_the_rows_that_stay_only_those_beyond_the_new_end_move():
    assert doctest.testmod(speed) == (0, 1)
    draw = random.Random(0)
    for _ in range(200):
        is_over = [draw.choice([True, False]) for _ in range(draw.randint(0, 9))]
        rows = rows_that_stay(is_over)
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


def watched_search(model, prompt, past, monkeypatch):
    """(search, every beam that it had) of a search with 3 beams."""
    beams, plain_advance = set(), beam.Search.advance

    def advance(self, *args):
        grown_from = plain_advance(self, *args)
        beams.update(map(tuple, self.beams))
        return grown_from

    with monkeypatch.context() as patched:
        patched.setattr(beam.Search, "advance", advance)
        search = beam.WatchedSearch(0)
        beam.search_batch(model, [prompt], past, [gpt2.past_length(past)], [search], 3, MAX_NEW,
                          1.0, [], tqdm(disable=True))
    return search, beams


@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_the_tree_shows_every_beam_its_total_and_the_hypotheses_of_beam_search(seed, monkeypatch):
    model, (prompt,) = model_with_biases(seed), random_ragged_prompts(seed, 1)
    past = random_past(model.config, 2, 1, seed) if seed % 2 else None
    model.wte.weight[EOS, 0] = random.Random(seed).uniform(-2, 1)
    search, beams = watched_search(model, prompt, past, monkeypatch)
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
    for fork, ends in branches(search).items():  # the likeliest next token comes first
        totals = [search.seen[end[: len(fork) + 1]] for end in ends]
        assert totals == sorted(totals, reverse=True)


@torch.no_grad()
def test_the_tree_also_shows_a_best_hypothesis_without_a_token(monkeypatch):
    model = model_with_biases(0)
    model.wte.weight[EOS, 0] = 30  # likely from the start
    search, _ = watched_search(model, [1, 2], None, monkeypatch)
    assert search.finished[0].tokens == []
    (best,) = [line for line in draw_tree(search, Numbered()) if "<- the best" in line]
    assert f"ends, score {search.finished[0].score:.3f}" in best and not re.search(r"<\d+>", best)


TABLE = "name : The Mill | Type : pub"


def test_the_command_shows_the_tree_of_the_search_with_and_without_a_prefix(tmp_path):
    save_prefix(random_prefix(load_config("tiny"), 0, length=3), tmp_path, "tiny")
    model, tokenizer = load_model("tiny"), load_tokenizer("tiny")
    shown = []
    for arguments, past in (([], None), (["--prefix", tmp_path], load_prefix(tmp_path)())):
        done = run_here(beam.main, TABLE, *arguments, "--max-new-tokens", 12, "--device", "cpu")
        shown.append(done.stdout)
        prompt = encode_table(tokenizer, TABLE)
        ((best, *_),) = beam_search(model, [prompt], past, num_beams=3, max_new_tokens=12,
                                    banned=beam.banned_tokens(model, tokenizer))
        (line,) = [line for line in shown[-1].splitlines() if line.endswith("<- the best")]
        assert f"ends, score {best.score:.3f}   <- the best" in line
        text = re.sub(r" *ends, score.*", "", line[8:]).strip()
        assert text and tokenizer.decode(best.tokens).endswith(text)
    assert shown[0] != shown[1] and all(text.startswith(TABLE) for text in shown)


def test_the_command_keeps_nothing_for_a_backward_pass(grown):
    run_here(beam.main, TABLE, "--max-new-tokens", 2, "--device", "cpu")
    assert grown and not any(tensor.data.requires_grad for tensor in grown)


def test_the_command_runs_without_arguments():
    done = run_python("beam.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("name : Blue Spice") and "<- the best" in done.stdout


@pytest.mark.parametrize("name, change", [("n_layer", 1), ("n_embd", 128), ("n_head", 1)])
def test_the_command_refuses_a_prefix_for_another_shape_of_model(tmp_path, name, change):
    config = load_config("tiny")
    other = dataclasses.replace(config, **{name: change})  # of n_head alone all sizes are the same
    save_prefix(random_prefix(other, 0), tmp_path, "other")
    done = run_here(beam.main, TABLE, "--prefix", tmp_path, "--device", "cpu")
    assert f"its {name} is {change}, the model's {getattr(config, name)}" in done.stderr
