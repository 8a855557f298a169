"""Weights in files: TensorFlow's, Hugging Face's, damaged ones; and the memory they take."""

import pickle
import random
import re
import shutil
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import (assert_close, hugging_face_twin, random_config, random_model, run_here,
                      run_python, run_warm)
from test_hostile_weights import (DATA, INDEX, published_layout, random_variables,
                                  write_openai_folder)
from transformers import AutoTokenizer, GPT2LMHeadModel

import gpt2
import prefix
from gpt2 import GPT2, GPT2Config, generate, load_config, load_model, load_tokenizer, save_model
from support.bases import PUBLISHED
from support.commands import InputError
from support.files import read_json, write_json
from support.tf_checkpoint import read_tf_checkpoint


def expected_tensors(shared):
    """What TensorFlow's checkpoint holds: {name: array}."""
    arrays = np.load(shared / "tf-checkpoint" / "expected_tensors.npz")
    return {name.replace(".", "/"): arrays[name] for name in arrays.files}


@pytest.fixture
def tf_folder(shared, tmp_path):
    """A copy of TensorFlow's checkpoint that may be damaged."""
    folder = tmp_path / "tf"
    shutil.copytree(shared / "tf-checkpoint", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    return folder


# --------------------------------------------------------------------------------------------------
# OpenAI's format
# --------------------------------------------------------------------------------------------------


def test_tensorflows_checkpoint_gives_the_expected_logits(shared):
    expected = np.load(shared / "tf-checkpoint" / "expected_logits.npz")
    model = load_model(shared / "tf-checkpoint", dtype=torch.float64)
    with torch.no_grad():
        logits = model(torch.tensor(expected["ids"])[None])[0]
    assert_close(logits, torch.tensor(expected["logits"]))


MEDIUM = {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 1024, "n_head": 16, "n_layer": 24}


def test_gpt2_mediums_published_sizes_are_those_of_its_name(tmp_path):
    write_json(tmp_path / "hparams.json", MEDIUM)  # as OpenAI published it
    for name, size in ((INDEX, 10_000), (DATA, 1_419_292_672)):  # holes, of the published size
        with open(tmp_path / name, "wb") as file:
            file.truncate(size)
    config = load_config(tmp_path)
    assert config == GPT2Config(**PUBLISHED["gpt2-medium"]) and config.eos_token == 50256


def test_gpt2_mediums_published_layout_gives_each_parameter_its_variable(tmp_path):
    sizes = MEDIUM | {"n_vocab": 30, "n_ctx": 8, "n_embd": 32}  # narrow, but of all its layers
    variables = random_variables(sizes)
    write_openai_folder(tmp_path, sizes, variables, n_blocks=8)
    parameters = dict(load_model(tmp_path).named_parameters())
    layout = published_layout(**sizes)
    assert len(parameters) == len(layout) == 24 * 12 + 4
    for theirs, ours, shape in layout:  # dense layers have a dimension of 1 in front there
        expected = variables[theirs].reshape(shape[-2:])
        assert np.array_equal(parameters[ours].detach().numpy(), expected), ours


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.long)])
def test_a_flipped_byte_of_the_index_is_noticed_unless_it_carries_nothing(shared, tf_folder, step):
    draw, sound, unnoticed = random.Random(0), (tf_folder / INDEX).read_bytes(), []
    expected = expected_tensors(shared)
    for at in range(0, len(sound), step):
        damaged = bytearray(sound)
        damaged[at] ^= draw.randint(1, 255)
        (tf_folder / INDEX).write_bytes(damaged)
        try:
            tensors = dict(read_tf_checkpoint(tf_folder / "model.ckpt"))
        except InputError as error:
            assert INDEX in str(error)
        else:
            unnoticed.append(at)
            assert tensors.keys() == expected.keys()
            assert all(np.array_equal(tensors[name], expected[name]) for name in expected)
    # What carries nothing: the empty meta-index (8 bytes, 5 of checksum), its handle (3), the
    # footer's padding.
    assert len(unnoticed) <= 13 + 3 + 35


def changed(values, change):
    """`values` with `change`, in which None takes a value away."""
    return {name: value for name, value in (values | change).items() if value is not None}


@pytest.mark.parametrize("content, message", [
    (b'{"n_vocab": 301,\n', "no JSON object that can be read .*line 2"),
    (b"[301, 32, 48, 4, 3]", "it is a list"),
    (b'{"n_vocab": 301, "n_embd": 48, "n_head": 4, "n_layer": 3}', "n_ctx is missing")])
