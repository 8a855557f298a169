"""The prefix against PEFT's prefix-tuning: logits, gradients, training, files; and the three traps of the method."""

import json
import random
import re

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from conftest import (assert_close, hugging_face_twin, pad_right, peft_twin, random_config, random_model, random_prefix,
                      random_prompts, run_python)
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from transformers import DynamicCache

from common import InputError
from gpt2 import GPT2, SIZES, GPT2Config
from prefix import BarePrefix, Prefix, activations, count, load_prefix, make_prefix, save_prefix

SEEDS = range(12)


def model_and_prefix(seed):
    """A frozen random model and a random prefix for it."""
    config = random_config(seed)
    return random_model(config, seed).requires_grad_(False), random_prefix(config, seed + 1)


def ragged_batch(seed, config):
    """Four rows padded on the right: tokens, mask."""
    lengths = random.Random(seed).choices(range(1, 25), k=4)
    return pad_right(random_prompts(seed, config.n_vocab, lengths))


def next_token_loss(logits, tokens, mask):
    """The mean loss of every token but each row's first."""
    targets = tokens.masked_fill(~mask, -100)[:, 1:]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)


def by_pefts_names(prefix):
    """Our parameters under the names that PEFT's encoder gives them."""
    return {name.replace("mlp.", "transform."): parameter for name, parameter in prefix.named_parameters()}


# ---------------------------------------------------------------------------------------------------------------------
# Against PEFT
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_logits_equal_pefts_for_random_configurations_and_ragged_batches(seed):
    model, prefix = model_and_prefix(seed)
    tokens, mask = ragged_batch(seed, model.config)
    logits = model(tokens, prefix())[mask]
    assert_close(logits, peft_twin(hugging_face_twin(model), prefix)(tokens, attention_mask=mask.long()).logits[mask])
    assert (logits - model(tokens)[mask]).abs().max() > 1e-3  # the prefix does something


