"""What the tests share: the shared data, small random models, the same as others build them."""

import argparse
import functools
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for models so small, threads cost more than they do

import pytest
import safetensors
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

ROOT = Path(__file__).parent.parent

import gpt2
import prefix as prefix_module
import train
from experiments.bench.twins import hugging_face_twin, peft_twin  # noqa: F401
from support.commands import run_command
from support.speed import packed_logits


def shared_folder():
    """The folder of the shared data, or None."""
    folder = Path(os.environ.get("PREFIX_TUNING_SHARED", ROOT.parent / "shared" / "data"))
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def shared():
    """The folder of the shared data: E2E, GPT-2's vocabulary, a TensorFlow checkpoint, scores."""
    if shared_folder() is None:
        pytest.skip("the shared data are not here: ../shared/data, or where PREFIX_TUNING_SHARED "
                    "points")
    return shared_folder()


@pytest.fixture(scope="session")
def small_vocabulary(tmp_path_factory):
    """A folder with vocab.json and merges.txt of 300 tokens; <|endoftext|> is token 0."""
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("vocabulary")
    tokenizer = ByteLevelBPETokenizer()
    sentences = ["The Vaults is a family friendly pub.",
                 "A café near the Rice Boat, a restaurant for £20-25."]
    tokenizer.train_from_iterator(sentences * 9, vocab_size=300, show_progress=False,
                                  special_tokens=["<|endoftext|>"])
    tokenizer.save_model(str(folder))
    return folder


# --------------------------------------------------------------------------------------------------
# Random models
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def in_float64():
    """What is made in this test is made in float64 where nothing else is said."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@contextmanager
def other_defaults():
    """What somebody may have set in a notebook; on "meta" whatever relies on a default shows."""
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture
def old_safetensors(monkeypatch):
    """safetensors as its versions up to 0.5 are: they read to the device that is the default.

    [the file of each tensor whose numbers were read]
    """
    reads = []

    class OldFile:
        def __init__(self, path, framework):
            self.path, self.file = path, safe_open(path, framework)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            self.file.__exit__(*error)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def get_tensor(self, name):
            reads.append(self.path)
            return torch.asarray(self.file.get_tensor(name).numpy())

    monkeypatch.setattr(safetensors, "safe_open", OldFile)
    return reads


def random_config(seed, n_ctx=48):
    """A small configuration, another one for each seed."""
    draw = random.Random(seed)
    n_head = draw.randint(1, 4)
    return gpt2.GPT2Config(n_vocab=draw.randint(5, 90), n_ctx=n_ctx,
                           n_embd=n_head * draw.choice([2, 4, 6, 8, 16]), n_head=n_head,
                           n_layer=draw.randint(1, 3))


@torch.no_grad()
def randomise(module, seed):
    """Gives every parameter, biases and norms too, numbers so large that none is without effect."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        is_scale = ".ln_" in f".{name}" and name.endswith("weight")
        numbers = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.copy_(is_scale + 0.3 * numbers)
    return module


def random_model(config, seed, dtype=torch.float64):
    """A GPT-2 with random weights."""
    return randomise(gpt2.GPT2(config), seed).to(dtype).eval()


N_VOCAB, EOS = 60, 59  # of `model_that_ends`


@torch.no_grad()
def model_that_ends(seed, bias=3.0, n_ctx=40, dtype=torch.float64):
    """A random model in whose logits <|endoftext|>, EOS, has a bias: its embedding's number 0, as
    the feature that it is multiplied with is always 1. That of the others is 0."""
    config = gpt2.GPT2Config(N_VOCAB, n_ctx, n_embd=16, n_head=2, n_layer=2)
    model = random_model(config, seed, dtype)
    model.ln_f.weight[0], model.ln_f.bias[0] = 0, 1
    model.wte.weight[:, 0] = 0
    model.wte.weight[EOS, 0] = bias
    return model


def random_prefix(config, seed, length=None, hidden=12, form="network", dtype=torch.float64):
    """A prefix with random weights, of length 1 to 6."""
    length = length or random.Random(seed).randint(1, 6)
    return randomise(prefix_module.Prefix(config, length, hidden, form), seed).to(dtype)


