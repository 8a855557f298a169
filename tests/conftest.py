"""What the tests share: where the shared data lie, small random models, and the same as Hugging Face builds them."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import gpt2  # noqa: E402
import prefix as prefix_module  # noqa: E402
from bench.twins import hugging_face_twin, peft_twin  # noqa: E402, F401


def shared_folder():
    """The folder of the shared data, or None."""
    folder = Path(os.environ.get("PREFIX_TUNING_SHARED", ROOT.parent / "shared" / "data"))
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def shared():
    """The folder of the shared data (E2E, GPT-2's vocabulary, a TensorFlow checkpoint, official scores)."""
    if shared_folder() is None:
        pytest.skip("the shared data are not here: ../shared/data, or where PREFIX_TUNING_SHARED points")
    return shared_folder()


@pytest.fixture(scope="session")
def small_vocabulary(tmp_path_factory):
    """A folder with vocab.json and merges.txt of 300 tokens, trained on a few sentences; <|endoftext|> is token 0."""
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("vocabulary")
    tokenizer = ByteLevelBPETokenizer()
    sentences = ["The Vaults is a family friendly pub.", "A café near the Rice Boat, a restaurant for £20-25."]
    tokenizer.train_from_iterator(sentences * 9, vocab_size=300, show_progress=False, special_tokens=["<|endoftext|>"])
    tokenizer.save_model(str(folder))
    return folder


def random_config(seed, n_ctx=48):
    """A small configuration, another one for each seed."""
    draw = random.Random(seed)
    n_head = draw.randint(1, 4)
    return gpt2.GPT2Config(n_vocab=draw.randint(5, 90), n_ctx=n_ctx, n_embd=n_head * draw.choice([2, 4, 6, 8, 16]),
                           n_head=n_head, n_layer=draw.randint(1, 3))


@torch.no_grad()
def randomise(module, seed):
    """Gives every parameter, biases and norms too, numbers so large that none of them is without effect."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        is_scale = ".ln_" in f".{name}" and name.endswith("weight")
        parameter.copy_(is_scale + 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def random_model(config, seed, dtype=torch.float64):
    """A GPT-2 with random weights."""
    return randomise(gpt2.GPT2(config), seed).to(dtype).eval()


def random_prefix(config, seed, length=None, hidden=12, dtype=torch.float64):
    """A reparameterised prefix with random weights, of length 1 to 6."""
    length = length or random.Random(seed).randint(1, 6)
    return randomise(prefix_module.Prefix(config, length, hidden), seed).to(dtype)


def random_past(config, length, batch, seed, dtype=torch.float64):
    """Random keys and values, in the form that `GPT2.forward` takes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (config.n_layer, 2, batch, config.n_head, length, config.head_dim)
    return [(key, value) for key, value in torch.randn(shape, generator=generator, dtype=dtype)]


def random_prompts(seed, n_vocab, lengths):
    """A list of tokens, none of them the last one (<|endoftext|>), for each length."""
    draw = random.Random(seed)
    return [[draw.randrange(n_vocab - 1) for _ in range(length)] for length in lengths]


def pad_right(prompts):
    """(tokens int [B, T], mask bool [B, T] that is False on the padding)."""
    tokens = nn.utils.rnn.pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]


def assert_close(ours, truth, tolerance=1e-9):
    """The largest difference of two tensors is at most `tolerance`, relative to the truth where that is above 1."""
    assert ours.shape == truth.shape
    worst = ((ours - truth).abs() / truth.abs().clamp(min=1)).max().item()
    assert worst <= tolerance, f"the largest difference is {worst:.3g}"


def run_python(*arguments, **options):
    """Runs Python in the repository's folder, as a user would; returns the completed process."""
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, encoding="utf-8",
                          **options)
