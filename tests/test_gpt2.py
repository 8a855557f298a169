"""GPT-2 against Hugging Face's: logits, pasts, caches, masks, gradients; and what it refuses."""

import random

import pytest
import torch
from conftest import (assert_close, both_logits, hugging_face_cache, hugging_face_twin, pad_right,
                      random_config, random_model, random_past, random_prompts, rows_seen,
                      run_here)
from hypothesis import given, settings
from hypothesis import strategies as st

import describe
import gpt2
from gpt2 import GPT2, GPT2Config, generate
from support.bases import PUBLISHED
from support.commands import InputError
from support.speed import KVCache, pad, compact_rows, packed_logits

SEEDS = range(6)


def model_and_twin(seed):
    """A random model, the same as Hugging Face's, and a source of random numbers."""
    model = random_model(random_config(seed), seed)
    return model, hugging_face_twin(model), random.Random(seed)


# --------------------------------------------------------------------------------------------------
# Logits
# --------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(n_layer=st.integers(1, 3), n_head=st.integers(1, 5), head_dim=st.integers(1, 12),
       n_vocab=st.integers(2, 90), batch=st.integers(1, 4), n_tokens=st.integers(1, 30),
       seed=st.integers(0, 10**6))
@torch.no_grad()
def test_logits_equal_hugging_face_for_random_configurations(n_layer, n_head, head_dim, n_vocab,
                                                             batch, n_tokens, seed):
    model = random_model(GPT2Config(n_vocab, 30, n_head * head_dim, n_head, n_layer), seed)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(n_vocab, (batch, n_tokens), generator=generator)
    logits = model(tokens)
    assert logits.shape == (batch, n_tokens, n_vocab)
    assert_close(logits, hugging_face_twin(model)(tokens).logits)


@pytest.mark.parametrize("length", [0, 1, 2, 7, 20])
@torch.no_grad()
def test_padded_rows_after_a_past_equal_hugging_faces_with_its_mask_and_cache(length):
    model, twin, draw = model_and_twin(length)
    prompts = random_prompts(length, model.config.n_vocab, draw.choices(range(1, 27), k=4))
    tokens, mask = pad_right(prompts)
    covered = torch.cat([mask.new_ones(4, length), mask], dim=1)
    for rows in (1, 4):  # one past for all rows, and a past for each
        past = random_past(model.config, length, rows, seed=length)
        truth = twin(tokens, past_key_values=hugging_face_cache(past, 4),
                     attention_mask=covered.long()).logits[mask]
        for logits in both_logits(model, tokens, mask, past):  # which need no mask
            assert_close(logits, truth)
        assert_close(model(tokens, past, mask=covered)[mask], truth)  # and may have one


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_ragged_prompts_continued_with_a_cache_equal_each_prompt_alone(seed):
    model, twin, draw = model_and_twin(seed)
    prefix, P = (random_past(model.config, 4, 1, seed), 4) if seed % 2 else (None, 0)
    prompts = random_prompts(seed, model.config.n_vocab, draw.choices(range(1, 20), k=4))
    continuations = torch.tensor(random_prompts(seed + 1, model.config.n_vocab, [6] * 4))
    tokens, mask = pad_right(prompts)
    lengths = mask.sum(1, keepdim=True)
    _, past = model(tokens, prefix, return_past=True)
    mask, at, ours = torch.cat([mask.new_ones(4, P), mask], dim=1), 0, []
    for n_tokens in (1, 3, 1, 1):
        mask = torch.cat([mask, mask.new_ones(4, n_tokens)], dim=1)  # of past and present tokens
        positions = P + lengths + torch.arange(at, at + n_tokens)
        logits, past = model(continuations[:, at : at + n_tokens], past, mask=mask,
                             positions=positions, return_past=True)
        ours.append(logits)
        at += n_tokens
    for prompt, continuation, logits in zip(prompts, continuations.tolist(), torch.cat(ours, 1)):
        alone = torch.tensor([prompt + continuation])
        truth = twin(alone, past_key_values=prefix and hugging_face_cache(prefix, 1)).logits
        assert_close(logits, truth[0, len(prompt) :])


