"""GPT-2 against Hugging Face's: logits, pasts, caches, masks, gradients, training; and what it refuses."""

import random

import pytest
import torch
import torch.nn.functional as F
from conftest import (assert_close, hugging_face_twin, pad_right, random_config, random_model, random_past,
                      random_prompts)
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from beam import rows_that_stay
from common import InputError
from e2e_data import NO_LOSS, make_batch
from gpt2 import GPT2, SIZES, GPT2Config, Growing, Layout, generate

SEEDS = range(20)


def model_and_twin(seed):
    """A random model, the same as Hugging Face's, and a source of random numbers."""
    model = random_model(random_config(seed), seed)
    return model, hugging_face_twin(model), random.Random(seed)


def hugging_face_cache(past, batch):
    """Our past as Hugging Face's cache; it knows no sharing among rows, so keys and values are repeated."""
    cache = DynamicCache()
    for layer, (key, value) in enumerate(past):
        cache.update(key.expand(batch, -1, -1, -1).clone(), value.expand(batch, -1, -1, -1).clone(), layer)
    return cache


# ---------------------------------------------------------------------------------------------------------------------
# Logits
# ---------------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(n_layer=st.integers(1, 3), n_head=st.integers(1, 5), head_dim=st.integers(1, 12), n_vocab=st.integers(2, 90),
       batch=st.integers(1, 4), n_tokens=st.integers(1, 30), seed=st.integers(0, 10**6))
@torch.no_grad()
def test_logits_equal_hugging_face_for_random_configurations(n_layer, n_head, head_dim, n_vocab, batch, n_tokens, seed):
    model = random_model(GPT2Config(n_vocab, 30, n_head * head_dim, n_head, n_layer), seed)
    tokens = torch.randint(n_vocab, (batch, n_tokens), generator=torch.Generator().manual_seed(seed))
    logits = model(tokens)
    assert logits.shape == (batch, n_tokens, n_vocab)
    assert_close(logits, hugging_face_twin(model)(tokens).logits)


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_rows_padded_on_the_right_equal_hugging_face_with_its_mask(seed):
    model, twin, draw = model_and_twin(seed)
    tokens, mask = pad_right(random_prompts(seed, model.config.n_vocab, draw.choices(range(1, 30), k=4)))
    truth = twin(tokens, attention_mask=mask.long()).logits[mask]
    assert_close(model(tokens)[mask], truth)  # needs no mask
    assert_close(model(tokens, mask=mask)[mask], truth)  # and may have one


@pytest.mark.parametrize("length", range(1, 21))
@torch.no_grad()
def test_a_past_equals_hugging_faces_cache(length):
    model, twin, draw = model_and_twin(length)
    batch, n_tokens = draw.randint(2, 4), draw.randint(1, 20)
    tokens = torch.randint(model.config.n_vocab, (batch, n_tokens), generator=torch.Generator().manual_seed(length))
    for rows in (1, batch):  # one past for all rows, and a past for each
        past = random_past(model.config, length, rows, seed=length)
        logits = model(tokens, past)
        assert_close(logits, twin(tokens, past_key_values=hugging_face_cache(past, batch)).logits)
        if rows == 1:
            expanded = [(key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1)) for key, value in past]
            assert_close(logits, model(tokens, expanded))