@pytest.mark.parametrize("seed", SEEDS)
def test_gradients_of_the_whole_prefix_equal_pefts(seed):
    model, prefix = model_and_prefix(seed)
    peft_model = peft_twin(hugging_face_twin(model), prefix)
    tokens, mask = ragged_batch(seed, model.config)
    next_token_loss(model(tokens, prefix()), tokens, mask).backward()
    next_token_loss(peft_model(tokens, attention_mask=mask.long()).logits, tokens, mask).backward()
    ours = by_pefts_names(prefix)
    truth = dict(peft_model.prompt_encoder["default"].named_parameters())
    assert ours.keys() == truth.keys()
    for name, parameter in ours.items():
        assert parameter.grad.abs().max() > 1e-9, name  # or the comparison would say nothing
        assert_close(parameter.grad, truth[name].grad)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_twenty_steps_of_prefix_tuning_have_pefts_losses_and_leave_the_base_alone():
    model, prefix = model_and_prefix(4)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    peft_model = peft_twin(hugging_face_twin(model), prefix)
    ours, truth = [], []
    trained = [parameter for parameter in peft_model.parameters() if parameter.requires_grad]
    our_optimizer = torch.optim.AdamW(prefix.parameters(), lr=1e-2, weight_decay=0.0)
    peft_optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    for step in range(20):
        tokens, mask = ragged_batch(step % 4, model.config)
        for losses, optimizer, run in (
            (ours, our_optimizer, lambda: model(tokens, prefix())),
            (truth, peft_optimizer, lambda: peft_model(tokens, attention_mask=mask.long()).logits),
        ):
            loss = next_token_loss(run(), tokens, mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert_close(torch.tensor(ours), torch.tensor(truth), 1e-7)
    assert ours[-1] < ours[3] - 0.05  # steps 3 and 19 see the same batch: it does learn
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


# ---------------------------------------------------------------------------------------------------------------------
# The forms of a prefix
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_prefix_made_of_words_does_what_the_words_in_front_do(seed):
    config = random_config(seed)
    model, (words,) = random_model(config, seed), random_prompts(seed, config.n_vocab, [1 + seed % 5])
    tokens, _ = ragged_batch(seed, config)
    prefix = BarePrefix(config, activations(model, words))
    in_front = torch.tensor([words]).expand(len(tokens), -1)
    assert_close(model(tokens, prefix()), model(torch.cat([in_front, tokens], dim=1))[:, len(words) :], 1e-12)


def test_words_are_repeated_to_the_length_of_the_prefix():
    model = random_model(random_config(1), 1)
    prefix = make_prefix("direct", model, 5, words=[1, 3])
    assert torch.equal(prefix.numbers(), activations(model, [1, 3, 1, 3, 1]))
    assert torch.equal(make_prefix("direct", model, 1, words=[1, 3]).numbers(), activations(model, [1]))


@pytest.mark.parametrize("form", ["network", "per-layer"])
def test_a_networks_numbers_are_added_to_what_the_model_makes_of_the_words(form):
    model = random_model(random_config(2), 2)
    torch.manual_seed(0)
    plain = make_prefix(form, model, 5, hidden=7).double()
    torch.manual_seed(0)
    prefix = make_prefix(form, model, 5, hidden=7, words=[1, 3]).double()
    assert_close(prefix.numbers() - activations(model, [1, 3, 1, 3, 1]), plain.numbers(), 1e-12)
    assert count(prefix) == count(plain), "what a prefix starts from is not trained"


@pytest.mark.parametrize("seed", range(4))
def test_per_layer_each_layers_numbers_are_of_its_own_network(seed):
    config = random_config(seed)
    prefix = make_prefix("per-layer", random_model(config, seed), 3, hidden=7).double()
    past = prefix()
    assert len(past) == len(prefix.mlps) == config.n_layer
    for layer, (key, value) in enumerate(past):
        gradients = torch.autograd.grad((key * key + value * value).sum(), list(prefix.mlps.parameters()),
                                        allow_unused=True, retain_graph=True)
        touched = {number // 4 for number, gradient in enumerate(gradients) if gradient is not None and gradient.any()}
        assert touched == {layer}  # four parameters a network
        expected = prefix.mlps[layer](prefix.embedding.weight)  # [3, 2 * n_embd]: the key, then the value
        for vectors, part in zip((key, value), expected.split(config.n_embd, dim=1)):
            assert_close(vectors[0].transpose(0, 1).flatten(1), part)


@pytest.mark.parametrize("form, trained", [
    ("network", 5 * 1024 + (1024 + 1) * 512 + (512 + 1) * 24 * 2 * 1024),
    ("per-layer", 5 * 1024 + 24 * ((1024 + 1) * 800 + (800 + 1) * 2 * 1024)),
    ("direct", 5 * 24 * 2 * 1024),
])
def test_every_form_keeps_the_papers_numbers_and_opens_in_peft(form, trained, tmp_path):
    with torch.device("meta"):
        prefix = make_prefix(form, GPT2(SIZES["gpt2-medium"]), 5)
    assert (count(prefix), prefix.numbers().numel()) == (trained, 245_760)
    model = random_model(random_config(2), 2)
    prefix = make_prefix(form, model, 4).double()
    save_prefix(prefix, tmp_path, "base")
    twin = PeftModel.from_pretrained(hugging_face_twin(model), tmp_path).double().eval()
    tokens = torch.tensor(random_prompts(2, model.config.n_vocab, [9, 9]))
    assert_close(model(tokens, prefix()), twin(tokens).logits, 1e-5)  # saved in float32


# ---------------------------------------------------------------------------------------------------------------------
# The three traps: masks of the wrong length, positions that ignore the prefix, keys and values in another order
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_mask_covers_the_prefix_and_the_tokens():
    model, prefix = model_and_prefix(1)
    past, P = prefix(), len(prefix.embedding.weight)
    tokens, mask = ragged_batch(1, model.config)
    visible = torch.cat([mask.new_ones(4, P), mask], dim=1)
    assert_close(model(tokens, past, mask=visible)[mask], model(tokens, past)[mask])
    visible[:, :P] = False  # a prefix that none may look at: only the positions still know of it
    positions = torch.arange(P, P + tokens.shape[1])[None]
    assert_close(model(tokens, past, mask=visible)[mask], model(tokens, positions=positions)[mask])
    for n in (1, tokens.shape[1]):
        with pytest.raises(InputError, match=f"the mask covers {n} tokens"):
            model(tokens[:, :n], past, mask=mask[:, :n])  # of the tokens alone


@torch.no_grad()
def test_positions_start_behind_the_prefix():
    model, prefix = model_and_prefix(2)
    past, P = prefix(), len(prefix.embedding.weight)
    tokens = torch.tensor(random_prompts(2, model.config.n_vocab, [9]))
    logits = model(tokens, past)
    for start, same in ((P, True), (0, False)):
        positions = torch.arange(start, start + 9)[None]
        cache = DynamicCache()
        for layer, (key, value) in enumerate(past):
            cache.update(key, value, layer)
        truth = hugging_face_twin(model)(tokens, past_key_values=cache, position_ids=positions).logits
        assert_close(model(tokens, past, positions=positions), truth)
        assert torch.allclose(logits, truth, atol=1e-9) == same


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_the_numbers_are_layer_by_layer_key_then_value_as_pefts(seed):
    model, prefix = model_and_prefix(seed)
    config, numbers, past = model.config, prefix.numbers(), prefix()
    cache = peft_twin(hugging_face_twin(model), prefix).get_prompt(batch_size=1)
    assert len(past) == config.n_layer == len(cache.layers)
    for layer, pair in enumerate(past):
        assert_close(torch.stack(pair), torch.stack([cache.layers[layer].keys, cache.layers[layer].values]))
        for which, vectors in enumerate(pair):  # [1, n_head, P, head_dim]
            at = (2 * layer + which) * config.n_embd
            assert torch.equal(vectors[0].transpose(0, 1).flatten(1), numbers[:, at : at + config.n_embd])


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_a_saved_prefix_opens_in_peft_and_here(tmp_path, seed):
    model, prefix = model_and_prefix(seed)
    save_prefix(prefix, tmp_path, "the base")
    bare = load_prefix(tmp_path)
    assert count(bare) == prefix.numbers().numel() and not hasattr(bare, "mlp")
    assert torch.equal(bare.numbers(), prefix.numbers().float())
    for pair, truth in zip(bare(), prefix(), strict=True):
        assert torch.equal(torch.stack(pair), torch.stack(truth).float())
    tokens, mask = ragged_batch(seed, model.config)
    peft_model = PeftModel.from_pretrained(hugging_face_twin(model), tmp_path).double()
    truth = peft_model(tokens, attention_mask=mask.long()).logits[mask]
    assert_close(model(tokens, bare.double()())[mask], truth)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "the base"


@pytest.mark.parametrize("projection", [True, False])
@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_a_prefix_that_peft_saved_loads(tmp_path, seed, projection):
    model, _ = model_and_prefix(seed)
    peft_model = get_peft_model(hugging_face_twin(model), PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=7, prefix_projection=projection))
    for parameter in peft_model.prompt_encoder.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    peft_model.save_pretrained(tmp_path)
    tokens, mask = ragged_batch(seed, model.config)
    # PEFT itself reads back the float32 numbers that it wrote.
    truth = PeftModel.from_pretrained(hugging_face_twin(model), tmp_path).double()(tokens, attention_mask=mask.long())
    assert_close(model(tokens, load_prefix(tmp_path).double()())[mask], truth.logits[mask])


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
    ({"peft_type": ...}, "peft_type is None"),
    ({"num_layers": ...}, "num_layers is missing"),
    ({"num_layers": "2"}, "n_layer .* '2'"),
    ({"num_attention_heads": 4}, "must be a multiple of n_head"),
    ({"num_virtual_tokens": 5}, r"has the shape \[4, 24\], but adapter_config.json asks for \[5, 24\]"),
    ({"num_layers": 3}, r"has the shape \[4, 24\], but adapter_config.json asks for \[4, 36\]"),
    ([], "adapter_config.json"),
    ("{", "line 1: not JSON"),
])
def test_configurations_of_other_adapters_are_refused(folder, change, message):
    path = folder / "adapter_config.json"
    if isinstance(change, dict):
        values = json.loads(path.read_text()) | change
        change = {name: value for name, value in values.items() if value is not ...}
    path.write_text(change if isinstance(change, str) else json.dumps(change))
    with pytest.raises(InputError, match=f"{folder}.*{message}"):
        load_prefix(folder)