@torch.no_grad()
def test_the_last_position_can_be_used_and_none_beyond_it():
    model, twin, _ = model_and_twin(3)
    n_ctx = model.config.n_ctx
    past = random_past(model.config, n_ctx - 5, 1, seed=3)
    tokens = torch.tensor(random_prompts(3, model.config.n_vocab, [6]))
    truth = twin(tokens[:, :5], past_key_values=hugging_face_cache(past, 1)).logits
    assert_close(model(tokens[:, :5], past), truth)
    with pytest.raises(InputError, match=f"{n_ctx - 5} past and 6 new .* n_ctx of {n_ctx}"):
        model(tokens, past)


# --------------------------------------------------------------------------------------------------
# For speed: the padding left out, the logits that nobody wants, the past that grows
# --------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 10**6),
       P=st.sampled_from([None, 1, 4]), past_rows=st.booleans(),
       masked=st.sampled_from([None, "keys", "pairs"]), moved=st.booleans())
def test_packed_logits_are_those_of_the_plain_forward_and_so_are_gradients_and_the_past(
        lengths, P, past_rows, masked, moved, seed):
    """Gradients of parameters and of the past. And no work is done on padding, nor, after the last
    attention, on what is not wanted."""
    config, draw = random_config(seed), random.Random(seed)
    model, generator = random_model(config, seed), torch.Generator().manual_seed(seed)
    prompts = random_prompts(seed, config.n_vocab, lengths)
    tokens, places = pad(prompts)
    assert tokens.flatten()[places].tolist() == sum(prompts, [])
    (B, T), M = tokens.shape, draw.randint(1, len(places))
    wanted = places[draw.sample(range(len(places)), M)]
    past = None if P is None else random_past(config, P, B if past_rows else 1, seed)
    leaves = [tensor.requires_grad_() for pair in past or [] for tensor in pair]
    positions = torch.randint(config.n_ctx, (B, T), generator=generator) if moved else None
    mask, P = None, P or 0
    if masked:
        shape = (B, T, P + T) if masked == "pairs" else (B, P + T)
        mask = torch.rand(shape, generator=generator) < 0.7
        mask[..., P] = True  # or a token might see nothing at all
    truth, true_past = model(tokens, past, positions, mask, return_past=True)
    seen = rows_seen(model)
    ours, our_past = packed_logits(model, tokens, places, wanted, past, positions, mask,
                                   return_past=True)
    last = {"ln_f", *(f"h.{config.n_layer - 1}.{name}"
                      for name in ("ln_2", "mlp", "mlp.c_fc", "mlp.c_proj"))}
    assert all(n_rows == (M if name in last else len(places)) for name, n_rows in seen.items())
    assert_close(ours, truth.flatten(0, 1)[wanted])
    for pair, true_pair in zip(our_past, true_past, strict=True):
        for vectors, true_vectors in zip(pair, true_pair):  # [B, n_head, P + T, head_dim]
            vectors, true_vectors = (x[:, :, P:].transpose(1, 2).flatten(0, 1)[places]
                                     for x in (vectors, true_vectors))
            assert_close(vectors, true_vectors)
    leaves += model.parameters()
    gradients, true_gradients = (torch.autograd.grad((logits**2).sum(), leaves)
                                 for logits in (ours, truth.flatten(0, 1)[wanted]))
    for gradient, true_gradient in zip(gradients, true_gradients, strict=True):
        assert_close(gradient, true_gradient)


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_a_growing_past_is_a_concatenated_one_also_when_rows_leave(seed, monkeypatch):
    model, _, draw = model_and_twin(seed)
    tokens = torch.tensor(random_prompts(seed, model.config.n_vocab, [24] * 5))
    _, past = model(tokens[:, :4], return_past=True)
    growing = [(KVCache(key), KVCache(value)) for key, value in past]
    monkeypatch.setattr(KVCache, "ROOM", 3)  # so that it grows several times
    at = 4
    for n_tokens in (1, 2, 7, 1, 5):
        n_rows = len(tokens)
        staying = draw.sample(range(n_rows), draw.randint(max(1, n_rows - 2), n_rows))
        rows = compact_rows([row not in staying for row in range(n_rows)])
        tokens, past = tokens[rows], [(key[rows], value[rows]) for key, value in past]
        for layer in growing:
            for tensor in layer:
                tensor.keep(rows)
        new = tokens[:, at : at + n_tokens]
        truth, past = model(new, past, return_past=True)
        assert_close(model(new, growing), truth, 1e-12)
        at += n_tokens