@torch.no_grad()
def test_a_past_of_length_0_is_no_past():
    model, _, _ = model_and_twin(0)
    tokens = torch.tensor([[1, 2, 3]])
    assert_close(model(tokens, random_past(model.config, 0, 1, seed=0)), model(tokens))


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_token_by_token_with_the_cache_equals_one_pass(seed):
    model, _, draw = model_and_twin(seed)
    prefix = random_past(model.config, 3, 1, seed) if seed % 2 else None
    tokens = torch.tensor(random_prompts(seed, model.config.n_vocab, [20, 20]))
    whole, whole_past = model(tokens, prefix, return_past=True)
    past, at, pieces = prefix, 0, []
    while at < 20:
        n_tokens = draw.choice([1, 1, 1, 4])
        logits, past = model(tokens[:, at : at + n_tokens], past, return_past=True)
        pieces.append(logits)
        at += n_tokens
    assert_close(torch.cat(pieces, dim=1), whole)
    for present, whole_present in zip(past, whole_past, strict=True):
        assert_close(torch.stack(present), torch.stack(whole_present))


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_ragged_prompts_continued_with_a_cache_equal_each_prompt_alone(seed):
    model, twin, draw = model_and_twin(seed)
    prefix, P = (random_past(model.config, 4, 1, seed), 4) if seed % 2 else (None, 0)
    prompts = random_prompts(seed, model.config.n_vocab, draw.choices(range(1, 20), k=4))
    continuations = torch.tensor(random_prompts(seed + 1, model.config.n_vocab, [6] * 4))
    tokens, mask = pad_right(prompts)
    lengths = mask.sum(1, keepdim=True)
    logits, past = model(tokens, prefix, return_past=True)
    ours = [logits[torch.arange(4), lengths[:, 0] - 1]]
    mask = torch.cat([mask.new_ones(4, P), mask], dim=1)  # the mask covers past and present tokens
    for step in range(6):
        mask = torch.cat([mask, mask.new_ones(4, 1)], dim=1)
        logits, past = model(continuations[:, step : step + 1], past, positions=P + lengths + step, mask=mask,
                             return_past=True)
        ours.append(logits[:, 0])
    for row, (prompt, continuation) in enumerate(zip(prompts, continuations.tolist())):
        alone = torch.tensor([prompt + continuation])
        cache = prefix and hugging_face_cache(prefix, 1)
        assert_close(torch.stack(ours)[:, row], twin(alone, past_key_values=cache).logits[0, len(prompt) - 1 :])


@pytest.mark.parametrize("seed", SEEDS)
def test_leaving_padding_out_changes_neither_features_nor_gradients(seed):
    """Nor is any work done on it: position-wise layers see as many rows as there are real tokens."""
    model, _, draw = model_and_twin(seed)
    past = random_past(model.config, 3, 1, seed) if seed % 2 else None
    tokens, real = pad_right(random_prompts(seed, model.config.n_vocab, draw.choices(range(1, 30), k=4)))
    seen = []
    model.h[0].mlp.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    features, gradients = [], []
    for argument in (None, real):
        x, _ = model.features(tokens, past, real=argument)
        features.append(x)
        gradients.append(torch.autograd.grad((x[real] ** 2).sum(), list(model.parameters())))
    assert_close(features[1][real], features[0][real])
    assert not features[1][~real].any()
    for ours, truth in zip(*gradients):
        assert_close(ours, truth)
    assert seen == [tokens.numel(), real.sum()]