def random_past(config, length, batch, seed, dtype=torch.float64):
    """Random keys and values, in the form that `GPT2.forward` takes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (config.n_layer, 2, batch, config.n_head, length, config.head_dim)
    return [(key, value) for key, value in torch.randn(shape, generator=generator, dtype=dtype)]


def random_prompts(seed, n_vocab, lengths):
    """A list of tokens, none of them the last one (<|endoftext|>), for each length."""
    draw = random.Random(seed)
    return [[draw.randrange(n_vocab - 1) for _ in range(length)] for length in lengths]


def random_examples(seed, n_vocab, count=7):
    """Examples as `encode_example` gives them, of random lengths."""
    lengths = random.Random(seed).choices(range(1, 12), k=2 * count)
    tokens = random_prompts(seed, n_vocab, lengths)
    return list(zip(tokens[:count], tokens[count:]))


def rows_seen(model):
    """{name of a module that works on single tokens: how many rows it saw at the last call}."""
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, (gpt2.Affine, gpt2.MLP, nn.LayerNorm)):
            def note(module, inputs, name=name):
                seen[name] = len(inputs[0])
            module.register_forward_pre_hook(note)
    return seen


def dtypes_seen(model):
    """{(whether gradients are wanted, the dtype of a product)} of all calls from here on."""
    seen = set()
    model.h[-1].attn.c_proj.register_forward_hook(
        lambda module, inputs, output: seen.add((torch.is_grad_enabled(), output.dtype)))
    return seen


# --------------------------------------------------------------------------------------------------
# The same by others
# --------------------------------------------------------------------------------------------------


def pad_right(prompts):
    """(tokens int [B, T], mask bool [B, T] that is False on the padding)."""
    rows = [torch.tensor(prompt) for prompt in prompts]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]


def both_logits(model, tokens, mask, past=None):
    """The logits of a padded batch's real tokens: by the plain forward, and by the fast one."""
    places = mask.flatten().nonzero()[:, 0]
    return model(tokens, past)[mask], packed_logits(model, tokens, places, places, past)


def hugging_face_cache(past, batch):
    """Our past as Hugging Face's cache; it knows no sharing among rows, so it is repeated."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (key, value) in enumerate(past):
        key, value = (tensor.expand(batch, -1, -1, -1).clone() for tensor in (key, value))
        cache.update(key, value, layer)
    return cache


def hugging_face_loss(twin, examples):
    """The mean loss over the answers of (prompt, answer), by a model of Hugging Face's or PEFT's.

    They compute their own loss in float32; the same from their float64 logits hides no small
    difference.
    """
    tokens, mask = pad_right([prompt + answer for prompt, answer in examples])
    labels = tokens.masked_fill(~mask, -100)
    for row, (prompt, _) in zip(labels, examples):
        row[: len(prompt)] = -100
    output = twin(input_ids=tokens, attention_mask=mask.long(), labels=labels)
    loss = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert_close(loss, output.loss.double(), 1e-5)
    return loss


def by_pefts_names(prefix):
    """The parameters of a prefix under the names that PEFT's encoder gives them."""
    return {name.replace("networks.0.", "transform."): parameter
            for name, parameter in prefix.named_parameters()}


def assert_close(ours, truth, tolerance=1e-9):
    """Two tensors differ by at most `tolerance`, relative to the truth where that is above 1."""
    assert ours.shape == truth.shape
    worst = ((ours - truth).abs() / truth.abs().clamp(min=1)).max().item()
    assert worst <= tolerance, f"the largest difference is {worst:.3g}"


def assert_same(ours, truth):
    """The same hypotheses in the same order; scores, where the truth has some, to float32's
    rounding, as log-softmax is."""
    for row, true_row in zip(ours, truth, strict=True):
        assert [one.tokens for one in row] == [one.tokens for one in true_row]
        for one, other in zip(row, true_row):
            assert other.score is None or one.score == pytest.approx(other.score, 1e-5, 1e-5)


# --------------------------------------------------------------------------------------------------
# Commands
# --------------------------------------------------------------------------------------------------


def run_python(*arguments, **options):
    """Runs Python in the repository's folder, as a user would; returns the completed process."""
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True,
                          encoding="utf-8", **options)