def test_broken_hparams_are_one_error_that_names_the_file(tf_folder, content, message):
    (tf_folder / "hparams.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"hparams\.json.*{message}"):
        load_model(tf_folder)


# --------------------------------------------------------------------------------------------------
# Hugging Face's format
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def twin():
    """A random model as Hugging Face holds it."""
    config = GPT2Config(n_vocab=50, n_ctx=16, n_embd=12, n_head=3, n_layer=2)
    return hugging_face_twin(random_model(config, seed=0))


def save_bin(folder, tensors, **options):
    """Turns a folder that transformers saved into one with `tensors` in pytorch_model.bin."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(tensors, folder / "pytorch_model.bin", **options)


def masks(front):
    """The buffers of old versions' attention, under the names that their checkpoints give them."""
    buffers = {}
    for layer in range(2):
        mask = torch.ones(1, 1, 16, 16, dtype=torch.uint8).tril()
        buffers[f"{front}h.{layer}.attn.bias"] = mask
        buffers[f"{front}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return buffers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("form, front, with_masks", [  # what stands in front of the names
    ("safetensors", "transformer.", True), ("safetensors", "", False), ("bin", "", True),
    ("bin", "transformer.", False), ("legacy bin", "transformer.", True)])
def test_hugging_face_folders_give_hugging_faces_logits(
        twin, tmp_path, dtype, front, form, with_masks):
    saved = (twin if front else twin.transformer).to(dtype)
    saved.save_pretrained(tmp_path)
    extra = masks(front) if with_masks else {}
    if form == "safetensors":
        path = tmp_path / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        assert all(name.startswith(front) for name in tensors)
        assert tensors[f"{front}wte.weight"].dtype == dtype
        safetensors.torch.save_file(tensors | extra, path, metadata={"format": "pt"})
    else:
        save_bin(tmp_path, saved.state_dict() | extra, _use_new_zipfile_serialization=form == "bin")
    tokens = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = load_model(tmp_path, dtype=torch.float64)(tokens)
        assert_close(ours, twin.double()(tokens).logits)


class RunsCode:
    """An object whose pickle, when it is loaded naively, writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["bin", "legacy bin", "bare pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(twin, tmp_path, form):
    twin.save_pretrained(tmp_path)
    trace = tmp_path / "trace"
    tensors = twin.state_dict() | {"transformer.wte.weight": RunsCode(trace)}
    save_bin(tmp_path, tensors, _use_new_zipfile_serialization=form == "bin")
    if form == "bare pickle":
        (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(RunsCode(trace)))
    message = "pytorch_model.bin is corrupt, or holds more than tensors"
    with pytest.raises(InputError, match=message):
        load_model(tmp_path)
    assert not trace.exists()
    if form != "bare pickle":
        torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
        assert trace.exists()  # the file was a live one


@pytest.mark.parametrize("content", [[torch.ones(3)], torch.ones(3), {"wte.weight": 5}])
def test_a_bin_that_holds_no_named_tensors_is_named(twin, tmp_path, content):
    twin.save_pretrained(tmp_path)
    save_bin(tmp_path, content)
    with pytest.raises(InputError, match="pytorch_model.bin"):
        load_model(tmp_path)


@pytest.mark.parametrize("change, message", [
    ({"transformer.wpe.weight": None, "transformer.wte.weight": None},
     "lack wpe.weight, wte.weight"),
    ({"transformer.h.2.ln_2.bias": torch.ones(12)},
     "h.2.ln_2.bias is not part of a GPT-2 of this many layers"),
    ({"transformer.h.0.attn.c_attn.weight": torch.ones(36, 12)},
     r"c_attn.weight has the shape \[36, 12\].*\[12, 36\]"),
    ({"lm_head.weight": torch.ones(50, 12)}, "lm_head.weight differs from wte.weight"),
])
def test_weights_that_are_no_gpt2_are_named(twin, tmp_path, change, message):
    twin.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(changed(safetensors.torch.load_file(path), change), path)
    with pytest.raises(InputError, match=f"{tmp_path}.*{message}"):
        load_model(tmp_path)


@pytest.mark.parametrize("change, message", [
    ({"activation_function": "relu"},
     "activation_function is 'relu', but only 'gelu_new' is supported"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ({"scale_attn_weights": False}, "scale_attn_weights is False"),
    ({"model_type": "llama"}, "model_type is 'llama'"),
    ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
    ({"n_inner": 24}, "n_inner is 24"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    ({"n_head": 5}, r"n_embd \(12\) must be a multiple of n_head \(5\)"),
])
def test_configurations_of_other_architectures_are_refused(twin, tmp_path, change, message):
    twin.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    load_model(tmp_path)  # it is the change that matters
    write_json(path, read_json(path) | change)
    with pytest.raises(InputError, match=rf"config\.json.*{message}"):
        load_model(tmp_path)


# --------------------------------------------------------------------------------------------------
# Saving
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_saved_opens_in_hugging_face_and_here(tmp_path, small_vocabulary, dtype):
    config = random_config(0)
    model = random_model(config, 0, dtype).float()  # numbers that either dtype holds exactly
    save_model(model, tmp_path, small_vocabulary, dtype)
    again = load_model(tmp_path)
    assert again.config == config
    for name, parameter in model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter)
    twin = GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert twin.config.eos_token_id == config.eos_token
    tokens = torch.randint(config.n_vocab, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_close(model.double()(tokens), twin.double()(tokens).logits)
    text = "The Vaults is a café near <|endoftext|>"
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(text) == ours.encode(text, allowed_special="all")


# --------------------------------------------------------------------------------------------------
# Memory
# --------------------------------------------------------------------------------------------------

MEASURE = """
import sys, torch
from gpt2 import load_model
def memory(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) * 1024
load_model(sys.argv[1])  # a small one: what libraries load on their first use is not the model
before = memory("VmRSS")
model = load_model(sys.argv[2])
for parameter in model.parameters():
    parameter.sum()  # a page of a file that is mapped counts once it is touched