def test_undoing_the_row_keeps_no_features_for_the_backward_pass():
    real = torch.tensor([[True, True, True], [True, False, False]])
    row, kept = torch.randn(4, 8, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        unpacked = Layout(real.shape, real).unpack(row)
    assert torch.equal(unpacked[real], row) and not unpacked[~real].any()
    assert kept and not any(tensor.is_floating_point() for tensor in kept)  # the places alone


@pytest.mark.parametrize("seed", SEEDS)
def test_features_of_wanted_tokens_are_those_of_all_and_so_are_gradients(seed):
    """And behind the last attention there is no work for the others."""
    model, _, draw = model_and_twin(seed)
    past = random_past(model.config, 3, 1, seed) if seed % 2 else None
    tokens, real = pad_right(random_prompts(seed, model.config.n_vocab, draw.choices(range(2, 30), k=4)))
    wanted = real & (torch.rand(real.shape, generator=torch.Generator().manual_seed(seed)) < 0.5)
    wanted[2, 0] = True
    seen = []
    model.h[-1].mlp.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    truth = model.features(tokens, past)[0][wanted]
    for argument in (None, real):
        ours, _ = model.features(tokens, past, real=argument, wanted=wanted)
        assert_close(ours, truth)
        for a, b in zip(*(torch.autograd.grad((x**2).sum(), list(model.parameters()), retain_graph=True)
                          for x in (ours, truth))):
            assert_close(a, b)
    assert seen == [tokens.numel(), wanted.sum(), wanted.sum()]


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_a_growing_past_is_a_concatenated_one_also_when_rows_leave(seed):
    model, _, draw = model_and_twin(seed)
    tokens = torch.tensor(random_prompts(seed, model.config.n_vocab, [24] * 5))
    _, past = model(tokens[:, :4], return_past=True)
    growing = [(Growing(key), Growing(value)) for key, value in past]
    at, first_room, Growing.ROOM = 4, Growing.ROOM, 3  # so that it grows several times
    try:
        for n_tokens in (1, 2, 7, 1, 5):
            staying = draw.sample(range(len(tokens)), draw.randint(max(1, len(tokens) - 2), len(tokens)))
            rows = rows_that_stay([[0] if row in staying else [] for row in range(len(tokens))])
            tokens, past = tokens[rows], [(key[rows], value[rows]) for key, value in past]
            for layer in growing:
                for tensor in layer:
                    tensor.keep(rows)
            new = tokens[:, at : at + n_tokens]
            truth, past = model(new, past, return_past=True)
            assert_close(model(new, growing), truth, 1e-12)
            at += n_tokens
    finally:
        Growing.ROOM = first_room


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_a_mask_for_each_token_lets_several_continuations_share_a_past(seed):
    model, _, draw = model_and_twin(seed)
    (prompt,), continuations = random_prompts(seed, model.config.n_vocab, [7]), draw.sample(range(5), 3)
    _, past = model(torch.tensor([prompt]), return_past=True)
    mask = torch.cat([torch.ones(3, 7, dtype=torch.bool), torch.eye(3, dtype=torch.bool)], dim=1)[None]
    ours = model(torch.tensor([continuations]), past, positions=torch.tensor([[7]]), mask=mask)[0]
    for token, logits in zip(continuations, ours):
        assert_close(logits, model(torch.tensor([[*prompt, token]]))[0, -1])


@torch.no_grad()
def test_the_last_position_can_be_used_and_none_beyond_it():
    model, twin, _ = model_and_twin(3)
    n_ctx = model.config.n_ctx
    past = random_past(model.config, n_ctx - 5, 1, seed=3)
    tokens = torch.tensor(random_prompts(3, model.config.n_vocab, [6]))
    assert_close(model(tokens[:, :5], past), twin(tokens[:, :5], past_key_values=hugging_face_cache(past, 1)).logits)
    with pytest.raises(InputError, match=f"{n_ctx - 5} past and 6 new .* n_ctx of {n_ctx}"):
        model(tokens, past)
    with pytest.raises(InputError, match="n_ctx"):
        model(torch.zeros(1, n_ctx + 1, dtype=torch.long))


# ---------------------------------------------------------------------------------------------------------------------
# Sizes and configurations
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, count", [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168),
                                         ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)])
def test_the_published_sizes_have_the_published_numbers_of_parameters(name, count):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in GPT2(SIZES[name]).parameters()) == count


def test_initial_weights_have_the_spread_of_openais_code():
    torch.manual_seed(0)
    model = GPT2(GPT2Config(n_vocab=400, n_ctx=300, n_embd=64, n_head=4, n_layer=3))
    for name, ours in model.named_parameters():
        if ours.dim() == 1:
            assert torch.equal(ours, torch.ones_like(ours) if ".ln_" in f".{name}" and "weight" in name
                               else torch.zeros_like(ours)), name
        else:
            std = 0.01 if name == "wpe.weight" else 0.02 / 6**0.5 if name.endswith("c_proj.weight") else 0.02
            assert abs(ours.std().item() / std - 1) < 0.05 and abs(ours.mean().item()) < std / 20, name


@pytest.mark.parametrize("change, message", [
    ({"n_embd": 30}, r"n_embd \(30\) must be a multiple of n_head \(4\)"),
    ({"n_layer": 0}, "n_layer must be a whole number above 0, but is 0"),
    ({"n_vocab": -1}, "n_vocab .* -1"),
    ({"n_ctx": "32"}, "n_ctx .* '32'"),
    ({"n_head": 4.0}, "n_head .* 4.0"),
    ({"n_layer": True}, "n_layer .* True"),
    ({"n_embd": None}, "n_embd .* None"),
])
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        GPT2Config(**{"n_vocab": 10, "n_ctx": 32, "n_embd": 32, "n_head": 4, "n_layer": 2} | change)