# --------------------------------------------------------------------------------------------------
# Sizes and configurations
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, count", [
    ("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080),
    ("gpt2-xl", 1_557_611_200),
])
def test_the_published_sizes_have_the_published_numbers_of_parameters(name, count):
    with torch.device("meta"):
        model = GPT2(GPT2Config(**PUBLISHED[name]))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_initial_weights_have_the_spread_of_openais_code():
    torch.manual_seed(0)
    model = GPT2(GPT2Config(n_vocab=400, n_ctx=300, n_embd=64, n_head=4, n_layer=3))
    for name, ours in model.named_parameters():
        if ours.dim() == 1:
            is_scale = ".ln_" in f".{name}" and name.endswith("weight")
            assert torch.equal(ours, torch.full_like(ours, is_scale)), name
        else:
            std = 0.02 / 6**0.5 if name.endswith("c_proj.weight") else 0.02
            std = 0.01 if name == "wpe.weight" else std
            assert abs(ours.std().item() / std - 1) < 0.05, name
            assert abs(ours.mean().item()) < std / 20, name


@pytest.mark.parametrize("change, message", [
    ({"n_embd": 30}, r"n_embd \(30\) must be a multiple of n_head \(4\)"),
    ({"n_layer": 0}, "n_layer must be a whole number above 0, but is 0"),
    ({"n_ctx": "32"}, "n_ctx .* '32'"), ({"n_layer": True}, "n_layer .* True")])
def test_impossible_configurations_are_refused(change, message):
    sizes = {"n_vocab": 10, "n_ctx": 32, "n_embd": 32, "n_head": 4, "n_layer": 2}
    with pytest.raises(InputError, match=message):
        GPT2Config(**sizes | change)


# --------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_greedy_writing_equals_hugging_face(seed):
    model, twin, draw = model_and_twin(seed)
    prompt = random_prompts(seed, model.config.n_vocab, [draw.randint(1, 9)])[0]
    tokens = torch.tensor([prompt])
    truth = twin.generate(tokens, do_sample=False, max_new_tokens=25,
                          attention_mask=torch.ones_like(tokens))  # or 0 would pass for padding
    eos = model.config.eos_token
    assert list(generate(model, prompt, 25)) == [
        token for token in truth[0, len(prompt) :].tolist() if token != eos]


@pytest.mark.parametrize("temperature", ["-1.0", "nan", "inf", "1e-40"])
def test_a_temperature_at_which_nothing_can_be_drawn_is_refused(temperature):
    said = f"the temperature must be 0, or from 0.01 to 100, but is {temperature}"
    with pytest.raises(InputError, match=said):
        list(generate(model_and_twin(0)[0], [1], 1, float(temperature)))
    for main, words in ((gpt2.main, ["The"]), (describe.main, ["tiny", "name : Zizzi"])):
        done = run_here(main, *words, f"--temperature={temperature}", "--device", "cpu")
        assert (done.stdout, done.stderr) == ("", f"error: {said}\n")