print(memory("VmHWM") - before, sum(parameter.numel() * 4 for parameter in model.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("form", ["TensorFlow", "safetensors"])
def test_loading_takes_hardly_more_memory_than_the_weights(tmp_path, small_vocabulary, form):
    for n_layer, folder in ((1, tmp_path / "small"), (3, tmp_path / "large")):
        sizes = {"n_vocab": 9000, "n_ctx": 64, "n_embd": 512, "n_head": 8, "n_layer": n_layer}
        if form == "safetensors":
            save_model(GPT2(GPT2Config(**sizes)), folder, small_vocabulary)
        else:
            write_openai_folder(folder, sizes, random_variables(sizes))
    result = run_warm("-c", MEASURE, tmp_path / "small", tmp_path / "large")
    assert result.returncode == 0, result.stderr
    grown, weights = map(int, result.stdout.split())
    assert weights > 50e6
    assert 0.9 * weights < grown < 1.2 * weights


# --------------------------------------------------------------------------------------------------
# The commands
# --------------------------------------------------------------------------------------------------


def test_the_command_goes_on_writing_as_the_model_does(tmp_path, small_vocabulary):
    n_vocab = len(read_json(small_vocabulary / "vocab.json"))
    config = GPT2Config(n_vocab, n_ctx=32, n_embd=24, n_head=3, n_layer=2, eos_token=0)
    model = random_model(config, seed=3, dtype=torch.float32)
    save_model(model, tmp_path, small_vocabulary)
    tokenizer = load_tokenizer(tmp_path)
    prompt = "The Vaults is"
    written = list(generate(model, tokenizer.encode_text(prompt), 8))
    result = run_python("-X", "importtime", "gpt2.py", "--model", tmp_path, "--max-new-tokens", 8,
                        "--device", "cpu", prompt)
    assert result.returncode == 0
    for line in result.stderr.splitlines():  # PyTorch's compiler takes two seconds to load
        assert line.startswith("import time:") and not line.endswith(" torch._dynamo")
    assert result.stdout == prompt + tokenizer.decode(written) + "\n" and len(written) > 3


@pytest.mark.parametrize("main, arguments, message", [
    (gpt2.main, ("--model", "gpt3", "Once"), "there is no model 'gpt3': give a folder or one of "),
    (prefix.main, ("--length", 0), "--length must be at least 1, but is 0")])
def test_a_users_mistake_is_one_line_on_stderr(main, arguments, message):
    done = run_here(main, *arguments)
    assert done.stdout == "" and re.fullmatch(f"error: {message}.*\n", done.stderr)
