"""The prefix against PEFT's: logits, gradients, files; its forms; the method's three traps."""

import json
import random
import re

import pytest
import torch
from conftest import (assert_close, both_logits, by_pefts_names, hugging_face_cache,
                      hugging_face_twin, pad_right, peft_twin, random_config, random_model,
                      random_prefix, random_prompts, run_python)
from peft import PeftModel

from gpt2 import GPT2Config
from prefix import Prefix, activations, count_parameters, load_prefix, save_prefix
from support.bases import PUBLISHED
from support.commands import InputError

SEEDS = range(4)
FORMS = ("network", "per-layer", "direct")
PEFTS_FORMS = ("network", "direct")  # PEFT knows no network for each layer


def model_and_prefix(seed, form="network"):
    """A frozen random model and a random prefix for it."""
    config = random_config(seed)
    model = random_model(config, seed).requires_grad_(False)
    return model, random_prefix(config, seed + 1, form=form)


def ragged_batch(seed, config):
    """Four rows padded on the right: tokens, mask."""
    lengths = random.Random(seed).choices(range(1, 25), k=4)
    return pad_right(random_prompts(seed, config.n_vocab, lengths))


# --------------------------------------------------------------------------------------------------
# Against PEFT
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", PEFTS_FORMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_logits_and_gradients_of_the_whole_prefix_equal_pefts_for_ragged_batches(seed, form):
    model, prefix = model_and_prefix(seed, form)
    peft_model = peft_twin(hugging_face_twin(model), prefix)
    tokens, mask = ragged_batch(seed, model.config)
    true_logits = peft_model(tokens, attention_mask=mask.long()).logits[mask]
    (true_logits**2).mean().backward()
    truth = dict(peft_model.prompt_encoder["default"].named_parameters())
    ours = by_pefts_names(prefix)
    assert ours.keys() == truth.keys()
    for logits in both_logits(model, tokens, mask, prefix()):
        assert_close(logits, true_logits)
        gradients = torch.autograd.grad((logits**2).mean(), [*ours.values()], retain_graph=True)
        for name, gradient in zip(ours, gradients):
            assert gradient.abs().max() > 1e-9, name  # or the comparison would say nothing
            assert_close(gradient, truth[name].grad)


# --------------------------------------------------------------------------------------------------
# The forms of a prefix
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_prefix_made_of_words_does_what_the_words_in_front_do(seed, in_float64):
    config = random_config(seed)
    model = random_model(config, seed)
    (words,) = random_prompts(seed, config.n_vocab, [1 + seed % 5])
    tokens, _ = ragged_batch(seed, config)
    prefix = Prefix(config, len(words), form="direct", start=activations(model, words))
    in_front = torch.tensor([words]).expand(len(tokens), -1)
    truth = model(torch.cat([in_front, tokens], dim=1))[:, len(words) :]
    assert_close(model(tokens, prefix()), truth, 1e-12)


@pytest.mark.parametrize("form", ["network", "per-layer"])
def test_what_networks_make_is_added_to_what_the_prefix_starts_from(form, in_float64):
    config = random_config(2)
    start = activations(random_model(config, 2), [1, 3, 1])
    torch.manual_seed(0)
    plain = Prefix(config, 3, 7, form)
    torch.manual_seed(0)
    started = Prefix(config, 3, 7, form, start)
    assert_close(started.key_values() - plain.key_values(), start, 1e-12)
    assert count_parameters(started) == count_parameters(plain), "the start is not trained"


@pytest.mark.parametrize("seed", SEEDS)
def test_per_layer_each_layers_keys_and_values_are_of_its_own_network(seed):
    config = random_config(seed)
    prefix = random_prefix(config, seed, length=3, hidden=7, form="per-layer")
    past = prefix()
    assert len(past) == len(prefix.networks) == config.n_layer
    for layer, pair in enumerate(past):
        expected = prefix.networks[layer](prefix.embedding.weight)  # [3, 2 * n_embd]: key, value
        for vectors, part in zip(pair, expected.split(config.n_embd, dim=1)):
            assert_close(vectors[0].transpose(0, 1).flatten(1), part)


@pytest.mark.parametrize("form, trained", [
    ("network", 5 * 1024 + (1024 + 1) * 512 + (512 + 1) * 24 * 2 * 1024),
    ("per-layer", 5 * 1024 + 24 * ((1024 + 1) * 800 + (800 + 1) * 2 * 1024)),
    ("direct", 5 * 24 * 2 * 1024),
])
def test_every_form_trains_and_keeps_as_many_numbers_as_published(form, trained):
    with torch.device("meta"):
        prefix = Prefix(GPT2Config(**PUBLISHED["gpt2-medium"]), 5, form=form)
    assert (count_parameters(prefix), prefix.key_values().numel()) == (trained, 245_760)