def test_damaged_and_other_weights_are_named(folder):
    path = folder / "adapter_model.safetensors"
    sound = path.read_bytes()
    for length in [0, 7, 8, 9, len(sound) - 1, *random.Random(0).sample(range(len(sound)), 30)]:
        path.write_bytes(sound[:length])
        with pytest.raises(InputError, match=r"adapter_model\.safetensors"):
            load_prefix(folder)
    safetensors.torch.save_file({"lora_A": torch.ones(4, 24)}, path)
    with pytest.raises(InputError, match=r"adapter_model\.safetensors .*prompt_embeddings"):
        load_prefix(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Sizes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("length", [1, 5, 30])
def test_kept_are_two_vectors_a_layer_and_position(name, length):
    config = SIZES[name]
    with torch.device("meta"):
        prefix = Prefix(config, length)
    assert prefix.numbers().shape == (length, config.n_layer * 2 * config.n_embd)
    assert [tuple(vectors.shape) for pair in prefix() for vectors in pair] == 2 * config.n_layer * [
        (1, config.n_head, length, config.head_dim)]


def test_gpt2_mediums_prefix_has_the_papers_numbers_and_the_command_prints_them():
    with torch.device("meta"):
        prefix = Prefix(SIZES["gpt2-medium"], 5)
    assert (count(prefix), prefix.numbers().numel()) == (25_744_896, 245_760)
    result = run_python("prefix.py")
    assert (result.returncode, result.stderr) == (0, "")
    row = next(line for line in result.stdout.splitlines() if line.startswith("gpt2-medium"))
    assert row.split()[-4:] == ["25,744,896", "245,760", "354,823,168", "0.069%"]
    assert "[1, 16, 5, 64]" in row