def test_the_last_token_is_endoftext_unless_told():
    assert GPT2Config(10, 32, 32, 4, 2).eos_token == 9
    assert GPT2Config(10, 32, 32, 4, 2, eos_token=0).eos_token == 0


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def random_batch(seed, n_vocab):
    """Ragged (prompt, answer) pairs, as tokens and targets."""
    draw = random.Random(seed)
    lengths = draw.choices(range(1, 12), k=8)
    prompts = random_prompts(seed, n_vocab, lengths)
    return make_batch(list(zip(prompts[:4], prompts[4:])))


def our_loss(model, tokens, targets):
    return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=NO_LOSS)


def hugging_face_loss(twin, tokens, targets):
    """The loss with labels as Hugging Face wants them: label t + 1 is what token t shall predict.

    Hugging Face computes its own loss in float32; the same from its float64 logits hides no small difference.
    """
    labels = torch.cat([torch.full_like(targets[:, :1], NO_LOSS), targets], dim=1)
    output = twin(F.pad(tokens, (0, 1)), labels=labels)
    loss = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=NO_LOSS)
    assert_close(loss, output.loss.double(), 1e-5)
    return loss


@pytest.mark.parametrize("seed", range(8))
def test_gradients_equal_hugging_face(seed):
    model, twin, _ = model_and_twin(seed)
    tokens, targets = random_batch(seed, model.config.n_vocab)
    loss, truth = our_loss(model, tokens, targets), hugging_face_loss(twin, tokens, targets)
    assert_close(loss, truth)
    loss.backward()
    truth.backward()
    gradients = {name: parameter.grad for name, parameter in twin.transformer.named_parameters()}
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-6, name  # or the comparison would say nothing
        assert_close(parameter.grad, gradients[name])


def test_twenty_steps_of_fine_tuning_have_hugging_faces_losses():
    model, twin, _ = model_and_twin(11)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.0) for m in (model, twin)]
    histories = [[], []]
    for step in range(20):
        batch = random_batch(step % 4, model.config.n_vocab)
        for m, loss_of, optimizer, history in zip((model, twin), (our_loss, hugging_face_loss), optimizers, histories):
            loss = loss_of(m, *batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
    assert_close(torch.tensor(histories[0]), torch.tensor(histories[1]), 1e-7)
    assert histories[0][-1] < histories[0][3] - 0.5  # it does learn


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_greedy_writing_equals_hugging_face(seed):
    model, twin, draw = model_and_twin(seed)
    prompt = random_prompts(seed, model.config.n_vocab, [draw.randint(1, 9)])[0]
    tokens = torch.tensor([prompt])  # without a mask, Hugging Face would take token 0 for padding
    truth = twin.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=25)
    truth = truth[0, len(prompt) :].tolist()
    eos = model.config.eos_token
    assert list(generate(model, prompt, 25)) == (truth[: truth.index(eos)] if eos in truth else truth)


def test_drawn_writing_repeats_with_its_generator_and_differs_with_another():
    model, _, _ = model_and_twin(5)
    drawn = [list(generate(model, [1, 2], 25, 1.0, torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    greedy = list(generate(model, [1, 2], 25))  # a temperature near 0 leaves only the likeliest token
    assert list(generate(model, [1, 2], 25, 1e-6, torch.Generator().manual_seed(1))) == greedy


@torch.no_grad()
def test_drawn_tokens_have_the_frequencies_of_the_model():
    model, _, _ = model_and_twin(5)
    model.config.eos_token = -1  # none ends
    expected = F.softmax(model(torch.tensor([[3, 1]]))[0, -1] / 0.7, -1)
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(model.config.n_vocab)
    for _ in range(1000):
        counts[next(generate(model, [3, 1], 1, 0.7, generator))] += 1
    assert (counts / 1000 - expected).abs().max() < 0.05  # over three standard deviations


def test_writing_stops_before_endoftext():
    model, _, _ = model_and_twin(5)
    model.config.eos_token = -1
    free = list(generate(model, [1, 2], 12))
    model.config.eos_token = free[-1]
    assert list(generate(model, [1, 2], 12)) == free[: free.index(free[-1])]