# --------------------------------------------------------------------------------------------------
# The three traps: masks of the wrong length, positions that ignore the prefix, keys and values in
# another order
# --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_mask_covers_the_prefix_and_the_tokens():
    model, prefix = model_and_prefix(1)
    past, P = prefix(), len(prefix.embedding.weight)
    tokens, mask = ragged_batch(1, model.config)
    # A prefix that none may look at: only the positions still know of it.
    visible = torch.cat([mask.new_zeros(4, P), mask], dim=1)
    positions = torch.arange(P, P + tokens.shape[1])[None]
    truth = model(tokens, positions=positions)[mask]
    assert_close(model(tokens, past, mask=visible)[mask], truth)
    with pytest.raises(InputError, match=f"the mask covers {tokens.shape[1]} tokens"):
        model(tokens, past, mask=mask)  # of the tokens alone


@torch.no_grad()
def test_positions_start_behind_the_prefix():
    model, prefix = model_and_prefix(2)
    past, P = prefix(), len(prefix.embedding.weight)
    tokens = torch.tensor(random_prompts(2, model.config.n_vocab, [9]))
    for start, same in ((P, True), (0, False)):
        cache, positions = hugging_face_cache(past, 1), torch.arange(start, start + 9)[None]
        truth = hugging_face_twin(model)(tokens, past_key_values=cache, position_ids=positions)
        assert torch.allclose(model(tokens, past), truth.logits, atol=1e-9) == same


@pytest.mark.parametrize("form", PEFTS_FORMS)
@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_key_values_are_layer_by_layer_key_then_value_as_pefts(seed, form):
    model, prefix = model_and_prefix(seed, form)
    past = prefix()
    cache = peft_twin(hugging_face_twin(model), prefix).get_prompt(batch_size=1)
    assert len(past) == model.config.n_layer == len(cache.layers)
    for pair, layer in zip(past, cache.layers):
        assert_close(torch.stack(pair), torch.stack([layer.keys, layer.values]))


# --------------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_a_saved_prefix_of_every_form_opens_in_peft_and_here(tmp_path, seed, form):
    model, prefix = model_and_prefix(seed, form)
    save_prefix(prefix, tmp_path, "the base")
    loaded = load_prefix(tmp_path)
    assert count_parameters(loaded) == prefix.key_values().numel() and not loaded.networks
    assert torch.equal(loaded.key_values(), prefix.key_values().float())
    tokens, mask = ragged_batch(seed, model.config)
    peft_model = PeftModel.from_pretrained(hugging_face_twin(model), tmp_path).double()
    truth = peft_model(tokens, attention_mask=mask.long()).logits[mask]
    assert_close(model(tokens, loaded.double()())[mask], truth)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == "the base"


@pytest.fixture
def folder(tmp_path):
    """A sound adapter of a prefix of length 4 for a model of 2 layers and n_embd 6."""
    config = GPT2Config(n_vocab=9, n_ctx=9, n_embd=6, n_head=3, n_layer=2)
    save_prefix(random_prefix(config, 0, length=4), tmp_path, "the base")
    return tmp_path


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    load_prefix(folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{re.escape(name)} is missing"):
        load_prefix(folder)


@pytest.mark.parametrize("change, message", [
    ({"peft_type": "LORA"}, "peft_type is 'LORA', but only 'PREFIX_TUNING' is supported"),
    ({"num_layers": ...}, "num_layers is missing"),
    ({"num_attention_heads": 4}, "must be a multiple of n_head"),
    ({"num_transformer_submodules": 2}, "num_transformer_submodules is 2, but only 1"),
    ({"task_type": "SEQ_2_SEQ_LM"}, "task_type is 'SEQ_2_SEQ_LM'"),
    ({"num_virtual_tokens": 4.0}, "length must be a whole number above 0, but is 4.0"),
    ({"num_layers": 3}, r"the shape \[4, 24\], but adapter_config.json asks for \[4, 36\]"),
])
def test_configurations_of_other_adapters_are_refused(folder, change, message):
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text()) | change
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))
    with pytest.raises(InputError, match=f"{folder}.*{message}"):
        load_prefix(folder)


# --------------------------------------------------------------------------------------------------
# Sizes
# --------------------------------------------------------------------------------------------------


def test_the_command_prints_the_papers_numbers_of_gpt2_mediums_prefix():
    result = run_python("prefix.py")
    assert (result.returncode, result.stderr) == (0, "")
    rows = result.stdout.splitlines()
    row = next(row for row in rows if row.startswith("gpt2-medium"))
    assert row.split()[-4:] == ["25,744,896", "245,760", "354,823,168", "0.069%"]
    assert "[1, 16, 5, 64]" in row