@functools.cache
def warm_process():
    """The process of tests/warm.py, and a function that gives it a request."""
    process = subprocess.Popen([sys.executable, ROOT / "tests" / "warm.py"], encoding="utf-8",
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(**request):
        print(json.dumps(request), file=process.stdin, flush=True)
        return int(process.stdout.readline())

    return ask


class start_warm:
    """Starts what `run_python` runs, and in the same way, but in a fork of `warm_process`."""

    def __init__(self, *arguments, input="", env=os.environ, cwd=ROOT):
        self.streams = Path(tempfile.mkdtemp())
        for name, text in (("stdin", input), ("stdout", ""), ("stderr", "")):
            (self.streams / name).write_text(text, encoding="utf-8")
        self.pid = warm_process()(arguments=[*map(str, arguments)], env=dict(env), cwd=str(cwd),
                                  streams=str(self.streams))

    def wait(self):
        """Its end, as `run_python` tells it."""
        status = warm_process()(wait=self.pid)
        said = [(self.streams / name).read_text("utf-8") for name in ("stdout", "stderr")]
        shutil.rmtree(self.streams)
        return subprocess.CompletedProcess(self.pid, status, *said)


def run_warm(*arguments, **options):
    return start_warm(*arguments, **options).wait()


def run_here(main, *arguments, stdin=""):
    """Runs a module's main() in this process, which is quicker.

    error is None, or the last line on stderr, or a status that is not 1.
    """
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    error = None
    with (pytest.MonkeyPatch.context() as patched, redirect_stdout(stdout),
          redirect_stderr(stderr)):
        patched.setattr("sys.argv", ["command", *map(str, arguments)])
        stdin = stdin if isinstance(stdin, bytes) else stdin.encode()
        patched.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), "ascii"))
        try:
            run_command(main)
        except SystemExit as ended:
            error = ended.code
    shown = []
    for stream in (stdout, stderr):
        stream.flush()
        shown.append(stream.buffer.getvalue().decode())
    if error == 1:
        error = shown[1].splitlines()[-1]
    return SimpleNamespace(error=error, stdout=shown[0], stderr=shown[1])


def weights_in(path):
    """(tensors as bytes, metadata) of a safetensors file, whose header has no fixed order."""
    with safe_open(path, "np") as file:
        return ({name: file.get_tensor(name).tobytes() for name in file.keys()}, file.metadata())


class Parsed(Exception):
    """Raised once a program's arguments are parsed, so that nothing is run."""


@pytest.fixture
def parse_only(monkeypatch):
    """A function that gives arguments to a module's main(), and asserts that it takes them."""
    for method in ("parse_args", "parse_intermixed_args"):
        def parse(self, *args, original=getattr(argparse.ArgumentParser, method)):
            original(self, *args)
            raise Parsed
        monkeypatch.setattr(argparse.ArgumentParser, method, parse)

    def check(main, *arguments):
        with pytest.raises(Parsed):
            run_here(main, *arguments)

    return check


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """A part of the sample: 60 examples to train on, 8 to validate with, 12 test tables."""
    folder = tmp_path_factory.mktemp("data") / "small"
    folder.mkdir()
    for split, first in (("train", 60), ("valid", 8), ("test", 56)):
        text = (ROOT / "data" / "sample" / f"src1_{split}.txt").read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)[:first]
        (folder / f"src1_{split}.txt").write_text("".join(lines), encoding="utf-8")
    return folder


DECODER = ("--num-beams", 2, "--max-new-tokens", 12)  # quick
SHORT = ("--device", "cpu", *DECODER, "--max-examples", 12, "--batch-size", 2, "--max-steps", 12)


@pytest.fixture(scope="session")
def prefix_run(tmp_path_factory, small_data):
    """(folder, process) of a run of a few steps, in a process of its own."""
    folder = tmp_path_factory.mktemp("runs") / "prefix"
    done = run_warm("train.py", "--mode", "prefix", "--model", "tiny", "--data", small_data,
                    *SHORT, "--prefix-length", 3, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="session")
def finetune_run(tmp_path_factory, small_data):
    """(folder, what came) of a run of a few steps."""
    folder = tmp_path_factory.mktemp("runs") / "finetune"
    done = run_here(train.main, "--mode", "finetune", "--model", "tiny", "--data", small_data,
                    *SHORT, "--out", folder)
    assert done.error is None, done.error
    return folder, done
