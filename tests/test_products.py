"""Products by the faster of PyTorch's libraries equal `F.linear`'s, and stay where promised."""

import json
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import beam
import train
from conftest import model_that_ends, random_prefix
from e2e_data import make_batch
from support import speed

IS_FASTER = speed.products_library() == "oneDNN"
HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")
needs_onednn = pytest.mark.skipif(not HAS_ONEDNN, reason="this PyTorch has no oneDNN for linear")


@pytest.fixture
def on_amd(monkeypatch):
    """As on a processor on which oneDNN is the faster one."""
    monkeypatch.setattr(speed, "products_library", lambda: "oneDNN")


@pytest.fixture
def counted(monkeypatch):
    """The products that oneDNN has computed since the test began: [(x's dtype, its shape)]."""
    seen, multiply = [], speed.multiply

    def watched(x, weight, bias=None):
        seen.append((x.dtype, tuple(x.shape)))
        return multiply(x, weight, bias)

    monkeypatch.setattr(speed, "multiply", watched)
    return seen


def linear_and_gradients(input, weight, bias, transposed, wanted, grad, context):
    """The product of copies, and the gradients of those wanted."""
    copies = [None if x is None else x.detach().clone().requires_grad_(is_wanted)
              for x, is_wanted in zip((input, weight, bias), wanted)]
    with context:
        w = copies[1].T if transposed else copies[1]
        y = F.linear(copies[0], w, copies[2])
    if y.requires_grad:
        y.backward(grad)
    return [y.detach()] + [None if x is None else x.grad for x in copies]


@needs_onednn
@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=0, max_size=2), st.integers(1, 9), st.integers(1, 9),
       st.booleans(), st.booleans(), st.tuples(*[st.booleans()] * 3),
       st.sampled_from(["plain", "expanded", "strided"]), st.integers(0, 99))
def test_products_and_gradients_are_those_of_linear(
        rows, n_in, n_out, transposed, has_bias, wanted, layout, seed):
    torch.manual_seed(seed)
    input, grad = torch.randn(*rows, n_in), torch.randn(*rows, n_out)
    if layout == "expanded":
        input, grad = torch.randn(n_in).expand(*rows, n_in), torch.randn(1).expand(*rows, n_out)
    if layout == "strided" and len(rows) == 2:
        input, grad = (torch.randn(rows[1], rows[0], n).transpose(0, 1) for n in (n_in, n_out))
    weight = torch.randn(n_in, n_out) if transposed else torch.randn(n_out, n_in)
    bias = torch.randn(n_out) if has_bias else None
    tensors = input, weight, bias, grad
    found = linear_and_gradients(input, weight, bias, transposed, wanted, grad,
                                 speed.OneDNNProducts())
    exact = [None if x is None else x.double() for x in tensors]
    truth = linear_and_gradients(*exact[:3], transposed, wanted, exact[3],
                                 nullcontext())
    for ours, theirs in zip(found, truth, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == torch.float32 and ours.shape == theirs.shape
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("transposed", [False, True])
def test_a_weights_gradient_has_the_layout_that_autograd_need_not_copy(transposed):
    weight = torch.randn(7, 5, requires_grad=True)
    seen, strides = weight.T if transposed else weight, []
    seen.register_hook(lambda gradient: strides.append(gradient.stride()))
    with speed.OneDNNProducts():
        y = F.linear(torch.randn(3, seen.shape[1]), seen)
    y.backward(torch.randn_like(y))
    assert strides == [seen.stride()]


@needs_onednn
def test_float64_float16_autocast_and_other_devices_never_meet_onednn(counted):
    weight = torch.randn(4, 8)
    with speed.OneDNNProducts():
        F.linear(torch.randn(3, 8).double(), weight.double())
        F.linear(torch.randn(3, 8).bfloat16(), weight.bfloat16())
        F.linear(torch.randn(3, 8).half(), weight.half())
        F.linear(torch.randn(3, 8, device="meta"), weight.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            F.linear(torch.randn(3, 8), weight)
        assert counted == []
        F.linear(torch.randn(3, 8), weight)
    assert counted == [(torch.float32, (3, 8))]


@needs_onednn
@pytest.mark.parametrize("has_prefix", [True, False])
def test_a_training_step_a_validation_and_a_search_take_the_faster_products(on_amd, counted,
                                                                            has_prefix):
    model = model_that_ends(0, dtype=torch.float32)
    prefix = random_prefix(model.config, 0, 2, dtype=torch.float32) if has_prefix else None
    model.requires_grad_(not has_prefix)
    trained, example = prefix or model, ([1, 2, 3], [4, 5])
    # Four products in each block, the head's and, of a network that makes a prefix, two.
    forward = 4 * model.config.n_layer + 1 + 2 * has_prefix
    train.validation_loss(model, prefix, [example])
    assert len(counted) == forward
    counted.clear()
    train.train_step(model, prefix, make_batch([example]), *train.make_optimizer(trained, 1e-3, 9))
    # Backward one for each input, but not for the frozen embedding's, and one for each weight that
    # is trained: with a prefix the two of its network.
    assert len(counted) == (2 * forward + 1 if has_prefix else 3 * forward)
    counted.clear()
    beam.beam_search(model, [[1, 2, 3]], num_beams=2, max_new_tokens=1)
    assert len(counted) == 4 * model.config.n_layer + 1


@pytest.mark.skipif(not IS_FASTER, reason="this processor has no faster products: not AMD's with "
                    "AVX-512")
def test_on_such_a_processor_they_are_in_force(counted):
    beam.beam_search(model_that_ends(0, dtype=torch.float32), [[1, 2, 3]], num_beams=2,
                     max_new_tokens=1)
    assert counted


@pytest.mark.parametrize("cpuinfo, capability, library", [
    ("vendor_id : AuthenticAMD", "AVX512", "oneDNN"),
    ("vendor_id : AuthenticAMD", "AVX2", "PyTorch's choice"),
    ("vendor_id : GenuineIntel", "AVX512", "PyTorch's choice")])
def test_processor_and_version_alone_choose_the_library(monkeypatch, tmp_path, cpuinfo, capability,
                                                        library):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(speed, "Path", lambda name: tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    if HAS_ONEDNN:
        assert speed.products_library.__wrapped__() == library

    def refuse(*args):
        raise RuntimeError("not built with oneDNN")

    monkeypatch.setattr(speed, "multiply", refuse)
    assert speed.products_library.__wrapped__() == "PyTorch's choice"


def test_scores_say_which_products_were_used(prefix_run):
    folder, _ = prefix_run
    signature = json.loads((folder / "scores.json").read_text())["signature"]
    assert signature["versions"]["products"] == speed.products_library()
